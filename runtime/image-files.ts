/** The files of an image's directory or archive, by name: where manifests, configurations and layers are read from. */
import { constants, close as closeCallback, fstat as fstatCallback, read as readCallback } from "node:fs";
import { posix } from "node:path";
import { promisify } from "node:util";
import { formatBytes, ImageError, quoteName } from "./image-error.ts";
import { O_NONBLOCK, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS } from "./linux.ts";
import { openat2, SyscallError } from "./syscall.ts";
import { TarReader, type TarEntry } from "./tar-reader.ts";
import { type ArchiveKind, type ByteRange, kindOfName } from "./unpack.ts";

const close = promisify(closeCallback);
const fstat = promisify(fstatCallback);
const read = promisify(readCallback);

/** More members than any image archive has: a layer is one member. */
const MAX_MEMBERS = 20_000;

export interface ImageFiles extends AsyncDisposable {
  /**
   * Finds a file by its path inside the image. The descriptor stays open until the files are disposed.
   *
   * @returns undefined if there is none.
   * @throws {ImageError} If the path leads outside or is not a regular file.
   */
  find(path: string): Promise<ByteRange | undefined>;
}

/** Reads a small file of an image. @throws {ImageError} If it is larger than `maxBytes` or cut short. */
export async function readSmallFile(range: ByteRange, name: string, maxBytes: number): Promise<Buffer> {
  if (range.length > maxBytes) {
    throw new ImageError(`its file "${name}" has ${formatBytes(range.length)}, more than ${formatBytes(maxBytes)}`);
  }
  const content = Buffer.alloc(range.length);
  for (let done = 0; done < content.length; ) {
    const { bytesRead } = await read(range.fd, content, done, content.length - done, range.offset + done);
    if (bytesRead === 0) throw new ImageError(`its file "${name}" is truncated`);
    done += bytesRead;
  }
  return content;
}

/** The files under a directory that somebody hostile may own: no name leads out of it. */
export class DirectoryFiles implements ImageFiles {
  readonly #directory: number;
  readonly #open: number[] = [];

  /** @param directory A descriptor, borrowed. */
  constructor(directory: number) {
    this.#directory = directory;
  }

  async find(path: string): Promise<ByteRange | undefined> {
    let fd: number;
    try {
      // O_NONBLOCK: opening a FIFO waits for its other end.
      fd = openat2(this.#directory, path, {
        flags: constants.O_RDONLY | O_NONBLOCK,
        resolve: RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
      });
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
      if (error.code === "EXDEV") throw new ImageError(`its file ${JSON.stringify(path)} leads out of the image`);
      throw new ImageError(`its file ${JSON.stringify(path)} cannot be opened: ${error.code}`, { cause: error });
    }
    this.#open.push(fd);
    const stat = await fstat(fd);
    if (!stat.isFile()) throw new ImageError(`its file ${JSON.stringify(path)} is not a regular file`);
    return { fd, offset: 0, length: stat.size };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#open.splice(0).map((fd) => close(fd)));
  }
}

type Member = { readonly kind: "file"; readonly range: ByteRange } | { readonly kind: "link"; readonly target: string };

/** The members of an uncompressed tar archive. */
export class TarFiles implements ImageFiles {
  readonly #members: ReadonlyMap<string, Member>;

  constructor(members: ReadonlyMap<string, Member>) {
    this.#members = members;
  }

  find(path: string): Promise<ByteRange | undefined> {
    let name = posix.normalize(path);
    // Old `docker save` archives link a layer to an equal one of another image.
    for (let hops = 0; hops < 10; hops++) {
      const member = this.#members.get(name);
      if (member === undefined) return Promise.resolve(undefined);
      if (member.kind === "file") return Promise.resolve(member.range);
      name = member.target;
    }
    return Promise.reject(new ImageError(`its file ${JSON.stringify(path)} is a loop of links`));
  }

  /** The archive's descriptor belongs to whoever opened it. */
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/**
 * Reads the headers of a tar archive, leaving out contents, until its names tell what it is.
 *
 * @returns The members if it is an image's archive (all of them are listed then).
 * @throws {ImageError} If the archive is broken.
 */
export async function scanTar(archive: ByteRange): Promise<{ readonly kind: ArchiveKind; readonly files?: TarFiles }> {
  const members = new Map<string, Member>();
  let kind: ArchiveKind | undefined;
  let count = 0;
  const reader: TarReader = new TarReader(
    {
      entry: (entry: TarEntry) => {
        count++;
        kind ??= kindOfName(entry.name);
        addMember(members, entry, { fd: archive.fd, offset: archive.offset + reader.position, length: entry.size });
      },
      data: () => {},
      end: () => {},
    },
    { endMarker: "optional" },
  );
  const block = Buffer.alloc(512);
  for (let position = 0; position < archive.length && !reader.ended; ) {
    const { bytesRead } = await read(archive.fd, block, 0, 512, archive.offset + position);
    if (bytesRead === 0) break;
    reader.write(block.subarray(0, bytesRead));
    position += bytesRead + reader.skip();
    if (position > archive.length) throw new ImageError(`it is truncated after ${formatBytes(archive.length)}`);
    if (kind === "root") return { kind };
    if (count > MAX_MEMBERS) throw new ImageError(`it has more than ${MAX_MEMBERS} members, too many for an image`);
  }
  reader.end();
  return kind === "image" ? { kind, files: new TarFiles(members) } : { kind: "neither" };
}

function addMember(members: Map<string, Member>, entry: TarEntry, range: ByteRange): void {
  const name = posix.normalize(entry.name).replace(/^\/+/, "");
  switch (entry.type) {
    case "file":
      if (entry.sparse)
        throw new ImageError(`its member ${quoteName(entry.name)} is a sparse file, which is not supported`);
      members.set(name, { kind: "file", range });
      break;
    case "link":
      members.set(name, { kind: "link", target: posix.normalize(entry.linkName) });
      break;
    case "symlink":
      members.set(name, { kind: "link", target: posix.join(posix.dirname(name), entry.linkName) });
      break;
    case "directory":
    case "character":
    case "block":
    case "fifo":
      break;
  }
}
