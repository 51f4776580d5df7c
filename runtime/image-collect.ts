/** Makes room in the image store: what nobody uses goes, the longest unused first. */
import { ImageError } from "./image-error.ts";
import { indexedManifests } from "./image-index.ts";
import type { NamedImage } from "./image-names.ts";
import type { ImageStore } from "./image-store.ts";
import { layerKey, publicLayerKey } from "./layer-store.ts";
import { removeTrees } from "./layer-workers.ts";
import { takeOrphans } from "./shifted-layers.ts";
import { readStoredImage } from "./stored-image.ts";
import { close } from "./syscall.ts";

/** What goes. Several add up. What a lease holds, in whatever process, never goes. */
export interface CollectOptions {
  /** Goes on until the store has at most so many bytes. */
  readonly budgetBytes?: number;
  /** Whatever has not been used for so long. */
  readonly unusedForMs?: number;
  /** These names, and what only they refer to. */
  readonly names?: readonly string[];
  /** What no tag refers to: superseded images, layers and archives that belong to no image. */
  readonly untagged?: boolean;
  readonly signal?: AbortSignal;
}

export interface Collected {
  readonly names: readonly string[];
  readonly layers: number;
  readonly blobs: number;
  /** Estimated from what was unpacked. */
  readonly freedBytes: number;
  /** What is in the store now. */
  readonly keptBytes: number;
}

/** A layer or blob. */
interface Part {
  readonly kind: "layer" | "blob";
  /** Key or digest. */
  readonly id: string;
  readonly sizeBytes: number;
  readonly usedAtMs: number;
}

/** All names of one manifest. */
interface ImageUnit {
  readonly names: readonly NamedImage[];
  readonly parts: readonly Part[];
  readonly usedAtMs: number;
}

/**
 * Removes what the options say, as far as nobody uses it.
 *
 * Everything disappears from its place at once or not at all; what takes time, deleting it, comes afterwards and is made up
 * for by the next process if this one is killed.
 */
export async function collectImages(store: ImageStore, options: CollectOptions): Promise<Collected> {
  const gone: string[] = [];
  // Nobody may give a name to what is being taken out.
  const lock = await store.names.lock(options.signal);
  let collected: Collected;
  try {
    collected = await new Collection(store, await readContent(store), gone).run(options);
  } finally {
    close(lock);
  }
  await removeTrees([...gone, ...takeOrphans(store.directory)]);
  return collected;
}

interface Content {
  readonly parts: ReadonlyMap<string, Part>;
  readonly images: readonly ImageUnit[];
}

async function readContent(store: ImageStore): Promise<Content> {
  const [names, layers, blobs] = await Promise.all([store.names.list(), store.layers.list(), store.blobs.list()]);
  const parts = new Map<string, Part>();
  for (const { key, sizeBytes, usedAtMs } of layers) parts.set(key, { kind: "layer", id: key, sizeBytes, usedAtMs });
  for (const { digest, size, usedAtMs } of blobs) {
    parts.set(digest, { kind: "blob", id: digest, sizeBytes: size, usedAtMs });
  }
  const byManifest = Map.groupBy(names, ({ manifest }) => manifest.digest);
  const images = await Promise.all(
    [...byManifest].map(async ([digest, named]) => {
      const ids = [await partIds(store, digest)];
      // A name of several platforms holds them all.
      for (const index of new Set(named.map(({ resolved }) => resolved))) {
        const manifests = await indexedManifests(store, index);
        if (index !== undefined && manifests.length > 0) ids.push([index]);
        for (const manifest of manifests) ids.push(await partIds(store, manifest));
      }
      return {
        names: named,
        parts: [...new Set(ids.flat())].map((id) => parts.get(id)).filter((part) => part !== undefined),
        usedAtMs: Math.max(...named.map(({ usedAtMs }) => usedAtMs)),
      };
    }),
  );
  return { parts, images };
}

