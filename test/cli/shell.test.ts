import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createRepository, type DemoRepository, git, installHook } from "../../cli/demo-repository.ts";
import { bin, type CommandOptions, environment, type Outcome, slipway, TemporaryDirectory } from "./command.ts";
import { TerminalRun } from "./terminal-run.ts";
import { Traces } from "./traces.ts";

let directory: TemporaryDirectory;
let traces: Traces;
let up: ChildProcess;
let log = "";
let repository: DemoRepository;
let builds = 0;
/** Added to what is slept for, by which processes of this test are known from those of others on this machine. */
const own = process.pid * 10_000;
const dataDir = () => join(directory.path, "data");
/** Finds the server by the data directory, and its token there. */
const env = () => ({ SLIPWAY_DATA_DIR: dataDir(), SLIPWAY_SERVER: "", SLIPWAY_TOKEN: "", TERM: "dumb" });

function talk(args: readonly string[], options: CommandOptions = {}): Promise<Outcome> {
  return slipway(args, { env: env(), ...options });
}

const shell = (args: readonly string[], options: CommandOptions = {}) => talk(["shell", ...args], options);
const terminal = (args: readonly string[], options: { rows?: number; columns?: number } = {}) =>
  new TerminalRun(["shell", ...args], { env: env(), ...options });

/** Commits a pipeline and pushes it; answers the build's name. */
async function push(pipeline: string): Promise<string> {
  await writeFile(join(repository.clone, ".slipway.yml"), pipeline);
  await git(repository.clone, environment(), "commit", "--quiet", "--all", "--allow-empty", "--message=Change");
  await git(repository.clone, environment(), "push", "--quiet", "origin", "main");
  return `team/app#${++builds}`;
}

async function until<T>(ask: () => Promise<T | false | undefined>): Promise<T> {
  return await vi.waitFor(
    async () => {
      const answer = await ask();
      if (answer === false || answer === undefined) throw new Error(`not yet; the log so far:\n${log}`);
      return answer;
    },
    { timeout: 50_000, interval: 100 },
  );
}

/** A build whose step has printed "begun", and runs until somebody makes /workspace/go. */
async function running(): Promise<string> {
  const name = await push(`jobs:
  test:
    env: { GREETING: "hello there" }
    steps:
      - name: unit tests
        run: |
          echo made > /made
          echo begun; while [ ! -e /workspace/go ]; do sleep 0.05; done; echo ended
`);
  await until(async () => (await talk(["build", "log", name])).stdout.includes("begun"));
  return name;
}

/** A build that has failed in its second step. */
async function failed(keep = "keep_on_failure: 10m"): Promise<string> {
  const name = await push(`${keep}
jobs:
  test:
    env: { GREETING: "hello there" }
    steps:
      - echo first > first
      - name: unit tests
        run: echo made > /made; mkdir -p /var/left; echo left > /var/left/file; echo second > second; cd /; exit 3
`);
  await until(async () => /: failure/.test((await talk(["build", "show", name])).stdout));
  return name;
}

/** Processes of this machine by their whole command line. */
function processesOf(command: string): string[] {
  return readdirSync("/proc").filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").join(" ").trim() === command;
    } catch {
      return false;
    }
  });
}

const gone = (command: string) => until(async () => processesOf(command).length === 0);
const there = (command: string) => until(async () => processesOf(command).length > 0);

beforeAll(async () => {
  directory = await TemporaryDirectory.create();
  traces = new Traces(directory.path);
  let stdout = "";
  up = spawn(process.execPath, [bin, "up", "--port", "0", "--jobs", "2", "--keep-steps", "2"], {
    env: environment({ ...traces.environment, ...env() }),
    stdio: ["ignore", "pipe", "pipe"],
  });
  up.stderr?.setEncoding("utf8").on("data", (text: string) => (log += text));
  up.stdout?.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  const url = await until(async () => /Slipway is up: (\S+)\n/.exec(stdout)?.[1]);
  traces.look();
  repository = await createRepository(join(directory.path, "git"), environment());
  const added = await talk(["repo", "add", "team/app", repository.bare]);
  const webhook = /webhook +(\S+)/.exec(added.stdout)?.[1] ?? "";
  const secret = /secret +(\S+)/.exec(added.stdout)?.[1] ?? "";
  if (!webhook.startsWith(url)) throw new Error(`the repository was not added: ${added.stderr}`);
  await installHook(repository.bare, environment(), { url: webhook, secret });
});

