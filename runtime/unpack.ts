/**
 * The work on archives and directories that takes long: reading, decompressing, hashing, unpacking. Runs in a worker
 * thread (layer-worker.ts), so that the system calls, all synchronous, do not hold up the agent's event loop.
 */
import { createHash, type Hash } from "node:crypto";
import { closeSync, constants, mkdirSync, openSync, readSync, statfsSync, writeSync } from "node:fs";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { ChannelReader, type SharedChannel } from "./byte-channel.ts";
import { freeMemory } from "./bytes.ts";
import { decompressBzip2 } from "./bzip2.ts";
import { formatBytes, ImageError } from "./image-error.ts";
import { type LayerLimits, type LayerSummary, LayerWriter } from "./layer.ts";
import { type TarEntry, TarReader, type TarSink } from "./tar-reader.ts";
import { walkTree } from "./tree.ts";
import { decompressXz } from "./xz.ts";

/** Part of an open file. The descriptor is borrowed. */
export interface ByteRange {
  readonly fd: number;
  readonly offset: number;
  readonly length: number;
}

/** Where an archive comes from: a file, or another thread that is still receiving it. */
export type ArchiveSource = ByteRange | { readonly channel: SharedChannel };

export interface UnpackRequest {
  readonly source: ArchiveSource;
  /** Made by `unpackLayer`; must not exist. */
  readonly directory: string;
  /** Verified while unpacking: nobody else may take the directory for good before `unpackLayer` has returned. */
  readonly digest?: string;
  /** Digest of the decompressed archive. */
  readonly diffId?: string;
  readonly endMarker: "required" | "optional";
  /** Refuse what has none of bin, usr and etc. */
  readonly mustBeRoot: boolean;
  readonly limits: LayerLimits;
}

/** Throws the reason when the work is canceled; called every few hundred microseconds. */
export type CheckCanceled = () => void;

const CHUNK_BYTES = 1 << 20;
const COMPRESSED_CHUNK_BYTES = 1 << 18;
/** Of a channel: what a network hands over is often smaller than is worth a turn of the decompressor. */
const LEAST_CHUNK_BYTES = 1 << 16;
const RATIO_FROM_BYTES = 256 * 2 ** 20;

/**
 * Unpacks one layer into `request.directory`.
 *
 * @throws {ImageError} If the archive is broken, hostile, too large or not what its digests say. The directory is then
 *   incomplete; deleting it is the caller's.
 */
export async function unpackLayer(request: UnpackRequest, checkCanceled: CheckCanceled): Promise<LayerSummary> {
  mkdirSync(request.directory, { mode: 0o700 });
  const root = openSync(request.directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const { limits, freeLimited } = limitToFreeSpace(request.limits, request.directory);
    try {
      using writer = new LayerWriter(root, { limits, whiteouts: true });
      const reader = new TarReader(writer, { endMarker: request.endMarker, maxHeaders: limits.maxEntries * 4 });
      await readArchive(request, limits, checkCanceled, (chunk) => reader.write(chunk));
      reader.end();
      const summary = writer.finish();
      if (request.mustBeRoot && summary.rootNames.length === 0) {
        throw new ImageError("it is a tar archive but not of a root file system: it has no bin, usr or etc at its top");
      }
      return summary;
    } catch (error) {
      if (freeLimited && error instanceof ImageError && error.message.includes("unpacks to more than")) {
        throw new Error(`${error.message}, nine tenths of what is free for the image store`, { cause: error });
      }
      throw error;
    }
  } finally {
    closeSync(root);
  }
}

/**
 * Unpacks an archive over what is in a directory, which is taken for `/` by the links in it: what ADD does.
 *
 * @param options.owner Of everything, instead of what the archive says.
 * @throws {ImageError} If the archive is broken, hostile or too large; some of it is then unpacked.
 */
export async function unpackOver(
  root: number,
  source: ByteRange,
  options: {
    readonly limits: LayerLimits;
    readonly owner?: { readonly uid: number; readonly gid: number } | undefined;
    readonly checkCanceled: CheckCanceled;
  },
): Promise<void> {
  const { limits, owner, checkCanceled } = options;
  using writer = new LayerWriter(root, { limits, whiteouts: false, followLinks: true });
  const sink: TarSink =
    owner === undefined
      ? writer
      : {
          entry: (entry) => writer.entry({ ...entry, ...owner }),
          data: (chunk, position) => writer.data(chunk, position),
          end: () => writer.end(),
        };
  const reader = new TarReader(sink, { endMarker: "optional", maxHeaders: limits.maxEntries * 4 });
  await readArchive({ source, rare: true }, limits, checkCanceled, (chunk) => reader.write(chunk));
  reader.end();
  writer.finish();
}

