/**
 * The layers that earlier builds made, in the agent's image store: layer `build-KEY` is what an instruction made of what
 * stood below it.
 */
import { readdirSync, statSync } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { ImageLease, ImageStore, LayerSummary } from "../runtime/index.ts";
import { cacheKey } from "./key.ts";

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

export class BuildCache {
  readonly store: ImageStore;
  readonly lease: ImageLease;

  /** @param lease Holds every layer that is found or made. */
  constructor(store: ImageStore, lease: ImageLease) {
    this.store = store;
    this.lease = lease;
  }

  async find(key: string): Promise<CachedLayer | undefined> {
    const directory = await this.store.layers.find(nameOf(key), this.lease);
    return directory === undefined ? undefined : describe(key, directory);
  }

  /** Makes a layer, or waits for whoever makes it already, in any process. */
  async make(
    key: string,
    write: (draft: LayerDraft) => Promise<LayerSummary>,
    signal: AbortSignal,
  ): Promise<CachedLayer> {
    const directory = await this.store.layers.produce(
      nameOf(key),
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
          return await write(draft);
        } finally {
          await Promise.all(scratch.map((path) => rm(path, { recursive: true, force: true })));
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
    const gone = await this.store.layers.takeOut(nameOf(key));
    if (gone !== undefined) await rm(gone, { recursive: true, force: true });
    return (await this.find(key)) === undefined ? key : cacheKey(key, { again: crypto.randomUUID() });
  }

  /** What was found out about something that does not change, by a key. */
  async recall(key: string): Promise<unknown> {
    return await this.store.recall(nameOf(key));
  }

  async remember(key: string, value: unknown): Promise<void> {
    await this.store.remember(nameOf(key), value);
  }
}

function nameOf(key: string): string {
  return `build-${key}`;
}

function describe(key: string, directory: string): CachedLayer {
  // Nothing changes it once it is made.
  const { mtimeMs } = statSync(directory);
  return { key, directory: readdirSync(directory).length === 0 ? undefined : directory, madeAtMs: Math.floor(mtimeMs) };
}
