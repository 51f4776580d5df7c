import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { ImageError, resolveImage } from "../../runtime/image.ts";
import { ImageLease } from "../../runtime/image-lease.ts";
import { LayerStore } from "../../runtime/layer-store.ts";
import {
  describeFile,
  describeTree,
  dockerArchive,
  ImageFixture,
  isRoot,
  ociLayout,
  oneFileLayer,
  sha256,
  writeMembers,
} from "./image-fixture.ts";
import { tarArchive } from "./tar-archive.ts";

const architecture = process.arch === "arm64" ? "arm64" : "amd64";
const root = tarArchive([
  { name: "usr/", mode: 0o755 },
  { name: "etc/hostname", content: "t" },
]);
const base = oneFileLayer("usr/base", "base");
const top = tarArchive([{ name: "usr/.wh.base" }, { name: "usr/top", content: "top" }]);

function oci(tar: Buffer, blob = tar) {
  return { tar, blob };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await delay(2);
}

/** What a container would see: the real overlay of the layers. */
function mergedNames(layers: readonly string[]): string[] {
  const lower = layers.toReversed().join(":");
  const script = 'mount -t overlay -o ro,lowerdir="$1" overlay /mnt && cd /mnt && find . -type f | sort';
  const output = execFileSync("unshare", ["-m", "sh", "-ec", script, "sh", lower], { encoding: "utf8" });
  return output.trim().split("\n");
}

