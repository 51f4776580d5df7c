/**
 * The agent's directory of unpacked layers, shared by every agent process on the machine that is given the same path.
 *
 *     layers/KEY/files/       what overlayfs mounts; never changed once it is here
 *     layers/KEY/layer.json   what it is and whether it outlives a crash of the machine
 *     archives/HASH.json      which layers a compressed image archive holds
 *     tmp/KEY/                a layer being written, locked by whoever writes it
 *     tmp/FILE                a decompressed archive, deleted as soon as it is open
 */
import { spawn } from "node:child_process";
import { constants, type Stats } from "node:fs";
import { chmod, mkdir, open, readdir, readFile, rename, rm, rmdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { constants as osConstants } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { LayerSummary } from "./layer.ts";
import type { LayerWorkers } from "./layer-workers.ts";
import { LOCK_EX, LOCK_NB } from "./linux.ts";
import { close, open as openDescriptor, SyscallError, trySyscall } from "./syscall.ts";

/** What stands in layer.json. */
interface LayerRecord {
  /** The boot in which it was written: until it is durable it is whole only as long as the machine has not crashed. */
  readonly bootId: string;
  readonly durable: boolean;
  readonly summary: LayerSummary;
}

/** How often a layer that another process unpacks is looked at. */
const LOCK_POLL_MS = 20;

/** One store per directory and process. */
const stores = new Map<string, Promise<ImageStore>>();

export class ImageStore {
  readonly directory: string;
  readonly #bootId: string;
  readonly #inFlight = new Map<string, Promise<string>>();
  readonly #background = new Set<Promise<void>>();

  private constructor(directory: string, bootId: string) {
    this.directory = directory;
    this.#bootId = bootId;
  }

  /**
   * Opens a store, made if missing, and deletes what killed processes left half-written.
   *
   * The directory is made 0700 root: layers hold set-user-id files and file capabilities of strangers.
   */
  static async open(directory: string, workers: LayerWorkers): Promise<ImageStore> {
    // An administrator may have deleted the directory to make room since.
    const known = await stores.get(directory);
    if (known !== undefined && (await stat(join(directory, "tmp")).catch(ignore("ENOENT"))) !== undefined) return known;
    let opening = stores.get(directory);
    if (opening === undefined || (await opening) === known) {
      opening = ImageStore.#open(directory, workers);
      stores.set(directory, opening);
      opening.catch(() => stores.delete(directory));
    }
    return opening;
  }

  static async #open(directory: string, workers: LayerWorkers): Promise<ImageStore> {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await chmod(directory, 0o700);
    for (const name of ["layers", "archives", "tmp"]) {
      await mkdir(join(directory, name), { recursive: true, mode: 0o700 });
    }
    const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    const store = new ImageStore(directory, bootId);
    await store.#sweep(workers);
    return store;
  }

  /** The files of a layer that is there and whole, marked as used now; else undefined. */
  async find(key: string): Promise<string | undefined> {
    const directory = join(this.directory, "layers", key);
    const record = await this.#readRecord(directory);
    if (record === undefined || !(record.durable || record.bootId === this.#bootId)) return undefined;
    const now = new Date();
    await utimes(directory, now, now);
    return join(directory, "files");
  }

  /**
   * Gives the files of a layer, written by `write` if nobody has yet. However many calls and processes ask for the same
   * key at once, one of them writes.
   *
   * @param key `[A-Za-z0-9-]`: names the content.
   * @param write Must make the directory it is given and write the layer there, and delete it again if it fails.
   * @param options.durable Whether the layer should outlive a crash of the machine; written to disk in the background.
   */
  async produce(
    key: string,
    write: (directory: string) => Promise<LayerSummary>,
    options: { readonly workers: LayerWorkers; readonly durable: boolean; readonly signal?: AbortSignal | undefined },
  ): Promise<string> {
    for (;;) {
      options.signal?.throwIfAborted();
      const running = this.#inFlight.get(key);
      if (running === undefined) break;
      // What makes another caller fail (its cancel, its damaged archive) is not our failure: then we try ourselves.
      const files = await untilAborted(
        running.catch(() => undefined),
        options.signal,
      );
      if (files !== undefined) return files;
    }
    const producing = this.#produce(key, write, options);
    this.#inFlight.set(key, producing);
    try {
      return await producing;
    } finally {
      this.#inFlight.delete(key);
    }
  }

  async #produce(
    key: string,
    write: (directory: string) => Promise<LayerSummary>,
    options: { readonly workers: LayerWorkers; readonly durable: boolean; readonly signal?: AbortSignal | undefined },
  ): Promise<string> {
    const temporary = join(this.directory, "tmp", key);
    const final = join(this.directory, "layers", key);
    for (;;) {
      const found = await this.find(key);
      if (found !== undefined) return found;
      await mkdir(temporary, { mode: 0o700 }).catch(ignore("EEXIST"));
      const lock = await lockDirectory(temporary);
      if (lock === undefined) {
        await delay(LOCK_POLL_MS, undefined, options.signal === undefined ? {} : { signal: options.signal }).catch(() =>
          options.signal?.throwIfAborted(),
        );
        continue;
      }
      try {
        if ((await this.find(key)) === undefined) await this.#write(temporary, final, write, options);
        else await rmdir(temporary);
      } catch (error) {
        await rm(temporary, { recursive: true, force: true }).catch(() => {});
        throw error;
      } finally {
        close(lock);
      }
    }
  }

  async #write(
    temporary: string,
    final: string,
    write: (directory: string) => Promise<LayerSummary>,
    options: { readonly workers: LayerWorkers; readonly durable: boolean },
  ): Promise<void> {
    // Half-written by a process that was killed while it held the lock.
    for (const name of await readdir(temporary)) {
      await options.workers.run({ kind: "remove", path: join(temporary, name) });
    }
    const summary = await write(join(temporary, "files"));
    const record: LayerRecord = { bootId: this.#bootId, durable: false, summary };
    await writeFile(join(temporary, "layer.json"), JSON.stringify(record));
    // Written before the machine last went down and never known to be whole: nothing of this boot mounts it.
    if ((await stat(final).catch(ignore("ENOENT"))) !== undefined) {
      await rm(join(final, "layer.json"), { force: true });
      await options.workers.run({ kind: "remove", path: final });
    }
    await rename(temporary, final);
    if (options.durable) this.#inBackground(this.#makeDurable(final, record));
  }

  /**
   * Waits until the layer is on disk, then says so in its record.
   *
   * syncfs(2) of a large layer takes seconds that nobody should wait for: until it is done the layer is used, and after a
   * crash of the machine it would be unpacked again. sync(1) in a process of its own, so that this one can exit meanwhile.
   */
  async #makeDurable(directory: string, record: LayerRecord): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const child = spawn("sync", ["-f", directory], { stdio: "ignore", env: {} });
    child.unref();
    child.once("error", () => resolve(false));
    child.once("exit", (code) => resolve(code === 0));
    if (!(await promise)) return;
    const beside = join(directory, "layer.json.new");
    const file = await open(beside, "w");
    try {
      await file.writeFile(JSON.stringify({ ...record, durable: true } satisfies LayerRecord));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(beside, join(directory, "layer.json"));
  }

  #inBackground(work: Promise<void>): void {
    // A layer that could not be made durable is a layer that is unpacked again after a crash: nothing is lost.
    const settled = work.catch(() => {}).finally(() => this.#background.delete(settled));
    this.#background.add(settled);
  }

  /** Waits for the work in the background. */
  async settled(): Promise<void> {
    await Promise.all(this.#background);
  }

  /** An empty file without a name, open for reading and writing; close the descriptor to be rid of it. */
  async scratchFile(): Promise<number> {
    const path = join(this.directory, "tmp", `scratch-${crypto.randomUUID()}`);
    const fd = openDescriptor(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
    await rm(path, { force: true });
    return fd;
  }

  /** What `remember` kept under a name; undefined if there is nothing readable. */
  async recall(name: string): Promise<unknown> {
    try {
      return JSON.parse(await readFile(join(this.directory, "archives", `${name}.json`), "utf8"));
    } catch {
      return undefined;
    }
  }

  /** Keeps a JSON value: only ever something that can be found out again. */
  async remember(name: string, value: unknown): Promise<void> {
    const beside = join(this.directory, "tmp", `record-${crypto.randomUUID()}`);
    await writeFile(beside, JSON.stringify(value), { mode: 0o600 });
    // Another process that has just opened the store may have swept the file.
    await rename(beside, join(this.directory, "archives", `${name}.json`)).catch(ignore("ENOENT"));
  }

  async #readRecord(directory: string): Promise<LayerRecord | undefined> {
    try {
      return JSON.parse(await readFile(join(directory, "layer.json"), "utf8")) as LayerRecord;
    } catch (error) {
      // Empty or cut off after a crash of the machine: not a whole layer.
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  }

  async #sweep(workers: LayerWorkers): Promise<void> {
    const temporary = join(this.directory, "tmp");
    for (const entry of await readdir(temporary, { withFileTypes: true })) {
      const path = join(temporary, entry.name);
      if (!entry.isDirectory()) {
        await rm(path, { force: true });
        continue;
      }
      const lock = await lockDirectory(path);
      if (lock === undefined) continue;
      try {
        await workers.run({ kind: "remove", path });
      } finally {
        close(lock);
      }
    }
  }
}

/**
 * Locks a directory with flock(2), which ends with the process that holds it.
 *
 * @returns The descriptor whose closing unlocks, or undefined if somebody else has the lock or the directory is gone.
 */
async function lockDirectory(path: string): Promise<number | undefined> {
  let fd: number;
  try {
    fd = openDescriptor(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  } catch (error) {
    if (error instanceof SyscallError && error.code === "ENOENT") return undefined;
    throw error;
  }
  try {
    const locked = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
    if (locked < 0 && locked !== -osConstants.errno.EWOULDBLOCK)
      throw new SyscallError("flock", -locked, `lock "${path}"`);
    // Whoever had the lock before may have renamed or deleted the directory.
    if (locked === 0 && (await sameFile(fd, path))) return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
  close(fd);
  return undefined;
}

async function sameFile(fd: number, path: string): Promise<boolean> {
  const [ours, named] = await Promise.all([
    stat(`/proc/self/fd/${fd}`),
    stat(path).catch((error: unknown): Stats | undefined => ignore("ENOENT")(error)),
  ]);
  return named !== undefined && ours.ino === named.ino && ours.dev === named.dev;
}

/** Settles as the promise does, or rejects with the signal's reason before that. */
async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** For `catch`: passes over one errno. */
function ignore(code: string): (error: unknown) => undefined {
  return (error) => {
    if ((error as NodeJS.ErrnoException).code !== code) throw error;
    return undefined;
  };
}
