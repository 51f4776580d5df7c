import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isRoot } from "../runtime/image-fixture.ts";
import { DebianRegistry } from "../runtime/registry-fixture.ts";
import { shellLayer } from "../runtime/shell-layer.ts";
import { slipway, TemporaryDirectory } from "./command.ts";

describe.skipIf(!isRoot)("slipway image", () => {
  let directory: TemporaryDirectory;
  let registry: DebianRegistry;
  const call = (...args: string[]) =>
    slipway(["image", ...args], {
      cwd: directory.path,
      env: { SLIPWAY_DATA_DIR: join(directory.path, "data") },
    });

  beforeAll(async () => {
    directory = await TemporaryDirectory.create();
    registry = await DebianRegistry.start();
    writeFileSync(join(directory.path, "root.tar.gz"), gzipSync(shellLayer(), { level: 1 }));
  });
  afterAll(async () => {
    await registry[Symbol.asyncDispose]();
    await directory[Symbol.asyncDispose]();
  });

  test("imports, lists, pushes, pulls, inspects, exports, removes and collects", async () => {
    const pushed = `${registry.host}/team/base:1`;
    expect(await call("import", "root.tar.gz", "base:1")).toMatchObject({
      code: 0,
      stdout: "docker.io/library/base:1\n",
    });
    expect((await call("ls")).stdout).toMatch(
      /^NAME +DIGEST +PLATFORM +SIZE +USED\nbase:1 +[0-9a-f]{12} +linux\/\w+ +[\d.]+ MiB +now\n$/,
    );
    const { stdout: digest } = await call("push", "base:1", pushed);
    expect(digest).toMatch(/^sha256:[0-9a-f]{64}\n$/);
    expect(await call("rm", "base:1")).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^removed .*base:1\n.* MiB freed \(1 layers\)/),
    });
    expect((await call("ls", "--json")).stdout).toBe("[]\n");
    expect(await call("pull", pushed)).toMatchObject({ code: 0, stdout: digest, stderr: "" });
    const [inspected] = JSON.parse((await call("inspect", pushed)).stdout) as [{ digest: string; layers: object[] }];
    expect(inspected.digest).toBe(digest.trim());
    expect(inspected.layers).toMatchObject([{ archiveInStore: false, repositories: [pushed.replace(":1", "")] }]);
    expect(await call("export", "-o", "out.tar", pushed)).toMatchObject({ code: 0 });
    const names = execFileSync("tar", ["tf", join(directory.path, "out.tar")], { encoding: "utf8" });
    expect(names).toContain("oci-layout\n");
    expect(names).toContain("manifest.json\n");
    const layer = names.split("\n").find((name) => /sha256\/.{64}$/.test(name)) as string;
    expect(layer).toBeDefined();
    // What cannot be written in its place stays; what can be is replaced at once.
    const program = join(directory.path, "program");
    copyFileSync("/usr/bin/sleep", program);
    const running = spawn(program, ["60"]);
    await once(running, "spawn");
    expect(await call("export", "-o", "program", pushed)).toMatchObject({ code: 0 });
    running.kill();
    expect(execFileSync("tar", ["tf", program], { encoding: "utf8" })).toBe(names);
    const absent = await call("export", "-o", "absent/x", pushed);
    expect(absent.stderr).toMatch(/absent\/x" cannot be written: its directory does not exist\n$/);
    expect((await call("gc", "--budget", "1GiB")).stdout).toMatch(/^0 bytes freed \(0 layers\), .* left\n$/);
    expect(JSON.parse((await call("gc", "--budget", "1KiB", "--json")).stdout)).toMatchObject({
      keptBytes: 0,
      layers: 1,
    });
  });

  test("runs a pipeline in an image of a registry", async () => {
    await call("import", "root.tar.gz", "base:1");
    await call("push", "base:1", `${registry.host}/run:1`);
    await call("gc", "--budget", "1KiB");
    // Not where the data directory is: a rootless command copies the working tree.
    const project = join(directory.path, "project");
    mkdirSync(project);
    writeFileSync(
      join(project, ".slipway.yml"),
      `image: ${registry.host}/run:1\njobs: { a: { steps: [cat /etc/passwd, { run: ls /usr/bin, pull: never }] } }\n`,
    );
    const ran = await slipway(["run"], {
      cwd: project,
      env: { SLIPWAY_DATA_DIR: join(directory.path, "data") },
    });
    expect(ran.stdout).toContain("ada:x:1234:1235");
    expect(ran.stdout).toMatch(/image .*\/run:1 is sha256:\w+: pulled/);
    expect(ran.code).toBe(0);
  });

  test("says what is wrong, with the exit code of a mistake", async () => {
    expect(await call("pull", "Node:24")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('did you mean "node"?'),
    });
    expect(await call("rm", "none:1")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('There is no image "none:1"'),
    });
    expect(await call("gc", "--budget", "much")).toMatchObject({ code: 2 });
    expect(await call("pull", `${registry.host}/none:1`)).toMatchObject({
      code: 125,
      stderr: expect.stringContaining('does not have it in "none"'),
    });
    for (const verb of ["ls", "pull", "push", "import", "export", "inspect", "rm", "gc"]) {
      expect((await call(verb, "--help")).stdout).toContain("Examples:");
    }
  });
});