afterAll(async () => {
  if (up.exitCode === null && up.signalCode === null) {
    up.kill("SIGTERM");
    up.kill("SIGINT");
    await once(up, "exit");
  }
  await directory[Symbol.asyncDispose]();
});

describe("slipway shell in a running step", () => {
  let build: string;
  beforeAll(async () => {
    build = await running();
  });

  test("runs a command in its container, with its environment, workspace and user; the exit code is the command's", async () => {
    const script = "echo $GREETING; pwd; id -u; cat /made README.md; echo $SLIPWAY_STEP; echo oops >&2; exit 7";
    const outcome = await shell([build, "--", "sh", "-c", script]);
    expect(outcome).toMatchObject({ code: 7, stderr: "oops\n" });
    expect(outcome.stdout).toMatch(/^hello there\n\/workspace\n0\nmade\n[^]+\nunit tests\n$/);
    expect(await shell([build, "--", "sh", "-c", "kill -TERM $$"])).toMatchObject({ code: 143 });
    expect(await shell([build, "--", "no-such-program"])).toMatchObject({
      code: 125,
      stderr: expect.stringContaining('Cannot execute "no-such-program": there is no such program'),
    });
  });

  test("passes bytes through unchanged, and ends the input", async () => {
    const input = randomBytes(3_000_000);
    const { code, stdout } = await shell([build, "--", "sh", "-c", "tee copy | sha256sum; stat -c %s copy"], { input });
    expect(code).toBe(0);
    expect(stdout).toBe(`${createHash("sha256").update(input).digest("hex")}  -\n${input.length}\n`);
    const back = await shell([build, "--", "base64", "-w0", "copy"]);
    expect(back.stdout === input.toString("base64")).toBe(true);
  });

  test("takes commands from its input where there is no terminal", async () => {
    const outcome = await shell([build], { input: "echo $GREETING\nexit 4\n" });
    expect(outcome).toMatchObject({ code: 4, stdout: "hello there\n" });
  });

  test("is found by job, step and position; mistakes name what there is", async () => {
    for (const rest of ["/test", "/unit tests", "/test/unit tests", "/test/0", "/0/0", "/0"]) {
      expect(await shell([`${build}${rest}`, "--", "true"]), rest).toMatchObject({ code: 0 });
    }
    expect(await shell(["team/app", "--", "true"])).toMatchObject({ code: 0 });
    expect(await shell([`${build}/test/units`])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining(`There is no step "test/units" in ${build}`),
    });
    expect((await shell([`${build}/test/units`])).stderr).toContain("there are test/unit tests (running)");
    expect(await shell(["taem/app/test"])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("begins with no repository of this server"),
    });
    expect(await shell([`${build}/test`, "--attempt", "2"])).toMatchObject({ code: 125 });
  });

  test("on a terminal has one of its own, which keeps to the size of this one", async () => {
    await using run = terminal([build], { rows: 30, columns: 90 });
    run.type("echo size $(stty size) on $(tty); echo $TERM; test -t 2 && echo error output too\r");
    expect(await run.until(/\nsize (.*)\r\n/)).toBe("30 90 on /dev/pts/0");
    expect(await run.until(/\n(dumb)\r\nerror output too/)).toBe("dumb");
    run.resize(44, 133);
    run.type("until test \"$(stty size)\" = '44 133'; do sleep 0.05; done; echo it is $(stty size)\r");
    expect(await run.until(/\nit is (.*)\r\n/)).toBe("44 133");
    run.type("exit 5\r");
    expect(await run.exited).toEqual({ code: 5, signal: null });
  });

  test("on a terminal Ctrl-C interrupts the program there, Ctrl-D ends the shell", async () => {
    await using run = terminal([`${build}/test`]);
    run.type(`sleep ${own + 7101}\r`);
    await there(`sleep ${own + 7101}`);
    run.type("\x03");
    run.type("echo status $?\r");
    expect(await run.until(/\nstatus (\d+)/)).toBe("130");
    run.type("\x04");
    expect(await run.exited).toEqual({ code: 0, signal: null });
    await gone(`sleep ${own + 7101}`);
  });

  test("is one at a time; the next person is told who has it", async () => {
    await using run = terminal([build]);
    run.type("echo ready\r");
    await run.until(/\nready/);
    const { code, stderr } = await shell([build, "--", "true"]);
    expect(code).toBe(125);
    expect(stderr).toMatch(
      /The server refused \(409\): Somebody has a shell in this step already: \S+@\S+ \(127\.0\.0\.1\)/,
    );
    run.type("exit\r");
    await run.exited;
  });

  test("is hung up when the person is gone: killed, or by Enter ~ .", async () => {
    const killed = terminal([build]);
    killed.type(`trap '' HUP; sleep ${own + 7102}\r`);
    await there(`sleep ${own + 7102}`);
    killed.child.kill("SIGKILL");
    for (const pid of processesOf([process.execPath, bin, "shell", build].join(" "))) {
      process.kill(Number(pid), "SIGKILL");
    }
    await gone(`sleep ${own + 7102}`);
    await killed[Symbol.asyncDispose]();
    await using left = await until(async () => {
      const next = terminal([build]);
      next.type("echo ready\r");
      return await next.until(/\n(?:ready)/).then(
        () => next,
        () => undefined,
      );
    });
    left.type(`sleep ${own + 7103}\r`);
    await there(`sleep ${own + 7103}`);
    left.type("\r~.");
    expect(await left.exited).toEqual({ code: 129, signal: null });
    expect(left.text).toContain("the connection was broken off");
    await gone(`sleep ${own + 7103}`);
  });

  test("without a terminal passes Ctrl-C on as a signal, and leaves at the second", async () => {
    const outcome = await shell(
      [build, "--", "sh", "-c", "trap 'echo caught; exit 9' INT; echo on; while :; do sleep 0.05; done"],
      {
        watch: (child, stdout) => void (stdout === "on\n" && child.kill("SIGINT")),
      },
    );
    expect(outcome).toMatchObject({ code: 9, stdout: "on\ncaught\n" });
    const twice = await shell(
      [build, "--", "sh", "-c", `trap 'echo caught' INT; echo on; sleep ${own + 7104}; sleep ${own + 7104}`],
      {
        watch: (child, stdout) => void (/^on\n(caught\n)?$/.test(stdout) && child.kill("SIGINT")),
      },
    );
    expect(twice).toMatchObject({ code: 130 });
    await gone(`sleep ${own + 7104}`);
  });

  test("costs nobody memory when it floods and nobody reads", async () => {
    const child = spawn(process.execPath, [bin, "shell", build, "--", "yes", `flood ${own + 7105}`], {
      env: environment(env()),
      stdio: ["ignore", "pipe", "inherit"],
    });
    const pid = (await until(async () => processesOf(`yes flood ${own + 7105}`)[0])) as string;
    const written = () => readFileSync(`/proc/${pid}/io`, "utf8").match(/wchar: (\d+)/)?.[1];
    // Nobody reads: it comes to a standstill, a few hundred kibibytes on.
    await until(async () => {
      const before = written();
      await new Promise((resolve) => setTimeout(resolve, 300));
      return before !== "0" && before === written();
    });
    expect(Number(written())).toBeLessThan(4 << 20);
    let bytes = 0;
    for await (const chunk of child.stdout) {
      bytes += (chunk as Buffer).length;
      if (bytes > 8 << 20) break;
    }
    expect((await once(child, "exit"))[0]).toBe(141);
    await gone(`yes flood ${own + 7105}`);
  });

  test("ends with the step, and says so; the step's log tells who was there", async () => {
    await using run = terminal([build]);
    run.type(`touch go; sleep ${own + 7106}\r`);
    expect((await run.exited).code).toBe(137);
    expect(run.text).toContain("slipway: the step has ended");
    await gone(`sleep ${own + 7106}`);
    const shown = await until(async () => {
      const { stdout } = await talk(["build", "log", build]);
      return stdout.includes("ended") && stdout;
    });
    expect(shown).toMatch(/shell opened by \S+@\S+ \(127\.0\.0\.1\)\n/);
    expect(shown).toMatch(/shell closed after \d+ s: exit code 7\n/);
    expect(shown).toMatch(/shell closed after \d+ s: nobody is there any more\n/);
    expect(await shell([build])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining(`Nothing of ${build} can be entered: no step of it runs, and none is kept`),
    });
    expect((await shell([`${build}/test/0`])).stderr).toContain('Step 0 of job "test" is over (success) and not kept');
  });
});

