import { execFileSync } from "node:child_process";
import { lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type BuildOutput, buildImages, type PlatformBuildOptions, writeOutput } from "../../build/index.ts";
import {
  collectImages,
  importImage,
  layerKey,
  ImageLease,
  ImageStore,
  pullImage,
  parseReference,
  readStoredIndex,
  RegistryClient,
  defaultLayerLimits,
} from "../../runtime/index.ts";
import { BuildFixture } from "./build-fixture.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { DebianRegistry } from "../runtime/registry-fixture.ts";

const amd64 = { os: "linux", architecture: "amd64" };
const arm64 = { os: "linux", architecture: "arm64" };
const foreign = process.arch === "arm64" ? amd64 : arm64;

describe.skipIf(!isRoot)("writeOutput", () => {
  let fixture: BuildFixture;
  let registry: DebianRegistry;
  const client = new RegistryClient({}, { retryBaseMs: 1 });
  beforeAll(async () => {
    fixture = await BuildFixture.open();
    registry = await DebianRegistry.start();
  });
  afterAll(async () => {
    client[Symbol.dispose]();
    await registry[Symbol.asyncDispose]();
    await fixture[Symbol.asyncDispose]();
  });

  const build = (
    dockerfile: string,
    files: Readonly<Record<string, string>>,
    options: Partial<PlatformBuildOptions> = {},
  ) =>
    buildImages({
      host: fixture.host,
      uidRange: fixture.range,
      store: fixture.store,
      images: fixture.images,
      lease: fixture.lease,
      contextDir: fixture.context(files),
      dockerfile: { content: Buffer.from(dockerfile), name: "Dockerfile" },
      resources: { memoryBytes: 256 << 20, cpu: 2, pids: 128 },
      network: "none",
      workers: fixture.workers,
      ...options,
    });
  const write = (built: Awaited<ReturnType<typeof build>>, output: BuildOutput) =>
    writeOutput(built, output, {
      store: fixture.store,
      lease: fixture.lease,
      client,
      workers: fixture.workers,
      overlaysByPath: !fixture.host.mountsDetachedOverlays,
    });
  const skopeo = (...args: string[]) => execFileSync("skopeo", args, { encoding: "utf8" });
  const path = (name: string) => join(fixture.directory, name);

  test("writes layouts and archives that skopeo, buildah and our own import read", async () => {
    const names = ["docker.io/library/app:1", "localhost/app:latest"];
    const built = await build("FROM base\nCOPY a /a\nENV E=1\n", { a: "a" }, { names });
    await write(built, { kind: "oci", path: path("layout"), isDirectory: true });
    await write(built, { kind: "oci", path: path("oci.tar"), isDirectory: false });
    await write(built, { kind: "docker", path: path("docker.tar") });
    const inspected = ["oci:", "oci-archive:", "docker-archive:"].map((transport, index) => {
      const source = `${transport}${path(["layout", "oci.tar", "docker.tar"][index] as string)}`;
      // Several names of one image: which one is asked for must be said.
      const name = index === 2 ? ":docker.io/library/app:1" : ":1";
      return (JSON.parse(skopeo("inspect", `${source}${name}`)) as { Env: string[] }).Env;
    });
    expect(inspected).toEqual(Array.from({ length: 3 }, () => ["PATH=/bin:/usr/bin", "E=1"]));
    const buildah = (...args: string[]) => {
      const storage = ["--root", path("buildah"), "--runroot", path("buildah-run"), "--storage-driver", "vfs"];
      return execFileSync("buildah", [...storage, ...args], { encoding: "utf8" });
    };
    buildah("pull", "--quiet", `docker-archive:${path("docker.tar")}:docker.io/library/app:1`);
    expect(buildah("images", "--format", "{{.Name}}:{{.Tag}}")).toBe("localhost/app:1\n");
    using lease = new ImageLease();
    const other = await ImageStore.open(path("other"));
    const imported = await importImage(path("oci.tar"), { store: other, lease });
    expect(imported).toMatchObject({ manifest: { digest: built.descriptor.digest } });
    await other.settled();
  });

  test("writes an archive over an older one, and none if it is canceled", async () => {
    const built = await build("FROM scratch\nCOPY a /a\n", { a: "a" });
    writeFileSync(path("old.tar"), "old");
    await write(built, { kind: "oci", path: path("old.tar"), isDirectory: false });
    expect(readFileSync(path("old.tar")).length).toBeGreaterThan(2000);
    await expect(
      writeOutput(
        built,
        { kind: "oci", path: path("canceled.tar"), isDirectory: false },
        { store: fixture.store, lease: fixture.lease, client, signal: AbortSignal.abort(new Error("enough")) },
      ),
    ).rejects.toThrow(/abort|enough/);
    expect(readdirSync(fixture.directory).filter((name) => name.includes("canceled"))).toEqual([]);
  });

  test("writes the files of an image as one archive, with owners, modes, links and the epoch's time", async () => {
    const dockerfile = `FROM base AS made
RUN mkdir /f && echo a > /f/a && chown 5:6 /f/a && chmod 4750 /f/a && ln /f/a /f/b && ln -s a /f/c && mkdir -m 1777 /f/t
FROM scratch
COPY --from=made /f /f
COPY <<E /f/gone/under
E
`;
    const buildArgs = new Map([["SOURCE_DATE_EPOCH", "1500000000"]]);
    const built = await build(dockerfile, {}, { buildArgs });
    await write(built, { kind: "tar", path: path("files.tar") });
    const listed = execFileSync("tar", ["--utc", "--full-time", "-tvf", path("files.tar")], { encoding: "utf8" });
    const lines = listed
      .trimEnd()
      .split("\n")
      .map((line) => line.replaceAll(/ +/g, " "));
    expect(lines).toEqual([
      "drwxr-xr-x 0/0 0 2017-07-14 02:40:00 f/",
      "-rwsr-x--- 5/6 2 2017-07-14 02:40:00 f/a",
      "hrwsr-x--- 5/6 0 2017-07-14 02:40:00 f/b link to f/a",
      "lrwxrwxrwx 0/0 0 2017-07-14 02:40:00 f/c -> a",
      "drwxr-xr-x 0/0 0 2017-07-14 02:40:00 f/gone/",
      "-rw-r--r-- 0/0 0 2017-07-14 02:40:00 f/gone/under",
      "drwxrwxrwt 0/0 0 2017-07-14 02:40:00 f/t/",
    ]);
    const pipe = new PassThrough();
    const streamed = buffer(pipe);
    await write(built, { kind: "tar", path: pipe });
    pipe.end();
    expect((await streamed).equals(readFileSync(path("files.tar")))).toBe(true);
  });

  test("pushes an image under its names, the second time nothing", async () => {
    const names = [`${registry.host}/app:1`, `${registry.host}/other:2`];
    const built = await build("FROM base\nCOPY a /a\nRUN echo 1 > /b\n", { a: "pushed" }, { names });
    await write(built, { kind: "registry" });
    for (const name of names) {
      const { Digest } = JSON.parse(skopeo("inspect", "--tls-verify=false", `docker://${name}`)) as { Digest: string };
      expect(Digest).toBe(built.descriptor.digest);
    }
    const states: string[] = [];
    const progress = { onProgress: ({ state }: { state: string }) => void states.push(state) };
    await writeOutput(built, { kind: "registry" }, { store: fixture.store, lease: fixture.lease, client, ...progress });
    expect(new Set(states)).toEqual(new Set(["there"]));
    await expect(write({ ...built, names: [] }, { kind: "registry" })).rejects.toThrow(
      "an image without a name cannot be pushed",
    );
  });

  test("builds platforms side by side, and once what they share", async () => {
    const lines = [
      "FROM --platform=$BUILDPLATFORM base AS shared",
      "RUN echo $RANDOM$RANDOM$RANDOM > /random",
      "FROM --platform=$BUILDPLATFORM base",
      "ARG TARGETARCH",
      // Whoever comes first would wait for ever, were they built one after the other.
      "RUN --mount=type=cache,id=meeting,target=/c touch /c/$TARGETARCH; until [ -e /c/amd64 ] && [ -e /c/arm64 ]; do sleep 0.05; done",
      "COPY --from=shared /random /",
    ];
    const built = await build(`${lines.join("\n")}\n`, {}, { platforms: [amd64, arm64] });
    const last = built.images.map(({ directories }) =>
      readFileSync(join(directories.at(-1) as string, "random"), "utf8"),
    );
    expect(last[0]).toMatch(/\d/);
    expect(last[1]).toBe(last[0]);
  });

  test("ends the builds for other platforms when one fails", async () => {
    const dockerfile =
      "FROM --platform=$BUILDPLATFORM base\nARG TARGETARCH\nRUN if [ $TARGETARCH = arm64 ]; then exit 3; fi; sleep 600\n";
    await expect(build(dockerfile, {}, { platforms: [amd64, arm64] })).rejects.toMatchObject({
      message: "the command failed with exit code 3",
      exitCode: 3,
    });
  });

  test("makes an index of several platforms: in the store, a layout, a registry", async () => {
    const names = [`${registry.host}/many:1`];
    const dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\nLABEL arch=$TARGETARCH\n";
    const built = await build(dockerfile, { amd64: "a", arm64: "b" }, { names, platforms: [amd64, arm64, amd64] });
    expect(built.images.map(({ configuration }) => configuration.config.Labels)).toEqual([
      { arch: "amd64" },
      { arch: "arm64" },
    ]);
    const record = await fixture.store.names.get(names[0] as string);
    const own = built.images[process.arch === "arm64" ? 1 : 0];
    expect(record).toMatchObject({ manifest: { digest: own?.manifest.digest }, resolved: built.descriptor.digest });
    // Collecting what no name needs leaves both platforms' images.
    const { digest } = built.descriptor;
    await collectImages(fixture.store, { untagged: true });
    expect((await readStoredIndex(fixture.store, digest))?.images).toHaveLength(2);

    await write(built, { kind: "oci", path: path("many"), isDirectory: true });
    const raw = JSON.parse(skopeo("inspect", "--raw", `oci:${path("many")}:1`)) as {
      manifests: { platform: { architecture: string } }[];
    };
    expect(raw.manifests.map(({ platform }) => platform.architecture)).toEqual(["amd64", "arm64"]);
    await write(built, { kind: "registry" });
    using lease = new ImageLease();
    const store = await ImageStore.open(path("puller"));
    for (const platform of [amd64, arm64]) {
      const reference = parseReference(names[0] as string);
      const pulled = await pullImage(reference, { store, client, lease, limits: defaultLayerLimits, platform });
      expect(readFileSync(join(pulled.layers[0] as string, "arch"), "utf8")).toBe(
        platform.architecture === "amd64" ? "a" : "b",
      );
    }
    await store.settled();
    await expect(write(built, { kind: "docker", path: path("many.tar") })).rejects.toThrow(
      "an output of type docker holds one platform, not 2: use type=oci",
    );
  });

  test("writes the files of an image over a directory, following no link out of it and keeping no privilege", async () => {
    const dockerfile =
      "FROM base AS files\nRUN mkdir /out && cd /out && echo a > a && chmod 4755 a && chown 1000:1000 a && mkdir link && echo x > link/x && ln -s a s\nFROM scratch\nCOPY --from=files /out /\n";
    const built = await build(dockerfile, {});
    const directory = path("files");
    mkdirSync(directory);
    mkdirSync(path("outside"));
    writeFileSync(join(directory, "kept"), "kept");
    await write(built, { kind: "local", directory });
    expect(readdirSync(directory).sort()).toEqual(["a", "kept", "link", "s"]);
    const { mode, uid } = lstatSync(join(directory, "a"));
    expect([mode & 0o7777, uid]).toEqual([0o755, process.getuid?.()]);
    const hostile = path("hostile");
    mkdirSync(hostile);
    symlinkSync(path("outside"), join(hostile, "link"));
    await expect(write(built, { kind: "local", directory: hostile })).rejects.toThrow("is not a directory");
    expect(readdirSync(path("outside"))).toEqual([]);
  });

  test("says so when a command of another architecture cannot be run", async () => {
    const elf = Buffer.alloc(64);
    elf.write("\x7fELF\x02\x01\x01", "latin1");
    elf.writeUInt16LE(2, 16);
    elf.writeUInt16LE(foreign.architecture === "arm64" ? 183 : 62, 18);
    writeFileSync(path("foreign-sh"), elf, { mode: 0o755 });
    const dockerfile = "FROM scratch\nCOPY --chmod=755 sh /bin/sh\nRUN true\n";
    const contextDir = fixture.context({});
    writeFileSync(join(contextDir, "sh"), elf);
    await expect(build(dockerfile, {}, { contextDir, platforms: [foreign] })).rejects.toMatchObject({
      exitCode: 126,
      diagnostic: { suggestion: expect.stringContaining(`no programs for linux/${foreign.architecture}`) as string },
    });
  });

  test("a built image outlives a crash of the machine before its layers were on disk", async () => {
    const name = "localhost/survivor:1";
    await using other = await BuildFixture.open();
    const built = await other.build("FROM scratch\nCOPY a /a\n", { a: "alive" }, { names: [name] });
    await other.settled();
    const layer = layerKey(built.configuration.rootfs.diff_ids[0] as string);
    const record = join(other.store.layers.directory, layer, "layer.json");
    const content = JSON.parse(readFileSync(record, "utf8")) as object;
    writeFileSync(record, JSON.stringify({ ...content, durable: false, bootId: "an earlier one" }));
    using lease = new ImageLease();
    // Whoever has it open does not look again.
    const { layers } = await pullImage(parseReference(name), {
      store: other.store,
      client,
      lease,
      limits: defaultLayerLimits,
      policy: "never",
    });
    expect(readFileSync(join(layers[0] as string, "a"), "utf8")).toBe("alive");
    expect(JSON.parse(readFileSync(record, "utf8"))).toMatchObject({ bootId: expect.not.stringContaining("earlier") });
  });

  test("leaves nothing half-written", async () => {
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
  });
});