/** What an image is made of; what cannot be read is made of nothing, and its name leads nowhere. */
async function partIds(store: ImageStore, digest: string): Promise<string[]> {
  try {
    const image = await readStoredImage(store, digest, undefined, { platform: "any" });
    if (image === undefined) return [digest];
    return [
      digest,
      image.manifest.config.digest,
      ...image.layers.flatMap(({ diffId, descriptor: { digest } }) => [
        layerKey(diffId),
        publicLayerKey(diffId, digest),
        digest,
      ]),
    ];
  } catch (error) {
    if (error instanceof ImageError) return [digest];
    throw error;
  }
}

class Collection {
  readonly #store: ImageStore;
  readonly #content: Content;
  readonly #gone: string[];
  /** How many images that stay have a part. */
  readonly #references = new Map<string, number>();
  readonly #left: Set<Part>;
  readonly #names: string[] = [];
  readonly #removed = { layers: 0, blobs: 0, bytes: 0 };

  constructor(store: ImageStore, content: Content, gone: string[]) {
    this.#store = store;
    this.#content = content;
    this.#gone = gone;
    this.#left = new Set(content.parts.values());
    for (const { parts } of content.images) for (const { id } of parts) this.#count(id, 1);
  }

  async run(options: CollectOptions): Promise<Collected> {
    const wanted = new Set(options.names);
    const beforeMs = options.unusedForMs === undefined ? -Infinity : Date.now() - options.unusedForMs;
    const { budgetBytes = Infinity } = options;
    const orphans = [...this.#left].filter(({ id }) => !this.#references.has(id));
    const units: readonly (ImageUnit | Part)[] = [...this.#content.images, ...orphans].sort(
      (a, b) => a.usedAtMs - b.usedAtMs,
    );
    for (const unit of units) {
      const old = unit.usedAtMs < beforeMs || this.#bytes() > budgetBytes;
      if ("kind" in unit) {
        if (old || options.untagged === true) await this.#removePart(unit);
        continue;
      }
      const given = unit.names.filter(({ name }) => wanted.has(name));
      const tagged = unit.names.some(({ name }) => !name.includes("@"));
      if (old || (options.untagged === true && !tagged)) await this.#removeImage(unit);
      else if (given.length > 0) await this.#removeNames(unit, given);
    }
    const { layers, blobs, bytes } = this.#removed;
    return { names: this.#names, layers, blobs, freedBytes: bytes, keptBytes: this.#bytes() };
  }

  /** The rest of an image stays if other tags than those that go refer to it. */
  async #removeNames(unit: ImageUnit, given: readonly NamedImage[]): Promise<void> {
    const rest = unit.names.filter((name) => !given.includes(name));
    if (!rest.some(({ name }) => !name.includes("@"))) {
      await this.#removeImage(unit);
      return;
    }
    for (const { name } of given) await this.#removeName(name);
  }

  async #removeImage(unit: ImageUnit): Promise<void> {
    // Whoever uses an image holds its manifest; its layers may be held for another image that has them too.
    if (unit.names.some(({ manifest }) => this.#store.blobs.isHeld(manifest.digest))) return;
    for (const { name } of unit.names) await this.#removeName(name);
    for (const part of unit.parts) if (this.#count(part.id, -1) === 0) await this.#removePart(part);
  }

  async #removeName(name: string): Promise<void> {
    if (await this.#store.names.remove(name)) this.#names.push(name);
  }

  async #removePart(part: Part): Promise<void> {
    if (part.kind === "layer") {
      const gone = await this.#store.layers.takeOut(part.id);
      if (gone === undefined) return;
      this.#gone.push(gone);
      this.#removed.layers++;
    } else {
      if (!(await this.#store.blobs.remove(part.id))) return;
      this.#removed.blobs++;
    }
    this.#removed.bytes += part.sizeBytes;
    this.#left.delete(part);
  }

  #count(id: string, change: 1 | -1): number {
    const count = (this.#references.get(id) ?? 0) + change;
    this.#references.set(id, count);
    return count;
  }

  #bytes(): number {
    let bytes = 0;
    for (const { sizeBytes } of this.#left) bytes += sizeBytes;
    return bytes;
  }
}
