/**
 * Writes an image of the store as an archive or directory that other tools read: an OCI layout, which has a manifest.json too
 * and so is also what `docker load` takes.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/image-layout.md}
 */
import { createHash } from "node:crypto";
import { createWriteStream, existsSync, realpathSync, renameSync, rmSync, statSync } from "node:fs";
import { mkdir, readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { BlobIdentity } from "./blob-store.ts";
import { ImageError } from "./image-error.ts";
import type { StoredIndex } from "./image-index.ts";
import type { ImageLease } from "./image-lease.ts";
import { mediaTypes } from "./image-manifest.ts";
import { archiveSource } from "./image-push.ts";
import type { ImageStore } from "./image-store.ts";
import type { RegistryClient } from "./registry-client.ts";
import type { BlobSource } from "./registry-push.ts";
import { familiarName, parseReference } from "./registry-reference.ts";
import { describeManifest, type StoredImage } from "./stored-image.ts";
import { tarEnd, tarHeader, tarPadding } from "./tar-writer.ts";

export interface ExportOptions {
  readonly store: ImageStore;
  /** Fetches archives of layers that the store has unpacked only. */
  readonly client?: RegistryClient;
  readonly lease: ImageLease;
  /** In full, as the store knows it. */
  readonly name?: string;
  /** Several names, instead of one. */
  readonly names?: readonly string[];
  readonly signal?: AbortSignal;
}

/** A file of an image's layout. */
export interface ExportedFile {
  readonly name: string;
  readonly size: number;
  readonly read: () => AsyncIterable<Buffer>;
}

/**
 * Writes an archive to a file, or gives it piece by piece.
 *
 * The same image gives the same bytes: no times, members in a fixed order.
 *
 * @throws {ImageError} If a layer's archive cannot be had, or is not what it should be.
 */
export async function* exportArchive(
  image: StoredImage | StoredIndex,
  options: ExportOptions,
): AsyncGenerator<Buffer, void> {
  const members = await exportFiles(image, options);
  const directories = new Set(members.flatMap(({ name }) => parents(name)));
  const entries = [...[...directories].map((name) => ({ name, size: undefined, read: undefined })), ...members].sort(
    (a, b) => (a.name < b.name ? -1 : 1),
  );
  for (const { name, size, read } of entries) {
    yield tarHeader({
      name,
      type: size === undefined ? "directory" : "file",
      linkName: "",
      mode: size === undefined ? 0o755 : 0o644,
      uid: 0,
      gid: 0,
      size: size ?? 0,
      mtimeSeconds: 0,
      mtimeNanoseconds: 0,
    });
    if (size === undefined) continue;
    yield* read();
    yield tarPadding(size);
  }
  yield tarEnd;
}

/** Writes a directory, which must be empty or missing. @throws {ImageError} As `exportArchive`. */
export async function exportDirectory(
  image: StoredImage | StoredIndex,
  directory: string,
  options: ExportOptions,
): Promise<void> {
  await mkdir(directory, { recursive: true });
  if ((await readdir(directory)).length > 0) {
    throw new ImageError(`Cannot export to "${directory}": it is not empty`);
  }
  for (const { name, read } of await exportFiles(image, options)) {
    const path = join(directory, name);
    await mkdir(dirname(path), { recursive: true });
    await pipeline(Readable.from(read(), { objectMode: false }), createWriteStream(path, { flags: "wx" }));
  }
}

/** The files of such a directory, for who writes them itself. @throws {ImageError} As `exportArchive`, when they are read, too. */
export async function exportFiles(given: StoredImage | StoredIndex, options: ExportOptions): Promise<ExportedFile[]> {
  const { name, names = name === undefined ? [] : [name] } = options;
  const tags = names.filter((each) => !each.includes("@"));
  const file = (path: string, content: Buffer): ExportedFile => ({
    name: path,
    size: content.length,
    read: () => Readable.from([content]),
  });
  const json = (path: string, value: unknown) => file(path, Buffer.from(JSON.stringify(value)));
  const isIndex = "images" in given;
  const images = isIndex ? given.images : [given];
  const { mediaType, digest, size } = isIndex ? given.descriptor : describeManifest(given);
  const listed = tags.map((tag) => ({
    annotations: {
      "io.containerd.image.name": tag,
      "org.opencontainers.image.ref.name": tag.slice(tag.lastIndexOf(":") + 1),
    },
  }));
  const layers = await Promise.all(
    [...new Map(images.flatMap((image) => image.layers).map((layer) => [layer.descriptor.digest, layer])).values()].map(
      async ({ descriptor, diffId }) => {
        const source = await archiveSource(descriptor, diffId, options);
        return { name: blobPath(descriptor.digest), size: descriptor.size, read: () => verified(descriptor, source) };
      },
    ),
  );
  const small = new Map<string, Buffer>();
  if (isIndex) small.set(digest, given.content);
  for (const image of images) {
    small.set(image.manifestDigest, image.manifestContent);
    small.set(image.manifest.config.digest, image.configContent);
  }
  return [
    json("oci-layout", { imageLayoutVersion: "1.0.0" }),
    json("index.json", {
      schemaVersion: 2,
      mediaType: mediaTypes.index,
      manifests: (listed.length === 0 ? [{}] : listed).map((names) => ({ mediaType, digest, size, ...names })),
    }),
    // What reads this knows nothing of platforms.
    ...(isIndex ? [] : [json("manifest.json", [dockerManifest(given, tags)])]),
    ...[...small].map(([each, content]) => file(blobPath(each), content)),
    ...layers,
  ];
}

function dockerManifest(image: StoredImage, tags: readonly string[]): object {
  return {
    Config: blobPath(image.manifest.config.digest),
    RepoTags: tags.length === 0 ? null : tags.map((tag) => familiarName(parseReference(tag))),
    Layers: image.layers.map(({ descriptor }) => blobPath(descriptor.digest)),
  };
}

/** Whoever reads the archive must not find out that the disk, or a registry, has damaged it. */
async function* verified({ digest, size }: BlobIdentity, source: BlobSource): AsyncGenerator<Buffer, void> {
  const algorithm = digest.slice(0, digest.indexOf(":"));
  const hash = createHash(algorithm);
  let length = 0;
  for await (const piece of source(0)) {
    hash.update(piece);
    length += piece.length;
    if (length > size) break;
    yield piece;
  }
  if (length !== size || `${algorithm}:${hash.digest("hex")}` !== digest) {
    throw new ImageError(`the archive of its layer ${digest} is damaged`);
  }
}

function blobPath(digest: string): string {
  return `blobs/${digest.replace(":", "/")}`;
}

function parents(name: string): string[] {
  const parts = name.split("/").slice(0, -1);
  return parts.map((_, index) => parts.slice(0, index + 1).join("/"));
}

/**
 * Writes an archive to a file, in place of the one that is there, or into a pipe. A broken archive must not pass for a whole
 * one: it gets its name when it is whole, and until then the file that was there is as it was.
 *
 * @throws {ImageError} If there can be no such file.
 */
export async function writeArchiveFile(
  archive: AsyncIterable<Buffer>,
  path: string,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const source = Readable.from(archive, { objectMode: false });
  const refuse = (why: string, cause?: unknown) =>
    new ImageError(`${JSON.stringify(path)} cannot be written: ${why}`, { cause });
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory() === true) throw refuse("it is a directory");
  if (stat !== undefined && !stat.isFile()) {
    await pipeline(source, createWriteStream(path), { signal });
    return;
  }
  let directory: string;
  try {
    directory = realpathSync(stat === undefined ? dirname(path) : dirname(realpathSync(path)));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw refuse(code === "ENOENT" ? "its directory does not exist" : `${code}`, error);
  }
  const name = basename(stat === undefined ? path : realpathSync(path));
  // At most 4 bytes a character, and 255 altogether.
  const beside = join(directory, `.${name.slice(0, 60)}.${crypto.randomUUID().slice(0, 8)}`);
  try {
    await pipeline(source, createWriteStream(beside, { flags: "wx" }), { signal });
    renameSync(beside, join(directory, name));
  } catch (error) {
    if (existsSync(beside)) rmSync(beside);
    throw error;
  }
}
