/** Services of a job, on the real kernel. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { executeJob, type JobOptions, type JobResult } from "../../agent/index.ts";
import { type JobSpec, parsePipeline } from "../../pipelines/index.ts";
import { Host } from "../../runtime/index.ts";
import { dockerArchive } from "../runtime/image-fixture.ts";
import { tarArchive } from "../runtime/tar-archive.ts";
import { temporaryDir } from "./git-fixture.ts";

let dir: ReturnType<typeof temporaryDir>;
let host: Host;
let workspace: string;
let logs: string;
let count = 0;

beforeAll(async () => {
  dir = temporaryDir();
  // What services do to each other needs no outside.
  host = await Host.open({ stateDir: join(dir.path, "state"), networks: { loopbackOnly: true } });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  dir[Symbol.dispose]();
});
beforeEach(() => {
  count++;
  workspace = join(dir.path, `workspace-${count}`);
  logs = join(dir.path, `logs-${count}`);
  for (const path of [workspace, logs]) mkdirSync(path);
});
afterEach(() => {
  // Whatever a test did: no container is left.
  const left = readdirSync(join(dir.path, "state", "containers"));
  if (left.length > 0) throw new Error(`Containers are left: ${left.join(", ")}`);
});

interface Run extends JobResult {
  readonly events: readonly string[];
}

function parse(source: string): JobSpec {
  const { pipeline, diagnostics } = parsePipeline(`jobs:\n  job:\n${source.replaceAll(/^/gm, "    ")}`);
  expect(diagnostics).toEqual([]);
  return pipeline?.jobs[0] as JobSpec;
}

async function run(source: string, options: Partial<JobOptions> = {}): Promise<Run> {
  const events: string[] = [];
  const result = await executeJob(parse(source), {
    host,
    id: `services-${process.pid}-${count}`,
    workspace: { dir: workspace },
    variables: {},
    logDir: logs,
    reporter: {
      stepStarted: (index) => events.push(`start ${index}`),
      stepFinished: (index, { status }) => events.push(`${status} ${index}`),
      problem: (error) => events.push(`problem ${error.message}`),
    },
    ...options,
  });
  return { ...result, events };
}

const log = (index: number) => readFileSync(join(logs, `${index}.log`), "utf8");

describe("a service", () => {
  test("is used by steps by its name and on localhost, and stopped after the last", async () => {
    const result = await run(`
      services:
        cache:
          run: exec redis-server --save '' --dir /tmp
          ready: { port: 6379, run: "redis-cli ping | grep PONG" }
      steps:
        - redis-cli -h cache set greeting hello
        - test "$(redis-cli -h localhost get greeting)" = hello; grep -w cache /etc/hosts
    `);
    expect(result).toMatchObject({ status: "success", services: [{ status: "success" }] });
    expect(result.events).toEqual(["start 2", "start 0", "success 0", "start 1", "success 1", "success 2"]);
    expect(log(2)).toContain("Received SIGTERM");
    expect(log(1)).toContain("127.0.0.1\tlocalhost slipway cache");
    expect(result.services[0]?.usage?.cpuTimeMs).toBeGreaterThan(0);
    expect(result.services[0]).not.toHaveProperty("exitCode");
  });

  test("runs what its image says, in the image's directory, with arguments in place of the image's", async () => {
    writeImage(join(workspace, "image.tar"), {
      WorkingDir: "/bin",
      Entrypoint: ["/bin/sh", "-c", 'pwd; echo "$0 $*"; : > "/workspace/up-$0"; exec sleep 60'],
      Cmd: ["default"],
    });
    const result = await run(`
      services:
        plain: { image: ./image.tar, ready: { run: test -e /workspace/up-default } }
        other: { image: ./image.tar, args: [one, "2 3"], ready: { run: test -e /workspace/up-one } }
      steps: ["true"]
    `);
    expect(result.status).toBe("success");
    expect([log(1), log(2)]).toEqual(["/bin\ndefault \n", "/bin\none 2 3\n"]);
  });

  test("has the environment of pipeline, job and service, its own name, and the workspace", async () => {
    writeFileSync(join(workspace, "committed"), "from the commit");
    const result = await run(
      `
      env: { LEVEL: job, OTHER: "1" }
      services:
        box: { run: 'hostname; echo "$LEVEL $OTHER $SLIPWAY_COMMIT"; cat committed; : > up; exec sleep 60', env: { LEVEL: service }, ready: { run: test -e up } }
      steps: ["true"]
    `,
      { variables: { SLIPWAY_COMMIT: "abc" } },
    );
    expect(result.status).toBe("success");
    expect(log(1)).toBe("box\nservice 1 abc\nfrom the commit");
  });

  test("that ignores SIGTERM is killed, with everything it started", async () => {
    const result = await run(
      `
      services:
        stubborn: { run: "trap '' TERM; touch started; setsid sh -c 'trap \\"\\" TERM; sleep 600' & while :; do sleep 1; done", ready: { run: test -e started } }
      steps: ["true"]
    `,
      { serviceGraceMs: 300 },
    );
    expect(result).toMatchObject({ status: "success", services: [{ status: "success" }] });
  });

  test("is stopped as its image says: its program alone gets that signal", async () => {
    writeImage(join(workspace, "image.tar"), {
      StopSignal: "SIGRTMIN+3",
      Entrypoint: ["/bin/sh", "-c"],
      Cmd: ["trap 'echo got it; exit 0' 37; sh -c 'trap \"\" TERM; exec sleep 600' & echo up; : > up; wait"],
    });
    const result = await run(
      `
      services:
        odd: { image: ./image.tar, ready: { run: test -e up } }
      steps: ["true"]
    `,
      { serviceGraceMs: 60_000 },
    );
    expect(result).toMatchObject({ status: "success", services: [{ status: "success" }] });
    expect(log(1)).toBe("up\ngot it\n");
  });

  test("on a port that only it may see is ready when it listens there", async () => {
    const result = await run(`
      services:
        late: { run: "sleep 0.3; exec redis-server --port 7000 --save '' --dir /tmp --bind ::1", ready: { port: 7000 } }
      steps: ["redis-cli -h ::1 -p 7000 ping"]
    `);
    expect(result.status).toBe("success");
  });
});

describe("a service that fails", () => {
  test("before it is ready fails the job with its last lines, and no step runs", async () => {
    const result = await run(`
      services:
        db: { run: "echo starting; echo 'FATAL: no such \\e[31mdatabase' >&2; exit 3", ready: { port: 5432 } }
      steps: ["touch /workspace/ran"]
    `);
    const reason = "it ended before it was ready: exit code 3; its last output: starting / FATAL: no such database";
    expect(result).toMatchObject({
      status: "failure",
      reason: `service "db" failed: ${reason}`,
      steps: [{ status: "skipped" }],
      services: [{ status: "failure", exitCode: 3, reason }],
    });
    expect(existsSync(join(workspace, "ran"))).toBe(false);
  });

  test("to listen in time says so, and is stopped", async () => {
    const result = await run(`
      services:
        deaf: { run: "echo up; exec sleep 600", ready: { port: [5432, 5433], timeout: 1s } }
        fine: { run: exec sleep 600 }
      steps: ["true"]
    `);
    expect(result.reason).toBe(
      'service "deaf" failed: it is not ready after 1 s: nothing listens on port 5432, 5433; its last output: up',
    );
    expect(result.services.map(({ status }) => status)).toEqual(["failure", "success"]);
  });

  test("its own script in time says what that answered", async () => {
    const result = await run(`
      services:
        sick: { run: exec sleep 600, ready: { run: "echo not yet; exit 4", timeout: 1s } }
      steps: ["true"]
    `);
    expect(result.reason).toContain('it is not ready after 1 s: "ready" answers exit code 4 (not yet)');
  });

  test("by going to the background is told to stay in the foreground", async () => {
    const result = await run(`
      services:
        daemon: { run: "sleep 600 &", ready: { port: 6379 } }
      steps: ["true"]
    `);
    expect(result.reason).toContain("let it stay in the foreground");
  });

  test("while a step runs stops the step and fails the job with the reason", async () => {
    const result = await run(`
      services:
        fragile: { run: "until [ -e poke ]; do sleep 0.02; done; echo poked; exit 9" }
      steps: ["touch poke; sleep 600", "true"]
    `);
    expect(result).toMatchObject({
      status: "failure",
      reason: 'service "fragile" failed: exit code 9; its last output: poked',
      steps: [{ status: "canceled" }, { status: "skipped" }],
      services: [{ status: "failure", exitCode: 9 }],
    });
  });

  test("and may fail does not keep the job from going on", async () => {
    const result = await run(`
      services:
        optional: { run: exit 1, ready: { port: 1 }, allow_failure: true }
        missing: { image: ./nothing, allow_failure: true }
      steps: ["true"]
    `);
    expect(result).toMatchObject({
      status: "success",
      services: [
        { status: "failure", allowedFailure: true },
        { status: "failure", allowedFailure: true, exitCode: 127 },
      ],
    });
  });

  test("because of its image or program is the user's failure", async () => {
    const result = await run(`
      services:
        typo: { image: ./nothing }
      steps: ["true"]
    `);
    expect(result).toMatchObject({ status: "failure", services: [{ status: "failure", exitCode: 127 }] });
    expect(result.reason).toMatch(/^service "typo" failed: .*nothing/);
  });

  test("with exit code 0 is said to have ended, and the job goes on", async () => {
    // Told of the service's end: the step goes on then.
    const stepFinished = (index: number) => writeFileSync(join(workspace, `ended-${index}`), "");
    const result = await run(
      `
      services:
        seed: { run: "true" }
      steps: ["while [ ! -e ended-1 ]; do sleep 0.02; done"]
    `,
      { reporter: { stepFinished } },
    );
    expect(result).toMatchObject({
      status: "success",
      services: [{ status: "success", exitCode: 0, reason: "it ended before the steps did" }],
    });
  });
});

describe("a hostile service", () => {
  test("is as confined as a step is", async () => {
    // Everything that a step is, and some ways out; the same script in both.
    const script = `
      id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/uid_map | tr -s ' '
      for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs; do
        (echo 1 > $file) 2>/dev/null && echo "wrote $file"
      done
      for call in "unshare -Ur true" "mount -t tmpfs none /mnt" "mknod /node b 8 0" "chroot /proc/1/root true" "nsenter -t 1 -m true"; do
        $call 2>/dev/null && echo "did $call"
      done
      head -c 1 /proc/1/mem 2>/dev/null && echo read init
      cat /proc/1/environ 2>/dev/null | wc -c
      cut -d' ' -f5,6 /proc/self/mountinfo | grep -E '^/(proc|sys|usr|workspace)' | grep -v cgroup | sort
      ls /proc/self/fd | wc -w`;
    writeFileSync(join(workspace, "look"), script);
    const result = await run(`
      services:
        spy: { run: "sh ./look > /tmp/seen 2>&1; cat /tmp/seen; touch seen; exec sleep 60", ready: { run: test -e seen } }
      steps: ["sh ./look > /tmp/seen 2>&1; cat /tmp/seen"]
    `);
    expect(result).toMatchObject({ status: "success", services: [{ status: "success" }] });
    expect(log(1).split("\n")).toEqual(log(0).split("\n"));
    expect(log(0)).toMatch(/NoNewPrivs:\t1\nSeccomp:\t2\n/);
    expect(log(0)).not.toMatch(/wrote|did|read/);
  });

  test("that forks without end or floods its log stays within its limits, and the steps go on", async () => {
    const result = await run(
      `
      resources: { pids: 64, memory: 128MiB }
      services:
        bomb: { run: "f() { f | f & }; while :; do f 2>/dev/null; sleep 0.1; done", allow_failure: true }
        flood: { run: "exec yes", resources: { log: 1MiB }, allow_failure: true }
      steps: ["sleep 0.5; echo fine"]
    `,
      { serviceGraceMs: 200 },
    );
    expect(result).toMatchObject({ status: "success", steps: [{ status: "success" }] });
    expect(log(0)).toBe("fine\n");
    expect(log(2).length).toBeLessThan(2 * 2 ** 20);
  });

  test("that takes the memory it may have is killed, and the job says so", async () => {
    const result = await run(`
      services:
        hog: { run: "tail /dev/zero", resources: { memory: 32MiB } }
      steps: ["sleep 600"]
    `);
    expect(result.status).toBe("failure");
    expect(result.reason).toMatch(/^service "hog" failed: killed.*32 MiB/);
  });

  test("that writes control characters and secrets has neither in the job's reason", async () => {
    const result = await run(
      `
      services:
        loud: { run: "printf 'a\\\\033[2Jb\\\\rpassword=hunter22 \\\\a\\\\n'; exit 1" }
      steps: ["sleep 600"]
    `,
      { maskedValues: ["hunter22"] },
    );
    expect(result.reason).toMatch(/^service "loud" failed: exit code 1; its last output: ab \/ password=\S+$/);
    expect(result.reason).not.toContain("hunter22");
  });
});

describe("a job", () => {
  test("that is canceled stops its services", async () => {
    const cancel = new AbortController();
    const job = run(
      `
      services: { box: { run: exec sleep 600 } }
      steps: ["touch running; sleep 600"]
    `,
      { signal: cancel.signal },
    );
    await expect.poll(() => existsSync(join(workspace, "running"))).toBe(true);
    cancel.abort("by hand");
    expect(await job).toMatchObject({
      status: "canceled",
      steps: [{ status: "canceled" }],
      services: [{ status: "success" }],
    });
  });

  test("that is canceled while a service is not ready ends at once", async () => {
    const cancel = new AbortController();
    const job = run(
      `
      services: { box: { run: "touch running; exec sleep 600", ready: { port: 1, timeout: 1h } } }
      steps: ["true"]
    `,
      { signal: cancel.signal },
    );
    await expect.poll(() => existsSync(join(workspace, "running"))).toBe(true);
    cancel.abort("by hand");
    expect(await job).toMatchObject({ status: "canceled", steps: [{ status: "skipped" }] });
  });

  test("whose workspace cannot be filled starts none", async () => {
    const failure = new Error("no such commit");
    await expect(
      run(`{ services: { box: { run: exit 1 } }, steps: ["true"] }`, {
        workspace: { dir: workspace, ready: Promise.reject(failure) },
      }),
    ).rejects.toBe(failure);
  });
});

/** A `docker save` archive with a shell and what that needs of this machine. */
function writeImage(path: string, config: object): void {
  const shell = realpathSync("/bin/sh");
  const libraries = execFileSync("ldd", [shell], { encoding: "utf8" }).match(/\/[^ ]+/g) ?? [];
  const programs = ["/bin/pwd", "/bin/sleep"].map((program) => realpathSync(program));
  const files = [...new Set([...libraries, ...programs])].map((file) => ({ from: file, to: file }));
  const layer = tarArchive(
    [{ from: shell, to: "/bin/sh" }, ...files].map(({ from, to }) => ({
      name: to.slice(1),
      mode: 0o755,
      content: readFileSync(from),
    })),
  );
  writeFileSync(path, tarArchive(dockerArchive([layer], { config: { config } })));
}
