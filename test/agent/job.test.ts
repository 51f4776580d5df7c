import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { executeJob, type JobOptions, type JobResult, type StepResult } from "../../agent/index.ts";
import { DEFAULTS, type JobSpec, type StepSpec } from "../../pipelines/index.ts";
import { Host } from "../../runtime/index.ts";
import { temporaryDir } from "./git-fixture.ts";

let dir: ReturnType<typeof temporaryDir>;
let host: Host;
let workspace: string;
let count = 0;

beforeAll(async () => {
  dir = temporaryDir();
  host = await Host.open({ stateDir: join(dir.path, "state") });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  dir[Symbol.dispose]();
});
beforeEach(() => {
  workspace = join(dir.path, `workspace-${count++}`);
  mkdirSync(workspace);
});

function step(run: string, options: Partial<StepSpec> = {}): StepSpec {
  return {
    name: "a step",
    run,
    image: "host",
    env: {},
    timeoutMs: 60_000,
    resources: { ...DEFAULTS.resources, cpu: 1, memoryBytes: 256 * 1024 * 1024, pids: 64 },
    network: "none",
    allowFailure: false,
    ...options,
  };
}

interface Run extends JobResult {
  /** `index.stream text` for each run of output of one stream, in order. */
  readonly output: string;
  /** What the reporter was told. */
  readonly events: readonly string[];
}

async function run(
  steps: readonly StepSpec[],
  options: Partial<JobOptions> & { timeoutMs?: number } = {},
): Promise<Run> {
  const events: string[] = [];
  let output = "";
  let last = "";
  const { timeoutMs = 60_000, ...rest } = options;
  const job: JobSpec = { name: "job", needs: [], timeoutMs, pool: "default", steps };
  const result = await executeJob(job, {
    host,
    id: `job-test-${process.pid}-${count++}`,
    workspace: { dir: workspace },
    variables: {},
    reporter: {
      stepStarted: (index) => events.push(`start ${index}`),
      stepOutput: (index, stream, bytes) => {
        // However many writes a program makes of it.
        const source = `${index}.${stream} `;
        if (source !== last) output += source;
        last = source;
        output += Buffer.from(bytes).toString();
      },
      stepFinished: (index, { status }) => events.push(`${status} ${index}`),
      problem: (error) => events.push(`problem ${error.message}`),
    },
    ...rest,
  });
  return { ...result, output, events };
}

function statuses({ steps }: JobResult): string[] {
  return steps.map(({ status }: StepResult) => status);
}

