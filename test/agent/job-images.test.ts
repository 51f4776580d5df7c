import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { executeJob, type JobOptions, sharedPins } from "../../agent/index.ts";
import { DEFAULTS, type JobSpec, type StepSpec } from "../../pipelines/index.ts";
import { Host, RegistryClient } from "../../runtime/index.ts";
import { needRight } from "../runtime/host-rights.ts";
import { ScriptedRegistry } from "../runtime/registry-fixture.ts";
import { shellLayer } from "../runtime/shell-layer.ts";
import { tarArchive } from "../runtime/tar-archive.ts";
import { temporaryDir } from "./git-fixture.ts";

const dir = temporaryDir();
const client = new RegistryClient({}, { retryBaseMs: 1, attempts: 2 });
let host: Host;
let registry: ScriptedRegistry;
let count = 0;

const shell = gzipped(shellLayer());

function gzipped(tar: Buffer) {
  return { tar, blob: gzipSync(tar, { level: 1 }), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
}

function fileLayer(name: string, content: string) {
  return gzipped(tarArchive([{ name, content }]));
}

beforeAll(async () => {
  host = await Host.open({ stateDir: join(dir.path, "state"), imageStoreDir: join(dir.path, "images") });
  registry = await ScriptedRegistry.start();
});
afterAll(async () => {
  client[Symbol.dispose]();
  await registry[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  dir[Symbol.dispose]();
});

async function run(
  steps: readonly (Partial<StepSpec> & { readonly run: string })[],
  options: Partial<JobOptions> = {},
) {
  const workspace = join(dir.path, `workspace-${count}`);
  mkdirSync(workspace);
  const lines: string[] = [];
  const resources = { ...DEFAULTS.resources, cpu: 1, memoryBytes: 256 * 1024 * 1024, pids: 64 };
  const job: JobSpec = {
    name: "job",
    needs: [],
    timeoutMs: 60_000,
    pool: "default",
    steps: steps.map((step, i) => ({
      name: `step ${i}`,
      image: `${registry.host}/t:1`,
      env: {},
      timeoutMs: 60_000,
      resources,
      network: "none",
      allowFailure: false,
      ...step,
    })),
  };
  const result = await executeJob(job, {
    host,
    id: `images-test-${process.pid}-${count++}`,
    workspace: { dir: workspace },
    variables: {},
    registry: client,
    reporter: {
      stepOutput: (index, stream, bytes) => lines.push(`${index}.${stream} ${Buffer.from(bytes).toString().trim()}`),
    },
    ...options,
  });
  return { ...result, output: lines.join("\n") };
}

describe("a step in an image of a registry", () => {
  test("runs with its files and environment; the log says which image it is", async () => {
    const digest = registry.add("1", [shell, fileLayer("etc/word", "of the image")], {
      config: { config: { Env: ["A=image", "B=image"] } },
    });
    const result = await run([{ run: 'echo "$(cat /etc/word) $A $B"', env: { B: "pipeline" } }, { run: "true" }]);
    expect(result).toMatchObject({ status: "success" });
    expect(result.output).toMatch(new RegExp(`^0.0 .*image ${registry.host}/t:1 is ${digest}: pulled .* in`));
    expect(result.output).toContain("0.1 of the image image pipeline");
    expect(result.output).not.toMatch(/^1\.0 /m);
    const again = await run([{ run: "true" }]);
    expect(again.output).toMatch(new RegExp(`is ${digest}: in the store$`));
  });

  test("stays the same for all jobs of a build, although the tag moves", async () => {
    const pins = sharedPins();
    registry.add("moving", [shell, fileLayer("etc/word", "first")]);
    const step = { image: `${registry.host}/t:moving`, run: "cat /etc/word" };
    expect((await run([step], { pins })).output).toContain("0.1 first");
    registry.add("moving", [shell, fileLayer("etc/word", "second")]);
    registry.requests.length = 0;
    expect((await run([step, { ...step, pull: "always" }], { pins })).output).toMatch(/0.1 first[^]*1.1 first/);
    expect(registry.requests).toEqual([]);
    expect((await run([step])).output).toContain("0.1 second");
  });

  test("fails where there is none, or none to be had", async () => {
    expect(await run([{ image: `${registry.host}/none:0`, run: "true" }])).toMatchObject({
      status: "failure",
      reason: expect.stringMatching(/Cannot use the image ".*\/none:0": registry ".*" does not have it in "none"/),
      steps: [{ status: "failure", exitCode: 127 }],
    });
    expect(await run([{ image: `${registry.host}/none:0`, pull: "never", run: "true" }])).toMatchObject({
      status: "failure",
      reason: expect.stringContaining("is not in the store of this agent, and pull is never"),
    });
  });

  test("is our error where the registry cannot be reached, unless an earlier image will do", async () => {
    const away = await ScriptedRegistry.start();
    const image = `${away.host}/t:1`;
    away.add("1", [shell]);
    expect(await run([{ image, run: "true" }])).toMatchObject({ status: "success" });
    await away[Symbol.asyncDispose]();
    const kept = await run([{ image, run: "true" }]);
    expect(kept).toMatchObject({ status: "success" });
    expect(kept.output).toContain("refuses the connection; using what was pulled earlier");
    expect(await run([{ image, pull: "missing", run: "true" }])).toMatchObject({ status: "success" });
    expect(await run([{ image, pull: "always", run: "true" }])).toMatchObject({
      status: "error",
      reason: expect.stringContaining("refuses the connection"),
    });
    expect(await run([{ image: `${away.host}/other`, run: "true" }])).toMatchObject({ status: "error" });
  });
});

describe("a step in an image with a USER", () => {
  const asUser = (User: string) => ({
    config: { config: { User, WorkingDir: "/srv", Entrypoint: ["/none"], Cmd: ["x"] } },
  });
  const script = 'echo "$(id -u):$(id -g):$(id -G) $HOME $PWD"; touch mine; stat -c %u:%g . mine';

  test.for([
    ["ada", "1234:1235:1235 10 /home/ada /workspace"],
    ["1234", "1234:1235:1235 10 /home/ada /workspace"],
    ["ada:wheel", "1234:10:10 /home/ada /workspace"],
    ["70000:70001", "70000:70001:70001 / /workspace"],
    ["root", "0:0:0 /root /workspace"],
  ])("%s runs as that, in a workspace of its own", async ([user, expected], context) => {
    if (user !== "root") needRight("idmapped mounts of the machine's files", context);
    registry.add("user", [shell], asUser(user as string));
    const { status, output } = await run([{ image: `${registry.host}/t:user`, run: script }]);
    const ids = (expected as string).split(":").slice(0, 2).join(":");
    const lines = output.split("\n").map((line) => line.replace(/^0\.1 /, ""));
    expect(lines.slice(1)).toEqual([expected, ids, ids]);
    expect(status).toBe("success");
  });

  test.for([{ copyOnWrite: true }, { copyOnWrite: false }])(
    "shares the workspace with steps of other users, each its owner: %o",
    async ({ copyOnWrite }, context) => {
      needRight("idmapped mounts of the machine's files", context);
      registry.add("ada", [shell], asUser("ada"));
      registry.add("other", [shell], asUser("4321:4322"));
      const dirOf = join(dir.path, `shared-${copyOnWrite}`);
      mkdirSync(dirOf);
      writeFileSync(join(dirOf, "committed"), "");
      const check = 'stat -c "%n %u:%g" *; touch "by-$(id -u)"; echo x >> committed';
      const { status, output } = await run(
        ["host", `${registry.host}/t:ada`, `${registry.host}/t:other`, "host"].map((image) => ({ image, run: check })),
        { workspace: { dir: dirOf, copyOnWrite } },
      );
      expect(status).toBe("success");
      const last = output
        .split("\n")
        .filter((line) => line.startsWith("3.1") || !/^\d/.test(line))
        .slice(-4);
      expect(last.map((line) => line.replace(/^3\.1 /, ""))).toEqual([
        "by-0 0:0",
        "by-1234 0:0",
        "by-4321 0:0",
        "committed 0:0",
      ]);
      expect(output).toMatch(/committed 1234:1235[^]*committed 4321:4322/);
      expect(readFileSync(join(dirOf, "committed"), "utf8")).toBe(copyOnWrite ? "" : "x\n".repeat(4));
    },
  );

  test("fails where the image has no such user, whatever its links say", async () => {
    registry.add("nobody", [shell], asUser("mallory"));
    expect(await run([{ image: `${registry.host}/t:nobody`, run: "true" }])).toMatchObject({
      status: "failure",
      reason: expect.stringContaining(
        'its USER is "mallory", but there is no user "mallory" in /etc/passwd of the image',
      ),
    });
    writeFileSync(join(dir.path, "passwd"), "mallory:x:1:1::/:/bin/sh\n");
    // One leads to a file of the host, the other to itself.
    for (const linkName of [`../../../../../../${join(dir.path, "passwd")}`, "../../../../../../etc/passwd"]) {
      registry.add(
        "link",
        [shell, gzipped(tarArchive([{ name: "etc/passwd", type: "2", linkName }]))],
        asUser("mallory"),
      );
      expect(await run([{ image: `${registry.host}/t:link`, run: "true" }])).toMatchObject({ status: "failure" });
    }
  });
});
