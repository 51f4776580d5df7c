/** The content-addressed files of the image store: manifests, configurations, archives of layers. */
import { createHash, type Hash } from "node:crypto";
import { close as closeCallback, constants, fdatasync as fdatasyncCallback, fstatSync, futimesSync } from "node:fs";
import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { createTemporary, moveDurably, writeAll } from "./durable-file.ts";
import { isLocked, isNamed, lockDescriptor, lockShared, tryLock } from "./file-lock.ts";
import { digestPattern, MAX_JSON_BYTES } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import { readSmallFile } from "./image-files.ts";
import type { ImageLease } from "./image-lease.ts";
import { close, open, SyscallError } from "./syscall.ts";
import type { ByteRange } from "./unpack.ts";

const closeFile = promisify(closeCallback);
const datasync = promisify(fdatasyncCallback);

/** What names a blob and is known before it is there. */
export interface BlobIdentity {
  /** `sha256:…` or `sha512:…` */
  readonly digest: string;
  /** Bytes. */
  readonly size: number;
}

/** Times of use are kept to the minute: each is a write to the disk. */
const USED_STEP_MS = 60_000;

export class BlobStore {
  readonly directory: string;
  readonly #temporaryDir: string;

  /** @param options.temporaryDir On the same file system. Both directories must exist. */
  constructor(directory: string, options: { readonly temporaryDir: string }) {
    this.directory = directory;
    this.#temporaryDir = options.temporaryDir;
  }

  /** Where the blob is, or would be. @throws {Error} If that is no digest. */
  path(digest: string): string {
    if (!digestPattern.test(digest)) throw new Error(`Cannot name a blob by ${JSON.stringify(digest)}: not a digest`);
    return join(this.directory, digest.replace(":", "/"));
  }

  /**
   * Opens a blob for reading; the caller closes the descriptor.
   *
   * @param options.lease Holds the blob in the store for as long as it lasts.
   * @returns undefined if it is not there.
   */
  async open(
    digest: string,
    options: { readonly lease?: ImageLease | undefined } = {},
  ): Promise<ByteRange | undefined> {
    const path = this.path(digest);
    if (options.lease !== undefined && !options.lease.holds(path)) {
      const lock = await lockShared(path);
      if (lock === undefined) return undefined;
      options.lease.add(path, lock);
    }
    let fd: number;
    try {
      fd = open(path, constants.O_RDONLY);
    } catch (error) {
      if (error instanceof SyscallError && error.code === "ENOENT") return undefined;
      throw error;
    }
    const { size, mtimeMs } = fstatSync(fd);
    const nowMs = Date.now();
    if (nowMs - mtimeMs > USED_STEP_MS) futimesSync(fd, nowMs / 1000, nowMs / 1000);
    return { fd, offset: 0, length: size };
  }

  /** Whether a blob of that digest, and size if given, is there. */
  async has(digest: string, size?: number): Promise<boolean> {
    const found = await stat(this.path(digest)).catch(() => undefined);
    return found !== undefined && (size === undefined || found.size === size);
  }

  /**
   * Reads a small blob and verifies it again.
   *
   * @returns undefined if it is not there, or is not what its name says: then the disk has damaged it, and it is removed.
   * @throws {ImageError} If it is larger than `maxBytes`.
   */
  async read(
    digest: string,
    options: { readonly lease?: ImageLease | undefined; readonly maxBytes?: number } = {},
  ): Promise<Buffer | undefined> {
    const range = await this.open(digest, options);
    if (range === undefined) return undefined;
    try {
      const content = await readSmallFile(range, digest, options.maxBytes ?? MAX_JSON_BYTES);
      if (digestOf(content, digest) === digest) return content;
    } finally {
      close(range.fd);
    }
    await this.remove(digest);
    return undefined;
  }

  /**
   * Puts content that is in memory.
   *
   * @param options.digest What it must have; @default its sha256
   * @param options.wait `false` does not wait for the disk; what a power cut then leaves is noticed by `read`. @default true
   * @throws {ImageError} If it has another one.
   */
  async put(
    content: Uint8Array,
    options: { readonly digest?: string; readonly lease?: ImageLease | undefined; readonly wait?: boolean } = {},
  ): Promise<BlobIdentity> {
    const digest = digestOf(content, options.digest);
    if (options.digest !== undefined && digest !== options.digest) {
      throw new ImageError(`it has the digest ${digest}, expected is ${options.digest}`);
    }
    const known = await this.open(digest, options);
    if (known !== undefined) {
      close(known.fd);
      if (known.length === content.length) return { digest, size: content.length };
    }
    await using writer = this.create({ digest });
    await writer.write(content);
    return await writer.commit(options);
  }

