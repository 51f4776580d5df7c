/** Copies of layers for jobs whose ids are not those that the layers have on disk. @see file-owners.ts */
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { basename, dirname } from "node:path";
import { firstRange, shiftTree } from "./file-owners.ts";
import { LayerWorkers, removeTrees } from "./layer-workers.ts";
import type { RangePlan } from "./own-ids.ts";
import type { UidRange } from "./uid-range.ts";

/** Beside a copy: a symbolic link to the layer that it was made from. */
const sourceSuffix = ".source";
const unfinished = /^new-(\d+)-/;

/** Where a copy will be, and where it is until it is whole. */
interface Places {
  readonly copy: string;
  readonly making: string;
}

export class ShiftedLayers {
  readonly #storeDir: string;
  readonly #temporaryDir: string;
  readonly #temporary = new Map<string, Map<string, string>>();
  /** By their places. */
  readonly #making = new Map<string, Promise<void>>();

  /**
   * @param storeDir The image store; its layers never change, so copies of them stay, in `shifted` below it.
   * @param temporaryDir For copies of other layers, which last as long as the range is claimed.
   */
  constructor(storeDir: string, temporaryDir: string) {
    this.#storeDir = storeDir;
    this.#temporaryDir = temporaryDir;
  }

  /** The layer with the range's owners: itself, or a copy, which is made if it is not there. Blocks meanwhile. */
  get(layer: string, range: UidRange): string {
    if (range.base === firstRange().base) return layer;
    if (layer.startsWith(`${this.#storeDir}/`)) return this.#kept(layer, range);
    let copies = this.#temporary.get(range.key);
    if (copies === undefined) this.#temporary.set(range.key, (copies = new Map()));
    const known = copies.get(layer);
    if (known !== undefined) return known;
    const copy = `${this.#temporaryDir}/layer-${range.key}-${randomBytes(6).toString("hex")}`;
    copyShifted(layer, copy, range);
    copies.set(layer, copy);
    return copy;
  }

  /** The copies that nobody needs any more, for the caller to remove. */
  release({ key }: Pick<UidRange, "key">): string[] {
    const copies = [...(this.#temporary.get(key)?.values() ?? [])];
    this.#temporary.delete(key);
    return copies;
  }

  #kept(layer: string, range: UidRange): string {
    const { copy, making } = this.#places(layer, range);
    if (existsSync(copy)) return copy;
    try {
      copyShifted(layer, making, range);
      keep(layer, { copy, making });
    } catch (error) {
      rmSync(making, { recursive: true, force: true });
      if (!existsSync(copy)) throw error; // else another agent of this user was faster
    }
    return copy;
  }

  /** Makes the copies that `get` would make of an image's layers, in a thread: an image of a gigabyte takes many seconds. */
  async prepare(layers: readonly string[], range: RangePlan): Promise<void> {
    if (range.base === firstRange().base) return;
    const missing = layers.filter((layer) => layer.startsWith(`${this.#storeDir}/`));
    await Promise.all(
      missing.map((layer) => {
        const { copy, making } = this.#places(layer, range);
        if (existsSync(copy)) return Promise.resolve();
        const known = this.#making.get(copy);
        if (known !== undefined) return known;
        const made = this.#prepare(layer, { copy, making }, range).finally(() => this.#making.delete(copy));
        this.#making.set(copy, made);
        return made;
      }),
    );
  }

  async #prepare(layer: string, places: Places, { base, mappings }: RangePlan): Promise<void> {
    try {
      await using workers = new LayerWorkers({ max: 1 });
      await workers.run({ kind: "copy", layer, target: places.making, range: { base, mappings } });
      keep(layer, places);
    } catch (error) {
      await removeTrees([places.making]);
      if (!existsSync(places.copy)) throw error;
    }
  }

  #places(layer: string, { base }: RangePlan): Places {
    const parent = `${this.#storeDir}/shifted/${base}`;
    mkdirSync(parent, { recursive: true, mode: 0o755 });
    return {
      copy: `${parent}/${createHash("sha256").update(layer).digest("hex").slice(0, 32)}`,
      making: `${parent}/new-${process.pid}-${randomBytes(8).toString("hex")}`,
    };
  }

  /** Removes what a killed agent has not finished, and copies whose layer the store has no more. */
  sweep(): void {
    for (const parent of list(`${this.#storeDir}/shifted`)) {
      for (const path of list(parent)) {
        const maker = unfinished.exec(basename(path))?.[1];
        if (maker !== undefined && !existsSync(`/proc/${maker}`)) rmSync(path, { recursive: true, force: true });
      }
    }
    for (const path of takeOrphans(this.#storeDir)) rmSync(path, { recursive: true, force: true });
  }
}

/**
 * Takes copies whose layer a store has no more from their places, for the caller to remove: from then on nobody finds them,
 * and if the caller is killed the next agent's start removes them.
 */
export function takeOrphans(storeDir: string): string[] {
  const taken: string[] = [];
  for (const parent of list(`${storeDir}/shifted`)) {
    for (const path of list(parent)) {
      if (unfinished.test(basename(path)) || !isOrphan(path)) continue;
      const place = `${parent}/new-${process.pid}-${randomBytes(8).toString("hex")}`;
      try {
        renameSync(path, place);
        taken.push(place);
      } catch {
        // another process was faster
      }
    }
  }
  return taken;
}

/** Puts a copy that is whole in its place. */
function keep(layer: string, { copy, making }: Places): void {
  link(layer, `${copy}${sourceSuffix}`);
  renameSync(making, copy);
}

/** The same for whoever makes it. */
function link(target: string, path: string): void {
  try {
    symlinkSync(target, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

/** A copy without a layer, or the link of such a copy. */
function isOrphan(path: string): boolean {
  const copy = path.endsWith(sourceSuffix) ? path.slice(0, -sourceSuffix.length) : path;
  try {
    return !existsSync(readlinkSync(`${copy}${sourceSuffix}`));
  } catch {
    return true;
  }
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory).map((name) => `${directory}/${name}`);
  } catch {
    return [];
  }
}

/** Copies a layer and gives the copy a range's owners. Blocks meanwhile. */
export function copyShifted(layer: string, target: string, range: RangePlan): void {
  mkdirSync(dirname(target), { recursive: true, mode: 0o755 });
  try {
    // Whiteouts and extended attributes come along.
    execFileSync("cp", ["--archive", "--reflink=auto", "--", layer, target], { stdio: ["ignore", "ignore", "pipe"] });
    shiftTree(target, firstRange(), range);
  } catch (error) {
    rmSync(target, { recursive: true, force: true });
    throw new Error(`Cannot copy layer "${layer}" for a job with ids of its own: ${(error as Error).message}`, {
      cause: error,
    });
  }
}