/** Whether a file is a tar archive with something in it, compressed or not; with xz and bzip2, too. */
export async function isTarArchive(source: ByteRange, limits: LayerLimits): Promise<boolean> {
  const found = new Error("There is an entry");
  const sink: TarSink = {
    entry: () => {
      throw found;
    },
    data: () => {},
    end: () => {},
  };
  const reader = new TarReader(sink, { endMarker: "optional" });
  try {
    await readArchive(
      { source, rare: true },
      limits,
      () => {},
      (chunk) => reader.write(chunk),
    );
    return false;
  } catch (error) {
    if (error === found) return true;
    if (error instanceof ImageError) return false;
    throw error;
  }
}

/** Reads a range to its end through decompression, checking size ratio and digests. */
async function readArchive(
  request: Pick<UnpackRequest, "source" | "digest" | "diffId"> & { readonly rare?: boolean },
  limits: LayerLimits,
  checkCanceled: CheckCanceled,
  consume: (chunk: Buffer) => void,
): Promise<void> {
  using input = openInput(request.source);
  const head = await input.head();
  const compression = request.rare === true ? (rareCompressionOf(head) ?? compressionOf(head)) : compressionOf(head);
  const digest = new DigestCheck(request.digest, "digest");
  const diffId = new DigestCheck(
    request.diffId,
    compression === "none" ? "digest" : "digest of the decompressed layer",
  );
  let compressedBytes = 0;
  let bytes = 0;
  const counted = (chunk: Buffer) => {
    checkCanceled();
    bytes += chunk.length;
    if (bytes > limits.maxBytes) throw new ImageError(`it unpacks to more than ${formatBytes(limits.maxBytes)}`);
    if (bytes > RATIO_FROM_BYTES && bytes > compressedBytes * limits.maxRatio) {
      throw new ImageError(
        `it is a decompression bomb: ${formatBytes(compressedBytes)} unpack to more than ${formatBytes(bytes)}, over ${limits.maxRatio} times as much`,
      );
    }
    diffId.update(chunk);
    consume(chunk);
  };
  const compressed = (chunk: Buffer) => {
    compressedBytes += chunk.length;
    digest.update(chunk);
  };

  if (compression === "none") {
    for await (const chunk of input.chunks()) {
      compressed(chunk);
      counted(chunk);
    }
  } else {
    const chunks = async function* () {
      for await (const chunk of input.chunks()) {
        checkCanceled();
        compressed(chunk);
        yield chunk;
      }
    };
    if (compression === "xz") await decompressXz(chunks(), counted);
    else if (compression === "bzip2") await decompressBzip2(chunks(), counted);
    else await decompress(chunks(), compression, counted);
  }
  digest.check();
  diffId.check();
}

/**
 * Decompresses chunk by chunk. A chunk of either side is valid until the next one is asked for, or `consume` has returned:
 * all of it goes through few buffers, since what is left to the garbage collector it collects late, as it does not see how
 * much memory is behind a buffer.
 *
 * @throws {ImageError} If the data is broken. What `chunks` and `consume` throw.
 */
async function decompress(
  chunks: AsyncIterable<Buffer>,
  compression: Exclude<Compression, "none">,
  consume: (chunk: Buffer) => void,
): Promise<void> {
  const options = { chunkSize: COMPRESSED_CHUNK_BYTES };
  const decompressor = compression === "gzip" ? createGunzip(options) : createZstdDecompress(options);
  // Of a chunk at which it fails nobody is told that it is done with.
  const closed = new Promise<void>((resolve) => decompressor.once("close", resolve));
  let failure: { readonly error: unknown } | undefined;
  const fail = (error: unknown) => {
    failure ??= { error };
    decompressor.destroy();
  };
  const feed = async () => {
    try {
      for await (const chunk of chunks) {
        if (failure !== undefined) return;
        // What stands behind the compressed data is read all the same: the digest is of it, too.
        if (decompressor.destroyed) continue;
        await Promise.race([new Promise((resolve) => decompressor.write(chunk, resolve)), closed]);
      }
      if (!decompressor.destroyed) decompressor.end();
    } catch (error) {
      fail(error);
    }
  };
  const drain = async () => {
    try {
      for await (const chunk of decompressor as AsyncIterable<Buffer>) {
        consume(chunk);
        // The last view of a buffer that the decompressor has done with.
        if (chunk.byteOffset + chunk.length === chunk.buffer.byteLength) freeMemory(chunk);
      }
    } catch (error) {
      fail(error);
    }
  };
  await Promise.all([feed(), drain()]);
  if (failure !== undefined) throw decompressionError(failure.error, compression);
}

