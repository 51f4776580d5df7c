/** Makes an image of a built stage: archives of its layers, its configuration, its manifest. */
import { createHash } from "node:crypto";
import {
  type Descriptor,
  fileAt,
  type ImageLease,
  type ImageStore,
  layerKey,
  mediaTypes,
  putImage,
} from "../runtime/index.ts";
import { directoriesOf, type StageLayer, type StageResult } from "./build.ts";
import type { BuildCache } from "./build-cache.ts";
import { type Configuration, formatConfiguration } from "./configuration.ts";
import type { ArchiveResult, Compression } from "./file-tasks.ts";
import type { FileWorkers } from "./file-workers.ts";
import { cacheKey } from "./key.ts";

export interface FinishOptions {
  readonly store: ImageStore;
  readonly cache: BuildCache;
  readonly workers: FileWorkers;
  readonly lease: ImageLease;
  /** @default "gzip" */
  readonly compression?: Compression | undefined;
  readonly epochSeconds?: number | undefined;
  /** Labels beside those of the Dockerfile. */
  readonly labels?: Readonly<Record<string, string>> | undefined;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
  /** In full: `docker.io/library/app:1`. */
  readonly names: readonly string[];
  /** Keeps its layers as those of images, too. @default whether it has names */
  readonly isKept?: boolean | undefined;
  readonly signal: AbortSignal;
}

export interface FinishedImage {
  readonly manifest: Descriptor;
  /** Digest of its configuration: what Docker calls the image's id. */
  readonly id: string;
  readonly configuration: Configuration;
  /** Directories of its layers, base first, none twice. */
  readonly directories: readonly string[];
  /** The time that everything in it has for when it was made, in seconds since 1970. */
  readonly epochSeconds: number | undefined;
}

const layerTypes: Readonly<Record<Compression, string>> = {
  gzip: mediaTypes.gzipLayer,
  zstd: mediaTypes.zstdLayer,
  none: mediaTypes.layer,
};

/** Puts the image into the store, where all of it is held by the lease. */
export async function finishImage(stage: StageResult, options: FinishOptions): Promise<FinishedImage> {
  const { store, lease, annotations, names, epochSeconds } = options;
  const layers = await Promise.all(stage.layers.map((layer) => describeLayer(layer, options)));
  const { state } = stage;
  const created =
    epochSeconds === undefined ? state.history.at(-1)?.created : new Date(epochSeconds * 1000).toISOString();
  const configuration: Configuration = {
    ...(created !== undefined && { created: created.replace(".000Z", "Z") }),
    ...(state.author !== undefined && { author: state.author }),
    ...state.platform,
    config: { ...state.config, Labels: { ...state.config.Labels, ...options.labels } },
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
    history: state.history,
  };
  const config = Buffer.from(formatConfiguration(configuration));
  const manifest = await putImage(
    store,
    { config, layers: layers.map(({ descriptor }) => descriptor), names, ...(annotations && { annotations }) },
    lease,
  );
  const id = `sha256:${createHash("sha256").update(config).digest("hex")}`;
  return { manifest, id, configuration, directories: directoriesOf(stage.layers), epochSeconds };
}

async function describeLayer(
  layer: StageLayer,
  options: FinishOptions,
): Promise<{ readonly diffId: string; readonly descriptor: Descriptor }> {
  if (layer.kind === "base") return { diffId: layer.diffId, descriptor: layer.descriptor };
  const { diffId, descriptor } = await archiveLayer(layer, options);
  if (options.isKept ?? options.names.length > 0) await nameLayer(layer.directory, { diffId, descriptor }, options);
  return { diffId, descriptor };
}

/** What the archive of a layer is made with. */
export type ArchiveOptions = Pick<
  FinishOptions,
  "store" | "cache" | "workers" | "lease" | "compression" | "epochSeconds" | "signal"
>;

/** Puts the archive of a layer into the store, if an earlier build has not. */
export async function archiveLayer(
  layer: { readonly key: string; readonly directory: string },
  options: ArchiveOptions,
): Promise<{ readonly diffId: string; readonly descriptor: Descriptor }> {
  const { diffId, digest, size } = await archiveOf(layer, options);
  return { diffId, descriptor: { mediaType: layerTypes[options.compression ?? "gzip"], digest, size } };
}

async function archiveOf(
  { key, directory }: { readonly key: string; readonly directory: string },
  { store, cache, workers, lease, compression = "gzip", epochSeconds, signal }: ArchiveOptions,
): Promise<ArchiveResult> {
  const name = cacheKey(key, { archive: compression, epochSeconds });
  const known = (await cache.recall(name)) as ArchiveResult | undefined;
  if (known !== undefined) {
    const blob = await store.blobs.open(known.digest, { lease });
    if (blob !== undefined) fileAt.closeFile(blob.fd);
    if (blob?.length === known.size) return known;
  }
  await using writer = store.blobs.create();
  const spec = { directory, target: writer.descriptor, compression, newestSeconds: epochSeconds };
  const made = await workers.run("archive", spec, signal);
  writer.take(made);
  await writer.commit({ lease });
  await cache.remember(name, made);
  return made;
}

/** The layer under the name by which images find it, so that nobody has to unpack its archive. */
async function nameLayer(
  directory: string,
  { diffId, descriptor }: { readonly diffId: string; readonly descriptor: Descriptor },
  { store, workers, lease, signal }: FinishOptions,
): Promise<void> {
  const blob = { ...descriptor, repositories: [] };
  await store.layers.produce(layerKey(diffId), (to) => workers.run("link", { from: directory, to }, signal), {
    durable: true,
    lease,
    blob,
    signal,
  });
}
