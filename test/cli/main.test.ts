import { access, cp, mkdir, mkdtemp, rm } from "node:fs/promises";
import { execFileSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { imageStorePath } from "../../runtime/index.ts";
import { bin, root, run, slipway, TemporaryDirectory } from "./command.ts";

const verbs = ["run", "lint", "doctor", "up", "server", "agent", "demo"];
const groups = { repo: ["add", "list", "remove"], build: ["list", "show", "log", "cancel", "rerun"] };
const all = [...verbs, ...Object.entries(groups).flatMap(([group, names]) => names.map((name) => `${group} ${name}`))];

/** A Node of this machine that is too old for the project, if there is one. */
const oldNode = ["/usr/bin/node", "/usr/local/bin/node"].find((path) => {
  try {
    return Number(/^v(\d+)/.exec(execFileSync(path, ["--version"], { encoding: "utf8" }))?.[1]) < 24;
  } catch {
    return false;
  }
});

describe("slipway", () => {
  test("--help lists every verb, help does too", async () => {
    const { code, stdout, stderr } = await slipway(["--help"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    for (const verb of [...verbs, ...Object.keys(groups)])
      expect(stdout).toMatch(new RegExp(`^ {2}${verb} +[A-Z]`, "m"));
    expect((await slipway(["help"])).stdout).toBe(stdout);
  });

  test.for(all)("%s --help explains itself with options and examples", async (verb) => {
    const { code, stdout, stderr } = await slipway([...verb.split(" "), "--help"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(new RegExp(`^Usage: slipway ${verb} \\[OPTIONS\\]`));
    expect(stdout).toMatch(/\nOptions:\n(.*\n)+\nExamples:\n {2}\S/);
    expect(stdout.split("\n").filter((line) => line.length > 140)).toEqual([]);
  });

  test("VERB --help and the overview say the same about a verb", async () => {
    const overview = (await slipway(["--help"])).stdout;
    for (const verb of verbs) {
      const summary = new RegExp(`^  ${verb} +(.*)$`, "m").exec(overview)?.[1];
      expect((await slipway(["help", verb])).stdout).toContain(`\n${summary}.\n`);
    }
  });

  test("what it prints is whole however late it is read", async () => {
    await using directory = await TemporaryDirectory.create({
      "pipeline.yml": `jobs:\n${Array.from({ length: 1000 }, (_, index) => `  job${index}: { wrong: 1 }\n`).join("")}`,
    });
    const file = join(directory.path, "pipeline.yml");
    const args = [
      "-c",
      '"$0" "$@" | { sleep 1; cat; }',
      process.execPath,
      bin,
      "lint",
      "--json",
      ...Array<string>(10).fill(file),
    ];
    const { stdout } = await run("/bin/sh", args);
    expect(stdout.length).toBeGreaterThan(1 << 17);
    expect(() => JSON.parse(stdout)).not.toThrow();
  });

  test("--version prints the version of package.json", async () => {
    expect((await slipway(["--version"])).stdout).toMatch(/^slipway \d+\.\d+\.\d+\n$/);
  });

  test.for([
    [[], "slipway: No verb given\nTry: slipway --help\n"],
    [["lnit"], 'slipway: There is no verb "lnit" (did you mean lint?)\nTry: slipway --help\n'],
    [["constructor"], 'slipway: There is no verb "constructor"\nTry: slipway --help\n'],
    [["--josn"], 'slipway: There is no option "--josn"\nTry: slipway --help\n'],
    [
      ["lint", "--josn"],
      "slipway: slipway lint has no option --josn (did you mean --json?)\nTry: slipway lint --help\n",
    ],
    [["repo"], "slipway: slipway repo needs a verb: add, list, remove\nTry: slipway repo --help\n"],
    [["repo", "ad"], 'slipway: slipway repo has no verb "ad" (did you mean add?)\nTry: slipway repo --help\n'],
    [["run", "--jobs", "many"], '--jobs must be a whole number from 1 to 1000, not "many"\nTry: slipway run --help\n'],
  ] as const)("%j is wrong usage: exit code 2 and the way to the help", async ([args, expected]) => {
    const { code, stdout, stderr } = await slipway(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(expected);
  });

  test("errors of ours are one line and exit code 125, with a stack trace only on demand", async () => {
    const quiet = await slipway(["lint", "no-such-file.yml"]);
    expect(quiet.code).toBe(125);
    expect(quiet.stderr).toMatch(/^slipway: Cannot read pipeline "no-such-file.yml": ENOENT[^\n]*\n$/);
    const loud = await slipway(["lint", "no-such-file.yml"], { env: { SLIPWAY_DEBUG: "1" } });
    expect(loud.stderr).toMatch(/\n {4}at /);
  });

  test("a reader that goes away is no error", async () => {
    await using directory = await TemporaryDirectory.create({
      ".slipway.yml": `jobs:\n${Array.from({ length: 200 }, (_, i) => `  j${i}: { stepz: [] }\n`).join("")}`,
    });
    const script = `'${process.execPath}' '${bin}' lint | head -n 1; echo "code \${PIPESTATUS[0]}"`;
    const { stdout, stderr } = await run("bash", ["-c", script], { cwd: directory.path });
    expect(stderr).toBe("");
    expect(stdout.split("\n")[1]).toBe("code 1");
  });

  test("says so when its output cannot be written", async () => {
    const { code, stderr } = await run("bash", ["-c", `'${process.execPath}' '${bin}' --help > /dev/full`]);
    expect({ code, stderr }).toEqual({ code: 125, stderr: "slipway: Cannot write the output: ENOSPC\n" });
  });
});

describe.skipIf(oldNode === undefined)("on an older Node", () => {
  test("the bundled one takes over", async () => {
    const { code, stdout, stderr } = await slipway(["--version"], { node: oldNode as string });
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^slipway /);
  });

  test("exit codes pass through", async () => {
    expect((await slipway(["lnit"], { node: oldNode as string })).code).toBe(2);
  });

  test("without the bundled one there is one clear line and exit code 125", async () => {
    await using directory = await TemporaryDirectory.create();
    await cp(join(root, "cli"), join(directory.path, "cli"), { recursive: true });
    await cp(join(root, "package.json"), join(directory.path, "package.json"));
    const { code, stdout, stderr } = await run(oldNode as string, [join(directory.path, "cli/slipway.cjs"), "lint"]);
    expect({ code, stdout }).toEqual({ code: 125, stdout: "" });
    expect(stderr).toMatch(
      /^slipway: Cannot start on Node \d+\.\d+\.\d+: Node 24 or newer is needed; run `npm ci` [^\n]*\n$/,
    );
  });

  test("signals reach the command", async () => {
    await using directory = await TemporaryDirectory.create({ ".slipway.yml": "" });
    // `lint -` waits for its standard input, which stays open here.
    const child = run(oldNode as string, ["-e", waitingChild], { cwd: directory.path });
    expect(await child).toMatchObject({ stdout: "SIGTERM\n" });
  });
});

/** Starts the command with a pipe that stays open, ends it by SIGTERM and prints how it ended. */
const waitingChild = `
  const child = require("child_process").spawn(process.execPath, [${JSON.stringify(bin)}, "lint", "-"], { stdio: ["pipe", "inherit", "inherit"] });
  const { readdirSync, readFileSync } = require("fs");
  const isStarted = () => readdirSync("/proc").some((pid) => {
    try { return /^\\d+$/.test(pid) && readFileSync("/proc/" + pid + "/stat", "utf8").split(") ")[1].split(" ")[1] === String(child.pid); } catch (e) { return false; }
  });
  const timer = setInterval(() => { if (isStarted()) { clearInterval(timer); child.kill("SIGTERM"); } }, 20);
  child.on("exit", (code, signal) => console.log(signal || code));
`;

describe("installed as a package", () => {
  test("types are stripped although it lives below node_modules, in threads too", async () => {
    const prefix = await mkdtemp(join(tmpdir(), "slipway-test-"));
    try {
      const home = join(prefix, "node_modules/slipway");
      for (const folder of ["cli", "pipelines", "runtime"])
        await cp(join(root, folder), join(home, folder), { recursive: true });
      await cp(join(root, "package.json"), join(home, "package.json"));
      for (const name of ["@koromix", "koffi", "yaml", "zod"]) {
        await cp(join(root, "node_modules", name), join(prefix, "node_modules", name), { recursive: true });
      }
      const installed = join(home, "cli/slipway.cjs");
      const { code, stdout, stderr } = await run(process.execPath, [installed, "lint", "-"], { input: "jobs: 1" });
      expect({ code, stderr }).toEqual({ code: 1, stderr: "" });
      expect(stdout).toContain("-:1:");
      const left = join(imageStorePath(join(prefix, "data/images")), "tmp/left");
      await mkdir(left, { recursive: true });
      const listed = await run(process.execPath, [installed, "image", "ls", "--data-dir", join(prefix, "data")]);
      expect(listed).toMatchObject({ code: 0, stderr: expect.stringContaining("No images yet") as string });
      await expect(access(left)).rejects.toThrow("ENOENT");
    } finally {
      await rm(prefix, { recursive: true, force: true });
    }
  });
});
