/** Where a built image goes: an OCI layout, an archive for Docker, a registry, or just its files, in a directory or an archive. */
import { createReadStream, mkdirSync, realpathSync } from "node:fs";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  exportArchive,
  exportDirectory,
  ImageError,
  type ImageLease,
  type ImageStore,
  parseReference,
  pushImage,
  pushIndex,
  type PushProgress,
  type RegistryClient,
  type StoredImage,
  writeArchiveFile,
} from "../runtime/index.ts";
import type { FileWorkers } from "./file-workers.ts";
import type { BuiltImage } from "./platform-builds.ts";
import { BuildError } from "./report.ts";

/** One thing to do with what was built. That it gets names in the store is no output: see `names` of the build. */
export type BuildOutput =
  /** An OCI layout: a directory, which must be empty or missing, or a tar archive. */
  | { readonly kind: "oci"; readonly path: string; readonly isDirectory: true }
  | { readonly kind: "oci"; readonly path: string | Writable; readonly isDirectory: false }
  /** A tar archive that `docker load` and `podman load` take. One platform. */
  | { readonly kind: "docker"; readonly path: string | Writable }
  /** A tar archive of the image's files, with the owners and modes that they have in it. One platform. */
  | { readonly kind: "tar"; readonly path: string | Writable }
  /** Under the names that the build has, or others. */
  | { readonly kind: "registry"; readonly names?: readonly string[] | undefined }
  /** The image's files, as files of this process, over what is in the directory. One platform. */
  | { readonly kind: "local"; readonly directory: string };

export interface OutputOptions {
  readonly store: ImageStore;
  readonly lease: ImageLease;
  /** Pushes; fetches archives of base layers that the store has unpacked only. */
  readonly client: RegistryClient;
  /** Needed for `local` and `tar`. */
  readonly workers?: FileWorkers | undefined;
  /** As the host has it; see `mountsDetachedOverlays`. @default false */
  readonly overlaysByPath?: boolean | undefined;
  readonly onProgress?: ((progress: PushProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Does one output.
 *
 * @throws {BuildError} If what was built does not fit the output. @throws {ImageError} If an archive cannot be had or a
 *   registry denies access. @throws {RegistryError}
 */
export async function writeOutput(built: BuiltImage, output: BuildOutput, options: OutputOptions): Promise<void> {
  const { store, lease, client, signal } = options;
  const exported = { store, lease, client, names: built.names, ...(signal && { signal }) };
  switch (output.kind) {
    case "oci":
      if (output.isDirectory) await exportDirectory(built.stored, output.path, exported);
      else await writeArchive(exportArchive(built.stored, exported), output.path, signal);
      break;
    case "docker":
      await writeArchive(exportArchive(onePlatform(built, "docker"), exported), output.path, signal);
      break;
    case "tar":
      await writeTar(built, output.path, options);
      break;
    case "registry":
      await push(built, output.names ?? built.names, options);
      break;
    case "local":
      await writeFiles(built, output.directory, options);
      break;
  }
}

function onePlatform({ stored }: BuiltImage, kind: BuildOutput["kind"]): StoredImage {
  if (!("images" in stored)) return stored;
  throw new BuildError(`an output of type ${kind} holds one platform, not ${stored.images.length}: use type=oci`);
}

async function writeArchive(
  archive: AsyncIterable<Buffer>,
  to: string | Writable,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (typeof to !== "string") {
    await pipeline(Readable.from(archive, { objectMode: false }), to, { signal, end: false });
    return;
  }
  try {
    await writeArchiveFile(archive, to, { signal });
  } catch (error) {
    throw error instanceof ImageError ? new BuildError(error.message, { cause: error }) : error;
  }
}

async function push(built: BuiltImage, names: readonly string[], options: OutputOptions): Promise<void> {
  const { stored } = built;
  if (names.length === 0) throw new BuildError("an image without a name cannot be pushed: give it one");
  for (const name of names) {
    const reference = parseReference(name);
    if ("images" in stored) await pushIndex(stored, reference, options);
    else await pushImage(stored, reference, options);
  }
}

/** Beside the store's blobs first: who reads a pipe slowly holds up no thread. */
async function writeTar(built: BuiltImage, to: string | Writable, options: OutputOptions): Promise<void> {
  const { store, signal } = options;
  onePlatform(built, "tar");
  const { workers, layers, view } = await filesOf(built, options);
  await using writer = store.blobs.create();
  const { descriptor: target } = writer;
  const newestSeconds = built.images[0]?.epochSeconds;
  await workers.run("tar", { layers, view, target, newestSeconds }, signal);
  const archive = createReadStream("", { fd: target, start: 0, autoClose: false, highWaterMark: 1 << 20 });
  await writeArchive(archive as AsyncIterable<Buffer>, to, signal);
}

/** What the image's layers amount to. */
async function filesOf({ images }: BuiltImage, { store, workers, overlaysByPath = false }: OutputOptions) {
  if (workers === undefined) throw new Error("No threads to write files with");
  const view = { emptyDir: await store.emptyDirectory(), byPath: overlaysByPath };
  return { workers, layers: images[0]?.directories ?? [], view };
}

async function writeFiles(built: BuiltImage, directory: string, options: OutputOptions): Promise<void> {
  onePlatform(built, "local");
  const { workers, layers, view } = await filesOf(built, options);
  const target = located(directory, () => {
    mkdirSync(directory, { recursive: true });
    // A link is the user's own; what is below is written without following any.
    return realpathSync(directory);
  });
  await workers.run("export", { layers, directory: target, view }, options.signal);
}

/** Says which path of the user's cannot be written, where the kernel says why. */
function located<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === "ENOENT" ? "its directory does not exist" : code;
    throw new BuildError(`${JSON.stringify(path)} cannot be written: ${why}`, { cause: error });
  }
}
