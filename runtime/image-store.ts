/**
 * The agent's store of images, shared by every process on the machine that is given the same path.
 *
 *     blobs/ALGORITHM/HEX     manifests, configurations, archives of layers: see blob-store.ts
 *     layers/KEY/             unpacked layers: see layer-store.ts
 *     names/                  which manifest a name stands for: see image-names.ts
 *     archives/NAME.json      what was found out about archives and images, and can be found out again
 *     empty/                  an empty directory
 *     tmp/                    whatever is being written or deleted, locked by whoever does
 *
 * Everything is written in tmp/, and renamed to its place when it is whole and on disk, so that a process killed or a
 * machine switched off at any moment leaves all of it or nothing. What is in its place never changes.
 */
import { constants } from "node:fs";
import { chmod, mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { BlobStore } from "./blob-store.ts";
import { tryLock } from "./file-lock.ts";
import { ImageLease } from "./image-lease.ts";
import { ImageNames } from "./image-names.ts";
import { LayerStore } from "./layer-store.ts";
import { removeTrees } from "./layer-workers.ts";
import { close, open as openDescriptor } from "./syscall.ts";

/** One store per directory and process. */
const stores = new Map<string, Promise<ImageStore>>();

export class ImageStore {
  readonly directory: string;
  readonly blobs: BlobStore;
  readonly layers: LayerStore;
  readonly names: ImageNames;
  /** Holds parts for as long as the process lasts: for who says nothing about when it is done with them. */
  readonly processLease = new ImageLease();
  readonly #temporaryDir: string;

  private constructor(directory: string, bootId: string) {
    this.directory = directory;
    const temporaryDir = join(directory, "tmp");
    this.#temporaryDir = temporaryDir;
    this.blobs = new BlobStore(join(directory, "blobs"), { temporaryDir });
    this.layers = new LayerStore(join(directory, "layers"), { temporaryDir, bootId });
    this.names = new ImageNames({
      directory: join(directory, "names"),
      lockFile: join(directory, "names.lock"),
      temporaryDir,
    });
  }

  /**
   * Opens a store, made if missing, and deletes what killed processes left half-written.
   *
   * The directory is made 0700 root: layers hold set-user-id files and file capabilities of strangers.
   */
  static async open(directory: string): Promise<ImageStore> {
    // An administrator may have deleted the directory to make room since.
    const known = await stores.get(directory);
    if (known !== undefined && (await stat(join(directory, "tmp")).catch(() => undefined)) !== undefined) return known;
    let opening = stores.get(directory);
    if (opening === undefined || (await opening) === known) {
      opening = ImageStore.#open(directory);
      stores.set(directory, opening);
      opening.catch(() => stores.delete(directory));
    }
    return opening;
  }

  static async #open(directory: string): Promise<ImageStore> {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await chmod(directory, 0o700);
    for (const name of ["archives", "blobs", "layers", "names", "tmp"]) {
      await mkdir(join(directory, name), { recursive: true, mode: 0o700 });
    }
    await writeFile(join(directory, "names.lock"), "", { flag: "a", mode: 0o600 });
    const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    const store = new ImageStore(directory, bootId);
    await store.#sweep();
    return store;
  }

  /** A new lease; the caller disposes it when it uses nothing of the store any more. */
  lease(): ImageLease {
    return new ImageLease();
  }

  /** Waits for the work in the background. */
  settled(): Promise<void> {
    return this.layers.settled();
  }

  /** An empty file without a name, open for reading and writing; close the descriptor to be rid of it. */
  async scratchFile(): Promise<number> {
    const path = join(this.#temporaryDir, `scratch-${crypto.randomUUID()}`);
    const fd = openDescriptor(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
    await rm(path, { force: true });
    return fd;
  }

  /** A directory that is and stays empty. */
  async emptyDirectory(): Promise<string> {
    const directory = join(this.directory, "empty");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    return directory;
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
    const beside = join(this.#temporaryDir, `record-${crypto.randomUUID()}`);
    await writeFile(beside, JSON.stringify(value), { mode: 0o600 });
    // Another process that has just opened the store may have swept the file.
    await rename(beside, join(this.directory, "archives", `${name}.json`)).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    });
  }

  /** Deletes what nobody has locked: its writer has been killed. */
  async #sweep(): Promise<void> {
    const abandoned: { readonly path: string; readonly lock: number }[] = [];
    for (const name of await readdir(this.#temporaryDir)) {
      const path = join(this.#temporaryDir, name);
      const lock = tryLock(path, "exclusive");
      if (typeof lock === "number") abandoned.push({ path, lock });
    }
    try {
      await removeTrees(abandoned.map(({ path }) => path));
    } finally {
      for (const { lock } of abandoned) close(lock);
    }
  }
}
