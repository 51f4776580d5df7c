/**
 * The unpacked layers of the image store.
 *
 *     layers/KEY/files/       what overlayfs mounts; never changed once it is here
 *     layers/KEY/layer.json   what it is and whether it outlives a crash of the machine
 *     layers/KEY/blobs.json   the archives it is known to come in, and where they were seen
 *     tmp/KEY/                a layer being written, locked by whoever writes it
 */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, rmdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { writeDurably } from "./durable-file.ts";
import { isNamed, lockDescriptor, lockShared, pause, tryLock } from "./file-lock.ts";
import type { ImageLease } from "./image-lease.ts";
import type { Descriptor } from "./image-manifest.ts";
import type { LayerSummary } from "./layer.ts";
import { removeTrees } from "./layer-workers.ts";
import { close } from "./syscall.ts";

/** What stands in layer.json. */
interface LayerRecord {
  /** The boot in which it was written: until it is durable it is whole only as long as the machine has not crashed. */
  readonly bootId: string;
  readonly durable: boolean;
  readonly summary: LayerSummary;
  /** Tells it from the same layer unpacked another time. */
  readonly writing: string;
}

/** An archive that unpacks to a layer, and the repositories (`registry.example/team/app`) that have it. */
export interface LayerBlob extends Pick<Descriptor, "mediaType" | "digest" | "size"> {
  readonly repositories: readonly string[];
  /** A registry has given it to nobody in particular, and it was what its digests say: there is no harm in giving it to anybody. */
  readonly isPublic?: boolean;
}

export interface ProduceOptions {
  /** Whether the layer should outlive a crash of the machine; written to disk in the background. */
  readonly durable: boolean;
  /** The archive it comes in, if there is one. */
  readonly blob?: LayerBlob | undefined;
  /** Holds the layer from the moment it is there. */
  readonly lease?: ImageLease | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A layer's name in the store, by the digest of its decompressed archive. */
export function layerKey(diffId: string): string {
  return diffId.replace(":", "-");
}

/**
 * The name of a layer that somebody without credentials was given, where the store has one of the same content of which that is not
 * known: whoever names its digests in a manifest of their own has shown nothing.
 *
 * @param digest Of the archive it came in.
 */
export function publicLayerKey(diffId: string, digest: string): string {
  return `${layerKey(diffId)}-${digest.slice(digest.indexOf(":") + 1)}`;
}

const USED_STEP_MS = 60_000;
const MAX_REPOSITORIES = 20;
const MAX_BLOBS = 8;

export class LayerStore {
  readonly directory: string;
  readonly #temporaryDir: string;
  readonly #bootId: string;
  readonly #inFlight = new Map<string, Promise<void>>();
  readonly #background = new Set<Promise<void>>();
  readonly #unsynced: { readonly directory: string; readonly record: LayerRecord }[] = [];
  #syncing: Promise<void> | undefined;

  /** @param options.temporaryDir On the same file system. Both directories must exist. */
  constructor(directory: string, options: { readonly temporaryDir: string; readonly bootId: string }) {
    this.directory = directory;
    this.#temporaryDir = options.temporaryDir;
    this.#bootId = options.bootId;
  }

