/**
 * What builders in nested steps keep between builds: their stores of images and layers, by name.
 *
 *     KEY/VERSION/       what was kept last, in ids of the container (0 is root's), whatever the range of the job was
 *     KEY/current.json   which version holds; its time of change is when it was used last
 *     tmp/               current.json being written
 *
 * A version never changes. A job gets a copy of it, and what a job leaves becomes a new version: moved here, brought to disk,
 * and only then named, so that whoever is killed at any moment leaves the old one or the new one.
 */
import { execFile } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { mkdirSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, rmdir, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { writeDurably } from "./durable-file.ts";
import { lockShared, tryLock, waitForLock } from "./file-lock.ts";
import { close } from "./syscall.ts";

const run = promisify(execFile);

/** Whose a cache is and what it is called; other namespaces have other caches. */
export interface CacheKey {
  readonly namespace: string;
  readonly name: string;
}

/** One that is kept. */
export interface KeptCache extends CacheKey {
  readonly bytes: number;
  readonly usedAtMs: number;
}

/** What stands in current.json. */
interface Current extends CacheKey {
  readonly version: string;
  readonly bytes: number;
  readonly build?: number;
}

/** What became of what was to be kept: it takes more than all caches together may, or a later build's is there. */
export interface Keeping {
  readonly bytes: number;
  readonly outcome: "kept" | "too large" | "older";
}

export interface ContainerCachesOptions {
  /** What all of them may use together; the longest unused goes first. One that is larger is not kept. */
  readonly budgetBytes: number;
  /** Moves a tree away at once, and deletes it some time. */
  readonly remove: (path: string) => Promise<void>;
}

export class ContainerCaches {
  readonly #directory: string;
  readonly #options: ContainerCachesOptions;
  /** One change after the other. */
  #changing: Promise<unknown> = Promise.resolve();

  /** @param directory On the file system of the directories that are kept; made if it is missing. */
  constructor(directory: string, options: ContainerCachesOptions) {
    this.#directory = directory;
    this.#options = options;
    mkdirSync(join(directory, "tmp"), { recursive: true, mode: 0o700 });
  }

  /** What all of them may use together. */
  get budgetBytes(): number {
    return this.#options.budgetBytes;
  }

  /** What a directory takes on its file system, in bytes. */
  async measure(directory: string): Promise<number> {
    return await sizeOf(directory);
  }

  /**
   * Copies what is kept into a directory; by reference where the file system can.
   *
   * @returns How much it is; undefined if nothing is kept.
   * @throws {Error} If it cannot be copied; some of it may be there.
   */
  async copy(key: CacheKey, target: string, signal?: AbortSignal): Promise<number | undefined> {
    const directory = this.#of(key);
    // Another version may take its place while the first one is looked for.
    for (let tries = 0; tries < 3; tries++) {
      const current = await readCurrent(directory);
      if (current === undefined) return undefined;
      const version = join(directory, current.version);
      const lock = await lockShared(version);
      if (lock === undefined) continue;
      try {
        const now = new Date();
        await utimes(join(directory, "current.json"), now, now).catch(() => {});
        await run("cp", ["--archive", "--reflink=auto", "--", `${version}/.`, target], { ...(signal && { signal }) });
        return current.bytes;
      } finally {
        close(lock);
      }
    }
    return undefined;
  }

  /**
   * Keeps a directory under a key in place of what is kept there; it is moved away. Nobody may write into it any more. What is
   * not kept is left where it is.
   *
   * @param options.bytes What `measure` has found.
   * @param options.build The number of the build that made it: what a later one has made stays. Without one it always takes the
   *   place.
   */
  async keep(
    key: CacheKey,
    source: string,
    options: { readonly bytes?: number; readonly build?: number } = {},
  ): Promise<Keeping> {
    return await this.#change(async () => {
      const { bytes = await sizeOf(source), build } = options;
      if (bytes > this.#options.budgetBytes) return { bytes, outcome: "too large" };
      const directory = this.#of(key);
      const before = await readCurrent(directory);
      if (build !== undefined && (before?.build ?? 0) > build) return { bytes, outcome: "older" };
      const version = randomUUID();
      await mkdir(directory, { recursive: true, mode: 0o700 });
      await rename(source, join(directory, version));
      await run("sync", ["-f", directory]);
      const { namespace, name } = key;
      const current: Current = { namespace, name, version, bytes, ...(build !== undefined && { build }) };
      await writeDurably(join(directory, "current.json"), JSON.stringify(current), {
        temporaryDir: join(this.#directory, "tmp"),
      });
      await this.#removeOthers(directory, version);
      await this.#makeRoom(directory);
      return { bytes, outcome: "kept" };
    });
  }

  /** All that are kept, the last used first. */
  async list(): Promise<readonly KeptCache[]> {
    const found = await this.#all();
    return found.map(({ current: { namespace, name, bytes }, usedAtMs }) => ({ namespace, name, bytes, usedAtMs }));
  }

  /** @returns Whether there was one. */
  async remove(key: CacheKey): Promise<boolean> {
    return await this.#change(async () => await this.#remove(this.#of(key)));
  }

  /** Removes what killed agents have not finished. */
  async sweep(): Promise<void> {
    await this.#change(async () => {
      for (const name of await readdir(join(this.#directory, "tmp"))) await rm(join(this.#directory, "tmp", name));
      for (const directory of await this.#directories()) {
        const current = await readCurrent(directory);
        await this.#removeOthers(directory, current?.version);
        if (current === undefined) await rmdir(directory).catch(() => {});
      }
      await this.#makeRoom(undefined);
    });
  }

  #of({ namespace, name }: CacheKey): string {
    return join(this.#directory, createHash("sha256").update(`${namespace}\0${name}`).digest("hex").slice(0, 32));
  }

  async #change<T>(change: () => Promise<T>): Promise<T> {
    const before = this.#changing;
    const locked = async () => {
      // A command removes caches of an agent that runs.
      const lock = await waitForLock(join(this.#directory, "tmp"), "exclusive");
      try {
        return await change();
      } finally {
        close(lock);
      }
    };
    const changing = before.then(locked, locked);
    this.#changing = changing.catch(() => {});
    return await changing;
  }

  async #directories(): Promise<string[]> {
    const names = await readdir(this.#directory);
    return names.filter((name) => /^[0-9a-f]{32}$/.test(name)).map((name) => join(this.#directory, name));
  }

  async #all(): Promise<{ readonly directory: string; readonly current: Current; readonly usedAtMs: number }[]> {
    const found = [];
    for (const directory of await this.#directories()) {
      const current = await readCurrent(directory);
      const file = await stat(join(directory, "current.json")).catch(() => undefined);
      if (current !== undefined && file !== undefined) found.push({ directory, current, usedAtMs: file.mtimeMs });
    }
    return found.toSorted((a, b) => b.usedAtMs - a.usedAtMs);
  }

  /** The longest unused go until the rest is within the budget. @param kept Stays, whatever comes. */
  async #makeRoom(kept: string | undefined): Promise<void> {
    const all = await this.#all();
    let bytes = all.reduce((sum, { current }) => sum + current.bytes, 0);
    for (const { directory, current } of all.toReversed()) {
      if (bytes <= this.#options.budgetBytes) return;
      if (directory === kept) continue;
      await this.#remove(directory);
      bytes -= current.bytes;
    }
  }

  async #remove(directory: string): Promise<boolean> {
    const wasThere = await rm(join(directory, "current.json")).then(
      () => true,
      () => false,
    );
    if (wasThere) await this.#removeOthers(directory, undefined);
    await rmdir(directory).catch(() => {}); // somebody still copies from it
    return wasThere;
  }

  /** But not what somebody copies from: the next change removes it. */
  async #removeOthers(directory: string, version: string | undefined): Promise<void> {
    for (const name of await readdir(directory)) {
      if (name === version || name === "current.json") continue;
      const lock = tryLock(join(directory, name), "exclusive");
      if (typeof lock !== "number") continue;
      try {
        void this.#options.remove(join(directory, name));
      } finally {
        close(lock);
      }
    }
  }
}

async function readCurrent(directory: string): Promise<Current | undefined> {
  try {
    return JSON.parse(await readFile(join(directory, "current.json"), "utf8")) as Current;
  } catch {
    return undefined;
  }
}

async function sizeOf(directory: string): Promise<number> {
  const { stdout } = await run("du", ["--summarize", "--one-file-system", "--block-size=1", "--", directory]);
  return Number(/^\d+/.exec(stdout)?.[0]);
}
