/** Secrets as a person has them: set on a server of all parts together, used by a build; and in a local run. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createRepository, type DemoRepository, git, installHook } from "../../cli/demo-repository.ts";
import { bin, type CommandOptions, environment, type Outcome, slipway, TemporaryDirectory } from "./command.ts";
import { TerminalRun } from "./terminal-run.ts";

const value = "hunter2-of-the-company";

describe("slipway secret", () => {
  let directory: TemporaryDirectory;
  let up: ChildProcess;
  let log = "";
  let repository: DemoRepository;
  const dataDir = () => join(directory.path, "data");
  const talk = (args: readonly string[], options: CommandOptions = {}): Promise<Outcome> =>
    slipway([...args, "--data-dir", dataDir()], { env: { SLIPWAY_SERVER: "", SLIPWAY_TOKEN: "" }, ...options });

  beforeAll(async () => {
    directory = await TemporaryDirectory.create();
    up = spawn(
      process.execPath,
      [bin, "up", "--port", "0", "--jobs", "1", "--log-level", "debug", "--data-dir", dataDir()],
      {
        env: environment(),
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    let stdout = "";
    up.stderr?.setEncoding("utf8").on("data", (text: string) => (log += text));
    up.stdout?.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    const isUp = () => {
      if (!/Slipway is up: (\S+)\n/.test(stdout)) throw new Error(`it is not up:\n${log}`);
    };
    await vi.waitFor(isUp, { timeout: 60_000 });
    repository = await createRepository(join(directory.path, "git"), environment());
    const { stdout: added } = await talk(["repo", "add", "team/app", repository.bare]);
    const webhook = /webhook +(\S+)/.exec(added)?.[1] ?? "";
    const secret = /secret +(\S+)/.exec(added)?.[1] ?? "";
    await installHook(repository.bare, environment(), { url: webhook, secret });
  }, 90_000);
  afterAll(async () => {
    up.kill("SIGTERM");
    if (up.exitCode === null) await once(up, "exit");
    await directory[Symbol.asyncDispose]();
  });

  test("sets, lists and removes; a build has what it names, and no file or log of ours has the value", async () => {
    const set = await talk(["secret", "set", "team/app", "TOKEN", "--branch", "main"], { input: `${value}\n` });
    expect(set).toMatchObject({ code: 0, stdout: "Set TOKEN for team/app (branches main).\n" });
    expect(await talk(["secret", "ls", "team/app"])).toMatchObject({
      stdout: expect.stringMatching(/^TOKEN +team\/app \(branches main\)\n$/),
    });
    const pipeline = `jobs: { a: { steps: [{ run: 'test \${#TOKEN} -eq ${value.length}; echo "it is $TOKEN"', secrets: [TOKEN] }] } }\n`;
    await writeFile(join(repository.clone, ".slipway.yml"), pipeline);
    await git(repository.clone, environment(), "add", "--all");
    await git(repository.clone, environment(), "commit", "--quiet", "--message=use it");
    await git(repository.clone, environment(), "push", "--quiet", "origin", "main");
    await vi.waitFor(async () => expect((await talk(["build", "show", "team/app#1"])).code).toBe(0), {
      timeout: 30_000,
      interval: 200,
    });
    const followed = await talk(["build", "log", "--follow", "team/app#1"]);
    expect(followed).toMatchObject({ code: 0, stdout: expect.stringContaining("it is ***") });
    const found = spawnSync("grep", ["-rlaF", "-e", value, "-e", Buffer.from(value).toString("base64"), dataDir()], {
      encoding: "utf8",
    });
    expect(found.stdout).toBe("");
    expect(log).not.toContain(value);
    expect(await talk(["secret", "rm", "team/app", "TOKEN"])).toMatchObject({
      code: 0,
      stdout: "Removed TOKEN of team/app.\n",
    });
    expect(await talk(["secret", "ls"])).toMatchObject({
      code: 0,
      stdout: "",
      stderr: expect.stringContaining("No secrets yet"),
    });
  });

  test.for<[string, readonly string[], string | Buffer, RegExp]>([
    ["a value of one character", ["team/app", "T"], "x\n", /The value of T has 1 character; below 6/],
    ["a value of 1 MiB", ["team/app", "T"], "x".repeat(2 ** 20), /has 1 MiB; at most 512 KiB are allowed/],
    ["an unknown repository", ["team/ap", "T"], value, /no repository "team\/ap".*did you mean "team\/app"/],
    ["a name that is none", ["team/app", "a b"], value, /cannot be called "a b"/],
    ["a value as an argument", ["team/app", "T", value], "", /does not know what to do with/],
    ["an event that is none", ["team/app", "T", "--event", "merge"], value, /--event must be one of/],
  ])("refuses %s, and does not repeat the value", async ([, args, input, problem]) => {
    const answer = await talk(["secret", "set", ...args], { input });
    expect(answer).toMatchObject({ code: 2, stderr: expect.stringMatching(problem) });
    const isRepeated = answer.stderr.includes(value);
    // Whoever writes it there has shown it to all the machine.
    expect(isRepeated).toBe(args.includes(value));
  });
});

test("slipway secret set asks for the value at a terminal, which does not show it", async () => {
  await using directory = await TemporaryDirectory.create();
  await using terminal = new TerminalRun([
    "secret",
    "set",
    "team/app",
    "TOKEN",
    "--server",
    "http://127.0.0.1:9",
    "--data-dir",
    directory.path,
  ]);
  await terminal.until(/Value of TOKEN: $/);
  terminal.type(`${value}x\u007f\r`);
  expect((await terminal.exited).code).toBe(125);
  expect(terminal.text).toContain("Cannot reach the server");
  expect(terminal.text).not.toContain("hunter2");
});

describe("slipway run", () => {
  let data: TemporaryDirectory;
  beforeAll(async () => {
    data = await TemporaryDirectory.create();
  });
  afterAll(() => data[Symbol.asyncDispose]());

  const pipeline = `jobs: { a: { network: none, steps: [{ run: 'echo "$TOKEN"; cat /run/secrets/key', secrets: { TOKEN: TOKEN, key: { file: true } } }] } }\n`;
  const run = async (
    args: readonly string[],
    env: NodeJS.ProcessEnv = {},
    files: Readonly<Record<string, string>> = {},
  ) => {
    await using checkout = await TemporaryDirectory.create({ ".slipway.yml": pipeline, ...files });
    return await slipway(["run", "--data-dir", data.path, ...args], { cwd: checkout.path, env });
  };

  test("takes secrets from its environment and a file, and masks them", async () => {
    const file = '# a comment\n\nkey="-----BEGIN-----\\nthe second line\\n"\n';
    const result = await run(["--secret", "TOKEN", "--secrets-file", "my.env"], { TOKEN: value }, { "my.env": file });
    expect(result).toMatchObject({ code: 0, stdout: expect.stringMatching(/\*\*\*[^]*\*\*\*/) });
    expect(result.stdout + result.stderr).not.toMatch(/hunter2|second line/);
    const explained = await run(
      ["--explain", "--secret", "TOKEN", "--secrets-file", "my.env"],
      { TOKEN: value },
      { "my.env": file },
    );
    expect(explained).toMatchObject({ code: 0, stdout: expect.stringContaining("TOKEN=******") });
    expect(explained.stdout).not.toMatch(/hunter2|second line/);
  });

  test("says what is missing before anything is run", async () => {
    const result = await run(["--secret", "TOKEN"], { TOKEN: value });
    expect(result.code).toBe(1);
    expect(result.stdout).toMatch(/wants the secret "key", which is not there; give it with --secret key/);
    expect(result.stdout).not.toContain("***");
    const unset = await run(["--secret", "NOT_THERE"]);
    expect(unset).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('--secret "NOT_THERE": there is no such variable'),
    });
    const inline = await run(["--secret", `TOKEN=${value}`]);
    expect(inline.code).toBe(2);
    expect(inline.stderr).not.toContain(value);
    const broken = await run(["--secrets-file", "x"], {}, { x: `fine=abcdefgh\n${value}\n` });
    expect(broken).toMatchObject({ code: 2, stderr: expect.stringMatching(/Line 2 of ".*x" is no NAME=value/) });
    expect(broken.stderr).not.toContain(value);
  });
});
