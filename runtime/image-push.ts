/** Sends an image of the store to a registry. */
import { createReadStream } from "node:fs";
import type { BlobIdentity } from "./blob-store.ts";
import { ImageError } from "./image-error.ts";
import type { StoredIndex } from "./image-index.ts";
import type { ImageLease } from "./image-lease.ts";
import type { ImageStore } from "./image-store.ts";
import { layerKey } from "./layer-store.ts";
import { allOrNone, Semaphore } from "./parallel.ts";
import type { RegistryClient } from "./registry-client.ts";
import { fetchBlob } from "./registry-pull.ts";
import { type BlobSource, pushBlob, pushManifest, type PushedHow } from "./registry-push.ts";
import type { ImageReference } from "./registry-reference.ts";
import { describeManifest, type StoredImage } from "./stored-image.ts";
import { close } from "./syscall.ts";

export interface PushOptions {
  readonly store: ImageStore;
  readonly client: RegistryClient;
  /** Holds the image in the store meanwhile. */
  readonly lease: ImageLease;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PushProgress) => void) | undefined;
  /** @default 33554432 */
  readonly chunkBytes?: number;
}

export interface PushProgress {
  readonly digest: string;
  readonly sentBytes: number;
  readonly totalBytes: number;
  readonly state: "sending" | PushedHow;
}

/** Connections at once. */
const UPLOADS = 4;

/**
 * Pushes an image: what the repository does not have of it, then its manifest under the reference's tag.
 *
 * Where the store has a layer unpacked only, its archive is taken over inside the registry from a repository that has it, or
 * fetched from where it came from and passed on.
 *
 * @throws {ImageError} If access is denied, or a layer's archive cannot be had. @throws {RegistryError}
 */
export async function pushImage(image: StoredImage, reference: ImageReference, options: PushOptions): Promise<void> {
  const { store, client, lease } = options;
  const endpoint = client.origin(reference);
  const giveUp = new AbortController();
  const signal = options.signal === undefined ? giveUp.signal : AbortSignal.any([options.signal, giveUp.signal]);
  const slots = new Semaphore(UPLOADS);
  const blobs = new Map<string, BlobIdentity & { readonly diffId?: string }>();
  blobs.set(image.manifest.config.digest, image.manifest.config);
  for (const { descriptor, diffId } of image.layers) blobs.set(descriptor.digest, { ...descriptor, diffId });
  const push = async ({ digest, size, diffId }: BlobIdentity & { readonly diffId?: string }) => {
    using _slot = await slots.take(signal);
    const report = (sentBytes: number, state: PushProgress["state"]) =>
      options.onProgress?.({ digest, sentBytes, totalBytes: size, state });
    const repositories = await knownRepositories(store, digest, diffId);
    const how = await pushBlob(
      client,
      endpoint,
      { digest, size },
      {
        source: await archiveSource({ digest, size }, diffId, { store, client, lease, signal }),
        mountFrom: repositories
          .filter(({ registry }) => registry === reference.registry)
          .map(({ repository }) => repository),
        ...(options.chunkBytes === undefined ? {} : { chunkBytes: options.chunkBytes }),
        signal,
        onProgress: (sentBytes) => report(sentBytes, "sending"),
      },
    );
    report(size, how);
  };
  await allOrNone(
    [...blobs.values()].map((blob) => push(blob)),
    (error) => giveUp.abort(error),
  );
  const { mediaType } = describeManifest(image);
  const manifest = { content: image.manifestContent, mediaType, digest: image.manifestDigest, tag: reference.tag };
  await pushManifest(client, endpoint, manifest, options.signal);
  for (const { descriptor, diffId } of image.layers) {
    const { mediaType: type, digest, size } = descriptor;
    const repositories = [`${reference.registry}/${reference.repository}`];
    await store.layers.noteBlob(layerKey(diffId), { mediaType: type, digest, size, repositories }).catch(() => {});
  }
}

/** Pushes an index: its images, then itself under the reference's tag. @throws As `pushImage`. */
export async function pushIndex(index: StoredIndex, reference: ImageReference, options: PushOptions): Promise<void> {
  const { registry, repository } = reference;
  for (const image of index.images) await pushImage(image, { registry, repository }, options);
  const { mediaType, digest } = index.descriptor;
  const { client, signal } = options;
  const manifest = { content: index.content, mediaType, digest, tag: reference.tag };
  await pushManifest(client, client.origin(reference), manifest, signal);
}

type Repository = Pick<ImageReference, "registry" | "repository">;

/** Repositories that had a layer's archive when it was pulled or pushed. */
async function knownRepositories(store: ImageStore, digest: string, diffId: string | undefined): Promise<Repository[]> {
  if (diffId === undefined) return [];
  const known = (await store.layers.blobs(layerKey(diffId))).find((blob) => blob.digest === digest);
  return (known?.repositories ?? []).map((name) => {
    const slash = name.indexOf("/");
    return { registry: name.slice(0, slash), repository: name.slice(slash + 1) };
  });
}

/**
 * Where the bytes of a layer's archive come from: the store, or a repository that has it.
 *
 * Reading throws an {@link ImageError} if there is no such place.
 *
 * @param diffId Of the layer; absent for what is no layer.
 */
export async function archiveSource(
  blob: BlobIdentity,
  diffId: string | undefined,
  context: {
    readonly store: ImageStore;
    readonly client?: RegistryClient | undefined;
    readonly lease: ImageLease;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<BlobSource> {
  const { store, client, lease, signal } = context;
  const range = await store.blobs.open(blob.digest, { lease });
  if (range !== undefined) {
    close(range.fd);
    // By path, as often as it is asked for: the lease holds it.
    if (range.length === blob.size) {
      return (offset) => createReadStream(store.blobs.path(blob.digest), { start: offset });
    }
  }
  const [from] = await knownRepositories(store, blob.digest, diffId);
  if (from !== undefined && client !== undefined) return (offset) => fetchBlob(client, from, blob, { offset, signal });
  const missing = new ImageError(
    `the store has its layer ${blob.digest} unpacked only, and does not know where its archive can be fetched; pull the image with --archives`,
  );
  return () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(missing) }) });
}