describe("slipway shell in a failed step", () => {
  test("shows what it has left, with its environment, user and directory", async () => {
    const build = await failed();
    const { stdout: shown } = await talk(["build", "show", build]);
    expect(shown).toMatch(
      /test\/unit tests is kept until \d{4}-\d\d-\d\d \d\d:\d\d UTC(?:, [\d.]+ [KM]?i?B)?: slipway shell team\/app#\d+\/test\/1\n/,
    );
    expect((await talk(["build", "log", build])).stdout).toMatch(
      /kept until .* UTC: slipway shell team\/app#\d+\/test\/1\n/,
    );
    const script =
      "cat /made /var/left/file first second; echo $GREETING $SLIPWAY_STEP; pwd; id -u; hostname; echo new > /new";
    expect(await shell([`${build}/test/unit tests`, "--", "sh", "-c", script])).toMatchObject({
      code: 0,
      stdout: "made\nleft\nfirst\nsecond\nhello there unit tests\n/workspace\n0\nslipway\n",
      stderr: "",
    });
    await using run = terminal([build]);
    run.type(`cat /new; ps -e | wc -l; sleep ${own + 7201} & exit 6\r`);
    expect((await run.exited).code).toBe(6);
    expect(run.text).toContain("\r\nnew\r\n");
    await gone(`sleep ${own + 7201}`);
    const log = await until(async () => {
      const { stdout } = await talk(["build", "log", build]);
      return (stdout.match(/shell closed/g)?.length ?? 0) > 1 && stdout;
    });
    expect(log).toMatch(/shell opened by \S+@\S+ \(127\.0\.0\.1\)\n/);
  });

  test("is given up by hand, and then cannot be entered", async () => {
    const name = `team/app#${builds}`;
    const states = () => readdirSync(join(dataDir(), "agent/attempts"));
    await using run = terminal([name]);
    run.type(`echo ready; sleep ${own + 7202}\r`);
    await there(`sleep ${own + 7202}`);
    expect(await talk(["build", "discard", name])).toMatchObject({ code: 0, stdout: `${name}: given up\n` });
    // Hung up, and killed with its container right after: whichever comes first.
    expect([129, 137]).toContain((await run.exited).code);
    expect(run.text).toContain("slipway: it was given up");
    await until(async () => states().length === 0 && readdirSync(join(dataDir(), "agent/kept")).length === 0);
    expect((await talk(["build", "show", name])).stdout).not.toContain("kept");
    expect(await shell([`${name}/test/1`])).toMatchObject({
      code: 125,
      stderr: expect.stringContaining("is over (failure) and not kept"),
    });
    expect(await talk(["build", "discard", name])).toMatchObject({
      code: 125,
      stderr: expect.stringContaining("Nothing is kept"),
    });
  });

  test("is not kept without the key; the oldest gives way to newer ones", async () => {
    const plain = await failed("timeout: 1h");
    expect((await talk(["build", "show", plain])).stdout).not.toContain("kept");
    const three = [await failed(), await failed(), await failed()];
    const enter = (name: string) => shell([`${name}/test/1`, "--", "cat", "/made"]);
    expect(await enter(three[0] as string)).toMatchObject({ code: 125 });
    for (const name of three.slice(1)) expect(await enter(name)).toMatchObject({ code: 0, stdout: "made\n" });
  });

  test("is gone when its agent is killed, disk and all", async () => {
    const agent = traces.processes().find((line) => line.includes("slipway.cjs agent"));
    const name = `team/app#${builds}`;
    const run = terminal([name]);
    run.type(`sleep ${own + 7203}\r`);
    await there(`sleep ${own + 7203}`);
    process.kill(Number(agent?.split(" ")[0]), "SIGKILL");
    expect((await run.exited).code).toBe(125);
    expect(run.text).toContain("the connection to the agent broke");
    await run[Symbol.asyncDispose]();
    await gone(`sleep ${own + 7203}`);
    await until(async () => {
      const next = traces.processes().find((line) => line.includes("slipway.cjs agent"));
      return next !== undefined && next !== agent;
    });
    for (const dir of ["attempts", "kept", "containers"]) {
      await until(async () => readdirSync(join(dataDir(), "agent", dir)).length === 0);
    }
  });
});

test("nothing is left", async () => {
  up.kill("SIGTERM");
  up.kill("SIGINT");
  await once(up, "exit");
  const { processes, mounts, cgroups } = traces.left();
  expect({ processes, mounts, cgroups }).toEqual({});
  const wrong = log.split("\n").filter((line) => /"level":[56]0/.test(line) && !line.includes("ended unexpectedly"));
  expect(wrong).toEqual([]);
});
