/**
 * The build cache on its way to other machines: an image in a registry or directory whose layers are those that a build made
 * or found, and whose configuration says by which keys.
 *
 * Whoever takes a cache over trusts who has written it: a layer is what its writer says that a command makes. Its files are
 * unpacked as warily as those of any image.
 */
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { utimes } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import {
  type Descriptor,
  exportDirectory,
  type ImageLease,
  type ImageStore,
  openLayout,
  openRepository,
  parseReference,
  pushImage,
  putImage,
  readStoredImage,
  type RegistryClient,
  type RemoteImage,
  unpackArchive,
} from "../runtime/index.ts";
import type { BuildCache, CacheImport, ImportedLayer } from "./build-cache.ts";
import type { Compression } from "./file-tasks.ts";
import type { FileWorkers } from "./file-workers.ts";
import { archiveLayer, type ArchiveOptions } from "./finish-image.ts";
import { formatConfiguration } from "./configuration.ts";
import { hostPlatform } from "./platform.ts";

/** Where a cache is. */
export type CachePlace =
  | { readonly kind: "registry"; readonly name: string }
  | { readonly kind: "directory"; readonly path: string };

/** In the labels of the configuration: an image that any registry takes. */
const LABEL = "slipway.build-cache";
const MAX_ENTRIES = 2000;

const contentSchema = z.object({
  /** What the archives were made with. */
  archive: z.enum(["gzip", "zstd", "none"]),
  epochSeconds: z.int().nonnegative().optional(),
  layers: z
    .array(
      z.object({
        key: z.string().regex(/^[0-9a-f]{64}$/),
        madeAtMs: z.int().nonnegative(),
        /** Place of its archive among the image's layers; absent if the instruction changed nothing. */
        layer: z.int().nonnegative().optional(),
      }),
    )
    .max(MAX_ENTRIES),
});

type Content = z.infer<typeof contentSchema>;

interface Entry {
  readonly how: Pick<Content, "archive" | "epochSeconds">;
  readonly madeAtMs: number;
  readonly layer: { readonly descriptor: Descriptor; readonly diffId: string } | undefined;
}

export interface CacheTransferOptions {
  readonly store: ImageStore;
  readonly lease: ImageLease;
  readonly client: RegistryClient;
  readonly signal: AbortSignal;
}

/**
 * Opens a cache to import from. Only what a build asks for is fetched.
 *
 * @returns undefined if there is none yet, or it cannot be read: `note` is told why. A build goes on without.
 */
export async function openCache(
  place: CachePlace,
  options: CacheTransferOptions & { readonly note: (text: string) => void },
): Promise<CacheImport | undefined> {
  const { client, signal, note } = options;
  const name = place.kind === "registry" ? place.name : place.path;
  try {
    const image =
      place.kind === "registry"
        ? await openRepository(parseReference(place.name), { client, signal })
        : await openLayout(place.path);
    return new ImportedCache(image, readEntries(image), options);
  } catch (error) {
    signal.throwIfAborted();
    note(`the cache ${JSON.stringify(name)} is not used: ${(error as Error).message}`);
    return undefined;
  }
}

function readEntries({ configContent, layers }: RemoteImage): ReadonlyMap<string, Entry> {
  const { config } = JSON.parse(configContent.toString()) as { config?: { Labels?: Record<string, string> } };
  const text = config?.Labels?.[LABEL];
  if (text === undefined) throw new Error("it is no build cache");
  const { layers: entries, archive, epochSeconds } = contentSchema.parse(JSON.parse(text));
  return new Map(
    entries.map(({ key, madeAtMs, layer }) => {
      const found = layer === undefined ? undefined : layers[layer];
      if (layer !== undefined && found === undefined) throw new Error("it names a layer that it does not have");
      return [key, { how: { archive, epochSeconds }, madeAtMs, layer: found }];
    }),
  );
}

class ImportedCache implements CacheImport {
  readonly #image: RemoteImage;
  readonly #entries: ReadonlyMap<string, Entry>;
  readonly #options: CacheTransferOptions;

