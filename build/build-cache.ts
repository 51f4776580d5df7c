/**
 * The layers that earlier builds made, in the agent's image store: layer `build-KEY` is what an instruction made of what
 * stood below it.
 */
import { readdirSync, statSync } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { formatBytes } from "../pipelines/index.ts";
import {
  type ImageLease,
  type ImageStore,
  type LayerSummary,
  removeTrees,
  type StepResources,
} from "../runtime/index.ts";
import { cacheKey } from "./key.ts";
import { OperationError } from "./operation.ts";

/** What an inode takes, at least. */
const ENTRY_BYTES = 256;

/** Where a new layer is written: all on one file system, and gone with whatever is in it if that fails. */
export interface LayerDraft {
  /** Must not exist; becomes the layer. */
  readonly files: string;
  /** May be used meanwhile; must not exist. */
  readonly scratch: (name: string) => string;
}

export interface CachedLayer {
  readonly key: string;
  /** Absent if the instruction changed nothing. */
  readonly directory: string | undefined;
  /** Milliseconds since 1970. */
  readonly madeAtMs: number;
}

/** Layers that builds elsewhere have made. */
export interface CacheImport extends AsyncDisposable {
  has(key: string): boolean;
  /** Writes the files of a layer that it has. @param directory Must not exist. */
  fetch(key: string, directory: string): Promise<ImportedLayer>;
}

export interface ImportedLayer {
  readonly summary: LayerSummary;
  /** The archive that it came in, which an image may list as it is; by what it was made with. */
  readonly archive?: { readonly how: object; readonly result: unknown } | undefined;
}

export interface BuildCacheOptions {
  readonly store: ImageStore;
  /** Holds every layer that is found or made. */
  readonly lease: ImageLease;
  /**
   * What builds of other trust must not find, nor have found for them: what a command makes does not depend on its key alone, but
   * on whom it has reached. @default ""
   */
  readonly namespace?: string | undefined;
  /** What all layers together may have that are made. @default any number */
  readonly diskBytes?: number | undefined;
  /** Asked in their order for what is not here. */
  readonly imports?: readonly CacheImport[] | undefined;
  readonly onNote?: ((note: string) => void) | undefined;
  /** Of the builds for other platforms, in front of this one's. */
  readonly used?: Map<string, CachedLayer> | undefined;
}

export class BuildCache {
  readonly store: ImageStore;
  readonly lease: ImageLease;
  readonly #namespace: string;
  /** What all layers together may have that are made. */
  readonly diskBytes: number;
  readonly #imports: readonly CacheImport[];
  readonly #onNote: (note: string) => void;
  /** The layers of instructions that were found or made, by key, in the order in which that happened. */
  readonly used: Map<string, CachedLayer>;
  #usedBytes = 0;

  constructor(options: BuildCacheOptions) {
    const { store, lease, namespace = "", diskBytes = Infinity, imports = [], onNote = () => {} } = options;
    this.#imports = imports;
    this.used = options.used ?? new Map();
    this.#onNote = onNote;
    this.store = store;
    this.lease = lease;
    this.#namespace = namespace;
    this.diskBytes = diskBytes;
  }

  /** What is left of the disk that the build may have. */
  get leftBytes(): number {
    return Math.max(0, this.diskBytes - this.#usedBytes);
  }

  /** A command gets no more of the disk than is left for its build. */
  limit(resources: StepResources): StepResources {
    if (this.diskBytes === Infinity) return resources;
    return { ...resources, diskBytes: Math.min(resources.diskBytes ?? Infinity, this.leftBytes) };
  }

  async find(key: string, signal?: AbortSignal): Promise<CachedLayer | undefined> {
    const directory =
      (await this.store.layers.find(this.#nameOf(key), this.lease)) ?? (await this.#import(key, signal));
    return directory === undefined ? undefined : describe(key, directory);
  }

  /** What cannot be had from elsewhere is made here. */
  async #import(key: string, signal: AbortSignal | undefined): Promise<string | undefined> {
    const from = this.#imports.find((each) => each.has(key));
    if (from === undefined) return undefined;
    try {
      const write = async (files: string) => {
        const { summary, archive } = await from.fetch(key, files);
        this.#spend(summary);
        if (archive !== undefined) await this.remember(cacheKey(key, { ...archive.how }), archive.result);
        return summary;
      };
      return await this.store.layers.produce(this.#nameOf(key), write, { durable: true, lease: this.lease, signal });
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof OperationError) throw error;
      this.#onNote(`a layer of the imported cache is not used: ${(error as Error).message}`);
      return undefined;
    }
  }

  /** Makes a layer, or waits for whoever makes it already, in any process. */
  async make(
    key: string,
    write: (draft: LayerDraft) => Promise<LayerSummary>,
    signal: AbortSignal,
  ): Promise<CachedLayer> {
    const directory = await this.store.layers.produce(
      this.#nameOf(key),
      async (files) => {
        const scratch: string[] = [];
        const draft = {
          files,
          scratch: (name: string) => {
            const path = join(dirname(files), name);
            scratch.push(path);
            return path;
          },
        };
        try {
          const summary = await write(draft);
          this.#spend(summary);
          return summary;
        } finally {
          await Promise.all(scratch.map(removeScratch));
        }
      },
      { durable: true, lease: this.lease, signal },
    );
    return describe(key, directory);
  }

  /**
   * Forgets a layer, so that it is made again.
   *
   * @returns The key to make it by: another one if somebody uses the layer of this one.
   */
  async forget(key: string): Promise<string> {
    const gone = await this.store.layers.takeOut(this.#nameOf(key));
    if (gone !== undefined) await removeTrees([gone]);
    const held = await this.store.layers.find(this.#nameOf(key), this.lease);
    return held === undefined ? key : cacheKey(key, { again: crypto.randomUUID() });
  }

  /** What was found out about something that does not change, by a key. */
  async recall(key: string): Promise<unknown> {
    return await this.store.recall(this.#nameOf(key));
  }

  async remember(key: string, value: unknown): Promise<void> {
    await this.store.remember(this.#nameOf(key), value);
  }

  #spend({ bytes, entries }: LayerSummary): void {
    // A file of no bytes takes some of the disk, too.
    this.#usedBytes += bytes + entries * ENTRY_BYTES;
    if (this.#usedBytes <= this.diskBytes) return;
    throw new OperationError(`the layers of this build have more than ${formatBytes(this.diskBytes)}`, {
      suggestion: "raise the limit, or let the Dockerfile make less",
    });
  }

  #nameOf(key: string): string {
    return `build-${this.#namespace === "" ? key : cacheKey(key, { namespace: this.#namespace })}`;
  }
}

/** Mostly next to nothing; but a command can make directories that no path is long enough for. */
async function removeScratch(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => removeTrees([path]));
}

function describe(key: string, directory: string): CachedLayer {
  // Nothing changes it once it is made.
  const { mtimeMs } = statSync(directory);
  return { key, directory: readdirSync(directory).length === 0 ? undefined : directory, madeAtMs: Math.floor(mtimeMs) };
}
