/**
 * The names of the image store: which manifest `docker.io/library/node:24` stands for.
 *
 *     names/HASH.json   one name; HASH is the name's sha256, for a name may have any length and slashes
 *     names.lock        shared while a name is written, exclusive while parts are taken out of the store
 */
import { createHash } from "node:crypto";
import { readdir, readFile, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { syncDirectory, writeDurably } from "./durable-file.ts";
import { waitForLock } from "./file-lock.ts";
import { digestSchema } from "./image-config.ts";
import { close } from "./syscall.ts";

const recordSchema = z.object({
  name: z.string(),
  /** The image's manifest: a blob of the store. */
  manifest: z.object({ mediaType: z.string(), digest: digestSchema, size: z.int() }),
  /** What the registry answered for the name: the same, or an index that lists it. */
  resolved: digestSchema.optional(),
  /** It was given here, to what was built or imported: what a registry has under this name is another image, if there is one. */
  isLocal: z.literal(true).optional(),
  /** Milliseconds since the epoch. */
  createdAtMs: z.number(),
});

/** What a name stands for. */
export type NameRecord = z.infer<typeof recordSchema>;

export type NamedImage = NameRecord & {
  /** When it was last used, to the minute. */
  readonly usedAtMs: number;
};

const USED_STEP_MS = 60_000;

export class ImageNames {
  readonly #directory: string;
  readonly #lockFile: string;
  readonly #temporaryDir: string;

  /** All must exist, on one file system. */
  constructor(options: { readonly directory: string; readonly lockFile: string; readonly temporaryDir: string }) {
    this.#directory = options.directory;
    this.#lockFile = options.lockFile;
    this.#temporaryDir = options.temporaryDir;
  }

  /** What a name stands for, marked as used now. */
  async get(name: string): Promise<NamedImage | undefined> {
    const found = await this.#read(this.#path(name));
    const now = new Date();
    if (found !== undefined && now.getTime() - found.usedAtMs > USED_STEP_MS) {
      await utimes(this.#path(name), now, now).catch(() => {});
    }
    return found;
  }

  /**
   * Gives a name to a manifest, taking it from another one. On disk when this resolves.
   *
   * The caller holds manifest, configuration and layers by a lease until then.
   *
   * @param options.wait `false` does not wait for the disk: what can be had again. @default true
   */
  async set(
    name: string,
    record: Omit<NameRecord, "name" | "createdAtMs">,
    options: { readonly signal?: AbortSignal | undefined; readonly wait?: boolean } = {},
  ): Promise<void> {
    const lock = await waitForLock(this.#lockFile, "shared", options.signal);
    try {
      const { mediaType, digest, size } = record.manifest;
      const content: NameRecord = { ...record, name, manifest: { mediaType, digest, size }, createdAtMs: Date.now() };
      await writeDurably(this.#path(name), JSON.stringify(content), {
        temporaryDir: this.#temporaryDir,
        ...(options.wait === undefined ? {} : { wait: options.wait }),
      });
    } finally {
      close(lock);
    }
  }

  /** Removes a name. What it stood for goes with the next collection. @returns Whether there was one. */
  async remove(name: string): Promise<boolean> {
    const path = this.#path(name);
    const found = await this.#read(path);
    await rm(path, { force: true });
    await syncDirectory(this.#directory);
    return found !== undefined;
  }

  /** All names, in alphabetical order. */
  async list(): Promise<NamedImage[]> {
    const files = (await readdir(this.#directory)).filter((file) => file.endsWith(".json"));
    const found = await Promise.all(files.map((file) => this.#read(join(this.#directory, file))));
    return found.filter((each) => each !== undefined).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Keeps every process from writing names until the descriptor is closed. */
  lock(signal?: AbortSignal): Promise<number> {
    return waitForLock(this.#lockFile, "exclusive", signal);
  }

  #path(name: string): string {
    return join(this.#directory, `${createHash("sha256").update(name).digest("hex")}.json`);
  }

  async #read(path: string): Promise<NamedImage | undefined> {
    try {
      const [content, { mtimeMs }] = await Promise.all([readFile(path, "utf8"), stat(path)]);
      const parsed = recordSchema.safeParse(JSON.parse(content));
      return parsed.success ? { ...parsed.data, usedAtMs: Math.round(mtimeMs) } : undefined;
    } catch (error) {
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  }
}