describe.skipIf(!isRoot)("resolveImage takes", () => {
  test.each<[string, (archive: Buffer) => Buffer]>([
    ["a root tar", (archive) => archive],
    ["a gzip root tar", (archive) => gzipSync(archive)],
    [
      "a gzip root tar of several members",
      (a) => Buffer.concat([gzipSync(a.subarray(0, 700)), gzipSync(a.subarray(700))]),
    ],
    ["a zstd root tar", (archive) => zstdCompressSync(archive)],
  ])("%s", async (_what, compress) => {
    using fixture = new ImageFixture();
    const archive = compress(root);
    fixture.write("image", archive);
    const image = await fixture.resolve("./image");
    expect(image).toEqual({
      reference: "./image",
      digest: sha256(archive),
      layers: [expect.stringMatching(/\/store\/layers\/tar-[0-9a-f]{64}\/files$/)],
      binds: [],
      config: { env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" } },
    });
    expect(describeTree(image.layers[0] as string)).toEqual({
      etc: "d 0:0 755",
      "etc/hostname": "f 0:0 644 t",
      usr: "d 0:0 755",
    });
    expect(await fixture.resolve("./image")).toEqual(image);
    expect(fixture.leftovers()).toEqual([]);
  });

  test("a root directory, as a copy that later changes do not reach", async () => {
    using fixture = new ImageFixture();
    fixture.write("rootfs/usr/bin/tool", "v1");
    fixture.write("rootfs/.wh.name", "no whiteout in a directory");
    chmodSync(join(fixture.workspace, "rootfs/usr/bin/tool"), 0o4755);
    symlinkSync("/etc/passwd", join(fixture.workspace, "rootfs/link"));
    const first = await fixture.resolve("./rootfs");
    expect(describeTree(first.layers[0] as string)).toMatchObject({
      ".wh.name": "f 0:0 644 no whiteout in a directory",
      link: "l 0:0 /etc/passwd",
      "usr/bin/tool": "f 0:0 4755 v1",
    });
    utimesSync(join(fixture.workspace, "rootfs/usr/bin/tool"), 1, 1);
    expect((await fixture.resolve("./rootfs/")).layers).toEqual(first.layers);
    fixture.write("rootfs/usr/bin/tool", "v2");
    const second = await fixture.resolve("./rootfs");
    expect(second.layers).not.toEqual(first.layers);
    expect(describeFile(join(first.layers[0] as string, "usr/bin/tool"))).toBe("f 0:0 4755 v1");
  });

  const config = {
    architecture,
    config: {
      Env: ["PATH=/opt/bin", "EMPTY=", "A=b=c", "broken"],
      WorkingDir: "srv",
      User: "1000:1000",
      Entrypoint: ["/entry"],
      Cmd: ["x"],
    },
  };
  const expectedConfig = {
    env: { PATH: "/opt/bin", EMPTY: "", A: "b=c" },
    entrypoint: ["/entry"],
    cmd: ["x"],
    workingDir: "/srv",
    user: "1000:1000",
  };
  const user = { uid: 1000, gid: 1000, additionalGids: [1000], home: "/" };

  test("the archives of docker save, skopeo, crane and old Dockers, with the same layers", async () => {
    using fixture = new ImageFixture();
    const members = dockerArchive([base, top], { config });
    fixture.write("docker.tar", tarArchive(members));
    const image = await fixture.resolve("./docker.tar");
    expect(image.config).toEqual(expectedConfig);
    expect(image.digest).toBe(`sha256:${members.at(-2)?.name.slice(0, 64)}`);
    expect(describeTree(image.layers[0] as string)).toEqual({ usr: "d 0:0 755", "usr/base": "f 0:0 644 base" });
    expect(describeTree(image.layers[1] as string)).toEqual({
      usr: "d 0:0 755",
      "usr/base": "c 0",
      "usr/top": "f 0:0 644 top",
    });
    expect(mergedNames(image.layers)).toEqual(["./usr/top"]);

    fixture.write(
      "skopeo.tar",
      tarArchive(dockerArchive([base, top], { config, layerName: (d) => `${d.slice(7)}.tar` })),
    );
    // An old archive: the first layer is a link to that of another image.
    const old = dockerArchive([base, top], { config, layerName: (_, index) => `${index}/layer.tar` });
    const linked = old.map((member) =>
      member.name === "0/layer.tar" ? { name: member.name, type: "2", linkName: "../9/layer.tar" } : member,
    );
    fixture.write("old.tar", tarArchive([{ name: "0/" }, ...linked, { name: "9/layer.tar", content: base }]));
    fixture.write("docker.tar.gz", gzipSync(tarArchive(members)));
    fixture.write("docker.tar.zst", zstdCompressSync(tarArchive(members)));
    writeMembers(fixture, "directory", members);
    for (const name of ["skopeo.tar", "old.tar", "docker.tar.gz", "docker.tar.gz", "docker.tar.zst", "directory"]) {
      const { reference: _, ...same } = await fixture.resolve(`./${name}`);
      expect({ name, ...same }).toEqual({
        name,
        digest: image.digest,
        layers: image.layers,
        binds: [],
        config: expectedConfig,
        user,
      });
    }
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers().length }).toEqual({ leftovers: [], layers: 2 });
  });

  test("an OCI layout as directory and as tar, layers plain, gzip and zstd", async () => {
    using fixture = new ImageFixture();
    const third = oneFileLayer("etc/third");
    const layers = [
      oci(base, gzipSync(base)),
      { ...oci(top, zstdCompressSync(top)), mediaType: "application/vnd.oci.image.layer.v1.tar+zstd" },
      oci(third),
    ];
    const members = ociLayout(layers, { config, platform: { os: "linux", architecture } });
    writeMembers(fixture, "layout", members);
    const image = await fixture.resolve("./layout");
    expect(image.config).toEqual(expectedConfig);
    expect(mergedNames(image.layers)).toEqual(["./etc/third", "./usr/top"]);
    fixture.write("layout.tar", tarArchive(members.map((member) => ({ ...member, name: `./${member.name}` }))));
    const fromTar = await fixture.resolve("./layout.tar");
    expect(fromTar.layers).toEqual(image.layers);
    expect(fixture.layers().sort()).toEqual(layers.map(({ tar }) => sha256(tar).replace(":", "-")).sort());
  });

  test("the platform's manifest out of an index within an index, attestations passed over", async () => {
    using fixture = new ImageFixture();
    const blobs: { name: string; content: Buffer }[] = [];
    const other = ociLayout([oci(oneFileLayer("etc/other"))], { platform: { os: "linux", architecture: "s390x" } });
    const ours = ociLayout([oci(base)], { platform: { os: "linux", architecture } });
    const descriptors = [other, ours].map((members) => {
      for (const member of members.slice(2))
        blobs.push({ name: member.name, content: Buffer.from(member.content ?? "") });
      return JSON.parse(String(members[1]?.content)).manifests[0];
    });
    const attestation = {
      ...descriptors[0],
      platform: { os: "unknown", architecture: "unknown" },
      annotations: { "vnd.docker.reference.type": "attestation-manifest" },
    };
    const inner = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [...descriptors, attestation] }));
    blobs.push({ name: `blobs/sha256/${sha256(inner).slice(7)}`, content: inner });
    const outer = {
      schemaVersion: 2,
      manifests: [{ mediaType: "application/vnd.oci.image.index.v1+json", digest: sha256(inner), size: inner.length }],
    };
    const members = [
      { name: "oci-layout", content: '{"imageLayoutVersion":"1.0.0"}' },
      { name: "index.json", content: JSON.stringify(outer) },
      ...blobs,
    ];
    fixture.write("index.tar", tarArchive(members));
    const image = await fixture.resolve("./index.tar");
    expect(image.layers.map((layer) => describeTree(layer))).toEqual([
      { usr: "d 0:0 755", "usr/base": "f 0:0 644 base" },
    ]);
  });

  test("a layer that is there twice once, where it covers itself", async () => {
    using fixture = new ImageFixture();
    fixture.write("twice.tar", tarArchive(dockerArchive([base, top, base])));
    const image = await fixture.resolve("./twice.tar");
    expect(image.layers).toHaveLength(2);
    expect(mergedNames(image.layers)).toEqual(["./usr/base", "./usr/top"]);
  });

  test("paths through symbolic links that stay in the workspace", async () => {
    using fixture = new ImageFixture();
    fixture.write("images/root.tar", root);
    symlinkSync("images", join(fixture.workspace, "link"));
    symlinkSync("../images/root.tar", join(fixture.workspace, "images/current"));
    expect((await fixture.resolve("./link/current")).layers).toHaveLength(1);
  });
});