  /**
   * The files of a layer that is there and whole, marked as used now; else undefined.
   *
   * @param lease Holds the layer in the store for as long as it lasts; without one it may be removed at any moment.
   */
  async find(key: string, lease?: ImageLease): Promise<string | undefined> {
    const directory = join(this.directory, key);
    const locked = lease === undefined || lease.holds(directory);
    const lock = locked ? undefined : await lockShared(directory);
    if (!locked && lock === undefined) return undefined;
    const record = await this.#readRecord(directory);
    if (record === undefined || !(record.durable || record.bootId === this.#bootId)) {
      if (lock !== undefined) close(lock);
      return undefined;
    }
    if (lock !== undefined) lease?.add(directory, lock);
    await markUsed(directory);
    return join(directory, "files");
  }

  /**
   * Gives the files of a layer, written by `write` if nobody has yet. However many calls and processes ask for the same
   * key at once, one of them writes.
   *
   * @param key `[A-Za-z0-9-]`: names the content.
   * @param write Must make the directory it is given and write the layer there, and delete it again if it fails.
   */
  async produce(
    key: string,
    write: (directory: string) => Promise<LayerSummary>,
    options: ProduceOptions,
  ): Promise<string> {
    for (;;) {
      options.signal?.throwIfAborted();
      const running = this.#inFlight.get(key);
      if (running === undefined) {
        const producing = this.#produce(key, write, options);
        this.#inFlight.set(key, producing);
        try {
          await producing;
        } finally {
          this.#inFlight.delete(key);
        }
      } else {
        // What makes another caller fail (its cancel, its damaged archive) is not our failure: then we try ourselves.
        await untilAborted(
          running.catch(() => {}),
          options.signal,
        );
      }
      const found = await this.find(key, options.lease);
      if (found !== undefined) return found;
    }
  }

  async #produce(
    key: string,
    write: (directory: string) => Promise<LayerSummary>,
    options: ProduceOptions,
  ): Promise<void> {
    const temporary = join(this.#temporaryDir, key);
    for (;;) {
      if ((await this.find(key, options.lease)) !== undefined) return;
      await mkdir(temporary, { mode: 0o700 }).catch(ignore("EEXIST"));
      const lock = tryLock(temporary, "exclusive");
      if (typeof lock !== "number") {
        await pause(options.signal);
        continue;
      }
      let kept = false;
      try {
        if ((await this.find(key, options.lease)) === undefined) {
          // Half-written by a process that was killed while it held the lock.
          await removeTrees((await readdir(temporary)).map((name) => join(temporary, name)));
          const summary = await write(join(temporary, "files"));
          kept = await this.#moveIn(temporary, key, { ...options, summary, lock });
        } else {
          await rmdir(temporary);
        }
        return;
      } catch (error) {
        await removeTrees([temporary]).catch(() => {});
        throw error;
      } finally {
        if (!kept) close(lock);
      }
    }
  }

  /** An empty directory on the store's file system to write a layer into, for `LayerDraft.commit`. */
  async draft(): Promise<LayerDraft> {
    for (;;) {
      const directory = join(this.#temporaryDir, `draft-${randomUUID()}`);
      await mkdir(join(directory, "files"), { recursive: true, mode: 0o700 });
      const lock = tryLock(directory, "exclusive");
      if (typeof lock === "number") {
        return new LayerDraft(directory, lock, (key, options) =>
          this.#moveIn(directory, key, { ...options, durable: true, lock }),
        );
      }
    }
  }

  /** Moves a written layer to its place. @returns Whether the lock was given to the lease. */
  async #moveIn(
    temporary: string,
    key: string,
    options: DraftOptions & { readonly durable: boolean; readonly lock: number },
  ): Promise<boolean> {
    const final = join(this.directory, key);
    const record: LayerRecord = {
      bootId: this.#bootId,
      durable: false,
      summary: options.summary,
      writing: randomUUID(),
    };
    await writeFile(join(temporary, "layer.json"), JSON.stringify(record));
    if (options.blob !== undefined) await writeFile(join(temporary, "blobs.json"), JSON.stringify([options.blob]));
    // Before it has its name, so that nobody can remove it in between.
    const held =
      options.lease !== undefined && lockDescriptor(options.lock, "shared") && isNamed(options.lock, temporary);
    for (;;) {
      try {
        await rename(temporary, final);
        break;
      } catch (error) {
        if (!["ENOTEMPTY", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
      }
      if ((await this.find(key, options.lease)) !== undefined) {
        await removeTrees([temporary]);
        return false;
      }
      // Written before the machine last went down and never known to be whole: nothing of this boot mounts it.
      await rm(join(final, "layer.json"), { force: true });
      await removeTrees([final]);
    }
    if (held) options.lease?.add(final, options.lock);
    if (options.durable) this.#inBackground(this.#makeDurable(final, record));
    return held;
  }

  /** Waits until the layer is on disk, then says so in its record. Those that come meanwhile share the next sync. */
  async #makeDurable(directory: string, record: LayerRecord): Promise<void> {
    this.#unsynced.push({ directory, record });
    this.#syncing ??= this.#sync();
    await this.#syncing;
  }

  /**
   * syncfs(2) of large layers takes seconds that nobody should wait for: until it is done a layer is used, and after a crash of
   * the machine it would be unpacked again. sync(1) in a process of its own, so that this one can exit meanwhile.
   */
  async #sync(): Promise<void> {
    while (this.#unsynced.length > 0) {
      const layers = this.#unsynced.splice(0);
      const { promise, resolve } = Promise.withResolvers<boolean>();
      const child = spawn("sync", ["-f", this.directory], { stdio: "ignore", env: {} });
      child.unref();
      child.once("error", () => resolve(false));
      child.once("exit", (code) => resolve(code === 0));
      if (!(await promise)) continue;
      for (const { directory, record } of layers) {
        // Of one that has taken its place since nothing is known.
        if ((await this.#readRecord(directory))?.writing !== record.writing) continue;
        const beside = join(directory, "layer.json.new");
        // Not waited for: cut off by a crash, it says that there is no whole layer.
        const written = writeFile(beside, JSON.stringify({ ...record, durable: true } satisfies LayerRecord));
        // It may have been removed since.
        await written.then(() => rename(beside, join(directory, "layer.json"))).catch(() => {});
      }
    }
    this.#syncing = undefined;
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

  /** The archives that a layer is known to come in, the last seen first; none if the layer is not there. */
  async blobs(key: string): Promise<readonly LayerBlob[]> {
    try {
      return JSON.parse(await readFile(join(this.directory, key, "blobs.json"), "utf8")) as LayerBlob[];
    } catch {
      return [];
    }
  }

  /** Notes that a layer that is there comes in this archive too, or from another repository: for pushing it later. */
  async noteBlob(key: string, blob: LayerBlob): Promise<void> {
    const known = await this.blobs(key);
    const before = known.find(({ digest }) => digest === blob.digest);
    const same = before?.repositories ?? [];
    const repositories = [...new Set([...blob.repositories, ...same])].slice(0, MAX_REPOSITORIES);
    const others = known.filter(({ digest }) => digest !== blob.digest);
    if (before !== undefined && blob.repositories.every((name) => same.includes(name))) return;
    // What is noted here nobody has looked at.
    const isPublic = before?.isPublic === true && { isPublic: true };
    const blobs: LayerBlob[] = [{ ...blob, repositories, ...isPublic }, ...others].slice(0, MAX_BLOBS);
    await writeDurably(join(this.directory, key, "blobs.json"), JSON.stringify(blobs), {
      temporaryDir: this.#temporaryDir,
      wait: false,
    });
  }

  /**
   * Takes a layer out of the store at once, unless a lease holds it; what it held is to be deleted with `removeTrees`.
   *
   * @returns Where it is now; undefined if it is held, or not there.
   */
  async takeOut(key: string): Promise<string | undefined> {
    const directory = join(this.directory, key);
    const lock = tryLock(directory, "exclusive");
    if (typeof lock === "string") return undefined;
    try {
      const gone = join(this.#temporaryDir, `gone-${randomUUID()}`);
      await rename(directory, gone);
      return gone;
    } finally {
      close(lock);
    }
  }

  /** All layers, whole or not, with their size on disk (an estimate) and time of last use. */
  async list(): Promise<{ readonly key: string; readonly sizeBytes: number; readonly usedAtMs: number }[]> {
    const keys = await readdir(this.directory);
    return await Promise.all(
      keys.map(async (key) => {
        const directory = join(this.directory, key);
        const [record, used] = await Promise.all([
          this.#readRecord(directory),
          stat(directory).then(
            ({ mtimeMs }) => mtimeMs,
            () => 0,
          ),
        ]);
        return { key, sizeBytes: record === undefined ? 0 : sizeOnDisk(record.summary), usedAtMs: used };
      }),
    );
  }

  async #readRecord(directory: string): Promise<LayerRecord | undefined> {
    try {
      return JSON.parse(await readFile(join(directory, "layer.json"), "utf8")) as LayerRecord;
    } catch (error) {
      // Empty or cut off after a crash of the machine: not a whole layer.
      const { code } = error as NodeJS.ErrnoException;
      if (error instanceof SyntaxError || code === "ENOENT" || code === "ENOTDIR") return undefined;
      throw error;
    }
  }
}

/** A layer that somebody writes: `files` is owned by its writer until `commit`; disposing it before that leaves nothing. */
export class LayerDraft implements AsyncDisposable {
  /** Exists, is empty, and root's alone. */
  readonly files: string;
  readonly #directory: string;
  readonly #moveIn: MoveIn;
  #lock: number;

  constructor(directory: string, lock: number, moveIn: MoveIn) {
    this.files = join(directory, "files");
    this.#directory = directory;
    this.#lock = lock;
    this.#moveIn = moveIn;
  }

  /** Gives the layer its name; if one of that name is there already, this one is dropped. Once only. */
  async commit(diffId: string, options: DraftOptions): Promise<void> {
    const kept = await this.#moveIn(layerKey(diffId), options);
    if (!kept) close(this.#lock);
    this.#lock = -1;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#lock === -1) return;
    await removeTrees([this.#directory]);
    close(this.#lock);
    this.#lock = -1;
  }
}

/** How a written layer is kept. */
export interface DraftOptions {
  readonly summary: LayerSummary;
  /** The archive it comes in, if there is one. */
  readonly blob?: LayerBlob | undefined;
  /** Holds the layer from the moment it is there. */
  readonly lease?: ImageLease | undefined;
}

type MoveIn = (key: string, options: DraftOptions) => Promise<boolean>;

/** Each file ends in the middle of a block on average, and has an inode and a name. */
function sizeOnDisk({ bytes, entries }: LayerSummary): number {
  return bytes + entries * 2500;
}

async function markUsed(directory: string): Promise<void> {
  const now = new Date();
  const { mtimeMs } = await stat(directory);
  if (now.getTime() - mtimeMs > USED_STEP_MS) await utimes(directory, now, now);
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