  /**
   * Begins a blob whose content comes in pieces.
   *
   * @param options.digest Tells the algorithm, and what it must have at the end. @default its sha256
   */
  create(options: { readonly digest?: string; readonly size?: number } = {}): BlobWriter {
    return new BlobWriter(this, this.#temporaryDir, options);
  }

  /** Whether a lease of whatever process holds the blob. */
  isHeld(digest: string): boolean {
    return isLocked(this.path(digest));
  }

  /** Removes a blob unless a lease holds it. @returns Whether it is gone. */
  async remove(digest: string): Promise<boolean> {
    const path = this.path(digest);
    const lock = tryLock(path, "exclusive");
    if (lock === "absent") return true;
    if (lock === "held") return false;
    try {
      await rm(path, { force: true });
      return true;
    } finally {
      close(lock);
    }
  }

  /** All blobs, with size and time of last use in milliseconds since the epoch. */
  async list(): Promise<(BlobIdentity & { readonly usedAtMs: number })[]> {
    const found: (BlobIdentity & { readonly usedAtMs: number })[] = [];
    for (const algorithm of ["sha256", "sha512"]) {
      const names = await readdir(join(this.directory, algorithm)).catch((): string[] => []);
      for (const name of names) {
        const digest = `${algorithm}:${name}`;
        const file = await stat(join(this.directory, algorithm, name)).catch(() => undefined);
        if (file !== undefined && digestPattern.test(digest)) {
          found.push({ digest, size: file.size, usedAtMs: file.mtimeMs });
        }
      }
    }
    return found;
  }
}

/** A blob on its way into the store; disposing it before `commit` leaves nothing. */
export class BlobWriter implements AsyncDisposable {
  readonly #store: BlobStore;
  readonly #expected: { readonly digest?: string; readonly size?: number };
  readonly #hash: Hash;
  readonly #path: string;
  #fd: number;
  #size = 0;
  #taken: string | undefined;

  constructor(store: BlobStore, temporaryDir: string, expected: { readonly digest?: string; readonly size?: number }) {
    this.#store = store;
    this.#expected = expected;
    this.#hash = createHash(algorithmOf(expected.digest));
    const { fd, path } = createTemporary(temporaryDir);
    this.#fd = fd;
    this.#path = path;
  }

  /** Bytes written so far. */
  get size(): number {
    return this.#size;
  }

  /** Appends; one call at a time. */
  async write(chunk: Uint8Array): Promise<void> {
    this.#size += chunk.length;
    this.#hash.update(chunk);
    await writeAll(this.#fd, chunk);
  }

  /** The file that is being written: for another thread, which then says by `take` what it has written there. */
  get descriptor(): number {
    return this.#fd;
  }

  /** Takes over what another thread has written to `descriptor`, its digest included. Instead of `write`. */
  take(written: BlobIdentity): void {
    this.#size = written.size;
    this.#taken = written.digest;
  }

  /**
   * Verifies what was written, waits until it is on disk and gives it its name.
   *
   * @param options.lease Holds the blob from then on.
   * @param options.wait `false` does not wait for the disk. @default true
   * @throws {ImageError} If digest or size are not what was expected.
   */
  async commit(
    options: { readonly lease?: ImageLease | undefined; readonly wait?: boolean } = {},
  ): Promise<BlobIdentity> {
    const expected = this.#expected;
    const digest = this.#taken ?? `${algorithmOf(expected.digest)}:${this.#hash.digest("hex")}`;
    if (expected.size !== undefined && expected.size !== this.#size) {
      throw new ImageError(`it has ${this.#size} bytes, expected are ${expected.size} bytes`);
    }
    if (expected.digest !== undefined && expected.digest !== digest) {
      throw new ImageError(`it has the digest ${digest}, expected is ${expected.digest}`);
    }
    if (options.wait !== false) await datasync(this.#fd);
    // Before it has its name, so that nobody can remove it in between.
    const held = lockDescriptor(this.#fd, "shared") && isNamed(this.#fd, this.#path);
    if (!held) throw new Error(`Cannot keep the blob ${digest}: its file in the image store has been deleted`);
    const path = this.#store.path(digest);
    await moveDurably(this.#path, path, options);
    if (options.lease === undefined) {
      await this.#close();
    } else {
      options.lease.add(path, this.#fd);
      this.#fd = -1;
    }
    return { digest, size: this.#size };
  }

  async #close(): Promise<void> {
    const fd = this.#fd;
    this.#fd = -1;
    if (fd !== -1) await closeFile(fd);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#fd !== -1 && isNamed(this.#fd, this.#path)) await rm(this.#path, { force: true });
    await this.#close();
  }
}

function algorithmOf(digest: string | undefined): string {
  return digest === undefined ? "sha256" : digest.slice(0, digest.indexOf(":"));
}

/** The digest of content, by the algorithm of another one. @default sha256 */
export function digestOf(content: Uint8Array, like?: string): string {
  const algorithm = algorithmOf(like);
  return `${algorithm}:${createHash(algorithm).update(content).digest("hex")}`;
}