/** Reads a range in order; yields views of `into`. */
function* readRange(range: ByteRange, into: Buffer): Generator<Buffer, void> {
  let position = range.offset;
  const end = range.offset + range.length;
  while (position < end) {
    const length = readSync(range.fd, into, 0, Math.min(into.length, end - position), position);
    if (length === 0) {
      throw new ImageError(`it is truncated: ${position - range.offset} of ${range.length} bytes are there`);
    }
    position += length;
    yield into.subarray(0, length);
  }
}

/** The beginning of an archive, and then all of it. */
interface ArchiveInput extends Disposable {
  /** Up to 6 bytes; before `chunks`. */
  head(): Promise<Buffer>;
  /** Each is overwritten when the next one is asked for. */
  chunks(): Iterable<Buffer> | AsyncIterable<Buffer>;
}

const HEAD_BYTES = 6;

function openInput(source: ArchiveSource): ArchiveInput {
  if (!("channel" in source)) {
    return {
      head: () => Promise.resolve(readHead(source)),
      chunks: () => readRange(source, Buffer.allocUnsafeSlow(CHUNK_BYTES)),
      [Symbol.dispose]: () => {},
    };
  }
  const reader = new ChannelReader(source.channel);
  const buffer = Buffer.allocUnsafeSlow(COMPRESSED_CHUNK_BYTES);
  let length = 0;
  return {
    head: async () => {
      length = await reader.read(buffer, { least: HEAD_BYTES });
      return buffer.subarray(0, Math.min(length, HEAD_BYTES));
    },
    chunks: async function* () {
      for (; length > 0; length = await reader.read(buffer, { least: LEAST_CHUNK_BYTES })) {
        yield buffer.subarray(0, length);
      }
    },
    [Symbol.dispose]: () => reader.close(),
  };
}

function readHead(range: ByteRange): Buffer {
  const head = Buffer.alloc(Math.min(HEAD_BYTES, range.length));
  return head.subarray(0, readSync(range.fd, head, 0, head.length, range.offset));
}

type Compression = "none" | "gzip" | "zstd";

/** @throws {ImageError} If it is compressed in a way that is not supported. */
export function detectCompression(range: ByteRange): Compression {
  return compressionOf(readHead(range));
}

/** What nothing but ADD takes: slow, and no layer of an image may have it. */
function rareCompressionOf(head: Buffer): "xz" | "bzip2" | undefined {
  const magic = head.toString("latin1");
  if (magic === "\xfd7zXZ\0") return "xz";
  return magic.startsWith("BZh") ? "bzip2" : undefined;
}

function compressionOf(head: Buffer): Compression {
  const magic = Buffer.alloc(HEAD_BYTES);
  head.copy(magic);
  if (magic[0] === 0x1f && magic[1] === 0x8b) return "gzip";
  const word = magic.readUInt32LE(0);
  // A zstd frame, or one that is skipped, as stargz-like archives begin with.
  if (word === 0xfd2fb528 || (word >= 0x184d2a50 && word <= 0x184d2a5f)) return "zstd";
  const unsupported =
    rareCompressionOf(magic) ??
    (word === 0x184d2204 ? "lz4" : magic.toString("latin1", 0, 4) === "PK\x03\x04" ? "zip" : undefined);
  if (unsupported !== undefined) {
    throw new ImageError(`it is compressed with ${unsupported}; use gzip, zstd or no compression`);
  }
  return "none";
}

function decompressionError(error: unknown, compression: Compression): unknown {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return error;
  if (!/^(Z_|ZSTD_|ERR_ZLIB|ERR_ZSTD)/.test(error.code)) return error;
  const truncated = error.code === "Z_BUF_ERROR";
  return new ImageError(
    truncated
      ? `it is truncated: the ${compression} data ends too early`
      : `its ${compression} data is broken: ${error.message}`,
    { cause: error },
  );
}

/** Hashes what passes and compares at the end; does nothing without an expectation. */
class DigestCheck {
  readonly #expected: string | undefined;
  readonly #what: string;
  readonly #hash: Hash | undefined;

  constructor(expected: string | undefined, what: string) {
    this.#expected = expected;
    this.#what = what;
    this.#hash = expected === undefined ? undefined : createHash(expected.slice(0, expected.indexOf(":")));
  }

  update(chunk: Buffer): void {
    this.#hash?.update(chunk);
  }