describe.skipIf(!isRoot)("resolveImage takes what the usual tools write", () => {
  const missing = ["skopeo", "umoci"].filter((tool) => spawnSync(tool, ["--version"]).error !== undefined);

  test.skipIf(missing.length > 0)("umoci's layout, and skopeo's copies of it", async () => {
    using fixture = new ImageFixture();
    const run = (...[command, ...args]: [string, ...string[]]) =>
      execFileSync(command, args, { cwd: fixture.workspace, stdio: ["ignore", "pipe", "inherit"] });
    run("umoci", "init", "--layout", "layout");
    run("umoci", "new", "--image", "layout:t");
    run("umoci", "unpack", "--image", "layout:t", "bundle");
    const rootfs = join(fixture.workspace, "bundle/rootfs");
    const repack = () => run("umoci", "repack", "--refresh-bundle", "--image", "layout:t", "bundle");
    mkdirSync(join(rootfs, "usr/bin"), { recursive: true });
    mkdirSync(join(rootfs, "etc/deep"), { recursive: true });
    for (const name of ["usr/bin/a", "usr/bin/b", "etc/gone", "etc/deep/x"]) writeFileSync(join(rootfs, name), name);
    chmodSync(join(rootfs, "usr/bin/a"), 0o4711);
    repack();
    rmSync(join(rootfs, "etc/gone"));
    rmSync(join(rootfs, "etc/deep"), { recursive: true });
    writeFileSync(join(rootfs, "usr/bin/c"), "c");
    repack();
    run("umoci", "config", "--image", "layout:t", "--config.env", "X=y", "--config.workingdir", "/usr");
    rmSync(join(fixture.workspace, "bundle"), { recursive: true });
    // umoci leaves the manifests of earlier tags in the layout as blobs; the index has one.
    const image = await fixture.resolve("./layout");
    expect(image.config).toMatchObject({ env: { X: "y" }, workingDir: "/usr" });
    expect(image.layers).toHaveLength(2);
    expect(mergedNames(image.layers)).toEqual(["./usr/bin/a", "./usr/bin/b", "./usr/bin/c"]);
    expect(describeFile(join(image.layers[0] as string, "usr/bin/a"))).toBe("f 0:0 4711 usr/bin/a");

    run("skopeo", "--insecure-policy", "copy", "-q", "oci:layout:t", "docker-archive:docker.tar:t:1");
    run("skopeo", "--insecure-policy", "copy", "-q", "oci:layout:t", "oci-archive:oci.tar");
    run(
      "skopeo",
      "--insecure-policy",
      "copy",
      "-q",
      "--dest-compress-format",
      "zstd",
      "--dest-compress",
      "oci:layout:t",
      "oci:zstd:t",
    );
    for (const name of ["docker.tar", "oci.tar", "zstd"]) {
      expect({ name, layers: (await fixture.resolve(`./${name}`)).layers }).toEqual({ name, layers: image.layers });
    }
  });
});

