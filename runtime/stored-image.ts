/** Images of the store: manifest, configuration and layers under a name. */
import { createHash } from "node:crypto";
import { type HostPlatform, type ImageConfig, type ParsedConfiguration, parseConfiguration } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import type { ImageLease } from "./image-lease.ts";
import { type Descriptor, type ImageManifest, mediaTypes, parseManifest } from "./image-manifest.ts";
import type { ImageStore } from "./image-store.ts";
import { layerKey } from "./layer-store.ts";

/** An image whose manifest and configuration are in the store; its layers need not be. */
export interface StoredImage {
  readonly manifest: ImageManifest;
  readonly manifestDigest: string;
  /** As registries have it, byte for byte. */
  readonly manifestContent: Buffer;
  readonly configuration: ParsedConfiguration;
  readonly configContent: Buffer;
  readonly config: ImageConfig;
  /** Base layer first; one for each of the manifest. */
  readonly layers: readonly { readonly descriptor: Descriptor; readonly diffId: string }[];
}

/**
 * Reads an image's manifest and configuration, verified.
 *
 * @param lease Holds both in the store.
 * @param options.platform What it must be for. @default this machine's
 * @returns undefined if one of them is not in the store (any more).
 * @throws {ImageError} If they do not fit together.
 */
export async function readStoredImage(
  store: ImageStore,
  manifestDigest: string,
  lease?: ImageLease,
  options: { readonly platform?: HostPlatform | "any" | undefined } = {},
): Promise<StoredImage | undefined> {
  const manifestContent = await store.blobs.read(manifestDigest, { lease });
  if (manifestContent === undefined) return undefined;
  const manifest = parseManifest(manifestContent, manifestDigest);
  const configContent = await store.blobs.read(manifest.config.digest, { lease });
  if (configContent === undefined) return undefined;
  return joinImage({ manifest, manifestDigest, manifestContent, configContent }, options);
}

/** Puts what was read of an image together. @throws {ImageError} If manifest and configuration contradict each other. */
export function joinImage(
  read: Pick<StoredImage, "manifest" | "manifestDigest" | "manifestContent" | "configContent">,
  options: { readonly platform?: HostPlatform | "any" | undefined } = {},
): StoredImage {
  const { manifest, configContent } = read;
  const configuration = parseConfiguration(configContent, manifest.config.digest, options);
  const { diffIds } = configuration;
  if (diffIds.length !== manifest.layers.length) {
    throw new ImageError(`its manifest has ${manifest.layers.length} layers but its configuration ${diffIds.length}`);
  }
  const layers = manifest.layers.map((descriptor, index) => ({ descriptor, diffId: diffIds[index] as string }));
  return { ...read, configuration, config: configuration.config, layers };
}

/** The descriptor of an image's manifest. A manifest need not say its own type; its configuration's is of the same family. */
export function describeManifest({
  manifest,
  manifestDigest,
  manifestContent,
}: Pick<StoredImage, "manifest" | "manifestDigest" | "manifestContent">): Descriptor {
  const docker = manifest.config.mediaType === mediaTypes.dockerConfig;
  const mediaType = manifest.mediaType ?? (docker ? mediaTypes.dockerManifest : mediaTypes.manifest);
  return { mediaType, digest: manifestDigest, size: manifestContent.length };
}

/**
 * The directories of an image's layers, base layer first, repetitions left out, ready for an overlay.
 *
 * @param lease Holds them in the store.
 * @returns undefined if one of them is not in the store (any more).
 */
export async function findLayers(
  store: ImageStore,
  diffIds: readonly string[],
  lease: ImageLease,
): Promise<readonly string[] | undefined> {
  const found = await Promise.all(distinctLast(diffIds).map((diffId) => store.layers.find(layerKey(diffId), lease)));
  return found.every((layer) => layer !== undefined) ? found : undefined;
}

/**
 * The values without repetitions, of which the last counts: overlayfs refuses the same directory twice (ELOOP), and what
 * a layer contributes further down is covered by itself.
 */
export function distinctLast(diffIds: readonly string[]): readonly string[] {
  return diffIds.filter((diffId, index) => diffIds.lastIndexOf(diffId) === index);
}

/**
 * Puts a new image's manifest and configuration into the store and gives it names.
 *
 * The caller has put the layers (unpacked, or their archives, or both) under `lease` before.
 *
 * @returns The manifest's descriptor.
 */
export async function putImage(
  store: ImageStore,
  image: {
    /** The image configuration, as bytes: its digest names the image. */
    readonly config: Buffer;
    /** Of the archives of the layers, base layer first, as the manifest is to list them. */
    readonly layers: readonly Descriptor[];
    readonly annotations?: Readonly<Record<string, string>>;
    /** In full: `docker.io/library/app:1`; see `parseReference`. */
    readonly names: readonly string[];
  },
  lease: ImageLease,
): Promise<Descriptor> {
  const config = {
    mediaType: mediaTypes.config,
    digest: `sha256:${createHash("sha256").update(image.config).digest("hex")}`,
    size: image.config.length,
  };
  const { annotations } = image;
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      config,
      layers: image.layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
      ...(annotations === undefined ? {} : { annotations }),
    }),
  );
  const { names } = image;
  return await putManifest(store, { manifestContent: manifest, configContent: image.config, names }, lease);
}

/** As `putImage`, of a manifest that is there already. @throws {ImageError} If it is none of an image. */
export async function putManifest(
  store: ImageStore,
  image: Pick<StoredImage, "manifestContent" | "configContent"> & { readonly names: readonly string[] },
  lease: ImageLease,
): Promise<Descriptor> {
  const { manifestContent, configContent } = image;
  const manifest = parseManifest(manifestContent, "manifest");
  await store.blobs.put(configContent, { digest: manifest.config.digest, lease });
  const { digest } = await store.blobs.put(manifestContent, { lease });
  const descriptor = describeManifest({ manifest, manifestDigest: digest, manifestContent });
  for (const name of image.names) await store.names.set(name, { manifest: descriptor, isLocal: true });
  return descriptor;
}