  check(): void {
    if (this.#hash === undefined || this.#expected === undefined) return;
    const algorithm = this.#expected.slice(0, this.#expected.indexOf(":"));
    const computed = `${algorithm}:${this.#hash.digest("hex")}`;
    if (computed !== this.#expected) {
      throw new ImageError(`its ${this.#what} is ${computed}, expected is ${this.#expected}`);
    }
  }
}

function limitToFreeSpace(limits: LayerLimits, directory: string): { limits: LayerLimits; freeLimited: boolean } {
  const { bavail, bsize } = statfsSync(directory);
  const free = Math.floor(bavail * bsize * 0.9);
  return free < limits.maxBytes
    ? { limits: { ...limits, maxBytes: free }, freeLimited: true }
    : { limits, freeLimited: false };
}

/** The sha256 of a file's bytes in hexadecimal. */
export function hashFile(source: ByteRange, checkCanceled: CheckCanceled): string {
  const hash = createHash("sha256");
  for (const chunk of readRange(source, Buffer.allocUnsafeSlow(CHUNK_BYTES))) {
    checkCanceled();
    hash.update(chunk);
  }
  return hash.digest("hex");
}

/** What a tar archive's names say it is. */
export type ArchiveKind = "root" | "image" | "neither";

const ROOT_NAMES: ReadonlySet<string> = new Set(
  "bin boot dev etc home lib lib64 mnt opt proc root run sbin srv sys tmp usr var".split(" "),
);

/** What one name tells about its archive: a member of an image, of a root file system, or nothing yet. */
export function kindOfName(name: string): ArchiveKind | undefined {
  const path = name.replace(/^(\.?\/)+/, "");
  if (/^(manifest\.json|oci-layout|index\.json)$/.test(path) || path.startsWith("blobs/")) return "image";
  const top = path.slice(0, path.indexOf("/") === -1 ? path.length : path.indexOf("/"));
  return ROOT_NAMES.has(top) ? "root" : undefined;
}

/** Reads a compressed archive as far as needed to tell an image from a root file system. */
export async function detectKind(
  source: ByteRange,
  limits: LayerLimits,
  checkCanceled: CheckCanceled,
): Promise<ArchiveKind> {
  let kind: ArchiveKind | undefined;
  const found = new Error("found");
  const sink: TarSink = {
    entry: (entry: TarEntry) => {
      kind ??= kindOfName(entry.name);
    },
    data: () => {},
    end: () => {},
  };
  const reader = new TarReader(sink, { endMarker: "optional", maxHeaders: limits.maxEntries * 4 });
  try {
    await readArchive({ source }, limits, checkCanceled, (chunk) => {
      reader.write(chunk);
      if (kind !== undefined || reader.ended) throw found;
    });
  } catch (error) {
    if (error !== found) throw error;
  }
  return kind ?? "neither";
}

/** Decompresses a file into another, which is empty and open for writing. @returns The bytes written. */
export async function decompressFile(
  source: ByteRange,
  target: number,
  limits: LayerLimits,
  checkCanceled: CheckCanceled,
): Promise<number> {
  let bytes = 0;
  await readArchive({ source }, limits, checkCanceled, (chunk) => {
    for (let done = 0; done < chunk.length; ) done += writeSync(target, chunk, done, chunk.length - done, bytes + done);
    bytes += chunk.length;
  });
  return bytes;
}

export interface TreeRequest {
  /** Descriptor of the directory to read. */
  readonly fd: number;
  /** Where to copy it; only hashed if absent. Made by `readTree`; must not exist. */
  readonly directory?: string;
  readonly limits: LayerLimits;
}

/**
 * Hashes, and copies, a directory tree: names, types, modes, owners, link targets and content; not times, so that
 * checking out the same commit again gives the same hash.
 */
export function readTree(request: TreeRequest, checkCanceled: CheckCanceled): { hash: string; summary?: LayerSummary } {
  const hash = createHash("sha256");
  const hasher: TarSink = {
    entry: (entry) => {
      checkCanceled();
      const { type, name, linkName, mode, uid, gid, size } = entry;
      hash.update(JSON.stringify([type, name, linkName, mode, uid, gid, size]));
    },
    data: (chunk) => {
      checkCanceled();
      hash.update(chunk);
    },
    end: () => {},
  };
  const { directory } = request;
  if (directory === undefined) {
    walkTree(request.fd, hasher, request);
    return { hash: hash.digest("hex") };
  }
  mkdirSync(directory, { mode: 0o700 });
  const root = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const { limits } = limitToFreeSpace(request.limits, directory);
    using writer = new LayerWriter(root, { limits, whiteouts: false });
    walkTree(
      request.fd,
      {
        entry: (entry) => {
          hasher.entry(entry);
          writer.entry(entry);
        },
        data: (chunk, position) => {
          hasher.data(chunk, position);
          writer.data(chunk, position);
        },
        end: () => writer.end(),
      },
      request,
    );
    return { summary: writer.finish(), hash: hash.digest("hex") };
  } finally {
    closeSync(root);
  }
}