describe.skipIf(!isRoot)("resolveImage refuses", () => {
  test.each<[string, string, (fixture: ImageFixture) => unknown, RegExp]>([
    [
      "what is no name of an image",
      "Alpine:3",
      () => {},
      /"Alpine" is not part of a name: .*; did you mean "alpine"\?/,
    ],
    ["what is missing", "./none.tar", () => {}, /image ".\/none.tar": there is no such file or directory/],
    ["a path out of the workspace", "./../store", () => {}, /leads out of the workspace/],
    [
      "a link out of the workspace",
      "./link",
      (fixture) => symlinkSync("/etc", join(fixture.workspace, "link")),
      /leads out of the workspace/,
    ],
    [
      "a link through /proc",
      "./link/root",
      (fixture) => symlinkSync("/proc/self", join(fixture.workspace, "link")),
      /leads out of the workspace/,
    ],
    [
      "a loop of links",
      "./a",
      (fixture) => {
        symlinkSync("b", join(fixture.workspace, "a"));
        symlinkSync("a", join(fixture.workspace, "b"));
      },
      /loop of symbolic links/,
    ],
    ["a FIFO", "./fifo", (fixture) => execFileSync("mkfifo", [join(fixture.workspace, "fifo")]), /it is a FIFO/],
    ["an empty file", "./empty", (fixture) => fixture.write("empty", ""), /it is an empty file/],
    [
      "a text",
      "./text",
      (fixture) => fixture.write("text", "text ".repeat(500)),
      /not an image: looked for a tar archive/,
    ],
    ["a short text", "./text", (fixture) => fixture.write("text", "x"), /truncated: it ends after 1 bytes/],
    ["a compressed text", "./text", (fixture) => fixture.write("text", gzipSync("text ".repeat(500))), /not an image/],
    [
      "xz",
      "./x",
      (fixture) => fixture.write("x", Buffer.from("\xfd7zXZ\0rest", "latin1")),
      /compressed with xz; use gzip/,
    ],
    [
      "a tar of something else",
      "./source.tar",
      (fixture) => fixture.write("source.tar", tarArchive([{ name: "src/main.c", content: "int x;" }])),
      /not an image: looked for a tar archive/,
    ],
    [
      "a directory of something else",
      "./src",
      (fixture) => fixture.write("src/main.c", ""),
      /directory but not an image: looked for oci-layout.*manifest.json.*bin, usr or etc/,
    ],
    ["a truncated tar", "./t", (fixture) => fixture.write("t", root.subarray(0, 1600)), /truncated/],
    [
      "a truncated gzip tar",
      "./t",
      (fixture) => fixture.write("t", gzipSync(root).subarray(0, -9)),
      /truncated: the gzip data/,
    ],
    [
      "a truncated zstd tar",
      "./t",
      (fixture) => fixture.write("t", zstdCompressSync(root).subarray(0, -9)),
      /truncated/,
    ],
    [
      "broken gzip data",
      "./t",
      (fixture) => fixture.write("t", Buffer.concat([gzipSync(root).subarray(0, 40), Buffer.alloc(100, 0xaa)])),
      /its gzip data is broken/,
    ],
    [
      "a docker archive without its configuration",
      "./d.tar",
      (fixture) =>
        fixture.write("d.tar", tarArchive(dockerArchive([base]).filter(({ name }) => !/^\w{64}\.json/.test(name)))),
      /its file "[0-9a-f]{64}\.json" is missing/,
    ],
    [
      "a docker archive without a layer",
      "./d.tar",
      (fixture) => fixture.write("d.tar", tarArchive(dockerArchive([base, top]).slice(1))),
      /its layer "blobs\/sha256\/[0-9a-f]{64}" is missing/,
    ],
    [
      "a docker archive whose layer is another",
      "./d.tar",
      (fixture) => {
        const [first, ...rest] = dockerArchive([base], { layerName: () => "layer.tar" });
        fixture.write("d.tar", tarArchive([{ name: String(first?.name), content: top }, ...rest]));
      },
      /layer sha256:[0-9a-f]{64}: its digest is sha256:[0-9a-f]{64}, expected is sha256:/,
    ],
    [
      "a docker archive whose configuration was changed",
      "./d.tar",
      (fixture) => {
        const members = dockerArchive([base]).map((member) =>
          /^\w{64}\.json/.test(member.name)
            ? { ...member, content: String(member.content).replace("linux", "linux ") }
            : member,
        );
        fixture.write("d.tar", tarArchive(members));
      },
      /runs linux|it is damaged/,
    ],
    [
      "a docker archive of two images",
      "./d.tar",
      (fixture) => {
        const two = JSON.stringify(["a", "b"].map((Config) => ({ Config, RepoTags: [`${Config}:1`], Layers: [] })));
        fixture.write("d.tar", tarArchive([{ name: "manifest.json", content: two }]));
      },
      /it holds 2 images \(a:1, b:1\); save one alone/,
    ],
    [
      "an image for another platform",
      "./d.tar",
      (fixture) => fixture.write("d.tar", tarArchive(dockerArchive([base], { config: { architecture: "s390x" } }))),
      /it is for linux\/s390x; this agent runs linux\/(amd64|arm64)/,
    ],
    [
      "a layout without a fitting manifest",
      "./layout",
      (fixture) =>
        writeMembers(fixture, "layout", ociLayout([oci(base)], { platform: { os: "windows", architecture } })),
      /no image for linux\/\w+, only for windows\//,
    ],
    [
      "a layout with a damaged manifest",
      "./layout",
      (fixture) => {
        const members = ociLayout([oci(base)]);
        const digest = JSON.parse(String(members[1]?.content)).manifests[0].digest as string;
        writeMembers(
          fixture,
          "layout",
          members.map((member) =>
            member.name.endsWith(digest.slice(7))
              ? { ...member, content: String(member.content).replace("schemaVersion", "schemaversion") }
              : member,
          ),
        );
      },
      /its blob sha256:[0-9a-f]{64} has the digest .* it is damaged/,
    ],
    [
      "a layout whose blob has another size",
      "./layout",
      (fixture) =>
        writeMembers(
          fixture,
          "layout",
          ociLayout([oci(base)]).map((member) =>
            Buffer.from(member.content ?? "").equals(base) ? { ...member, content: base.subarray(1) } : member,
          ),
        ),
      /its blob sha256:[0-9a-f]{64} has \d+ bytes, expected are \d+ bytes/,
    ],
    [
      "a layout whose blob has another content",
      "./layout",
      (fixture) =>
        writeMembers(
          fixture,
          "layout",
          ociLayout([oci(base, gzipSync(base))]).map((member) =>
            Buffer.from(member.content ?? "").equals(gzipSync(base))
              ? { ...member, content: Buffer.from(gzipSync(base)).fill(7, 4, 8) }
              : member,
          ),
        ),
      /layer sha256:[0-9a-f]{64}: its digest is sha256/,
    ],
    [
      "a layout whose layer is not what its diff id says",
      "./layout",
      (fixture) => writeMembers(fixture, "layout", ociLayout([{ tar: top, blob: gzipSync(base) }])),
      /its digest of the decompressed layer is/,
    ],
    [
      "a layout that leads out of itself",
      "./layout",
      (fixture) => {
        const members = ociLayout([oci(base)]);
        writeMembers(fixture, "layout", members.slice(1));
        symlinkSync("/etc/passwd", join(fixture.workspace, "layout/oci-layout"));
      },
      /its file "oci-layout" leads out of the image/,
    ],
    [
      "an artifact",
      "./layout",
      (fixture) => {
        const config = { mediaType: "application/vnd.wasm.config", digest: sha256(base), size: base.length };
        writeMembers(fixture, "layout", ociLayout([oci(base)], { manifest: { config } }));
      },
      /not an image but an artifact of type "application\/vnd\.wasm\.config"/,
    ],
    [
      "an encrypted layer",
      "./layout",
      (fixture) => {
        const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        writeMembers(fixture, "layout", ociLayout([{ ...oci(base), mediaType }]));
      },
      /of type ".*encrypted", which is not supported/,
    ],
    [
      "an index.json that is not one",
      "./layout",
      (fixture) => {
        fixture.write("layout/oci-layout", '{"imageLayoutVersion":"1.0.0"}');
        fixture.write("layout/index.json", '{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x"}]}');
      },
      /its file "index.json" is not as expected at manifests\.0/,
    ],
    [
      "an index.json of 100 MB",
      "./layout",
      (fixture) => {
        fixture.write("layout/oci-layout", '{"imageLayoutVersion":"1.0.0"}');
        fixture.write("layout/index.json", Buffer.alloc(100_000_000));
      },
      /"index.json" has 95.4 MiB, more than 4 MiB/,
    ],
  ])("%s", async (_what, reference, prepare, message) => {
    using fixture = new ImageFixture();
    prepare(fixture);
    const error = await fixture.resolve(reference).then(
      () => expect.unreachable("resolved"),
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(ImageError);
    expect((error as Error).message).toMatch(message);
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers() }).toEqual({ leftovers: [], layers: [] });
  });

  test("a socket", async () => {
    using fixture = new ImageFixture();
    const server = createServer().listen(join(fixture.workspace, "socket"));
    await once(server, "listening");
    await expect(fixture.resolve("./socket")).rejects.toThrow(/it is a socket/);
    server.close();
  });

  test.each([
    ["gzip", gzipSync],
    ["zstd", zstdCompressSync],
  ])("a decompression bomb of %s by its ratio", async (_name, compress) => {
    using fixture = new ImageFixture();
    const bomb = Buffer.concat([
      tarArchive([{ name: "usr/a", size: 2 ** 30 }], { end: false }),
      Buffer.alloc(300 * 2 ** 20),
    ]);
    fixture.write("bomb", compress(bomb));
    await expect(fixture.resolve("./bomb")).rejects.toThrow(/decompression bomb: .* unpack to more than 256/);
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers() }).toEqual({ leftovers: [], layers: [] });
  });

  test("one broken layer, and leaves the whole ones but nothing half", async () => {
    using fixture = new ImageFixture();
    const broken = tarArchive([{ name: "usr/../../x" }]);
    fixture.write("d.tar", tarArchive(dockerArchive([base, broken, top])));
    await expect(fixture.resolve("./d.tar")).rejects.toThrow(
      new RegExp(`Cannot use the image "./d.tar": layer ${sha256(broken)}: the entry "usr/../../x"`),
    );
    expect(fixture.leftovers()).toEqual([]);
    expect(fixture.layers()).not.toContain(sha256(broken).replace(":", "-"));
  });
});

