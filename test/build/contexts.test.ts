/** Files from elsewhere than the build's own directory: by a name, in an archive, at a URL. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildError, Contexts, type ContextSource, type NamedContext } from "../../build/index.ts";
import { openedMachine } from "../../build/machine.ts";
import { BuildFixture, busyboxLayer } from "./build-fixture.ts";
import { serveGit } from "./git-daemon.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { tarArchive } from "../runtime/tar-archive.ts";

describe.skipIf(!isRoot)("a context", () => {
  let fixture: BuildFixture;
  let server: Server;
  let url: string;
  const served = new Map<string, Buffer>();
  beforeAll(async () => {
    fixture = await BuildFixture.open();
    server = createServer((request, response) => {
      const content = served.get(request.url ?? "");
      if (content === undefined) response.writeHead(404).end();
      else response.writeHead(200, { "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT" }).end(content);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(async () => {
    server.closeAllConnections();
    server.close();
    await fixture[Symbol.asyncDispose]();
  });

  const openContexts = () =>
    Contexts.open({
      machine: openedMachine({ host: fixture.host, uidRange: fixture.range, network: "host" }),
      store: fixture.store,
      lease: fixture.lease,
      workers: fixture.workers,
      resources: { memoryBytes: 256 << 20, cpu: 1, pids: 64 },
      signal: new AbortController().signal,
    });
  const directory = (files: Readonly<Record<string, string>>): NamedContext => {
    return { kind: "directory", directory: fixture.context(files) };
  };
  const merged = async (image: Awaited<ReturnType<BuildFixture["build"]>>) => mergeLayers(await fixture.layers(image));

  test("stands for a name in FROM, COPY --from and RUN --mount, without what it ignores", async () => {
    const src = directory({ "a/f": "f", secret: "no", ".dockerignore": "secret\n" });
    const dockerfile = [
      "FROM src AS whole",
      "COPY own /own",
      "FROM base",
      "COPY --from=src a /a/",
      "COPY --from=whole / /whole/",
      "RUN --mount=type=bind,from=src,target=/m cat /m/a/f > /read && ! test -e /m/secret",
      "RUN --mount=type=cache,from=src,target=/c cat /c/a/f > /seeded",
    ].join("\n");
    const contexts = new Map([["src", src]]);
    const files = await merged(await fixture.build(dockerfile, { own: "own" }, { contexts }));
    expect(files["a/f"]).toBe("f 0:0 644 f");
    expect(files["whole/a/f"]).toBe("f 0:0 644 f");
    expect(files["whole/own"]).toBe("f 0:0 644 own");
    expect(files["read"]).toBe("f 0:0 644 f");
    expect(files["seeded"]).toBe("f 0:0 644 f");
    expect(files).not.toHaveProperty(["whole/secret"]);
    await expect(fixture.build("FROM scratch\nCOPY --from=src secret /\n", {}, { contexts })).rejects.toThrow(
      '"secret" is excluded from the context "src"',
    );
    await expect(fixture.build("FROM scratch\nCOPY --from=src none /\n", {}, { contexts })).rejects.toThrow(
      'there is no "none" in the context "src"',
    );
  });

  test("is found again by what is in it, wherever it is", async () => {
    const dockerfile = "FROM src\nCOPY --from=src f /copied\nCOPY <<E /e\ne\nE\n";
    const build = (files: Readonly<Record<string, string>>) =>
      fixture.build(dockerfile, {}, { contexts: new Map([["src", directory(files)]]) });
    const first = await build({ f: "one" });
    const again = await build({ f: "one" });
    expect(again.steps.map(({ cached }) => cached)).toEqual([true, true]);
    expect(again.manifest.digest).toBe(first.manifest.digest);
    const other = await build({ f: "two" });
    expect(other.steps.map(({ cached }) => cached)).toEqual([false, false]);
    expect((await merged(other))["copied"]).toBe("f 0:0 644 two");
    expect((await merged(other))["f"]).toBe("f 0:0 644 two");
  });

  test("takes the place of stages and images of its name, also as the target", async () => {
    fixture.addImage("docker.io/library/other:latest", {
      layers: [busyboxLayer([{ name: "other", content: "other" }])],
      config: { Env: ["PATH=/bin", "OTHER=1"] },
    });
    const image: NamedContext = { kind: "image", name: "docker.io/library/other:latest" };
    const dockerfile = "FROM debian AS made\nRUN exit 1\nFROM alpine:3\nCOPY --from=made f /made\n";
    const made = directory({ f: "f" });
    const contexts = new Map([
      ["made", made],
      ["docker.io/library/alpine:3", image],
    ]);
    const built = await fixture.build(dockerfile, {}, { contexts });
    expect(await merged(built)).toMatchObject({ made: "f 0:0 644 f", other: "f 0:0 644 other" });
    expect(built.configuration.config.Env).toContain("OTHER=1");
    const target = await fixture.build(dockerfile, {}, { contexts, target: "made" });
    expect(Object.keys(await merged(target))).toContain("f");
    expect(target.warnings).toEqual([
      'no FROM, COPY --from or RUN --mount takes the context "docker.io/library/alpine:3"',
    ]);
  });

  test("that is not there fails the build", async () => {
    const contexts = new Map([["src", { kind: "directory", directory: `${fixture.directory}/none` } as const]]);
    await expect(fixture.build("FROM src\n", {}, { contexts })).rejects.toThrow("cannot be opened: ENOENT");
  });

  test("comes out of archives, whose links lead nowhere", async () => {
    writeFileSync(join(fixture.directory, "outside"), "the host's");
    const archive = tarArchive([
      { name: "Containerfile", content: "FROM scratch\nCOPY . /\n" },
      { name: ".dockerignore", type: "2", linkName: join(fixture.directory, "outside") },
      { name: "dir/" },
      { name: "dir/f", content: "f", mode: 0o640 },
    ]);
    const path = join(fixture.directory, "context.tar.gz");
    writeFileSync(path, gzipSync(archive));
    await using contexts = await openContexts();
    const opened = await contexts.main({ kind: "archive", path, name: "standard input" });
    await expect(fixture.build("", {}, { contextDir: opened.directory, dockerfile: undefined })).rejects.toThrow(
      '".dockerignore" cannot be used',
    );
    writeFileSync(path, "no archive");
    await expect(contexts.main({ kind: "archive", path, name: "standard input" })).rejects.toThrow(
      "standard input is no tar archive",
    );
    writeFileSync(path, gzipSync(tarArchive([{ name: "../../escape", content: "x" }])));
    await expect(contexts.main({ kind: "archive", path, name: "standard input" })).rejects.toBeInstanceOf(BuildError);
  });

  test("comes from a URL: an archive, a Dockerfile, and a file by a name", async () => {
    served.set(
      "/c.tar",
      tarArchive([
        { name: "Dockerfile", content: "FROM scratch\nCOPY f /\n" },
        { name: "f", content: "f" },
      ]),
    );
    served.set("/Dockerfile", Buffer.from("FROM scratch\nCOPY --from=file context /it\nCOPY --from=tar f /f\n"));
    served.set("/file", Buffer.from("content"));
    await using contexts = await openContexts();
    const main = await contexts.main({ kind: "url", url: `${url}/c.tar` });
    const built = await fixture.build("", {}, { contextDir: main.directory, dockerfile: undefined });
    expect((await merged(built))["f"]).toBe("f 0:0 644 f");
    const alone = await contexts.main({ kind: "url", url: `${url}/Dockerfile` });
    const named = await contexts.named(
      new Map<string, ContextSource>([
        ["file", { kind: "url", url: `${url}/file` }],
        ["tar", { kind: "url", url: `${url}/c.tar` }],
      ]),
    );
    const dockerfile = { content: alone.dockerfile as Buffer, name: "Dockerfile" };
    const made = await fixture.build("", {}, { contextDir: alone.directory, contexts: named, dockerfile });
    expect(await merged(made)).toMatchObject({ it: "f 0:0 600 content", f: "f 0:0 644 f" });
    await expect(contexts.main({ kind: "url", url: `${url}/absent` })).rejects.toThrow("the server answered 404");
    await expect(contexts.named(new Map([["x", { kind: "url", url: "git@host:a.git" }]]))).rejects.toThrow(
      "ssh is not supported",
    );
  });

  test("gives SOURCE_DATE_EPOCH the time of what it is named after", async () => {
    await using contexts = await openContexts();
    const main = await contexts.main({ kind: "url", url: `${url}/c.tar` });
    const created = async (epoch: string, dockerfile = "FROM scratch\nCOPY f /\n", options = {}) => {
      const buildArgs = new Map([["SOURCE_DATE_EPOCH", epoch]]);
      const { directory: contextDir, modifiedSeconds: contextSeconds } = main;
      const built = await fixture.build(
        dockerfile,
        {},
        { contextDir, contextSeconds, buildArgs, network: "host", ...options },
      );
      return built.configuration.created;
    };
    const time = "1994-11-06T08:49:37Z";
    expect(await created("context")).toBe(time);
    const named = await contexts.named(new Map([["src", { kind: "url", url: `${url}/file` }]]));
    expect(await created("src", "FROM src\n", { contexts: named })).toBe(time);
    const stage = (lines: string) =>
      `FROM scratch AS src\n${lines}\nFROM base\nARG SOURCE_DATE_EPOCH\nRUN test $SOURCE_DATE_EPOCH = 784111777\n`;
    expect(await created("src", stage(`ARG U=${url}\nADD \${U}/file /`))).toBe(time);
    for (const lines of [`ADD ${url}/file ${url}/c.tar /`, "COPY f /", `ADD ${url}/file /\nENV a=b`, "", "ADD f /"])
      await expect(created("src", stage(lines))).rejects.toThrow("nothing but one ADD of a URL");
    await expect(created("none")).rejects.toThrow('SOURCE_DATE_EPOCH is "none", neither a number');
    const local = await fixture.build(
      "FROM base\nARG SOURCE_DATE_EPOCH\nRUN test -z $SOURCE_DATE_EPOCH\n",
      {},
      {
        buildArgs: new Map([["SOURCE_DATE_EPOCH", "context"]]),
      },
    );
    expect(local.configuration.created).not.toBe(time);
  });

  test("is a commit of a repository, or a directory of it", async () => {
    const repository = join(fixture.directory, "git/repo.git");
    mkdirSync(join(repository, "dir"), { recursive: true });
    const env = { ...process.env, GIT_COMMITTER_DATE: "1500000000 +0000" };
    const git = (...args: string[]) =>
      execFileSync("git", ["-C", repository, "-c", "user.name=T", "-c", "user.email=t@example.org", ...args], { env });
    git("init", "-q", "-b", "main");
    writeFileSync(join(repository, "dir/Dockerfile"), "FROM scratch\nCOPY . /\n");
    symlinkSync("/etc", join(repository, "out"));
    git("add", ".");
    git("commit", "-qm", "first");
    git("tag", "v1");
    await using daemon = await serveGit(join(fixture.directory, "git"));
    const remote = `${daemon.url}/repo.git`;
    await using contexts = await openContexts();
    for (const address of [`${remote}#v1:dir`, `${remote}?tag=v1&subdir=dir`, `${remote}?branch=main#:dir`]) {
      const { directory: contextDir, modifiedSeconds } = await contexts.main({ kind: "url", url: address });
      expect(modifiedSeconds).toBe(1_500_000_000);
      const built = await fixture.build("", {}, { contextDir, dockerfile: undefined });
      expect(Object.keys(await merged(built))).toEqual(["Dockerfile"]);
    }
    for (const [address, reason] of [
      [`${remote}#v1:out`, "there is no directory"],
      [`${remote}?commit=${"0".repeat(40)}`, "expected is"],
      [`${remote}?what=1`, "is not understood"],
      [`${remote}?ref=a&tag=b`, "is not understood"],
    ] as const)
      await expect(contexts.main({ kind: "url", url: address })).rejects.toThrow(reason);
  });

  test("leaves nothing behind, and removes what a build has left that was killed", async () => {
    const left = join(fixture.host.stateDir, "build/context-00000000-0000-4000-8000-000000000000");
    mkdirSync(join(left, "dir"), { recursive: true });
    utimesSync(left, 1, 1);
    await using contexts = await openContexts();
    expect(existsSync(left)).toBe(false);
    const path = join(fixture.directory, "context.tar");
    writeFileSync(path, tarArchive([{ name: "f", content: "f" }]));
    const { directory: used } = await contexts.main({ kind: "archive", path, name: "it" });
    utimesSync(used, 1, 1);
    await using _other = await openContexts();
    expect(readFileSync(join(used, "f"), "utf8")).toBe("f");
    await contexts[Symbol.asyncDispose]();
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
  });
});
