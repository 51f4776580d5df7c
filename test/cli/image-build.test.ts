import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { imageStorePath } from "../../runtime/index.ts";
import { busyboxLayer, writeLayout } from "../build/build-fixture.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { DebianRegistry } from "../runtime/registry-fixture.ts";
import { tarArchive } from "../runtime/tar-archive.ts";
import { bin, type CommandOptions, environment, slipway, TemporaryDirectory } from "./command.ts";

const digest = /^sha256:[0-9a-f]{64}\n$/;

/** Of a process that may end meanwhile. */
function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return "";
  }
}

describe.skipIf(!isRoot)("slipway image build", () => {
  let directory: TemporaryDirectory;
  let contexts = 0;
  const data = () => join(directory.path, "data");
  const call = (args: readonly string[], options: CommandOptions = {}) =>
    slipway(["image", ...args], {
      cwd: directory.path,
      ...options,
      env: { SLIPWAY_DATA_DIR: data(), ...options.env },
    });
  const build = (args: readonly string[], options: CommandOptions = {}) => call(["build", ...args], options);
  /** Makes a context of these files. */
  function context(files: Readonly<Record<string, string>>): string {
    const path = join(directory.path, `context-${++contexts}`);
    for (const [name, content] of Object.entries(files)) {
      mkdirSync(dirname(join(path, name)), { recursive: true });
      writeFileSync(join(path, name), content);
    }
    return path;
  }
  const path = (name: string) => join(directory.path, name);

  beforeAll(async () => {
    directory = await TemporaryDirectory.create();
    writeLayout(path("base"), { layers: [busyboxLayer()] });
    await call(["import", "base", "localhost/base"]);
  });
  afterAll(async () => {
    await directory[Symbol.asyncDispose]();
  });

  test("reads no device that a context has for its Dockerfile or ignore file", async () => {
    const dir = context({ "Dockerfile.it": "FROM scratch\nCOPY é /é\n", "é/file": "" });
    symlinkSync("/dev/zero", join(dir, ".dockerignore"));
    symlinkSync("/dev/zero", join(dir, "Dockerfile"));
    expect(await build([dir])).toMatchObject({ code: 1, stderr: expect.stringContaining("Dockerfile") as string });
    const named = await build(["-f", join(dir, "Dockerfile"), dir]);
    expect(named).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("is not a file of at most 4 MiB") as string,
    });
    expect(await build(["-f", join(dir, "Dockerfile.it"), dir])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('".dockerignore" cannot be used') as string,
    });
    rmSync(join(dir, ".dockerignore"));
    expect(await build(["-f", join(dir, "Dockerfile.it"), dir])).toMatchObject({ code: 0 });
  });

  test("gives commands of any user their files whatever the umask says", async () => {
    const script = "cat /etc/hosts /etc/resolv.conf >/dev/null && ls / && echo it ran";
    const lines = [
      "FROM localhost/base",
      "USER 1000",
      `RUN ${script}`,
      "RUN <<E",
      "#!/bin/sh",
      "echo and so did this",
      "E",
    ];
    const dir = context({ Dockerfile: lines.join("\n") });
    const before = process.umask(0o077);
    try {
      const { code, stderr } = await build([dir]);
      expect(stderr).toMatch(/it ran[^]*and so did this/);
      expect(code).toBe(0);
    } finally {
      process.umask(before);
    }
  });

  test("shows each step, its output and what was cached, and prints the digest", async () => {
    const dir = context({ Dockerfile: "FROM localhost/base\nCOPY a /a\nRUN cat /a; echo no >&2\n", a: "yes\n" });
    const first = await build(["-t", "app:1", "-t", "localhost/app", dir]);
    expect(first).toMatchObject({ code: 0, stdout: expect.stringMatching(digest) as string });
    expect(first.stderr.replaceAll(/\d+(\.\d+)? m?s$/gm, "TIME")).toBe(
      [
        "[1/2] COPY a /a",
        "[1/2] done in TIME",
        "[2/2] RUN cat /a; echo no >&2",
        "[2/2] yes",
        "[2/2] no",
        "[2/2] done in TIME",
        "docker.io/library/app:1, localhost/app:latest, 2 steps, 0 cached, TIME",
        "",
      ].join("\n"),
    );
    const second = await build(["-t", "app:1", dir]);
    expect(second).toMatchObject({ code: 0, stdout: first.stdout });
    expect(second.stderr).toContain("[1/2] CACHED COPY a /a\n[2/2] CACHED RUN cat /a; echo no >&2\n");
    const quiet = await build(["-q", dir]);
    expect(quiet).toEqual({ code: 0, signal: null, stdout: first.stdout, stderr: "" });
    expect((await call(["ls"])).stdout).toMatch(/^app:1 +/m);
    expect(await call(["export", "-o", "by-digest.tar", first.stdout.trim()])).toMatchObject({ code: 0 });
  });

  test("answers again without a build, unless something has changed that it depends on", async () => {
    const dir = context({ Dockerfile: "FROM localhost/moving\nCOPY a /a\nRUN echo 1 > /b\n", a: "a" });
    await call(["import", "base", "localhost/moving"]);
    await delay(2100);
    const first = await build(["-t", "again:1", dir]);
    const memos = () => readdirSync(join(data(), "run/build/memos"));
    const count = memos().length;
    // Nothing that a build needs is there: it is not one.
    const again = await build(["-t", "again:1", dir], { env: { SOURCE_DATE_EPOCH: "" } });
    expect(again.stdout).toBe(first.stdout);
    expect(again.stderr).toMatch(
      /^\[1\/2\] CACHED COPY a \/a\n\[2\/2\] CACHED RUN echo 1 > \/b\ndocker.io.*2 cached, /,
    );
    expect(memos()).toHaveLength(count);
    // Of a name that is gone, or moved, it knows nothing.
    await call(["rm", "again:1"]);
    expect(await build(["-t", "again:1", dir])).toMatchObject({ code: 0, stdout: first.stdout });
    expect((await call(["ls"])).stdout).toMatch(/^again:1 +/m);
    writeLayout(path("other-base"), { layers: [busyboxLayer([{ name: "other", content: "" }])] });
    await call(["import", "other-base", "localhost/moving"]);
    const moved = await build(["-t", "again:1", dir]);
    expect(moved.stdout).toMatch(digest);
    expect(moved.stdout).not.toBe(first.stdout);
    expect(moved.stderr).toContain("[2/2] done in");
  });

  test("points at the line of the Dockerfile, with exit code 1", async () => {
    const dir = context({
      Dockerfile: "FROM localhost/base\nRUN echo before; exit 3\n",
      other: "FROM localhost/base\nRUM x\nCOPY\n",
    });
    const failed = await build(["-q", dir]);
    expect(failed).toMatchObject({ code: 1, stdout: "" });
    expect(failed.stderr).toBe(
      "[1/1] RUN echo before; exit 3\n[1/1] before\nDockerfile:2:1: error: the command failed with exit code 3\n  2 | RUN echo before; exit 3\n    | ^^^\n",
    );
    const wrong = await build(["-f", join(dir, "other"), dir]);
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).toMatch(/other:2:1: error: .*"RUM".*\n +2 \| RUM x\n +\| \^\^\^/);
    expect(wrong.stderr).toMatch(/other:3:/);
  });

  test("takes ARGs, secrets, an ssh agent, labels and a stage", async () => {
    const dir = context({
      Dockerfile: [
        "FROM localhost/base AS one",
        "ARG GIVEN NAMED MISSING=default",
        "RUN --mount=type=secret,id=file --mount=type=secret,id=VARIABLE,env=VARIABLE --mount=type=secret,id=other " +
          "echo $GIVEN $NAMED $MISSING $VARIABLE $(cat /run/secrets/file) $(cat /run/secrets/other)",
        "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK",
        "FROM localhost/base",
        "RUN exit 1",
      ].join("\n"),
      secret: "top",
    });
    const agent = createServer();
    agent.listen(path("agent"));
    const args = (
      `--build-arg GIVEN=1 --build-arg NAMED --build-arg MISSING --secret id=file,src=${dir}/secret ` +
      "--secret id=VARIABLE --secret id=other,env=OTHER --ssh default --label a=1 --label b --target one -t args:1"
    ).split(" ");
    const environment = { NAMED: "2", VARIABLE: "3", OTHER: "4", SSH_AUTH_SOCK: path("agent") };
    const built = await build([...args, dir], { env: environment });
    agent.close();
    expect(built).toMatchObject({ code: 0 });
    expect(built.stderr).toContain("[one 1/2] 1 2 default 3 top 4\n");
    const [inspected] = JSON.parse((await call(["inspect", "args:1"])).stdout) as [
      { config: { config: { Labels: object } } },
    ];
    expect(inspected.config.config.Labels).toEqual({ a: "1", b: "" });
  });

  test("reads the Dockerfile from standard input, with and without a context", async () => {
    const dir = context({ "dir/file": "file" });
    const within = await build(["-f", "-", dir], {
      input: "FROM localhost/base\nRUN --mount=target=/c cat /c/dir/file\n",
    });
    expect(within.stderr).toContain("[1/1] file\n");
    const without = await build(["-"], { input: "FROM localhost/base\nCOPY file /\n" });
    expect(without).toMatchObject({ code: 1 });
    expect(without.stderr).toContain('-:2:1: error: there is no "file" in the build context');
  });

  test("takes its context out of an archive on standard input, and other files by name", async () => {
    const archive = tarArchive([
      { name: "docker/File", content: "FROM alpine\nCOPY f /f\nRUN --mount=from=more,target=/m cat /f /m/g\n" },
      { name: "f", content: "one " },
    ]);
    const more = context({ g: "two" });
    const args = ["-f", "docker/File", "--build-context", `more=${more}`];
    const image = "alpine=docker-image://localhost/base";
    for (const input of [archive, gzipSync(archive)]) {
      const built = await build([...args, "--build-context", image, "--no-cache", "-"], { input });
      expect(built).toMatchObject({ code: 0 });
      expect(built.stderr).toContain("[2/2] one two\n");
    }
    const layout = await build([...args, "--build-context", `alpine=oci-layout://${path("base")}`, "-"], {
      input: archive,
    });
    expect(layout).toMatchObject({ code: 0 });
    const digest = `sha256:${"0".repeat(64)}`;
    const wrong = await build([...args, "--build-context", `alpine=oci-layout://${path("base")}@${digest}`, "-"], {
      input: archive,
    });
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining(`not ${digest}`) as string });
    const missing = await build(["-"], { input: archive });
    expect(missing).toMatchObject({ code: 1, stderr: expect.stringContaining('no "Dockerfile"') as string });
  });

  test("writes outputs, and files for scripts", async () => {
    const dir = context({ Dockerfile: "FROM scratch\nCOPY a /sub/a\n", a: "content" });
    const outputs = ["type=oci,dest=oci.tar", "type=oci,dest=oci/,tar=false", "type=docker,dest=docker.tar", "files"];
    const options = ["--iidfile", "id", "--metadata-file", "metadata.json", "-t", "out:1"];
    const built = await build([...outputs.flatMap((each) => ["-o", each]), ...options, dir]);
    expect(built).toMatchObject({ code: 0 });
    expect(readFileSync(path("files/sub/a"), "utf8")).toBe("content");
    expect(readdirSync(path("oci")).sort()).toEqual(["blobs", "index.json", "manifest.json", "oci-layout"]);
    for (const name of ["oci.tar", "docker.tar"])
      expect(execFileSync("tar", ["tf", path(name)], { encoding: "utf8" })).toContain("manifest.json\n");
    expect(readFileSync(path("id"), "utf8")).toBe(built.stdout.trim());
    expect(JSON.parse(readFileSync(path("metadata.json"), "utf8"))).toMatchObject({
      "containerimage.digest": built.stdout.trim(),
      "image.name": "docker.io/library/out:1",
    });
    const piped = await build(["-o", "type=docker,dest=-", dir]);
    expect(piped.stdout.slice(257, 262) + piped.stdout.slice(0, 5)).toBe("ustarblobs");
    mkdirSync(path("é ü"));
    symlinkSync("é ü", path("link"));
    expect(await build(["-o", "link", dir])).toMatchObject({ code: 0 });
    expect(readFileSync(path("é ü/sub/a"), "utf8")).toBe("content");
    for (const [options, why] of [
      [["-o", "type=oci,dest=absent/oci.tar"], 'absent/oci.tar" cannot be written: its directory does not exist'],
      [["-o", "type=docker,dest=link"], 'link" cannot be written: it is a directory'],
      [["-o", "id/files"], 'id/files" cannot be written: ENOTDIR'],
      [["--iidfile", "absent/id"], '"absent/id" cannot be written: ENOENT'],
    ] as const)
      expect((await build([...options, dir])).stderr).toContain(why);
  });

  test("builds for several platforms, pushes the index and exports it", async () => {
    await using registry = await DebianRegistry.start();
    const dir = context({ Dockerfile: "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n", amd64: "x", arm64: "a" });
    const name = `${registry.host}/many:1`;
    const built = await build(["--platform", "linux/amd64,linux/arm64", "--push", "-t", name, dir]);
    expect(built).toMatchObject({ code: 0, stdout: expect.stringMatching(digest) as string });
    const raw = JSON.parse(registry.skopeo("inspect", "--raw", "--tls-verify=false", `docker://${name}`)) as {
      manifests: object[];
    };
    expect(raw.manifests).toHaveLength(2);
    expect(await call(["push", name, `${registry.host}/again:2`])).toMatchObject({ code: 0, stdout: built.stdout });
    expect(await call(["export", "-o", "many/", name])).toMatchObject({ code: 0 });
    expect(readFileSync(path("many/index.json"), "utf8")).toContain(built.stdout.trim());
  });

  test("exports its cache, and takes over what another one has exported", async () => {
    const dir = context({ Dockerfile: "FROM localhost/base\nRUN echo cache > /c\n" });
    const built = await build(["--cache-to", "./cache", dir]);
    expect(built).toMatchObject({ code: 0 });
    const env = { SLIPWAY_DATA_DIR: path("other-data") };
    await call(["import", "base", "localhost/base"], { env });
    const again = await build(["--cache-from", "type=local,src=cache", dir], { env });
    expect(again).toMatchObject({ code: 0, stdout: built.stdout });
    expect(again.stderr).toContain("[1/1] CACHED RUN echo cache > /c\n");
  });

  test("is canceled by a signal and takes its commands down", async () => {
    // As long as nobody else on this machine sleeps.
    const seconds = process.pid * 10_000;
    const dir = context({ Dockerfile: `FROM localhost/base\nRUN echo started; sleep ${seconds}\n` });
    const child = spawn(process.execPath, [bin, "image", "build", dir], {
      env: environment({ SLIPWAY_DATA_DIR: data() }),
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      if (text.includes("[1/1] started")) child.kill("SIGINT");
    });
    expect(await once(child, "close")).toEqual([1, null]);
    expect(stderr).toContain("slipway: Canceled: received SIGINT\n");
    const commands = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map((pid) => commandLine(pid));
    expect(commands.filter((command) => command.startsWith(`sleep\0${seconds}\0`))).toEqual([]);
  });

  test("leaves no layer half-written and no container", async () => {
    expect(readdirSync(join(imageStorePath(join(data(), "images")), "tmp"))).toEqual([]);
    expect(readdirSync(join(data(), "run/0")).filter((name) => ["containers", "workspaces"].includes(name))).toEqual(
      [],
    );
  });

  test.for([
    [["--build-context", "x", "."], "--build-context must be NAME=PLACE"],
    [["--build-context", "x=none", "."], 'there is no directory "none"'],
    [["--build-context", "x=docker-image://a b", "."], "a b"],
    [["--add-host", "x:host-gateway", "."], "the host is not reached"],
    [["--add-host", "x y:10.0.0.1", "."], "NAME:ADDRESS is wanted"],
    [["--sbom=true", "."], "attestations are not supported"],
    [["nowhere"], 'There is no directory "nowhere"'],
    [["--push", "."], "A push needs a name"],
    [["--platform", "plan9/x", "."], "--platform must be like linux/arm64"],
    [["--output", "type=tape,dest=x", "."], 'no type "tape"'],
    [["--output", "type=oci", "."], "needs a dest=PATH"],
    [["--secret", "src=x", "."], "--secret must be"],
    [["--secret", "id=x,src=absent", "."], 'There is no file "absent"'],
    [["--network", "bridge", "."], "--network must be one of default, none, host"],
    [["-t", "UPPER", "."], 'did you mean "upper"?'],
    [["-f", "absent", "."], 'There is no file "absent"'],
  ] as const)("refuses %j", async ([args, message]) => {
    const dir = context({ Dockerfile: "FROM scratch\nCOPY Dockerfile /\n" });
    const outcome = await build(args.map((each) => (each === "." ? dir : each)));
    expect(outcome).toMatchObject({ code: 2, stdout: "" });
    expect(outcome.stderr).toContain(message);
  });
});