describe("executeJob", () => {
  test("runs steps in order in one workspace, each in a fresh container", async () => {
    const result = await run([step("echo one > file; touch /gone"), step("cat file; test ! -e /gone")]);
    expect(result).toMatchObject({ status: "success", output: "1.1 one\n" });
    expect(result.events).toEqual(["start 0", "success 0", "start 1", "success 1"]);
    expect(result.steps[1]?.usage?.cpuTimeMs).toBeGreaterThan(0);
    expect(result.steps[1]?.finishedAtMs).toBeGreaterThanOrEqual(result.steps[0]?.finishedAtMs ?? Infinity);
  });

  test("starts the next step at once, and reports it only after the one before", async () => {
    const told: string[] = [];
    const result = await run(
      Array.from({ length: 8 }, (_, i) => step(`echo ${i}; sleep 0.05`)),
      {
        reporter: {
          stepStarted: (index) => told.push(`start ${index}`),
          stepOutput: (index, _, bytes) => told.push(`output ${index} ${Buffer.from(bytes).toString().trim()}`),
          stepFinished: (index) => told.push(`end ${index}`),
        },
      },
    );
    expect(told).toEqual(result.steps.flatMap((_, i) => [`start ${i}`, `output ${i} ${i}`, `end ${i}`]));
  });

  test("starts the next step when nothing of the one before can write any more", async () => {
    const write = "while :; do cat /proc/uptime > file; done";
    const result = await run([
      step(`(${write}) & (trap '' TERM HUP; exec setsid sh -c '${write}') & until [ -s file ]; do :; done; sleep 0.2`),
      step("cp file before; sleep 0.2; cmp file before && echo unchanged"),
    ]);
    expect(result.output).toBe("1.1 unchanged\n");
  });

  test("creates the next steps' containers while its workspace is being filled, and removes those that are not used", async () => {
    await using own = await Host.open({ stateDir: join(dir.path, "own") });
    // Where the kernel tells an unchanged root file system from another, it has a directory of its own.
    const containers = () => ["containers", "roots"].flatMap((name) => readdirSync(join(own.stateDir, name))).length;
    const { promise: ready, resolve: isReady } = Promise.withResolvers<void>();
    const running = run(
      ["cat file", "exit 3", "true", "true", "true", "true"].map((script) => step(script)),
      { host: own, workspace: { dir: workspace, ready } },
    );
    // As many as may wait.
    while (containers() < 4) await delay(5);
    writeFileSync(join(workspace, "file"), "from the clone");
    isReady();
    const result = await running;
    expect(statuses(result)).toEqual(["success", "failure", "skipped", "skipped", "skipped", "skipped"]);
    expect(result.output).toBe("0.1 from the clone");
    expect(result.events.filter((event) => event.startsWith("problem"))).toEqual([]);
  });

  test("gives a step the pipeline's environment and the documented variables, nothing of the agent's", async () => {
    process.env["AGENT_SECRET"] = "must not leak";
    const env = { FROM_PIPELINE: "1", SLIPWAY_STEP: "forged", CI: "yes" };
    const result = await run([step("env", { env })], { variables: { SLIPWAY_COMMIT: "abc" } });
    const lines = result.output.replace("0.1 ", "").trim().split("\n");
    expect(lines.sort()).toEqual([
      "CI=yes",
      "FROM_PIPELINE=1",
      "HOME=/root",
      "LANG=C.UTF-8",
      expect.stringMatching(/^PATH=.*\/usr\/bin/),
      "PWD=/workspace",
      "SLIPWAY=true",
      "SLIPWAY_COMMIT=abc",
      "SLIPWAY_STEP=a step",
      "SLIPWAY_WORKSPACE=/workspace",
    ]);
  });

  test("ends with the first failing step, with its exit code, and skips the rest", async () => {
    const result = await run([step("true"), step("exit 7", { name: "build" }), step("true"), step("true")]);
    expect(statuses(result)).toEqual(["success", "failure", "skipped", "skipped"]);
    expect(result.steps[1]).toMatchObject({ exitCode: 7, reason: "exit code 7" });
    expect(result).toMatchObject({ status: "failure", reason: 'step "build" failed: exit code 7' });
    expect(result.events).toEqual(["start 0", "success 0", "start 1", "failure 1", "skipped 2", "skipped 3"]);
  });

  test("goes on after a step that may fail", async () => {
    const result = await run([step("exit 3", { allowFailure: true }), step("true")]);
    expect(result.status).toBe("success");
    expect(result.steps[0]).toMatchObject({ status: "failure", exitCode: 3, allowedFailure: true });
  });

  test("stops at the first failing command, and takes a script that begins with a dash for a script", async () => {
    expect((await run([step("false; echo not reached")])).output).toBe("");
    const result = await run([step("-x; echo not reached", { name: "dash" })]);
    expect(result.output).toMatch(/^0\.2 dash: .*-x: not found\n$/);
    expect(result.steps[0]?.exitCode).toBe(127);
  });

  test("says what ended a step that did not exit by itself", async () => {
    const killed = await run([step("kill -SEGV $$")]);
    expect(killed.steps[0]).toMatchObject({ status: "failure", exitCode: 139, signal: "SIGSEGV" });
    const late = await run([step("sleep 60", { timeoutMs: 200 })]);
    expect(late.steps[0]?.status).toBe("failure");
    expect(late.output).toMatch(/^0\.0 .*(?:time|200 ms|0\.2 s)/);
  });

  test("a missing image is the step's failure, told in its log", async () => {
    const result = await run([step("echo first"), step("true", { image: "./none" }), step("true")]);
    expect(statuses(result)).toEqual(["success", "failure", "skipped"]);
    expect(result.steps[1]?.exitCode).toBe(127);
    expect(result.output).toMatch(/1\.0 .*\.\/none/);
  });

  test("an image without a shell is the step's failure", async () => {
    mkdirSync(join(workspace, "image/bin"), { recursive: true });
    const missing = await run([step("true", { image: "./image" })]);
    expect(missing.steps[0]).toMatchObject({ status: "failure", exitCode: 127 });
    writeFileSync(join(workspace, "image/bin/sh"), "no program");
    chmodSync(join(workspace, "image/bin/sh"), 0o755);
    const broken = await run([step("true", { image: "./image" })]);
    expect(broken.steps[0]).toMatchObject({ status: "failure", exitCode: 126 });
    expect(broken.output).toMatch(/0\.0 .*\/bin\/sh/);
  });

  test("uses an image that an earlier step of the job has made", async () => {
    mkdirSync(join(workspace, "tools"));
    copyFileSync(realpathSync("/bin/sh"), join(workspace, "tools/sh"));
    const script = `mkdir -p image/bin image/lib image/lib64 && cp tools/sh image/bin/sh
      for file in $(ldd tools/sh | grep -o '/[^ ]*'); do mkdir -p "image$(dirname $file)"; cp "$file" "image$file"; done`;
    const result = await run([step(script), step("echo inside", { image: "./image" })]);
    expect(result.output).toContain("1.1 inside\n");
    expect(result.status).toBe("success");
  });

  test("a job's time limit stops the step and fails the job", async () => {
    const result = await run([step("echo started; sleep 60"), step("true")], { timeoutMs: 2000 });
    expect(statuses(result)).toEqual(["failure", "skipped"]);
    expect(result).toMatchObject({ status: "failure", reason: "job time limit of 2 s reached" });
  });

  test("canceling stops the running step and says who wanted it", async () => {
    const cancel = new AbortController();
    const result = await run([step("echo started; sleep 60"), step("true")], {
      signal: cancel.signal,
      reporter: { stepOutput: () => cancel.abort(new Error("canceled by Ada")) },
    });
    expect(statuses(result)).toEqual(["canceled", "skipped"]);
    expect(result).toMatchObject({ status: "canceled", reason: "canceled by Ada" });
  });

  test("runs nothing when it is canceled before it begins", async () => {
    const result = await run([step("touch ran")], { signal: AbortSignal.abort(new Error("too late")) });
    expect(result).toMatchObject({ status: "canceled", reason: "too late", steps: [{ status: "skipped" }] });
    expect(existsSync(join(workspace, "ran"))).toBe(false);
  });

  test("masks values in output, in the spool and in reasons", async () => {
    const secret = "s3cr3t-value";
    const logDir = join(workspace, "log");
    mkdirSync(logDir);
    const result = await run([step(`printf s3cr3t; sleep 0.1; printf -- '-value '; printf ${secret} | base64`)], {
      maskedValues: [secret],
      logDir,
    });
    expect(result.output.replaceAll("0.1 ", "")).toBe("*** ***\n");
    expect(readFileSync(join(logDir, "0.log"), "utf8")).toBe("*** ***\n");
    const failed = await run([step("true", { name: secret, image: `./${secret}` })], { maskedValues: [secret] });
    expect(JSON.stringify([failed.steps, failed.output])).not.toContain(secret);
  });

  test("shows a workspace copy-on-write without changing it", async () => {
    writeFileSync(join(workspace, "file"), "before\n");
    const result = await run([step("echo after > file; touch new"), step("cat file; ls")], {
      workspace: { dir: workspace, copyOnWrite: true },
    });
    expect(result.output.replaceAll("1.1 ", "")).toBe("after\nfile\nnew\n");
    expect(readFileSync(join(workspace, "file"), "utf8")).toBe("before\n");
    expect(existsSync(join(workspace, "new"))).toBe(false);
  });

  test("keeps all of a large output, in order, and no more of it than the limit", async () => {
    const logDir = join(workspace, "log");
    mkdirSync(logDir);
    const result = await run([step("seq 1 2000000; echo done >&2")], { logDir, reporter: {} });
    expect(result.status).toBe("success");
    const log = readFileSync(join(logDir, "0.log"), "utf8");
    const want = Array.from({ length: 2_000_000 }, (_, n) => `${n + 1}\n`).join("");
    expect(log.replace("done\n", "") === want).toBe(true);
    const limited = await run([step("yes; exit 4"), step("true")], { ceiling: { logBytes: 1000 } });
    expect(limited.status).toBe("failure");
    const given = "the pipeline asks for 1 GiB, this agent gives 1000 bytes";
    expect(limited.steps[0]).toMatchObject({ exitCode: 137, reason: `killed: printed more than 1000 bytes; ${given}` });
    expect(limited.output).toContain("log limit of 1000 bytes reached; the rest is not kept");
  });
});
