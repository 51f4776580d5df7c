/**
 * Writes an unpacked layer, in the form that overlayfs mounts, as the archive that images have: whiteouts become `.wh.`
 * names, opaque directories get `.wh..wh..opq`.
 *
 * The same tree gives the same bytes: entries in the order of their names' bytes, no names of users, no access times.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/layer.md}
 */
import { fstatSync, readSync } from "node:fs";
import {
  type FileStat,
  isImageXattr,
  isWhiteout,
  namesOf,
  openAt,
  openDirectoryAt,
  OVERLAY_OPAQUE,
  readLinkAt,
  readXattrs,
  statAt,
  textOf,
} from "./file-at.ts";
import { ImageError, quoteName } from "./image-error.ts";
import { O_NONBLOCK, O_RDONLY } from "./linux.ts";
import { close } from "./syscall.ts";
import { tarEnd, tarHeader, tarPadding } from "./tar-writer.ts";

export interface LayerArchiveOptions {
  /** No file is younger: what SOURCE_DATE_EPOCH asks for. Seconds since 1970. */
  readonly newestSeconds?: number | undefined;
  /** A time that stands for `newestSeconds`, where there is one. */
  readonly replacedSeconds?: number | undefined;
  /** Throws the reason when the work is canceled. */
  readonly checkCanceled?: () => void;
}

/** One descriptor per level is open. */
const MAX_DEPTH = 512;
const CHUNK_BYTES = 1 << 20;

/**
 * Writes the archive of a layer, in pieces that are valid until the next one is asked for.
 *
 * @param root Descriptor of its directory, which nobody changes meanwhile. It has no entry of its own.
 * @throws {ImageError} If a file's content changes, or the tree is too deep.
 */
export function* writeLayerArchive(root: number, options: LayerArchiveOptions = {}): Generator<Buffer, void> {
  yield* new ArchiveWriter(options).directory(root, "", 0);
  yield tarEnd;
}

class ArchiveWriter {
  readonly #options: LayerArchiveOptions;
  /** The first name of a file that has several. */
  readonly #names = new Map<string, string>();
  readonly #buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);

  constructor(options: LayerArchiveOptions) {
    this.#options = options;
  }

  /** What is in a directory; its own entry is written already. */
  *directory(fd: number, path: string, depth: number): Generator<Buffer, void> {
    if (depth > MAX_DEPTH)
      throw new ImageError(`the directory ${quoteName(path)} is more than ${MAX_DEPTH} levels deep`);
    for (const base of namesOf(fd)) {
      this.#options.checkCanceled?.();
      const name = path === "" ? base : `${path}/${base}`;
      const stat = statAt(fd, base);
      if (stat === undefined) throw changed(name);
      if (isWhiteout(stat)) yield this.#header(path === "" ? `.wh.${base}` : `${path}/.wh.${base}`, "file", marker);
      else yield* this.#entry({ parent: fd, base, path: name, stat, depth });
    }
  }

  *#entry(file: {
    readonly parent: number;
    readonly base: string;
    readonly path: string;
    readonly stat: FileStat;
    readonly depth: number;
  }): Generator<Buffer, void> {
    const { parent, base, path, stat } = file;
    switch (stat.type) {
      case "directory":
        yield* this.#directoryEntry(file);
        break;
      case "file": {
        const first = stat.links > 1 ? this.#names.get(stat.identity) : undefined;
        if (first === undefined) yield* this.#file(parent, base, path);
        else yield this.#header(path, "link", stat, { linkName: first });
        if (stat.links > 1 && first === undefined) this.#names.set(stat.identity, path);
        break;
      }
      case "symlink":
        yield this.#header(path, "symlink", { ...stat, mode: 0o777 }, { linkName: readLinkAt(parent, base) });
        break;
      case "fifo":
        yield this.#header(path, "fifo", stat);
        break;
      // Devices are not kept by layers here, and sockets by none.
      case "character":
      case "block":
      case "socket":
        break;
    }
  }

  *#directoryEntry(file: {
    readonly parent: number;
    readonly base: string;
    readonly path: string;
    readonly stat: FileStat;
    readonly depth: number;
  }): Generator<Buffer, void> {
    const { parent, base, path, stat, depth } = file;
    const fd = openDirectoryAt(parent, base);
    try {
      const xattrs = readXattrs(fd, (each) => isImageXattr(each) || each === OVERLAY_OPAQUE);
      yield this.#header(path, "directory", stat, { xattrs: imageXattrs(xattrs) });
      // First, so that no reader applies it to what the layer itself has.
      if (xattrs.get(OVERLAY_OPAQUE)?.toString() === "y") yield this.#header(`${path}/.wh..wh..opq`, "file", marker);
      yield* this.directory(fd, path, depth + 1);
    } finally {
      close(fd);
    }
  }

  *#file(parent: number, base: string, path: string): Generator<Buffer, void> {
    const fd = openAt(parent, base, O_RDONLY | O_NONBLOCK);
    if (fd === undefined) throw changed(path);
    try {
      const stat = statAt(fd, "");
      if (stat?.type !== "file") throw changed(path);
      yield this.#header(path, "file", stat, { xattrs: imageXattrs(readXattrs(fd, isImageXattr)) });
      for (let done = 0; done < stat.size; ) {
        this.#options.checkCanceled?.();
        const length = readSync(fd, this.#buffer, 0, Math.min(CHUNK_BYTES, stat.size - done), done);
        if (length === 0) throw changed(path);
        yield this.#buffer.subarray(0, length);
        done += length;
      }
      if (fstatSync(fd).size !== stat.size) throw changed(path);
      yield tarPadding(stat.size);
    } finally {
      close(fd);
    }
  }

  #header(
    path: string,
    type: "file" | "directory" | "symlink" | "link" | "fifo",
    stat: Pick<FileStat, "mode" | "uid" | "gid" | "size" | "mtimeSeconds" | "mtimeNanoseconds">,
    extra: { readonly linkName?: string; readonly xattrs?: ReadonlyMap<string, Buffer> | undefined } = {},
  ): Buffer {
    const { newestSeconds: newest = Infinity, replacedSeconds } = this.#options;
    const isYounger = stat.mtimeSeconds >= newest || (newest < Infinity && stat.mtimeSeconds === replacedSeconds);
    return tarHeader({
      name: path,
      type,
      linkName: extra.linkName ?? "",
      mode: stat.mode,
      uid: stat.uid,
      gid: stat.gid,
      size: type === "file" ? stat.size : 0,
      mtimeSeconds: isYounger ? newest : stat.mtimeSeconds,
      mtimeNanoseconds: isYounger ? 0 : stat.mtimeNanoseconds,
      ...(extra.xattrs !== undefined && { xattrs: extra.xattrs }),
    });
  }
}

/** What says that something is not there has no owner and no time of its own. */
const marker = { mode: 0o644, uid: 0, gid: 0, size: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };

function imageXattrs(xattrs: ReadonlyMap<string, Buffer>): ReadonlyMap<string, Buffer> | undefined {
  const kept = new Map([...xattrs].filter(([name]) => isImageXattr(name)));
  return kept.size === 0 ? undefined : kept;
}

function changed(path: string): ImageError {
  return new ImageError(`${JSON.stringify(textOf(path))} changed while it was read; no process may write there`);
}