  constructor(image: RemoteImage, entries: ReadonlyMap<string, Entry>, options: CacheTransferOptions) {
    this.#image = image;
    this.#entries = entries;
    this.#options = options;
  }

  has(key: string): boolean {
    return this.#entries.has(key);
  }

  async fetch(key: string, directory: string): Promise<ImportedLayer> {
    const { how, madeAtMs, layer } = this.#entries.get(key) as Entry;
    const { store, lease, signal } = this.#options;
    // An image that is made of it says that it was made then; the half is for what a fraction loses.
    const seconds = (madeAtMs + 0.5) / 1000;
    if (layer === undefined) {
      mkdirSync(directory, { mode: 0o755 });
      await utimes(directory, seconds, seconds);
      return { summary: { entries: 0, bytes: 0, notes: [], rootNames: [] } };
    }
    const { descriptor, diffId } = layer;
    const pieces = this.#image.read(descriptor, signal);
    const summary = await unpackArchive(store, { ...descriptor, diffId }, { pieces, directory, lease, signal });
    await utimes(directory, seconds, seconds);
    const { digest, size } = descriptor;
    return { summary, archive: { how, result: { diffId, digest, size } } };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#image[Symbol.asyncDispose]();
  }
}

/**
 * Exports what a build has made or found.
 *
 * @throws {Error} If the place cannot be written.
 */
export async function exportCache(
  cache: BuildCache,
  place: CachePlace,
  options: CacheTransferOptions & {
    readonly workers: FileWorkers;
    readonly compression?: Compression | undefined;
    readonly epochSeconds?: number | undefined;
  },
): Promise<void> {
  const { store, lease, client, signal } = options;
  const layers: { readonly descriptor: Descriptor; readonly diffId: string }[] = [];
  const entries: Content["layers"] = [];
  for (const { key, directory, madeAtMs } of [...cache.used.values()].slice(-MAX_ENTRIES)) {
    if (directory === undefined) {
      entries.push({ key, madeAtMs });
      continue;
    }
    const archive: ArchiveOptions = { ...options, cache };
    const { descriptor, diffId } = await archiveLayer({ key, directory }, archive);
    const known = layers.findIndex((layer) => layer.descriptor.digest === descriptor.digest);
    entries.push({ key, madeAtMs, layer: known === -1 ? layers.push({ descriptor, diffId }) - 1 : known });
  }
  const { compression = "gzip", epochSeconds } = options;
  const content: Content = { archive: compression, epochSeconds, layers: entries };
  const configuration = formatConfiguration({
    ...hostPlatform(),
    config: { Labels: { [LABEL]: JSON.stringify(content) } },
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
    history: [],
  });
  const descriptors = layers.map(({ descriptor }) => descriptor);
  const image = { config: Buffer.from(configuration), layers: descriptors, names: [] };
  const { digest } = await putImage(store, image, lease);
  const stored = await readStoredImage(store, digest, lease);
  if (stored === undefined) throw new Error(`Cannot export the cache: ${digest} is gone`);
  if (place.kind === "registry") await pushImage(stored, parseReference(place.name), { store, client, lease, signal });
  else await replaceDirectory(place.path, (path) => exportDirectory(stored, path, { store, lease, client, signal }));
}

/** Writes a directory beside the one that is there, which it then takes the place of. */
async function replaceDirectory(path: string, write: (path: string) => Promise<void>): Promise<void> {
  const beside = (what: string) => join(dirname(path), `.${basename(path)}.${what}-${crypto.randomUUID().slice(0, 8)}`);
  if (existsSync(path) && !existsSync(join(path, "oci-layout")))
    throw new Error(`Cannot export the cache to "${path}": something else is there`);
  const made = beside("new");
  const old = beside("old");
  try {
    await write(made);
    if (existsSync(path)) renameSync(path, old);
    renameSync(made, path);
  } finally {
    for (const each of [made, old]) rmSync(each, { recursive: true, force: true });
  }
}
