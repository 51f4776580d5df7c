import { symlinkSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { slipway, TemporaryDirectory } from "./command.ts";

const good = "jobs:\n  a:\n    steps:\n      - run: 'true'\n";
const bad = "on:\n  psuh:\njobs:\n  a:\n    needs: [b]\n    stepz: []\n";

describe("slipway lint", () => {
  test("finds the pipeline above the directory and is content with a good one", async () => {
    await using directory = await TemporaryDirectory.create({ ".slipway.yml": good, "deep/er/file": "" });
    const { code, stdout, stderr } = await slipway(["lint"], { cwd: `${directory.path}/deep/er` });
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: "✓ ../../.slipway.yml: no errors\n", stderr: "" });
  });

  test("does not look beyond the root of the Git checkout", async () => {
    await using directory = await TemporaryDirectory.create({ ".slipway.yml": good, "repo/.git/HEAD": "" });
    const { code, stderr } = await slipway(["lint"], { cwd: `${directory.path}/repo` });
    expect(code).toBe(125);
    expect(stderr).toContain("Cannot find .slipway.yml");
  });

  test("prints all problems of all files at once, with their places, and exits with 1", async () => {
    await using directory = await TemporaryDirectory.create({ "a.yml": bad, "b.yml": "jobs: [" });
    const { code, stdout } = await slipway(["lint", "a.yml", "b.yml"], { cwd: directory.path });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^a\.yml:2:3: error:.*psuh/m);
    expect(stdout).toMatch(/^a\.yml:6:5: error:.*stepz/m);
    expect(stdout).toMatch(/^b\.yml:1:\d+: error:/m);
    expect(stdout).toMatch(/✗ 2 files: \d+ errors\n$/);
  });

  test("checks the Dockerfiles of steps that are in the checkout, each once", async () => {
    const build = (dockerfile: string) => `      - build: { context: ., dockerfile: ${dockerfile}, tags: [a] }\n`;
    await using directory = await TemporaryDirectory.create({
      "repo/.git/HEAD": "",
      "repo/ci/a.yml": `jobs:\n  a:\n    steps:\n${["x/Dockerfile", "x/Dockerfile", "made.later", "out"].map(build).join("")}`,
      "repo/x/Dockerfile": "FROM scratch\nCOPPY a b\nRUN --mount=type=cahce true\n",
      secret: "PASSWORD\n",
    });
    symlinkSync("../secret", `${directory.path}/repo/out`);
    const { code, stdout } = await slipway(["lint", "a.yml"], { cwd: `${directory.path}/repo/ci` });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^\.\.\/x\/Dockerfile:2:1: error: there is no instruction "COPPY"\n.*\n.*\^{5}/m);
    expect(stdout).toMatch(/^\.\.\/x\/Dockerfile:3:5: error:/m);
    expect(stdout).not.toContain("PASSWORD");
    expect(stdout).toMatch(/✗ 2 files: 2 errors\n$/);
  });

  test("--json prints the same as one array", async () => {
    const { code, stdout } = await slipway(["lint", "--json", "-"], { input: bad });
    expect(code).toBe(1);
    const problems = JSON.parse(stdout) as { file: string; line: number; severity: string }[];
    expect(problems).toContainEqual(expect.objectContaining({ file: "-", line: 2, column: 3, severity: "error" }));
    expect((await slipway(["lint", "--json", "-"], { input: good })).stdout).toBe("[]\n");
  });

  test("reads bytes that are not text and says so", async () => {
    const { code, stdout } = await slipway(["lint", "-"], { input: Buffer.from([0xff, 0xfe, 0x00, 0xd8]) });
    expect(code).toBe(1);
    expect(stdout).toMatch(/-:1:1: error:/);
  });

  test("colours follow NO_COLOR and FORCE_COLOR; a pipe has none", async () => {
    const colours = async (env: NodeJS.ProcessEnv) =>
      (await slipway(["lint", "-"], { input: bad, env })).stdout.includes("\x1b[");
    expect(await colours({})).toBe(false);
    expect(await colours({ FORCE_COLOR: "1" })).toBe(true);
    expect(await colours({ FORCE_COLOR: "1", NO_COLOR: "1" })).toBe(false);
  });

  test("sends no escape sequence that a pipeline holds", async () => {
    const { stdout } = await slipway(["lint", "-"], {
      input: 'jobs:\n  "a\\e]0;x\\a":\n    stepz: []\n  b\x1b[2J: 1\n',
    });
    expect(stdout).not.toContain("\x1b");
  });
});
