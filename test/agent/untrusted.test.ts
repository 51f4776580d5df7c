import { describe, expect, test } from "vitest";
import { defaultUntrustedPolicy, type UntrustedPolicy } from "../../agent/index.ts";
import { limitUntrusted, refuseUntrusted } from "../../agent/untrusted.ts";
import { type JobSpec, parsePipeline } from "../../pipelines/index.ts";

function parse(job: string): JobSpec {
  return parsePipeline(`jobs: { job: ${job} }`).pipeline?.jobs[0] as JobSpec;
}

describe("limitUntrusted", () => {
  const policy: UntrustedPolicy = {
    ceiling: { cpu: 1, memoryBytes: 2 ** 30, logBytes: 2 ** 20 },
    timeoutMs: 60_000,
    privateNetworks: false,
    privateImages: false,
    keepsFailed: false,
  };

  test("lowers steps, services and the job, and raises nothing", () => {
    const job = parse(`{
      timeout: 2h,
      services: { db: { run: x, resources: { memory: 8GiB, cpu: 0.5 } } },
      steps: [ { run: x, timeout: 1h, resources: { memory: 512MiB, cpu: 4 } } ]
    }`);
    const limited = limitUntrusted(job, policy);
    expect(limited.timeoutMs).toBe(60_000);
    expect(limited.steps[0]).toMatchObject({
      timeoutMs: 60_000,
      resources: { cpu: 1, memoryBytes: 512 * 2 ** 20, logBytes: 2 ** 20, pids: job.steps[0]?.resources.pids },
    });
    expect(limited.services?.[0]?.resources).toMatchObject({ cpu: 0.5, memoryBytes: 2 ** 30, logBytes: 2 ** 20 });
  });

  test("has a default for every limit", () => {
    const { resources } = limitUntrusted(parse("{ steps: [x] }"), defaultUntrustedPolicy).steps[0] ?? {};
    expect(resources).toEqual(defaultUntrustedPolicy.ceiling);
  });
});

describe("refuseUntrusted", () => {
  test("names the step that wants a right, and what to do", () => {
    expect(refuseUntrusted(parse(`{ steps: [x, { name: upload, run: x, network: host }] }`))).toBe(
      '"upload" wants network: host, which commits of strangers do not get; push the branch to this repository to run it',
    );
  });

  test("refuses rights that no step has yet, and says nothing of others", () => {
    const job = parse("{ steps: [x] }");
    const with_ = (more: object) => refuseUntrusted({ ...job, steps: job.steps.map((step) => ({ ...step, ...more })) });
    expect(with_({ nested: true })).toContain('"x" wants nested');
    expect(with_({ secrets: ["TOKEN"] })).toContain('"x" wants secrets');
    for (const more of [{ nested: false }, { secrets: [] }, { secrets: {} }, { network: { allow: [] } }, {}]) {
      expect(with_(more)).toBeUndefined();
    }
  });
});
