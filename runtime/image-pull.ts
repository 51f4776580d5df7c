/** Brings an image from a registry into the store: what is there already is not fetched again. */
import { freeMemory } from "./bytes.ts";
import { ChannelWriter, ChannelClosedError, createChannel } from "./byte-channel.ts";
import { type HostPlatform, hostPlatform, parseJson } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import type { ImageLease } from "./image-lease.ts";
import { chooseManifest, type Descriptor, indexSchema, isIndexType, parseManifest } from "./image-manifest.ts";
import type { NamedImage } from "./image-names.ts";
import type { ImageStore } from "./image-store.ts";
import type { LayerLimits, LayerSummary } from "./layer.ts";
import { layerKey, type LayerBlob, publicLayerKey } from "./layer-store.ts";
import { LayerWorkers } from "./layer-workers.ts";
import { allOrNone, Semaphore } from "./parallel.ts";
import type { RegistryClient } from "./registry-client.ts";
import { RegistryError } from "./registry-error.ts";
import { unpackArchive } from "./remote-image.ts";
import { fetchBlob, fetchManifest, fetchSmallBlob, resolveTag } from "./registry-pull.ts";
import { formatReference, type ImageReference, pinReference } from "./registry-reference.ts";
import {
  distinctLast,
  describeManifest,
  findLayers,
  joinImage,
  readStoredImage,
  type StoredImage,
} from "./stored-image.ts";

/**
 * When the registry is asked.
 *
 * - `always`: for every tag, what it stands for now; what is in the store already is not fetched again.
 * - `missing`: only if no image of that name is in the store.
 * - `never`: an image that is not in the store is an error.
 */
export type PullPolicy = "always" | "missing" | "never";

/** What holds for one build: a tag stands for the same image in all its jobs. */
export interface ImagePins {
  /** What the build's jobs have agreed on, as far as is known here. */
  find(name: string): string | undefined;
  /** Proposes a digest; resolves to the one that holds, which another job may have been first to propose. */
  agree(name: string, digest: string): Promise<string>;
}

export interface PullOptions {
  readonly store: ImageStore;
  readonly client: RegistryClient;
  /** Holds manifest, configuration and layers in the store. */
  readonly lease: ImageLease;
  readonly limits: LayerLimits;
  /** @default `always`, and what is in the store where the registry cannot be reached */
  readonly policy?: PullPolicy | undefined;
  readonly pins?: ImagePins | undefined;
  /** @default this machine's */
  readonly platform?: HostPlatform | undefined;
  /** Keeps the layers' archives too, which pushing and exporting without a network need. @default false */
  readonly keepArchives?: boolean;
  /**
   * Takes nothing on the word of the store, where it may be because somebody had credentials for it: the registry is asked each time,
   * and layers are taken from the store if it is known that anybody may have them. The client is to be one that asks as nobody.
   * @default false
   */
  readonly publicOnly?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Told what a person should know: that the registry was not reached. */
  readonly onNote?: ((note: string) => void) | undefined;
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

/** How far a layer is. */
export interface PullProgress {
  /** Of its archive. */
  readonly digest: string;
  readonly receivedBytes: number;
  readonly totalBytes: number;
  readonly state: "there" | "receiving" | "done";
}

export interface PulledImage {
  /** What the name stands for in the registry: an index, or the manifest. */
  readonly resolved: string;
  readonly image: StoredImage;
  /** Directories for an overlay, base layer first. */
  readonly layers: readonly string[];
}

interface FoundManifest {
  readonly resolved: string;
  readonly manifestDigest: string;
  readonly manifestContent: Buffer;
}

/** Of one image. Each costs every look-up of a file, and a few descriptors a job. @see overlay-limit.ts */
export const MAX_LAYERS = 500;
/** Two do with what comes in what a disk can take; each costs some 20 MB. */
const UNPACKING_THREADS = 2;
/** A connection that waits for the network costs no processor. */
const LAYERS_PER_THREAD = 2;

/**
 * Pulls an image, or finds it in the store.
 *
 * @throws {ImageError} If there is none, access is denied, or it is broken or hostile. @throws {RegistryError}
 */
export async function pullImage(reference: ImageReference, options: PullOptions): Promise<PulledImage> {
  return await new Pull(reference, options).run();
}

class Pull {
  readonly #reference: ImageReference;
  readonly #options: PullOptions;
  readonly #name: string;

