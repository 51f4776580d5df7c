import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Host } from "../../runtime/index.ts";
import { needRight } from "../runtime/host-rights.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { Harness, type TestRepository, until } from "../server/harness.ts";
import { accessOf, TestAgents } from "./test-agents.ts";

let harness: Harness;
let host: Host;
let repository: TestRepository;
let agents: TestAgents;

/** The agent has the first job, the test has the last one, and with it the build's end. */
const pipeline = (word: string) => `
on: push
jobs:
  first:
    steps:
      - run: echo ${word} > /var/lib/containers/word
        image: host
        network: none
        nested: true
        cache: { containers: images }
  last:
    needs: first
    pool: by-hand
    steps: ["true"]
`;

describe.skipIf(!isRoot)("what a job has left for later builds", () => {
  beforeAll(async () => {
    harness = await Harness.start({ leaseMs: 5_000 });
    agents = await TestAgents.open(join(harness.dir, "agent"));
    ({ host } = agents);
  });
  beforeEach(async (context) => {
    needRight("idmapped mounts of the machine's files", context);
    repository = await harness.repository();
    await agents.start(accessOf(harness));
  });
  afterEach(async () => {
    await agents.stop();
    if (waiting().length > 0) throw new Error(`left behind: ${waiting().join(", ")}`);
  });
  afterAll(async () => {
    await agents[Symbol.asyncDispose]();
    await harness[Symbol.asyncDispose]();
  });

  /** A build whose first job has succeeded, and whose last one is the test's. */
  async function halfDone(word: string) {
    const { id } = await repository.push(pipeline(word));
    const last = await harness.claim("by-hand");
    const { jobs } = await harness.build(id);
    expect(jobs[0]).toMatchObject({ name: "first", status: "success" });
    expect(waiting()).toHaveLength(1);
    return { id, last };
  }

  const waiting = () => (existsSync(host.keptDir) ? readdirSync(host.keptDir) : []);
  const kept = async () => {
    const caches = await host.containerCaches.list();
    return caches.filter(({ namespace }) => namespace === `repository ${repository.id}`).map(({ name }) => name);
  };

  test("is kept when all of its build has succeeded, not before", async () => {
    const { last } = await halfDone("good");
    expect(await kept()).toEqual([]);
    await last.succeed();
    await until(async () => (await kept()).length > 0);
    expect(await kept()).toEqual(["images"]);
    await until(() => waiting().length === 0);
  });

  test("is removed when another job of its build has failed", async () => {
    const { last } = await halfDone("bad");
    await last.finish({ status: "failure" });
    await until(() => waiting().length === 0);
    expect(await kept()).toEqual([]);
  });

  test("is removed when its build is canceled", async () => {
    const { id, last } = await halfDone("canceled");
    await harness.call("POST", `/api/builds/${id}/cancel`);
    await last.finish({ status: "canceled" });
    await until(() => waiting().length === 0);
    expect(await kept()).toEqual([]);
  });

  test("is removed when its agent stops before the build has ended", async () => {
    const { id, last } = await halfDone("stopped");
    await agents.stop();
    expect(waiting()).toEqual([]);
    await last.succeed();
    expect(await harness.finished(id)).toMatchObject({ status: "success" });
    expect(await kept()).toEqual([]);
  });
});
