import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { digestOf } from "../../runtime/blob-store.ts";
import { tryLock } from "../../runtime/file-lock.ts";
import type { ImageLease } from "../../runtime/image-lease.ts";
import { mediaTypes } from "../../runtime/image-manifest.ts";
import { ImageStore } from "../../runtime/image-store.ts";
import { layerKey } from "../../runtime/layer-store.ts";
import { findLayers, putImage, readStoredImage } from "../../runtime/stored-image.ts";
import { close } from "../../runtime/syscall.ts";

const summary = { entries: 1, bytes: 5, notes: [], rootNames: [] };
const openFiles = () => readdirSync("/proc/self/fd").length;

/** A store of its own, and whether it was left as it should be. */
async function withStore(use: (store: ImageStore, directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "image-store-test-"));
  const before = openFiles();
  try {
    const store = await ImageStore.open(directory);
    await use(store, directory);
    await store.settled();
    expect(readdirSync(join(directory, "tmp"))).toEqual([]);
    expect(openFiles()).toBeLessThanOrEqual(before + 1);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Puts a layer of one file, unpacked. */
async function putLayer(store: ImageStore, diffId: string, lease?: ImageLease): Promise<void> {
  await using draft = await store.layers.draft();
  writeFileSync(join(draft.files, "file"), "hello");
  await draft.commit(diffId, { summary, lease });
}

test("BlobStore.put keeps content by its digest, once, and gives it back verified", async () => {
  await withStore(async (store, directory) => {
    using lease = store.lease();
    const content = Buffer.from("content");
    const digest = digestOf(content);
    expect(await store.blobs.put(content, { lease })).toEqual({ digest, size: 7 });
    expect(await store.blobs.put(content)).toEqual({ digest, size: 7 });
    expect(readFileSync(join(directory, "blobs", digest.replace(":", "/")), "utf8")).toBe("content");
    expect(await store.blobs.read(digest)).toEqual(content);
    expect(await store.blobs.list()).toMatchObject([{ digest, size: 7 }]);
    await expect(store.blobs.put(content, { digest: digestOf(Buffer.from("other")) })).rejects.toThrow(
      "has the digest",
    );
    expect(() => store.blobs.path("sha256:../../../etc/passwd")).toThrow("not a digest");
  });
});

test("BlobStore.read takes a damaged blob for none and removes it", async () => {
  await withStore(async (store) => {
    const { digest } = await store.blobs.put(Buffer.from("content"));
    writeFileSync(store.blobs.path(digest), "damaged");
    expect(await store.blobs.read(digest)).toBeUndefined();
    expect(existsSync(store.blobs.path(digest))).toBe(false);
  });
});

test("BlobWriter leaves nothing when it is given up or its content is not what was expected", async () => {
  await withStore(async (store, directory) => {
    const digest = digestOf(Buffer.from("ab"));
    {
      await using writer = store.blobs.create({ digest, size: 2 });
      await writer.write(Buffer.from("a"));
    }
    {
      await using writer = store.blobs.create({ digest, size: 2 });
      await writer.write(Buffer.from("a"));
      await expect(writer.commit()).rejects.toThrow("it has 1 bytes, expected are 2 bytes");
    }
    expect(readdirSync(join(directory, "blobs"))).toEqual([]);
    await using writer = store.blobs.create({ digest, size: 2 });
    await writer.write(Buffer.from("a"));
    await writer.write(Buffer.from("b"));
    expect(await writer.commit()).toEqual({ digest, size: 2 });
  });
});

test("a lease keeps blobs and layers from being removed, in other processes too", async () => {
  await withStore(async (store) => {
    const diffId = digestOf(Buffer.from("layer"));
    const lease = store.lease();
    const { digest } = await store.blobs.put(Buffer.from("content"), { lease });
    await putLayer(store, diffId, lease);
    expect(await store.blobs.remove(digest)).toBe(false);
    expect(await store.layers.takeOut(layerKey(diffId))).toBeUndefined();
    const other = spawnSync("flock", ["--nonblock", store.blobs.path(digest), "true"]);
    expect(other.status).toBe(1);
    lease[Symbol.dispose]();
    expect(await store.blobs.remove(digest)).toBe(true);
    const gone = await store.layers.takeOut(layerKey(diffId));
    expect(readFileSync(join(gone as string, "files/file"), "utf8")).toBe("hello");
    expect(await store.layers.find(layerKey(diffId))).toBeUndefined();
    rmSync(gone as string, { recursive: true });
  });
});

test("LayerDraft becomes a layer at once or not at all; of two for one name the first stays", async () => {
  await withStore(async (store, directory) => {
    const diffId = digestOf(Buffer.from("layer"));
    {
      await using draft = await store.layers.draft();
      writeFileSync(join(draft.files, "file"), "given up");
    }
    expect(readdirSync(join(directory, "layers"))).toEqual([]);
    using lease = store.lease();
    await putLayer(store, diffId, lease);
    const files = await store.layers.find(layerKey(diffId), lease);
    await using second = await store.layers.draft();
    await second.commit(diffId, { summary, lease });
    expect(await findLayers(store, [diffId, diffId], lease)).toEqual([files]);
    expect(readFileSync(join(files as string, "file"), "utf8")).toBe("hello");
  });
});

test("putImage names a manifest that readStoredImage puts together again", async () => {
  await withStore(async (store) => {
    using lease = store.lease();
    const diffId = digestOf(Buffer.from("tar"));
    const archive = await store.blobs.put(Buffer.from("tar"), { lease });
    const config = Buffer.from(
      JSON.stringify({ os: "linux", config: { Env: ["A=1"] }, rootfs: { type: "layers", diff_ids: [diffId] } }),
    );
    const name = "docker.io/library/app:1";
    const layers = [{ mediaType: mediaTypes.layer, ...archive }];
    const manifest = await putImage(store, { config, layers, names: [name] }, lease);
    expect(await store.names.get(name)).toMatchObject({ name, manifest });
    const image = await readStoredImage(store, manifest.digest);
    expect(image?.config.env).toMatchObject({ A: "1" });
    expect(image?.layers).toMatchObject([{ diffId, descriptor: layers[0] }]);
    expect(await store.names.list()).toHaveLength(1);
    expect(await store.names.remove(name)).toBe(true);
    expect(await store.names.remove(name)).toBe(false);
    expect(await store.names.get(name)).toBeUndefined();
  });
});

test("ImageStore.open sweeps what nobody has locked and nothing else", async () => {
  await withStore(async (_store, directory) => {
    const temporary = join(directory, "tmp");
    mkdirSync(join(temporary, "abandoned/files"), { recursive: true });
    writeFileSync(join(temporary, "abandoned-file"), "");
    mkdirSync(join(temporary, "busy"));
    const lock = tryLock(join(temporary, "busy"), "exclusive");
    const program = `
      import { ImageStore } from ${JSON.stringify(join(import.meta.dirname, "../../runtime/image-store.ts"))};
      await ImageStore.open(${JSON.stringify(directory)});`;
    const opened = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8" });
    expect(opened.stderr).toBe("");
    expect(readdirSync(temporary)).toEqual(["busy"]);
    close(lock as number);
    rmSync(join(temporary, "busy"), { recursive: true });
  });
});