describe.skipIf(!isRoot)("the image store", () => {
  /** A layer that takes long enough to be met half-way. */
  const slow = tarArchive([
    { name: "usr/", mode: 0o755 },
    ...Array.from({ length: 3000 }, (_, i) => ({ name: `usr/${i}`, content: `${i}` })),
  ]);

  test("unpacks once for many who ask at once", async () => {
    using fixture = new ImageFixture();
    fixture.write("a.tar", root);
    fixture.write("b.tar", root);
    const images = await Promise.all(
      ["./a.tar", "./b.tar", "./a.tar", "./b.tar"].map((reference) => fixture.resolve(reference)),
    );
    expect(new Set(images.map(({ layers }) => layers[0]))).toHaveLength(1);
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers().length }).toEqual({ leftovers: [], layers: 1 });
  });

  test("is shared by processes; a killed one's half layer is taken over", async () => {
    using fixture = new ImageFixture();
    fixture.write("slow.tar", slow);
    const program = `
      import { resolveImage } from ${JSON.stringify(join(import.meta.dirname, "../../runtime/image.ts"))};
      const { layers } = await resolveImage("./slow.tar", ${JSON.stringify({ baseDir: fixture.workspace, storeDir: fixture.store })});
      console.log(layers[0]);`;
    const start = () =>
      spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "inherit"] });
    const output = async (child: ReturnType<typeof start>) => {
      const chunks: Buffer[] = [];
      child.stdout?.on("data", (chunk: Buffer) => chunks.push(chunk));
      const [code] = (await once(child, "close")) as [number | null];
      return { code, layer: Buffer.concat(chunks).toString().trim() };
    };
    const killed = start();
    const temporary = join(fixture.store, "tmp");
    const half = () =>
      existsSync(temporary) &&
      readdirSync(temporary).some(
        (key) =>
          existsSync(join(temporary, key, "files/usr")) && readdirSync(join(temporary, key, "files/usr")).length > 10,
      );
    await until(() => half() || killed.exitCode !== null);
    expect(killed.exitCode, "the process was to be met half-way").toBeNull();
    killed.kill("SIGKILL");
    await once(killed, "close");
    expect(fixture.layers()).toEqual([]);

    const results = await Promise.all([start(), start()].map(output));
    const here = await fixture.resolve("./slow.tar");
    expect(results).toEqual([
      { code: 0, layer: here.layers[0] },
      { code: 0, layer: here.layers[0] },
    ]);
    expect(readdirSync(join(here.layers[0] as string, "usr"))).toHaveLength(3000);
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers().length }).toEqual({ leftovers: [], layers: 1 });
  });

  test("can be canceled and leaves nothing; who waited for the same layer is not canceled with it", async () => {
    using fixture = new ImageFixture();
    fixture.write("slow.tar", slow);
    const cancel = new AbortController();
    const canceled = fixture.resolve("./slow.tar", { signal: cancel.signal });
    const other = fixture.resolve("./slow.tar");
    const temporary = join(fixture.store, "tmp");
    let done = false;
    void Promise.allSettled([canceled]).then(() => (done = true));
    await until(() => done || (existsSync(temporary) && readdirSync(temporary).length > 0));
    cancel.abort(new Error("the build was canceled"));
    await expect(canceled).rejects.toThrow("the build was canceled");
    expect((await other).layers).toHaveLength(1);
    expect(fixture.leftovers()).toEqual([]);
    await expect(fixture.resolve("./slow.tar", { signal: cancel.signal })).rejects.toThrow("the build was canceled");

    fixture.write("slow2.tar", Buffer.concat([slow.subarray(0, 512), slow]));
    const again = new AbortController();
    const alone = fixture.resolve("./slow2.tar", { signal: again.signal });
    done = false;
    void Promise.allSettled([alone]).then(() => (done = true));
    await until(() => done || readdirSync(temporary).length > 0);
    again.abort(new Error("canceled again"));
    await expect(alone).rejects.toThrow("canceled again");
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers().length }).toEqual({ leftovers: [], layers: 1 });
  });

  test("unpacks again what an earlier boot did not get to disk", async () => {
    using fixture = new ImageFixture();
    fixture.write("root.tar", root);
    const { layers } = await fixture.resolve("./root.tar");
    const layer = layers[0] as string;
    const record = join(layer, "../layer.json");
    await fixture.settled();
    const written = JSON.parse(readFileSync(record, "utf8"));
    expect(written).toMatchObject({ durable: true, summary: { entries: 3, bytes: 1 } });
    writeFileSync(join(layer, "etc/hostname"), "");
    writeFileSync(record, JSON.stringify({ ...written, bootId: "earlier", durable: false }));
    expect((await fixture.resolve("./root.tar")).layers).toEqual(layers);
    expect(describeFile(join(layer, "etc/hostname"))).toBe("f 0:0 644 t");
    await fixture.settled();
    writeFileSync(record, "");
    expect((await fixture.resolve("./root.tar")).layers).toEqual(layers);
    expect(fixture.leftovers()).toEqual([]);
  });

  test("does not take a layer for safe on disk because one that had its name before was", async () => {
    using fixture = new ImageFixture();
    const store = new LayerStore(join(fixture.store, "layers"), {
      temporaryDir: join(fixture.store, "tmp"),
      bootId: "this",
    });
    fixture.write("root.tar", root);
    await fixture.resolve("./root.tar");
    const write = async (directory: string) => {
      mkdirSync(directory);
      return { entries: 0, bytes: 0, notes: [], rootNames: [] };
    };
    const files = await store.produce("again", write, { durable: true });
    await store.takeOut("again");
    expect(await store.produce("again", write, { durable: false })).toBe(files);
    await store.settled();
    expect(JSON.parse(readFileSync(join(files, "../layer.json"), "utf8"))).toMatchObject({ durable: false });
  });

  test("is nobody's but root's, survives deletion, and leaks no descriptor", async () => {
    using fixture = new ImageFixture();
    fixture.write("root.tar", root);
    fixture.write("d.tar.gz", gzipSync(tarArchive(dockerArchive([base, top]))));
    await fixture.resolve("./root.tar");
    expect(statSync(fixture.store).mode & 0o777).toBe(0o700);
    rmSync(fixture.store, { recursive: true });
    const before = readdirSync("/proc/self/fd").length;
    for (let i = 0; i < 5; i++) {
      using lease = new ImageLease();
      await fixture.resolve("./root.tar", { lease });
      await fixture.resolve("./d.tar.gz", { lease });
      await expect(fixture.resolve("./none")).rejects.toThrow("no such file");
    }
    expect(readdirSync("/proc/self/fd").length).toBeLessThanOrEqual(before + 1);
  });
});

