/** Several images of one name, each for a platform of its own: an index in the store, all of whose images are there. */
import { type HostPlatform, hostPlatform, parseJson } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import type { ImageLease } from "./image-lease.ts";
import { chooseManifest, type Descriptor, indexSchema, isIndexType, mediaTypes } from "./image-manifest.ts";
import type { ImageStore } from "./image-store.ts";
import { readStoredImage, type StoredImage } from "./stored-image.ts";

export interface StoredIndex {
  readonly descriptor: Descriptor;
  /** As registries get it, byte for byte. */
  readonly content: Buffer;
  readonly images: readonly StoredImage[];
}

/**
 * Puts an index into the store and gives it names. A name stands for the image of this machine's platform, or the first one
 * if there is none; `resolved` of its record is the index.
 *
 * @param index.manifests Of images that the store has, held by `lease`, in the order of the index.
 * @returns The index's descriptor.
 */
export async function putIndex(
  store: ImageStore,
  index: {
    readonly manifests: readonly { readonly descriptor: Descriptor; readonly platform: HostPlatform }[];
    readonly annotations?: Readonly<Record<string, string>> | undefined;
    /** In full: `docker.io/library/app:1`; see `parseReference`. */
    readonly names: readonly string[];
  },
  lease: ImageLease,
): Promise<Descriptor> {
  const manifests = index.manifests.map(({ descriptor, platform }) => {
    const { mediaType, digest, size } = descriptor;
    const { os, architecture, variant } = platform;
    return { mediaType, digest, size, platform: { architecture, os, ...(variant === undefined ? {} : { variant }) } };
  });
  const content = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.index,
      manifests,
      ...(index.annotations === undefined ? {} : { annotations: index.annotations }),
    }),
  );
  const { digest } = await store.blobs.put(content, { lease });
  const manifest = await ownManifest(manifests);
  for (const name of index.names) await store.names.set(name, { manifest, resolved: digest, isLocal: true });
  return { mediaType: mediaTypes.index, digest, size: content.length };
}

async function ownManifest(manifests: readonly Descriptor[]): Promise<Descriptor> {
  const none = () => Promise.reject(new ImageError("an index in an index is not expected here"));
  try {
    return await chooseManifest(manifests, none, hostPlatform());
  } catch (error) {
    const [first] = manifests;
    if (!(error instanceof ImageError) || first === undefined) throw error;
    return first;
  }
}

/**
 * Reads an index that `putIndex` has put, and its images, verified.
 *
 * @param lease Holds them all in the store.
 * @returns undefined if it, or one of its images, is not in the store: of what was pulled there is one platform's only.
 */
export async function readStoredIndex(
  store: ImageStore,
  digest: string,
  lease?: ImageLease,
): Promise<StoredIndex | undefined> {
  const content = await store.blobs.read(digest, { lease });
  const manifests = content === undefined ? undefined : parseIndex(content, digest);
  if (content === undefined || manifests === undefined) return undefined;
  const images: StoredImage[] = [];
  for (const descriptor of manifests) {
    const image = await readStoredImage(store, descriptor.digest, lease, { platform: "any" });
    if (image === undefined) return undefined;
    images.push(image);
  }
  return { descriptor: { mediaType: mediaTypes.index, digest, size: content.length }, content, images };
}

/** What an index lists; undefined if it is none. */
function parseIndex(content: Buffer, digest: string): readonly Descriptor[] | undefined {
  try {
    const { mediaType, manifests } = parseJson(content, digest, indexSchema);
    return mediaType !== undefined && isIndexType(mediaType) ? manifests : undefined;
  } catch (error) {
    if (error instanceof ImageError) return undefined;
    throw error;
  }
}

/** The digests that a name's index lists, if the store has the index. */
export async function indexedManifests(store: ImageStore, digest: string | undefined): Promise<readonly string[]> {
  if (digest === undefined || !(await store.blobs.has(digest))) return [];
  const content = await store.blobs.read(digest);
  return (content === undefined ? undefined : parseIndex(content, digest))?.map((each) => each.digest) ?? [];
}
