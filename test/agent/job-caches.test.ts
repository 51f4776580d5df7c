import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { isOfDefaultBranch } from "../../agent/default-branch.ts";
import { executeJob, type JobOptions, StagedCaches } from "../../agent/index.ts";
import { DEFAULTS, type JobSpec, type StepSpec } from "../../pipelines/index.ts";
import { Host } from "../../runtime/index.ts";
import { needRight } from "../runtime/host-rights.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { temporaryDir } from "./git-fixture.ts";

const dir = temporaryDir();
let host: Host;
let caches: StagedCaches;
let told: string[] = [];
let count = 0;
let namespace = "";

describe.skipIf(!isRoot)("cache: {containers: NAME}", () => {
  beforeAll(async () => {
    host = await Host.open({ stateDir: join(dir.path, "state"), containerCacheBytes: 8 << 20 });
    caches = new StagedCaches({ host, onProblem: ({ message }) => told.push(message) });
  });
  afterAll(async () => {
    await caches[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
    dir[Symbol.dispose]();
  });
  beforeEach((context) => {
    needRight("idmapped mounts of the machine's files", context);
    namespace = `repository ${++count}`;
    told = [];
  });

  afterEach(() => {
    const left = readdirSync(host.keptDir);
    if (left.length > 0) throw new Error(`left behind: ${left.join(", ")}`);
  });

  /** Runs scripts as the steps of a job, all with the same cache. */
  async function runJob(
    scripts: readonly string[],
    options: Partial<JobOptions> & {
      readonly mayKeep?: boolean;
      readonly name?: string;
      readonly build?: number;
    } = {},
  ) {
    const { mayKeep = true, name = "images", build = 1, ...rest } = options;
    const attemptId = `attempt ${++count}`;
    const workspace = join(dir.path, `workspace-${++count}`);
    mkdirSync(workspace);
    const lines: string[] = [];
    const problems: string[] = [];
    const step = {
      image: "host",
      env: {},
      timeoutMs: 60_000,
      resources: { ...DEFAULTS.resources, cpu: 1, memoryBytes: 256 << 20, pids: 64 },
      network: "none",
      allowFailure: false,
      nested: true,
      containerCache: name,
    } as const;
    const job: JobSpec = {
      name: "job",
      needs: [],
      timeoutMs: 60_000,
      pool: "default",
      steps: scripts.map((script, i): StepSpec => ({ ...step, name: `step ${i}`, run: script })),
    };
    const result = await executeJob(job, {
      host,
      id: `caches-test-${process.pid}-${count}`,
      workspace: { dir: workspace },
      variables: {},
      cachePolicy: {
        namespace,
        mayKeep: () => Promise.resolve(mayKeep),
        leave: (left) => caches.add({ ...left, attemptId, buildId: `${namespace} ${build}`, buildNumber: build }),
      },
      reporter: {
        stepOutput: (_, stream, bytes) =>
          lines.push(...(stream === 1 || stream === 2 ? Buffer.from(bytes).toString().trim().split("\n") : [])),
        problem: (error) => problems.push(error.message),
      },
      ...rest,
    });
    return { status: result.status, lines, problems, attemptId };
  }

  /** A job that is a whole build. */
  async function run(scripts: readonly string[], options: Parameters<typeof runJob>[1] = {}) {
    const { attemptId, problems, ...ended } = await runJob(scripts, options);
    await caches.end(attemptId, { succeeded: ended.status === "success" });
    return { ...ended, problems: [...problems, ...told.splice(0)] };
  }

  const write = (word: string) => `echo ${word} > /var/lib/containers/word`;
  const read = "cat /var/lib/containers/word 2>/dev/null || echo none";

  test("gives what the last good job of the default branch left, whatever the ids", async () => {
    const made = `${write("first")}
      cd /var/lib/docker && mkdir -m 750 d && echo x > d/f && chown 1000:70000 d/f && chmod 4755 d/f && ln d/f g
      mkdir l u w m && echo lower > l/a && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m && rm m/a && echo up > m/b`;
    expect(await run([made, read])).toMatchObject({ status: "success", lines: ["first"] });
    // Another range of ids.
    using _range = host.claimUidRange();
    const look = "cd /var/lib/docker && stat -c '%a %u:%g %h' d d/f && stat -c '%F %t:%T' u/a && cat u/b";
    const { lines } = await run([read, look]);
    expect(lines).toEqual(["first", "750 0:0 2", "4755 1000:70000 2", "character special file 0:0", "up"]);
  });

  test("shows other branches a copy, and nobody else's name or repository", async () => {
    await run([write("main")]);
    expect(await run([read, write("branch"), read], { mayKeep: false })).toMatchObject({ lines: ["main", "branch"] });
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["main"] });
    expect(await run([read], { name: "other" })).toMatchObject({ lines: ["none"] });
    namespace = "another repository";
    expect(await run([read])).toMatchObject({ lines: ["none"] });
  });

  test("keeps nothing of a job that fails, or is too large", async () => {
    await run([write("good")]);
    expect(await run([write("bad"), "false"])).toMatchObject({ status: "failure" });
    const large = `${write("large")}; dd if=/dev/zero of=/var/lib/containers/large bs=1M count=9 2>/dev/null`;
    expect(await run([large])).toMatchObject({ status: "success", problems: [/is not kept: it has 9 MiB/] });
    expect(await run([read])).toMatchObject({ lines: ["good"] });
  });

  test("keeps what a job has left when its build has succeeded, and nothing of a build that has not", async () => {
    await run([write("good")]);
    const first = await runJob([write("first")], { build: 2 });
    expect(await run([read], { build: 3, mayKeep: false })).toMatchObject({ lines: ["good"] });
    expect(caches.has(first.attemptId)).toBe(true);
    await caches.end(first.attemptId, { succeeded: false });
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["good"] });
    const second = await runJob([write("second")], { build: 4 });
    await caches.end(second.attemptId, { succeeded: true });
    expect(caches.has(second.attemptId)).toBe(false);
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["second"], problems: [] });
  });

  test("keeps of a build's jobs what the last one has left, and of builds what the latest", async () => {
    const jobs = [await runJob([write("one")], { build: 5 }), await runJob([write("two")], { build: 5 })];
    for (const { attemptId } of jobs) await caches.end(attemptId, { succeeded: true });
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["two"] });
    const older = await runJob([read, write("older")], { build: 6 });
    await run([write("newer")], { build: 7 });
    await caches.end(older.attemptId, { succeeded: true });
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["newer"], problems: [] });
  });

  test("holds for builds that run no more than what caches may have, the latest", async () => {
    const fill = (word: string) =>
      `${write(word)}; dd if=/dev/zero of=/var/lib/containers/file bs=1M count=5 2>/dev/null`;
    const jobs = [await runJob([fill("a")], { build: 8 }), await runJob([fill("b")], { build: 9, name: "other" })];
    expect(told).toEqual([expect.stringMatching(/"images" is not kept: newer ones need the room/)]);
    for (const { attemptId } of jobs) await caches.end(attemptId, { succeeded: true });
    expect(await run([read], { mayKeep: false })).toMatchObject({ lines: ["none"] });
    expect(await run([read], { mayKeep: false, name: "other" })).toMatchObject({ lines: ["b"] });
  });

  test("makes room for what is used, and a sweep removes what was not finished", async () => {
    const fill = "dd if=/dev/zero of=/var/lib/containers/file bs=1M count=3 2>/dev/null";
    for (const name of ["a", "b", "a", "c"]) await run([fill], { name });
    const kept = await host.containerCaches.list();
    const names = kept.filter((cache) => cache.namespace === namespace).map(({ name }) => name);
    expect(names.toSorted()).toEqual(["a", "c"]);
    const [directory = ""] = readdirSync(join(dir.path, "state/container-caches")).filter((name) => name !== "tmp");
    mkdirSync(join(dir.path, "state/container-caches", directory, "unfinished"));
    await host.containerCaches.sweep();
    expect(readdirSync(join(dir.path, "state/container-caches/tmp"))).toEqual([]);
    expect(readdirSync(join(dir.path, "state/container-caches", directory))).not.toContain("unfinished");
    expect(await host.containerCaches.remove({ namespace, name: "c" })).toBe(true);
    expect(await host.containerCaches.remove({ namespace, name: "c" })).toBe(false);
    expect(await run([read], { name: "c" })).toMatchObject({ lines: ["none"] });
  });
});

