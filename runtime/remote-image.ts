/** An image where it is: in a registry or an OCI layout, of which only those layers are read that somebody asks for. */
import { close as closeCallback, constants, createReadStream } from "node:fs";
import { promisify } from "node:util";
import { joinImage } from "./stored-image.ts";
import { DirectoryFiles } from "./image-files.ts";
import type { ImageLease } from "./image-lease.ts";
import type { BlobIdentity } from "./blob-store.ts";
import { type Descriptor, parseManifest } from "./image-manifest.ts";
import type { ImageStore } from "./image-store.ts";
import { defaultLayerLimits, type LayerSummary } from "./layer.ts";
import { LayerWorkers } from "./layer-workers.ts";
import { readOciLayout } from "./oci-layout.ts";
import type { RegistryClient } from "./registry-client.ts";
import { fetchBlob, fetchManifest, fetchSmallBlob } from "./registry-pull.ts";
import type { ImageReference } from "./registry-reference.ts";
import { open } from "./syscall.ts";

const close = promisify(closeCallback);

export interface RemoteImage extends AsyncDisposable {
  /** Verified. */
  readonly configContent: Buffer;
  readonly layers: readonly { readonly descriptor: Descriptor; readonly diffId: string }[];
  /** The archive of a layer, as it is there: not verified. */
  read(blob: BlobIdentity, signal: AbortSignal): AsyncIterable<Buffer>;
}

/** @throws {ImageError} If there is none, or it is none for one platform. @throws {RegistryError} */
export async function openRepository(
  reference: ImageReference,
  { client, signal }: { readonly client: RegistryClient; readonly signal: AbortSignal },
): Promise<RemoteImage> {
  const { content, digest } = await fetchManifest(client, reference, signal);
  const manifest = parseManifest(content, digest);
  const configContent = await fetchSmallBlob(client, reference, manifest.config, signal);
  const read = { manifest, manifestDigest: digest, manifestContent: content, configContent };
  const { layers } = joinImage(read, { platform: "any" });
  return {
    configContent,
    layers,
    read: (blob, pieceSignal) => fetchBlob(client, reference, blob, { signal: pieceSignal }),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** @throws {ImageError} If the directory is no layout of one image for this machine. */
export async function openLayout(path: string): Promise<RemoteImage> {
  const directory = open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  const files = new DirectoryFiles(directory);
  const dispose = async () => {
    await files[Symbol.asyncDispose]();
    await close(directory);
  };
  try {
    const { configContent, manifestContent, layers } = await readOciLayout(files);
    const manifest = parseManifest(manifestContent as Buffer, "manifest");
    const sources = new Map(layers.map(({ digest, source }) => [digest, source]));
    return {
      configContent,
      layers: layers.map(({ diffId }, index) => ({ diffId, descriptor: manifest.layers[index] as Descriptor })),
      read({ digest }) {
        const source = sources.get(digest);
        if (source === undefined) throw new Error(`No layer ${digest} in "${path}"`);
        // The descriptor stays, for the next one who asks.
        return createReadStream("", { fd: source.fd, autoClose: false, start: 0, end: source.length - 1 });
      },
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/**
 * Keeps the archive of a layer in the store, and unpacks it to a directory, which must not exist.
 *
 * @throws {ImageError} If it is broken, hostile, or not what its digests say.
 */
export async function unpackArchive(
  store: ImageStore,
  layer: BlobIdentity & { readonly diffId: string },
  options: {
    readonly pieces: AsyncIterable<Buffer>;
    readonly directory: string;
    readonly lease: ImageLease;
    readonly signal: AbortSignal;
  },
): Promise<LayerSummary> {
  const { pieces, directory, lease, signal } = options;
  const { digest, size, diffId } = layer;
  if (!(await store.blobs.has(digest, size))) {
    await using writer = store.blobs.create({ digest, size });
    for await (const piece of pieces) {
      signal.throwIfAborted();
      if (writer.size + piece.length > size) break;
      await writer.write(piece);
    }
    await writer.commit({ lease, wait: false });
  }
  const source = await store.blobs.open(digest, { lease });
  if (source === undefined) throw new Error(`Cannot unpack ${digest}: it has been removed from the store meanwhile`);
  await using workers = new LayerWorkers({ max: 1 });
  const cancel = () => workers.cancel(signal.reason);
  signal.addEventListener("abort", cancel, { once: true });
  try {
    signal.throwIfAborted();
    const limits = defaultLayerLimits;
    const request = { source, directory, digest, diffId, endMarker: "optional", mustBeRoot: false, limits } as const;
    return await workers.run({ kind: "unpack", request });
  } finally {
    signal.removeEventListener("abort", cancel);
    await close(source.fd);
  }
}
