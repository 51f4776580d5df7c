import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BaseImages, BuildError } from "../../build/index.ts";
import { formatDiagnostic } from "../../pipelines/index.ts";
import { BuildFixture, type Built, busyboxLayer, listArchive } from "./build-fixture.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { tarArchive } from "../runtime/tar-archive.ts";

describe.skipIf(!isRoot)("buildImage", () => {
  let fixture: BuildFixture;
  beforeAll(async () => {
    fixture = await BuildFixture.open();
  });
  afterAll(async () => {
    await fixture[Symbol.asyncDispose]();
  });

  const cached = ({ steps }: Built) => steps.map((step) => step.cached);
  const files = async (built: Built) => mergeLayers(await fixture.layers(built));

  /** How a build fails, as a terminal shows it. */
  async function failure(dockerfile: string, context: Record<string, string> = {}, options = {}): Promise<string> {
    const error = await fixture.build(dockerfile, context, options).then(
      () => new Error("It did not fail"),
      (reason: unknown) => reason as Error,
    );
    if (!(error instanceof BuildError)) throw error;
    return error.diagnostic === undefined ? error.message : formatDiagnostic(error.diagnostic);
  }

  describe("the cache", () => {
    test("goes by content: times do not matter, contents and modes do", async () => {
      const contextDir = fixture.context({ "a.txt": "one", "dir/b": "b" });
      const build = () => fixture.build("FROM base\nCOPY . /c/\nRUN ls -lR /c > /list\n", {}, { contextDir });
      const first = await build();
      expect(cached(first)).toEqual([false, false]);
      utimesSync(join(contextDir, "a.txt"), 1, 1);
      const second = await build();
      expect(cached(second)).toEqual([true, true]);
      expect(second.id).toBe(first.id);
      expect(second.manifest).toEqual(first.manifest);
      writeFileSync(join(contextDir, "a.txt"), "two");
      expect(cached(await build())).toEqual([false, false]);
      execFileSync("chmod", ["700", join(contextDir, "dir")]);
      expect(cached(await build())).toEqual([false, false]);
      writeFileSync(join(contextDir, "a.txt"), "one");
      execFileSync("chmod", ["755", join(contextDir, "dir")]);
      expect(cached(await build())).toEqual([true, true]);
    });

    test("does again what of it is asked to be done again, and no more", async () => {
      const dockerfile = "FROM base AS one\nRUN echo 1 > /1\nFROM base\nRUN echo 2 > /2\nCOPY --from=one /1 /\n";
      await fixture.build(dockerfile);
      const cached = async (noCacheStages: readonly string[]) =>
        (await fixture.build(dockerfile, {}, { noCacheStages })).steps
          .filter((step) => step.cached)
          .map(({ title }) => title.slice(0, 8))
          .sort();
      expect(await cached(["ONE"])).toEqual(["[stage-1", "[stage-1"]);
      expect(await cached(["1"])).toEqual(["[one 1/1"]);
      expect(await cached(["none"])).toHaveLength(3);
    });

    test("gives commands the hosts that it is told of, in their key, too", async () => {
      const build = (...extraHosts: string[]) =>
        fixture.build("FROM base\nRUN grep -c added.test /etc/hosts\n", {}, { extraHosts });
      expect((await build("10.1.2.3 added.test")).output).toBe("1\n");
      expect((await build("10.1.2.3 added.test")).steps).toMatchObject([{ cached: true }]);
      await expect(build()).rejects.toThrow("exit code 1");
    });

    test("of COPY --from goes by what is copied, not by how it was made", async () => {
      const dockerfile = (noise: string) =>
        `FROM base AS one\nRUN echo ${noise} > /noise; echo same > /same\nFROM base\nCOPY --from=one /same /\nRUN cat /same\n`;
      await fixture.build(dockerfile("1"));
      expect(cached(await fixture.build(dockerfile("2")))).toEqual([false, true, true]);
    });

    test("sees ARGs that a command sees, and not proxies", async () => {
      const build = (args: Record<string, string>) =>
        fixture.build(
          "FROM base\nRUN true 1\nARG A\nRUN echo $A$HTTP_PROXY\n",
          {},
          { buildArgs: new Map(Object.entries(args)) },
        );
      await build({ A: "1" });
      expect(cached(await build({ A: "1", HTTP_PROXY: "http://x" }))).toEqual([true, true]);
      expect(cached(await build({ A: "2" }))).toEqual([true, false]);
    });

    test("is not used where that is asked for, and is made anew by it", async () => {
      const dockerfile = "FROM base\nRUN date +%N > /time\n";
      using one = fixture.store.lease();
      const first = await fixture.build(dockerfile, {}, { lease: one });
      // Somebody uses the layer: it stays, and another one is made.
      const held = await fixture.build(dockerfile, {}, { noCache: true });
      expect(cached(held)).toEqual([false]);
      expect(cached(await fixture.build(dockerfile))).toEqual([true]);
      expect(held.id).not.toBe(first.id);
    });

    test("has a linked layer whatever stands below it", async () => {
      const dockerfile = (base: string) => `FROM base\nRUN echo ${base} > /base\nCOPY --link a /a\n`;
      await fixture.build(dockerfile("1"), { a: "a" });
      expect(cached(await fixture.build(dockerfile("2"), { a: "a" }))).toEqual([false, true]);
    });
  });

  test("gives the same digest twice, in two stores, with SOURCE_DATE_EPOCH", async () => {
    const dockerfile = `FROM base
ARG SOURCE_DATE_EPOCH
WORKDIR /w
COPY --chown=app dir ./
RUN echo x > new && mkdir -p a/b && rm /bin/nc && ln new link
FROM base
COPY --from=0 /w /w
COPY <<EOF /inline
text
EOF
LABEL a=b
`;
    const buildArgs = new Map([["SOURCE_DATE_EPOCH", "1500000000"]]);
    const one = await fixture.build(dockerfile, { "dir/f": "f", "dir/g": "g" }, { buildArgs });
    await using other = await BuildFixture.open();
    const two = await other.build(dockerfile, { "dir/g": "g", "dir/f": "f" }, { buildArgs });
    expect(two.manifest).toEqual(one.manifest);
    expect(one.configuration.created).toBe("2017-07-14T02:40:00Z");
    const layer = (await fixture.layers(one)).at(-1) as Buffer;
    expect(Object.keys(listArchive(layer))).toEqual(["inline"]);
  });

  test("asks for the images of all stages that are needed at once, before any command runs", async () => {
    const asked: string[] = [];
    const all = Promise.withResolvers<void>();
    const images: BaseImages = {
      resolve: async (name, options) => {
        if (asked.push(name) === 4) all.resolve();
        await all.promise;
        return await fixture.images.resolve("base", options);
      },
    };
    const lines = [
      "FROM one AS first",
      "RUN true",
      "FROM first AS second",
      "COPY --from=two /bin /two",
      "FROM unused AS unused",
      "FROM three",
      "RUN --mount=from=four,target=/four true",
      "COPY --from=second /two /two",
    ];
    await fixture.build(`${lines.join("\n")}\n`, {}, { images });
    expect(asked.toSorted()).toEqual(["four", "one", "three", "two"]);
  });

  test("builds stages that do not depend on each other side by side, and no others", async () => {
    // Each waits for the other one's file in the cache directory that they share.
    const stage = (name: string, other: string) => `FROM base AS ${name}
RUN --mount=type=cache,id=meeting,target=/m touch /m/${name}; i=0; \\
  while [ ! -e /m/${other} ]; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done; touch /${name}
`;
    const built = await fixture.build(
      `${stage("one", "two")}${stage("two", "one")}FROM base AS never\nRUN exit 1\nFROM base\nCOPY --from=one /one /\nCOPY --from=two /two /\n`,
    );
    expect(Object.keys(await files(built))).toEqual(expect.arrayContaining(["one", "two"]));
  });

  test("keeps what is mounted out of every layer", async () => {
    const secret = "correct horse battery staple";
    const dockerfile = `FROM base
RUN --mount=type=secret,id=s,target=/deep/er/secret --mount=type=cache,target=/root/.cache/x --mount=type=tmpfs,target=/t \\
  --mount=type=bind,target=/ctx cat /deep/er/secret | wc -c > /count && echo kept > /root/.cache/x/file && touch /t/x
RUN --mount=type=secret,id=s,env=S echo -n "$S" | wc -c >> /count; ls -d /deep /root/.cache /t /ctx 2> /missing; true
RUN --mount=type=cache,target=/root/.cache/x cat /root/.cache/x/file > /cached
`;
    const secrets = new Map([["s", () => Promise.resolve(Buffer.from(secret))]]);
    const built = await fixture.build(dockerfile, {}, { secrets });
    const merged = await files(built);
    expect(merged).toMatchObject({ count: `f 0:0 644 ${`${secret.length}\n`.repeat(2)}`, cached: "f 0:0 644 kept\n" });
    for (const path of ["deep", "root/.cache", "t", "ctx"]) expect(merged).not.toHaveProperty([path]);
    for (const layer of await fixture.layers(built)) expect(layer.includes(secret)).toBe(false);
    expect(JSON.stringify(built.configuration)).not.toContain("horse");
    // Those of other tests, which run beside this one, go in a moment; one that was left would stay.
    const secretDirs = readdirSync("/dev/shm").filter((name) => name.startsWith("slipway-secret"));
    await expect
      .poll(() => readdirSync("/dev/shm").filter((name) => secretDirs.includes(name)), { timeout: 20_000 })
      .toEqual([]);
    // The secret is no part of the key: another one is no reason to run again.
    const again = await fixture.build(
      dockerfile,
      {},
      { secrets: new Map([["s", () => Promise.resolve(Buffer.from("x"))]]) },
    );
    expect(cached(again)).toEqual([true, true, true]);
  });

  test("fills a cache from elsewhere, also when that failed at first", async () => {
    const dockerfile = (source: string) =>
      `FROM base\nRUN --mount=type=cache,target=/c,id=filled,from=base,source=${source} ls /c > /list\n`;
    expect(await failure(dockerfile("/absent"))).toContain("/absent");
    expect((await files(await fixture.build(dockerfile("/home"))))["list"]).toBe("f 0:0 644 app\n");
  });

  test("lets commands sign with the user's ssh keys", async () => {
    const agent = join(fixture.directory, "agent");
    const server = createServer((socket) => socket.on("error", () => {})).listen(agent);
    try {
      const built = await fixture.build(
        "FROM base\nRUN --mount=type=ssh stat -c '%F %a %u' $SSH_AUTH_SOCK > /socket\nRUN --mount=type=ssh,id=other echo $SSH_AUTH_SOCK > /none\n" +
          "RUN --mount=type=ssh --mount=type=ssh,id=b ls /run/buildkit > /two\n",
        {},
        {
          ssh: new Map([
            ["default", agent],
            ["b", agent],
          ]),
        },
      );
      const merged = await files(built);
      expect(merged["socket"]).toBe("f 0:0 644 socket 600 0\n");
      expect(merged["none"]).toBe("f 0:0 644 \n");
      expect(merged["two"]).toBe("f 0:0 644 ssh_agent.b\nssh_agent.default\n");
      expect(merged).not.toHaveProperty(["run/buildkit"]);
    } finally {
      server.close();
    }
  });

  test("has only the loopback where the build has no network", async () => {
    const built = await fixture.build(
      "FROM base\nRUN ls /sys/class/net; cat /etc/resolv.conf /etc/hosts; echo x >> /etc/hosts\n",
    );
    expect(built.output).toMatch(/^lo\n/);
    expect(built.output).toContain("localhost");
    expect((await files(built))["etc/hosts"]).toBe("f 0:0 644 ");
    expect(await failure("FROM base\nADD http://127.0.0.1:1/x /\n")).toContain("this build has no network");
  });

  test("gives an image a name under which a step finds it, its layers unpacked", async () => {
    const name = "docker.io/library/named:1";
    const built = await fixture.build("FROM base\nRUN echo named > /named\n", {}, { names: [name] });
    const record = await fixture.store.names.get(name);
    expect(record?.manifest.digest).toBe(built.manifest.digest);
    const diffId = built.configuration.rootfs.diff_ids.at(-1) as string;
    const layer = await fixture.store.layers.find(diffId.replace(":", "-"));
    expect(readFileSync(join(layer as string, "named"), "utf8")).toBe("named\n");
  });

  test("compresses with zstd or not at all", async () => {
    for (const compression of ["zstd", "none"] as const) {
      const built = await fixture.build("FROM base\nRUN echo compressed > /c\n", {}, { compression });
      const [, layer] = await fixture.layers(built);
      expect(listArchive(layer as Buffer)).toEqual({ c: "f 0:0 644 compressed\n" });
    }
  });

  test("stops when it is canceled, and leaves nothing", async () => {
    const canceling = new AbortController();
    const reporter = { output: () => canceling.abort(new Error("enough")) };
    const build = fixture.build(
      "FROM base\nRUN echo started; sleep 1000\n",
      {},
      { signal: canceling.signal, reporter },
    );
    await expect(build).rejects.toThrow("enough");
    expect(readdirSync(join(fixture.host.stateDir, "containers"))).toEqual([]);
  });

  describe("says where the Dockerfile is at fault:", () => {
    test("a command that fails, with its exit code", async () => {
      const dockerfile = "FROM base\nRUN echo before\nRUN echo to stderr >&2; \\\n  exit 42\n";
      expect(await failure(dockerfile)).toBe(
        [
          "Dockerfile:3:1: error: the command failed with exit code 42",
          "  3 | RUN echo to stderr >&2; \\",
          "    | ^^^",
        ].join("\n"),
      );
      const error = await fixture.build(dockerfile).catch((reason: unknown) => reason as BuildError);
      expect((error as BuildError).exitCode).toBe(42);
    });

    test.for([
      ["FROM base\nCOPY missing /\n", 'there is no "missing" in the build context'],
      ["FROM base\nCOPY --from=base /missing /\n", 'there is no "/missing" in "base"'],
      ["FROM base\nCOPY secret /\n", '"secret" is excluded from the build context by .dockerignore'],
      ["FROM base\nCOPY --chown=nobody:x a /\n", 'there is no user "nobody" in /etc/passwd of the image'],
      ["FROM base\nCOPY --chmod=999 a /\n", "is no octal number"],
      ["FROM base\nCOPY a /etc/passwd/x\n", '"etc/passwd" is not a directory in the image'],
      ["FROM base\nCOPY a b /x\n", "several files cannot be copied to one"],
      ["FROM base\nCOPY --exclude=[ a /\n", 'it has a "[" without its "]"'],
      ["FROM base\nCOPY http://x/y /\n", "COPY takes no URL"],
      ["FROM base\nADD --checksum=sha256:0 http://x/y /\n", "is no checksum"],
      ["FROM base\nADD --checksum=sha256:0 a /\n", "--checksum is for one source, and that a URL"],
      ["FROM base\nUSER nobody\nRUN x\n", 'there is no user "nobody"'],
      ['FROM base\nRUN ["/missing"]\n', 'Cannot execute "/missing"'],
      ["FROM base\nRUN --mount=type=bind,source=missing,target=/m x\n", 'there is no "missing"'],
      ["FROM base\nRUN --mount=type=secret,id=s,required=true x\n", 'there is no secret "s"'],
      ["FROM base\nRUN --mount=type=ssh,required=true x\n", "there is no ssh agent"],
      ["FROM base\nRUN --mount=type=tmpfs,target=/ x\n", "nothing can be mounted on / itself"],
      ["FROM base\nRUN --network=host x\n", "--network=host is not allowed"],
      [
        "FROM base AS one\nFROM base\nCOPY --from=two /x /\nFROM base AS two\n",
        'the stage "two" does not stand before',
      ],
      ["FROM base\nCOPY --from=5 /x /\n", "there is no stage 5 before this one"],
      ["FROM nonexistent\n", 'there is no image "nonexistent"'],
      ["ARG X\nFROM ${X}\n", "FROM names no image"],
      ["ARG X\nFROM ${X:?which}\n", "X: which"],
      ["FROM --platform=a/b/c/d base\n", "is no platform"],
      ["FROM scratch\nRUN x\n", 'Cannot execute "/bin/sh"'],
      ["FROM base\nUSER 99999999\nRUN x\n", "Cannot run as user 99999999"],
      ["FROM base\nWORKDIR /proc/self/root\nRUN x\n", 'the command cannot be started: open "/proc/self/root"'],
      ["FROM hostile-trigger\n", "cannot be used"],
    ] as const)("%s", async ([dockerfile, message]) => {
      fixture.addImage("hostile-trigger", { layers: [busyboxLayer()], config: { OnBuild: ["FROM x"] } });
      // The target may be a stage in front of one that is asked for.
      const target = dockerfile.includes("AS two") ? "1" : undefined;
      const context = { a: "a", b: "b", secret: "s", ".dockerignore": "secret" };
      const text = await failure(dockerfile, context, { target });
      expect(text).toContain(message);
      expect(text).toMatch(/^Dockerfile:\d+:\d+: error: .*\n +\d+ \| .*\n +\| +\^/);
    });

    test("a stage that is not there, a file that cannot be read", async () => {
      expect(await failure("FROM base AS build\n", {}, { target: "biuld" })).toBe(
        'there is no stage "biuld"; did you mean "build"?',
      );
      expect(await failure("", {}, { dockerfile: "Dockerfile" })).toContain(
        'there is no "Dockerfile" in the build context',
      );
      expect(await failure("FROM base\nRUM x\nRUM y\n")).toContain('there is no instruction "RUM"');
      expect(await failure("FROM base\n", { ".dockerignore": "[" })).toContain(".dockerignore: line 1");
      expect(await failure("FROM base\n", { ".containerignore": "[" })).toContain(".containerignore: line 1");
    });
  });

  describe("a hostile", () => {
    test("context cannot lead outside by links", async () => {
      const contextDir = fixture.context({ "inside/passwd": "inside" });
      const outside = join(fixture.directory, "outside");
      mkdirSync(outside, { recursive: true });
      writeFileSync(join(outside, "secret"), "outside");
      const up = "../".repeat(20);
      for (const [name, target] of [
        ["absolute", join(outside, "secret")],
        ["relative", `${up}${outside}/secret`],
        ["directory", outside],
        ["inside-absolute", "/inside/passwd"],
        ["inside-up", `${up}inside/passwd`],
        ["loop", "loop"],
        ["proc", "/proc/self/environ"],
      ] as const) {
        symlinkSync(target, join(contextDir, name));
      }
      const sources = [
        "absolute",
        "relative",
        "directory/secret",
        "directory",
        "loop",
        "proc",
        `${up}${outside}/secret`,
      ];
      for (const source of sources) {
        const text = await failure(`FROM base\nCOPY ${source} /x\n`, {}, { contextDir });
        expect(text).toMatch(/there is no|goes through too many links/);
      }
      const built = await fixture.build(
        "FROM base\nCOPY inside-absolute inside-up /x/\nCOPY . /all/\n",
        {},
        { contextDir },
      );
      const merged = await files(built);
      expect(merged).toMatchObject({
        "x/inside-absolute": "f 0:0 644 inside",
        "x/inside-up": "f 0:0 644 inside",
        "all/absolute": `l 0:0 ${join(outside, "secret")}`,
        "all/directory": `l 0:0 ${outside}`,
      });
      expect(Object.keys(merged).filter((path) => path.startsWith("all/directory/"))).toEqual([]);
    });

    test("image cannot have the build write or read outside by links", async () => {
      const outside = join(fixture.directory, "host");
      mkdirSync(outside, { recursive: true });
      writeFileSync(join(outside, "secret"), "host");
      const up = "../".repeat(20);
      const layer = busyboxLayer([
        { name: "evil", type: "2", linkName: outside },
        { name: "evil-up", type: "2", linkName: `${up}${outside.slice(1)}` },
        { name: "evil-file", type: "2", linkName: join(outside, "written") },
        { name: "work", type: "2", linkName: outside },
        { name: "mnt", type: "2", linkName: outside },
      ]);
      fixture.addImage("evil", { layers: [layer] });
      const built = await fixture.build(
        `FROM evil
COPY a /evil/copied
COPY a /evil-up/
COPY a /evil-file
ADD archive.tar /evil/
WORKDIR /work/dir
RUN --mount=type=cache,target=/mnt/cache echo x > /mnt/cache/y && pwd > /pwd
`,
        { a: "a", "archive.tar": tarArchive([{ name: "unpacked", content: "u" }]) },
      );
      expect(readdirSync(outside)).toEqual(["secret"]);
      const inside = outside.slice(1);
      const merged = await files(built);
      expect(merged).toMatchObject({
        [`${inside}/copied`]: "f 0:0 644 a",
        [`${inside}/a`]: "f 0:0 644 a",
        [`${inside}/written`]: "f 0:0 644 a",
        [`${inside}/unpacked`]: "f 0:0 644 u",
        [`${inside}/dir`]: "d 0:0 755",
      });
      expect(merged).not.toHaveProperty([`${inside}/cache`]);
      expect(await failure("FROM base\nCOPY --from=evil /evil/secret /\n")).toContain("there is no");
    });

    test("image cannot lead standard mounts or accounts away", async () => {
      fixture.addImage("moved", {
        layers: [
          tarArchive([
            { name: "bin/", mode: 0o755 },
            { name: "bin/busybox", mode: 0o755, content: readFileSync("/usr/bin/busybox") },
            { name: "bin/sh", type: "2", linkName: "busybox" },
            { name: "proc", type: "2", linkName: "bin" },
            { name: "dev", type: "2", linkName: "/proc" },
            { name: "etc", type: "2", linkName: "/etc-elsewhere" },
            { name: "etc-elsewhere/", mode: 0o755 },
            { name: "etc-elsewhere/passwd", type: "2", linkName: "/proc/1/environ" },
          ]),
        ],
      });
      const built = await fixture.build("FROM moved\nRUN busybox ls /proc/self > /list && busybox ls /dev >> /list\n");
      const [, layer] = await fixture.layers(built);
      expect(Object.keys(listArchive(layer as Buffer))).toEqual(["list"]);
      expect(await failure("FROM moved\nUSER root\nRUN x\n")).toContain('no user "root"');
    });

    test("archive is refused by ADD", async () => {
      const archive = tarArchive([{ name: "../outside", content: "x" }]);
      const text = await failure("FROM base\nADD a.tar /x/\n", { "a.tar": archive.toString("latin1") });
      expect(text).toContain('the archive cannot be unpacked: the entry "../outside"');
    });
  });

  test("works on kernels that take overlays by path only", async () => {
    await using other = await BuildFixture.open({ overlaysByPath: true });
    const dockerfile =
      "FROM base AS one\nRUN rm /bin/nc && echo 1 > /one\nFROM base\nCOPY --from=one /one /x/\nRUN --mount=target=/c cat /c/a /x/one > /y\n";
    const built = await other.build(dockerfile, { a: "a" });
    expect(mergeLayers(await other.layers(built))).toMatchObject({ y: "f 0:0 644 a1\n" });
    expect(existsSync(join(other.host.stateDir, "build/empty/0"))).toBe(false);
  });

  // The last one: what all the others have left behind.
  test("leaves no half-written layer, container or mount", async () => {
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(fixture.directory);
  });
});
