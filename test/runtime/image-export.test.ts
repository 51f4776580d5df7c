import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exportArchive, exportDirectory } from "../../runtime/image-export.ts";
import { importImage } from "../../runtime/image-import.ts";
import { ImageLease } from "../../runtime/image-lease.ts";
import { ImageStore } from "../../runtime/image-store.ts";
import { readStoredImage, type StoredImage } from "../../runtime/stored-image.ts";
import { dockerArchive, isRoot, ociLayout, oneFileLayer } from "./image-fixture.ts";
import { tarArchive } from "./tar-archive.ts";

const base = oneFileLayer("usr/base", "base");
const top = tarArchive([{ name: "usr/.wh.base" }, { name: "usr/top", content: "top" }]);
const name = "docker.io/library/app:1";

describe.skipIf(!isRoot)("importImage and exportImage", () => {
  let directory: string;
  let store: ImageStore;
  let lease: ImageLease;

  beforeEach(async () => {
    directory = mkdtempSync(join(tmpdir(), "export-test-"));
    store = await ImageStore.open(join(directory, "store"));
    lease = new ImageLease();
  });
  afterEach(async () => {
    lease[Symbol.dispose]();
    const left = readdirSync(join(directory, "store/tmp"));
    // Layers may still be on their way to the disk; nobody waits for that here.
    rmSync(directory, { recursive: true, maxRetries: 5 });
    if (left.length > 0) throw new Error(`Left half-written: ${left.join(", ")}`);
  });

  function write(path: string, content: string | Buffer): string {
    mkdirSync(dirname(join(directory, path)), { recursive: true });
    writeFileSync(join(directory, path), content);
    return join(directory, path);
  }

  async function read(digest: string): Promise<StoredImage> {
    return (await readStoredImage(store, digest, lease)) as StoredImage;
  }

  async function archive(image: StoredImage): Promise<Buffer> {
    const pieces: Buffer[] = [];
    for await (const piece of exportArchive(image, { store, lease, name })) pieces.push(Buffer.from(piece));
    return Buffer.concat(pieces);
  }

  test("give an image back as it was, and what skopeo reads in both ways", async () => {
    const blobs = [
      { tar: base, blob: gzipSync(base), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" },
      { tar: top, blob: zstdCompressSync(top), mediaType: "application/vnd.oci.image.layer.v1.tar+zstd" },
    ];
    const path = write("in.tar.gz", gzipSync(tarArchive(ociLayout(blobs, { config: { config: { Env: ["A=1"] } } }))));
    const { manifest, names } = await importImage(path, { store, lease, names: [name] });
    expect(names).toEqual([name]);
    const image = await read(manifest.digest);
    const exported = await archive(image);
    expect((await archive(image)).equals(exported)).toBe(true);
    const out = write("out.tar", exported);
    const again = await importImage(out, { store, lease });
    expect(again).toEqual({ manifest, names: [name] });
    const inspect = (source: string) =>
      JSON.parse(execFileSync("skopeo", ["inspect", source], { encoding: "utf8" })) as {
        Layers: string[];
        Env: string[];
      };
    expect(inspect(`oci-archive:${out}`)).toMatchObject({
      Layers: image.layers.map(({ descriptor }) => descriptor.digest),
    });
    expect(inspect(`docker-archive:${out}`)).toMatchObject({ Env: ["A=1"] });
    await exportDirectory(image, join(directory, "layout"), { store, lease, name });
    expect(inspect(`oci:${join(directory, "layout")}`)).toMatchObject({ Env: ["A=1"] });
    await expect(exportDirectory(image, join(directory, "layout"), { store, lease })).rejects.toThrow(
      "it is not empty",
    );
  });

  test("take docker save archives, with the names in them", async () => {
    const path = write("docker.tar", tarArchive(dockerArchive([base, top])));
    const { manifest, names } = await importImage(path, { store, lease });
    expect(names).toEqual(["docker.io/library/t:1"]);
    const { layers } = await read(manifest.digest);
    expect(layers.map(({ descriptor }) => descriptor.mediaType)).toEqual([
      "application/vnd.oci.image.layer.v1.tar",
      "application/vnd.oci.image.layer.v1.tar",
    ]);
  });

  test.each([
    ["plain", (tar: Buffer) => tar],
    ["gzip", gzipSync],
    ["zstd", zstdCompressSync],
  ])("make an image of a root file system in a %s archive", async (_, compress) => {
    const root = tarArchive([
      { name: "usr/", mode: 0o755 },
      { name: "etc/hostname", content: "t" },
    ]);
    const { manifest } = await importImage(write("root", compress(root)), { store, lease, names: [name] });
    const { layers } = await read(manifest.digest);
    const files = await store.layers.find(layers[0]?.diffId.replace(":", "-") as string);
    expect(readFileSync(join(files as string, "etc/hostname"), "utf8")).toBe("t");
  });

  test("refuse what has no name, is no image, is hostile, or was damaged in the store", async () => {
    await expect(
      importImage(write("a.tar", tarArchive(ociLayout([{ tar: base, blob: base }]))), { store, lease }),
    ).rejects.toThrow("it does not say what it is called");
    await expect(importImage(write("b", "text"), { store, lease })).rejects.toThrow(/Cannot import ".*\/b": /);
    await expect(importImage(join(directory, "none"), { store, lease })).rejects.toThrow("ENOENT");
    const hostile = tarArchive(dockerArchive([tarArchive([{ name: "../x" }])]));
    await expect(importImage(write("c.tar", hostile), { store, lease })).rejects.toThrow('".." component');
    const { manifest } = await importImage(write("d.tar", tarArchive(dockerArchive([base]))), { store, lease });
    const image = await read(manifest.digest);
    writeFileSync(store.blobs.path(image.layers[0]?.descriptor.digest as string), Buffer.alloc(base.length));
    await expect(archive(image)).rejects.toThrow("is damaged");
  });
});