test("isOfDefaultBranch asks the repository, and says no for whatever a stranger may have made", async () => {
  using place = temporaryDir();
  const git = (...args: readonly string[]) =>
    execFileSync("git", ["-C", place.path, "-c", "user.name=t", "-c", "user.email=t@t", ...args], { stdio: "ignore" });
  git("init", "--initial-branch=trunk");
  git("commit", "--allow-empty", "-m", "one");
  git("branch", "side");
  const repository = { id: "1", name: "t", cloneUrl: place.path };
  const build = { id: "1", number: 1, event: "push", ref: "refs/heads/trunk", commit: "", branch: "trunk" } as const;
  const ask = async (more: object) => {
    const claimed = { build: { ...build, ...more }, repository } as Parameters<typeof isOfDefaultBranch>[0];
    return await isOfDefaultBranch(claimed, { directory: place.path });
  };
  expect(await ask({})).toBe(true);
  expect(await ask({ event: "manual" })).toBe(true);
  expect(await ask({ branch: "side" })).toBe(false);
  expect(await ask({ branch: undefined })).toBe(false);
  expect(await ask({ untrusted: true })).toBe(false);
  expect(await ask({ event: "pull_request" })).toBe(false);
  expect(await ask({ pullRequest: { number: 1, fromFork: false } })).toBe(false);
});
