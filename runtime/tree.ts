/** Reads a directory tree as the entries of an archive, while whoever owns it may be changing it. */
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
} from "node:fs";
import { ImageError, quoteName } from "./image-error.ts";
import type { LayerLimits } from "./layer.ts";
import type { TarEntry, TarEntryType, TarSink } from "./tar-reader.ts";

const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFCHR, S_IFBLK, O_RDONLY, O_NOFOLLOW, O_DIRECTORY, O_NONBLOCK } =
  constants;
/** One descriptor per level is open. */
const MAX_DEPTH = 512;

interface WalkOptions {
  readonly limits: LayerLimits;
}

/**
 * Hands the tree under a directory to a sink, in a fixed order, the directory itself first as `.`.
 *
 * Never leaves the directory: each name is opened relative to a descriptor of its parent, without following links. Names
 * are byte strings as from `TarReader`. Sockets are left out; extended attributes are not read.
 *
 * @throws {ImageError} If a file changes while it is read, or the tree is too deep or too large.
 */
export function walkTree(fd: number, sink: TarSink, options: WalkOptions): void {
  new TreeWalk(sink, options).directory(fd, ".", 0);
}

class TreeWalk {
  readonly #sink: TarSink;
  readonly #options: WalkOptions;
  /** Files with several links: device and inode to the first name. */
  readonly #links = new Map<string, string>();
  readonly #buffer = Buffer.allocUnsafeSlow(1 << 20);
  #entries = 0;

  constructor(sink: TarSink, options: WalkOptions) {
    this.#sink = sink;
    this.#options = options;
  }

  directory(fd: number, path: string, depth: number): void {
    if (depth > MAX_DEPTH)
      throw new ImageError(`the directory ${quoteName(path)} is more than ${MAX_DEPTH} levels deep`);
    this.#entry("directory", path, fstatSync(fd, { bigint: true }));
    this.#sink.end();
    // Sorted by bytes: the order of a directory is the file system's.
    for (const name of readdirSync(`/proc/self/fd/${fd}`, "latin1").sort()) {
      this.#name(fd, name, path === "." ? name : `${path}/${name}`, depth);
    }
  }

  #name(parent: number, name: string, path: string, depth: number): void {
    const at = Buffer.from(`/proc/self/fd/${parent}/${name}`, "latin1");
    const stat = this.#changing(path, () => lstatSync(at, { bigint: true }));
    switch (Number(stat.mode) & S_IFMT) {
      case S_IFDIR:
        this.#opened(at, path, O_DIRECTORY, (fd) => this.directory(fd, path, depth + 1));
        return;
      case S_IFREG: {
        const first = stat.nlink > 1n ? `${stat.dev}:${stat.ino}` : "";
        const linked = this.#links.get(first);
        if (linked !== undefined) {
          this.#entry("link", path, stat, linked);
          this.#sink.end();
          return;
        }
        if (first !== "") this.#links.set(first, path);
        this.#opened(at, path, O_NONBLOCK, (fd) => this.#file(fd, path));
        return;
      }
      case S_IFLNK:
        this.#entry(
          "symlink",
          path,
          stat,
          this.#changing(path, () => readlinkSync(at, "latin1")),
        );
        break;
      case S_IFIFO:
        this.#entry("fifo", path, stat);
        break;
      case S_IFCHR:
        this.#entry("character", path, stat);
        break;
      case S_IFBLK:
        this.#entry("block", path, stat);
        break;
      default:
        return;
    }
    this.#sink.end();
  }

  #file(fd: number, path: string): void {
    const stat = fstatSync(fd, { bigint: true });
    if ((Number(stat.mode) & S_IFMT) !== S_IFREG) throw changed(path);
    this.#entry("file", path, stat);
    const size = Number(stat.size);
    for (let position = 0; ; ) {
      const length = readSync(fd, this.#buffer, 0, this.#buffer.length, position);
      if (position + length > size || (length === 0 && position < size)) throw changed(path);
      if (length === 0) break;
      this.#sink.data(this.#buffer.subarray(0, length), position);
      position += length;
    }
    this.#sink.end();
  }

  #entry(type: TarEntryType, name: string, stat: BigIntStats, linkName = ""): void {
    if (++this.#entries > this.#options.limits.maxEntries) {
      throw new ImageError(`it has more than ${this.#options.limits.maxEntries} entries`);
    }
    const nanoseconds = ((stat.mtimeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
    const entry: TarEntry = {
      name,
      type,
      linkName,
      mode: Number(stat.mode) & 0o7777,
      uid: Number(stat.uid),
      gid: Number(stat.gid),
      size: type === "file" ? Number(stat.size) : 0,
      mtimeSeconds: Number((stat.mtimeNs - nanoseconds) / 1_000_000_000n),
      mtimeNanoseconds: Number(nanoseconds),
      sparse: false,
    };
    this.#sink.entry(entry);
  }

  #opened(at: Buffer, path: string, flag: number, use: (fd: number) => void): void {
    const fd = this.#changing(path, () => openSync(at, O_RDONLY | O_NOFOLLOW | flag));
    try {
      use(fd);
    } finally {
      closeSync(fd);
    }
  }

  #changing<T>(path: string, action: () => T): T {
    try {
      return action();
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code === "ENOENT" || code === "ENOTDIR" || code === "ELOOP" || code === "EINVAL") throw changed(path);
      throw error;
    }
  }
}

function changed(path: string): ImageError {
  return new ImageError(`${quoteName(path)} changed while it was read; no process may write there`);
}