describe.skipIf(!isRoot)("the image host", () => {
  test("binds /usr over a generated layer that is made once", async () => {
    using fixture = new ImageFixture();
    const image = await fixture.resolve("host");
    expect(image.binds).toContainEqual({ source: "/usr", target: "usr" });
    expect(image).not.toHaveProperty("digest");
    const layer = image.layers[0] as string;
    const tree = describeTree(layer);
    expect(tree).toMatchObject({
      tmp: "d 0:0 1777",
      "var/tmp": "d 0:0 1777",
      root: "d 0:0 700",
      proc: "d 0:0 555",
      usr: "d 0:0 755",
      "etc/passwd": expect.stringMatching(/^f 0:0 644 root:x:0:0:root/),
    });
    expect(await fixture.resolve("host")).toEqual(image);
    expect(fixture.layers()).toHaveLength(1);
  });

  test("has nothing that is the host's own", async () => {
    using fixture = new ImageFixture();
    const { layers } = await fixture.resolve("host");
    const tree = describeTree(layers[0] as string);
    const names = Object.keys(tree);
    expect(names).not.toContainEqual(
      expect.stringMatching(/shadow|private|npmrc|pip\.conf|gitconfig|sudoers|ssh\/|wgetrc|\.key$/),
    );
    for (const name of names.filter((each) => tree[each]?.startsWith("f"))) {
      expect(readFileSync(join(layers[0] as string, name), "latin1")).not.toContain("PRIVATE KEY-----");
    }
  });

  test("runs what is installed: shells, interpreters, compilers, certificates", async () => {
    using fixture = new ImageFixture();
    const { layers, binds } = await fixture.resolve("host");
    const mountPoint = join(fixture.directory, "root");
    mkdirSync(mountPoint);
    const script = [
      `mount --bind ${layers[0]} ${mountPoint}`,
      ...binds.map(({ source, target }) => `mount --bind ${source} ${mountPoint}/${target}`),
      `mount -t tmpfs tmpfs ${mountPoint}/tmp`,
      `exec chroot ${mountPoint} /bin/sh -ec "$1"`,
    ].join(" && ");
    const inside = `
      id -un; ls /bin/sh /tmp > /dev/null; getent services https | tr -s " "
      echo x | awk '{ print "awk " $1 }'
      if command -v git >/dev/null; then cd /tmp && git init -q r && echo git; fi
      if command -v cc >/dev/null; then printf 'int main(){return 0;}' > /tmp/a.c && cc -o /tmp/a /tmp/a.c && /tmp/a && echo cc; fi
      if command -v python3 >/dev/null; then python3 -c 'import ssl; c = ssl.create_default_context(); print("python", len(c.get_ca_certs()) > 10)'; fi
      if command -v perl >/dev/null; then perl -e 'print "perl\\n"'; fi
    `;
    const output = execFileSync("unshare", ["-m", "sh", "-ec", script, "sh", inside], {
      encoding: "utf8",
      env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" },
    });
    expect(output).toContain("root\nhttps 443/tcp\nawk x\n");
    const lines = Object.entries({ git: "git", cc: "cc", python3: "python True", perl: "perl" });
    const installed = lines.filter(([tool]) => spawnSync(tool, ["--version"]).error === undefined);
    expect(output.split("\n")).toEqual(expect.arrayContaining(installed.map(([, line]) => line)));
  });
});

test("resolveImage does not begin when it is canceled already", async () => {
  const signal = AbortSignal.abort(new Error("too late"));
  await expect(resolveImage("host", { baseDir: "/", storeDir: "/nonexistent", signal })).rejects.toThrow("too late");
});