  constructor(reference: ImageReference, options: PullOptions) {
    this.#reference = reference;
    this.#options = options;
    this.#name = formatReference(reference);
  }

  async run(): Promise<PulledImage> {
    const { pins, policy, publicOnly } = this.#options;
    if (publicOnly === true) return await this.#public();
    const pinned = this.#reference.digest ?? pins?.find(this.#name);
    if (pinned !== undefined) return await this.#atDigest(pinned);
    const named = await this.#inStore(this.#name);
    const isEnough = policy === "missing" || (policy === undefined && named?.isLocal === true);
    if (policy === "never" || (isEnough && named !== undefined)) {
      if (named === undefined) throw new ImageError("it is not in the store of this agent, and pull is never");
      return await this.#agreed(named.resolved, named);
    }
    const resolved = await this.#ask(named);
    return await this.#agreed(resolved, named?.resolved === resolved ? named : undefined);
  }

  /** Pulls what the build's jobs agree on, which another one may have asked for earlier. */
  async #agreed(proposed: string, found: PulledImage | undefined): Promise<PulledImage> {
    const agreed = (await this.#options.pins?.agree(this.#name, proposed)) ?? proposed;
    if (found !== undefined && agreed === proposed) return found;
    return await this.#atDigest(agreed);
  }

  /** What the registry gives to anybody now. */
  async #public(): Promise<PulledImage> {
    const { pins, policy } = this.#options;
    if (policy === "never") {
      throw new ImageError(
        "pull is never, and what is in the store may be there because somebody had credentials for it",
      );
    }
    const pinned = this.#reference.digest ?? pins?.find(this.#name);
    const asked = pinned === undefined ? this.#reference : pinReference(this.#reference, pinned);
    const manifest = await this.#fetchManifest(asked);
    const { resolved } = manifest;
    const agreed = pinned ?? (await pins?.agree(this.#name, resolved)) ?? resolved;
    const reference = pinReference(this.#reference, agreed);
    const image = await this.#fetch(reference, agreed === resolved ? manifest : await this.#fetchManifest(reference));
    await this.#setNames(image);
    return image;
  }

  /** What the tag stands for now. */
  async #ask(named: PulledImage | undefined): Promise<string> {
    const { client, policy, signal, onNote } = this.#options;
    try {
      const resolved = await resolveTag(client, this.#reference, signal);
      return resolved ?? (await fetchManifest(client, this.#reference, signal)).digest;
    } catch (error) {
      if (!(error instanceof RegistryError) || named === undefined || policy === "always") throw error;
      onNote?.(`${error.message}; using what was pulled earlier, ${named.resolved}`);
      return named.resolved;
    }
  }

  async #atDigest(digest: string): Promise<PulledImage> {
    const pinned = pinReference(this.#reference, digest);
    const found = (await this.#inStore(formatReference(pinned))) ?? (await this.#complete(digest, digest));
    if (found === undefined && this.#options.policy === "never") {
      throw new ImageError(`${digest} is not in the store of this agent, and pull is never`);
    }
    const image = found ?? (await this.#fetch(pinned, await this.#fetchManifest(pinned)));
    await this.#setNames(image);
    return image;
  }

  /** An image of the store by its name, if all of it is there. */
  async #inStore(name: string): Promise<(PulledImage & { readonly isLocal: boolean }) | undefined> {
    const record: NamedImage | undefined = await this.#options.store.names.get(name);
    if (record === undefined) return undefined;
    const found = await this.#complete(record.manifest.digest, record.resolved ?? record.manifest.digest);
    return found && { ...found, isLocal: record.isLocal === true };
  }

  async #complete(manifestDigest: string, resolved: string): Promise<PulledImage | undefined> {
    const { store, lease, platform } = this.#options;
    const image = await readStoredImage(store, manifestDigest, lease, { platform }).catch((error: unknown) => {
      // An index, which is no manifest, or another platform's.
      if (error instanceof ImageError) return undefined;
      throw error;
    });
    if (image === undefined) return undefined;
    const diffIds = image.layers.map(({ diffId }) => diffId);
    const layers = (await findLayers(store, diffIds, lease)) ?? (await this.#restore(image));
    return layers === undefined ? undefined : { resolved, image, layers };
  }

  /**
   * Unpacks layers again whose archives are in the store: of an image that was built here, and not known to be on disk when the
   * machine went down, there is no other place.
   */
  async #restore({ layers }: StoredImage): Promise<readonly string[] | undefined> {
    const { store, lease, signal = new AbortController().signal } = this.#options;
    const restored: string[] = [];
    for (const diffId of distinctLast(layers.map((layer) => layer.diffId))) {
      const { descriptor } = layers.find((layer) => layer.diffId === diffId) as StoredImage["layers"][number];
      const { mediaType, digest, size } = descriptor;
      const found = await store.layers.find(layerKey(diffId), lease);
      if (found === undefined && !(await store.blobs.has(digest, size))) return undefined;
      const unpack = (directory: string) =>
        unpackArchive(store, { digest, size, diffId }, { pieces: none, directory, lease, signal });
      const blob = { mediaType, digest, size, repositories: [] };
      restored.push(
        found ?? (await store.layers.produce(layerKey(diffId), unpack, { durable: true, lease, signal, blob })),
      );
    }
    return restored;
  }

  /** Both names, the tag's and the digest's: jobs that agreed on the digest ask for that. */
  async #setNames({ resolved, image }: PulledImage): Promise<void> {
    const { store, signal } = this.#options;
    const { names } = store;
    const manifest = describeManifest(image);
    for (const name of new Set([this.#name, formatReference(pinReference(this.#reference, resolved))])) {
      const known = await names.get(name);
      const isKnown = known?.manifest.digest === manifest.digest;
      if (isKnown && (known.resolved ?? known.manifest.digest) === resolved) continue;
      await names.set(name, { manifest, resolved }, { signal, wait: false });
    }
  }

  async #fetch(
    pinned: ImageReference,
    { resolved, manifestContent, manifestDigest }: FoundManifest,
  ): Promise<PulledImage> {
    const { store, lease } = this.#options;
    const manifest = parseManifest(manifestContent, manifestDigest);
    const configContent = await this.#fetchConfig(pinned, manifest.config);
    const { platform } = this.#options;
    const image = joinImage({ manifest, manifestDigest, manifestContent, configContent }, { platform });
    const layers = await this.#fetchLayers(pinned, image);
    // Layers are brought to disk in the background, and all else with them; what a power cut takes is pulled again.
    await store.blobs.put(configContent, { digest: manifest.config.digest, lease, wait: false });
    await store.blobs.put(manifestContent, { digest: manifestDigest, lease, wait: false });
    return { resolved, image, layers };
  }

  /** The manifest for the platform, out of an index if there is one. */
  async #fetchManifest(pinned: ImageReference): Promise<FoundManifest> {
    const { client, platform = hostPlatform(), signal } = this.#options;
    const fetched = await fetchManifest(client, pinned, signal);
    const resolved = fetched.digest;
    if (!isIndexType(fetched.mediaType)) {
      return { resolved, manifestDigest: resolved, manifestContent: fetched.content };
    }
    const index = parseJson(fetched.content, resolved, indexSchema);
    const read = async (descriptor: Descriptor) => {
      const { content } = await fetchManifest(client, pinReference(pinned, descriptor.digest), signal);
      if (content.length === descriptor.size) return content;
      throw new ImageError(
        `its manifest ${descriptor.digest} has ${content.length} bytes, expected are ${descriptor.size} bytes`,
      );
    };
    const chosen = await chooseManifest(index.manifests, read, platform);
    return { resolved, manifestDigest: chosen.digest, manifestContent: await read(chosen) };
  }

  async #fetchConfig(pinned: ImageReference, config: Descriptor): Promise<Buffer> {
    const { store, client, lease, publicOnly, signal } = this.#options;
    const known = publicOnly === true ? undefined : await store.blobs.read(config.digest, { lease });
    return known ?? (await fetchSmallBlob(client, pinned, config, signal));
  }

  async #fetchLayers(pinned: ImageReference, image: StoredImage): Promise<readonly string[]> {
    const distinct = distinctLast(image.layers.map(({ diffId }) => diffId));
    if (distinct.length === 0) throw new ImageError("it has no layers");
    if (distinct.length > MAX_LAYERS) throw new ImageError(`it has ${distinct.length} layers, more than ${MAX_LAYERS}`);
    const wanted = distinct.map((diffId) => ({
      diffId,
      // The same content may be there in several forms: any will do.
      descriptor: (image.layers.find((layer) => layer.diffId === diffId) as StoredImage["layers"][number]).descriptor,
    }));
    const giveUp = new AbortController();
    const signal =
      this.#options.signal === undefined ? giveUp.signal : AbortSignal.any([this.#options.signal, giveUp.signal]);
    await using workers = new LayerWorkers({ max: UNPACKING_THREADS, tasksPerThread: LAYERS_PER_THREAD });
    const cancel = () => workers.cancel(signal.reason);
    signal.addEventListener("abort", cancel, { once: true });
    const slots = new Semaphore(UNPACKING_THREADS * LAYERS_PER_THREAD);
    const fetcher = new LayerFetcher(pinned, { ...this.#options, signal, workers, slots });
    // The largest first, so that none of them is left for the end.
    const started = new Map(
      wanted
        .toSorted((a, b) => b.descriptor.size - a.descriptor.size)
        .map(({ diffId, descriptor }) => [diffId, fetcher.fetch(descriptor, diffId)]),
    );
    return await allOrNone(
      distinct.map((diffId) => started.get(diffId) as Promise<string>),
      (error) => giveUp.abort(error),
    );
  }
}

/** Of an archive that is in the store already. */
const none: AsyncIterable<Buffer> = {
  [Symbol.asyncIterator]: () => ({ next: () => Promise.resolve({ done: true, value: undefined }) }),
};

interface FetchOptions extends PullOptions {
  readonly signal: AbortSignal;
  readonly workers: LayerWorkers;
  readonly slots: Semaphore;
}

/** Fetches layers and unpacks them while they come. */
class LayerFetcher {
  readonly #reference: ImageReference;
  readonly #options: FetchOptions;

  constructor(reference: ImageReference, options: FetchOptions) {
    this.#reference = reference;
    this.#options = options;
  }

  /** @returns The layer's directory, held by the lease. */
  async fetch(descriptor: Descriptor, diffId: string): Promise<string> {
    const { store, publicOnly } = this.#options;
    const { digest } = descriptor;
    const key = layerKey(diffId);
    const { files, fetched } = await this.#fetchAs(key, descriptor, diffId);
    if (publicOnly !== true || fetched) return files;
    const known = (await store.layers.blobs(key)).find((blob) => blob.digest === digest);
    if (known?.isPublic === true) return files;
    return (await this.#fetchAs(publicLayerKey(diffId, digest), descriptor, diffId)).files;
  }

  async #fetchAs(
    key: string,
    descriptor: Descriptor,
    diffId: string,
  ): Promise<{ readonly files: string; readonly fetched: boolean }> {
    const { store, client, lease, publicOnly, signal, slots, onProgress } = this.#options;
    const { mediaType, digest, size } = descriptor;
    const { registry, repository } = this.#reference;
    const blob: { -readonly [K in keyof LayerBlob]: LayerBlob[K] } = {
      mediaType,
      digest,
      size,
      repositories: [`${registry}/${repository}`],
    };
    let fetched = false;
    const files = await store.layers.produce(
      key,
      async (directory) => {
        using _slot = await slots.take(signal);
        fetched = true;
        const summary = await this.#unpack(descriptor, diffId, directory);
        // Known only now, and written with the layer.
        if (client.hasAskedAsNobody(this.#reference)) blob.isPublic = true;
        return summary;
      },
      { durable: true, lease, signal, blob },
    );
    if (!fetched) {
      onProgress?.({ digest, receivedBytes: 0, totalBytes: size, state: "there" });
      // A stranger's manifest may say what it likes of layers that it names.
      if (publicOnly !== true) await store.layers.noteBlob(key, blob);
    }
    return { files, fetched };
  }

  async #unpack(descriptor: Descriptor, diffId: string, directory: string): Promise<LayerSummary> {
    const { signal } = this.#options;
    try {
      return await this.#unpackOnce(descriptor, diffId, directory, { direct: false });
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ImageError)) throw error;
      // Once more, and not from a mirror: a cache on the way may have kept something broken.
      const damaged = /\bits digest is sha|data is broken|is truncated|the archive is damaged/.test(error.message);
      if (damaged) return await this.#unpackOnce(descriptor, diffId, directory, { direct: true });
      throw error;
    }
  }

  async #unpackOnce(
    descriptor: Descriptor,
    diffId: string,
    directory: string,
    { direct }: { readonly direct: boolean },
  ): Promise<LayerSummary> {
    const { client, workers, limits, store, lease, signal, onProgress, keepArchives } = this.#options;
    const { digest, size } = descriptor;
    const channel = createChannel();
    const writer = new ChannelWriter(channel);
    const stop = new AbortController();
    await using archive = keepArchives === true ? store.blobs.create({ digest, size }) : undefined;
    const feed = async () => {
      let receivedBytes = 0;
      try {
        const pieces = fetchBlob(client, this.#reference, descriptor, {
          signal: AbortSignal.any([signal, stop.signal]),
          direct,
        });
        for await (const piece of pieces) {
          receivedBytes += piece.length;
          await writer.write(piece);
          await archive?.write(piece);
          if (piece.length === piece.buffer.byteLength) freeMemory(piece);
          onProgress?.({ digest, receivedBytes, totalBytes: size, state: "receiving" });
        }
        writer.end();
      } catch (error) {
        writer.fail();
        throw error;
      }
    };
    const unpack = workers.run({
      kind: "unpack",
      request: { source: { channel }, directory, digest, diffId, endMarker: "optional", mustBeRoot: false, limits },
    });
    const unpacking = unpack.catch((error: unknown) => {
      stop.abort(new ChannelClosedError("The layer cannot be unpacked"));
      throw error;
    });
    const [unpacked, fed] = await Promise.allSettled([unpacking, feed()]);
    signal.throwIfAborted();
    // The one that failed by itself tells why; the other one only that it was given up.
    if (fed.status === "rejected" && !(fed.reason instanceof ChannelClosedError)) throw fed.reason;
    if (unpacked.status === "rejected") {
      const error: unknown = unpacked.reason;
      if (!(error instanceof ImageError)) throw error;
      throw new ImageError(`layer ${digest}: ${error.message}`, { cause: error });
    }
    if (fed.status === "rejected") throw fed.reason;
    await archive?.commit({ lease });
    onProgress?.({ digest, receivedBytes: size, totalBytes: size, state: "done" });
    return unpacked.value;
  }
}
