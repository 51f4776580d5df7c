/**
 * A streaming reader of tar archives: v7, ustar, GNU (long names, sparse files, base-256 numbers) and PAX.
 *
 * Names are byte strings: one character per byte, U+0000–U+00FF ("latin1"). A tar archive does not say how its names are
 * encoded and the kernel does not care, so nothing here may decode and encode them again.
 *
 * @see {@link https://www.gnu.org/software/tar/manual/html_node/Standard.html}
 * @see {@link https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html}
 */
import { ImageError, quoteName } from "./image-error.ts";

export type TarEntryType = "file" | "link" | "symlink" | "directory" | "character" | "block" | "fifo";

export interface TarEntry {
  /** As the archive has it: not normalised, not checked. */
  readonly name: string;
  readonly type: TarEntryType;
  /** Target of a "link" or "symlink", else empty. */
  readonly linkName: string;
  /** Permission bits with set-user-id, set-group-id and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of the file once unpacked, holes included; 0 for everything that is not a file. */
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Extended attributes of PAX `SCHILY.xattr.*`: name (a byte string) to value. */
  readonly xattrs?: ReadonlyMap<string, Buffer>;
  /** There are holes: `data` comes at increasing positions with gaps between them. */
  readonly sparse: boolean;
}

/** Receives what a `TarReader` reads. Everything is synchronous: a chunk is valid only during the call. */
export interface TarSink {
  entry(entry: TarEntry): void;
  /** Content of the last entry, a "file". `position` counts from the beginning of the unpacked file. */
  data(chunk: Buffer, position: number): void;
  /** The last entry is complete. */
  end(): void;
}

export interface TarReaderOptions {
  /**
   * Whether the two blocks of zeros that end an archive may be missing. An archive cut off exactly between two entries
   * cannot be told otherwise, so they are needed where no digest covers the archive.
   */
  readonly endMarker: "required" | "optional";
  /** Headers of every kind, long names and PAX records included. @default 4000000 */
  readonly maxHeaders?: number;
}

const BLOCK = 512;
/** PAX headers hold extended attributes of up to 64 KiB each and a path: this is generous. */
const MAX_METADATA_BYTES = 1 << 20;
/** A symbolic link or path is at most 4095 bytes; longer ones are read so that the error can say which. */
const MAX_LONG_NAME_BYTES = 1 << 16;
const MAX_SPARSE_SEGMENTS = 1 << 18;

interface Segment {
  readonly offset: number;
  readonly length: number;
}

/** What PAX and GNU headers say about the next entry. */
interface Overrides {
  name?: string;
  linkName?: string;
  size?: number;
  uid?: number;
  gid?: number;
  mtime?: { readonly seconds: number; readonly nanoseconds: number };
  xattrs?: Map<string, Buffer>;
  sparse?: { major: number; minor: number; name?: string; size?: number; segments: Segment[] };
}

type State = "header" | "metadata" | "sparse header" | "sparse map" | "content" | "padding" | "ended";

/**
 * Parses an archive that is pushed in by `write`, in chunks of any size, and ended by `end`.
 *
 * @example
 * const reader = new TarReader(sink, { endMarker: "required" });
 * for await (const chunk of stream) reader.write(chunk);
 * reader.end();
 */
export class TarReader {
  readonly #sink: TarSink;
  readonly #endMarkerRequired: boolean;
  readonly #maxHeaders: number;
  #state: State = "header";
  #headers = 0;
  #zeroBlocks = 0;
  /** Bytes read so far. */
  #position = 0;
  /** A block that began in an earlier chunk. */
  readonly #partial = Buffer.alloc(BLOCK);
  #partialLength = 0;
  /** Bytes of the current entry's content or metadata still to come, and of zeros after it. */
  #remaining = 0;
  #padding = 0;
  #metadataType = "";
  #metadata: Buffer = Buffer.alloc(0);
  #metadataLength = 0;
  #overrides: Overrides = {};
  #pending: TarEntry | undefined;
  #segments: Segment[] | undefined;
  #segment = 0;
  #segmentDone = 0;
  #sparseMapText = "";
  #contentPosition = 0;
  #skipContent = false;

  constructor(sink: TarSink, options: TarReaderOptions) {
    this.#sink = sink;
    this.#endMarkerRequired = options.endMarker === "required";
    this.#maxHeaders = options.maxHeaders ?? 4_000_000;
  }

  /** Bytes read so far; during `sink.entry` of a file without holes, where its content begins. */
  get position(): number {
    return this.#position;
  }

  /** The archive's end marker has been read; what follows is ignored. */
  get ended(): boolean {
    return this.#state === "ended";
  }

  /**
   * Leaves out the rest of the current file's content, without `data` for it.
   *
   * @returns How many bytes of the archive the caller may leave out instead of writing them.
   */
  skip(): number {
    if (this.#state !== "content") return 0;
    const skipped = this.#remaining + this.#padding;
    this.#position += skipped;
    this.#remaining = 0;
    this.#padding = 0;
    this.#finishContent();
    return skipped;
  }

  /** @throws {ImageError} If the archive is broken. */
  write(chunk: Buffer): void {
    let offset = 0;
    while (offset < chunk.length) {
      switch (this.#state) {
        case "ended":
          this.#position += chunk.length - offset;
          return;
        case "content":
          offset += this.#readContent(chunk, offset);
          break;
        case "metadata":
          offset += this.#readMetadata(chunk, offset);
          break;
        case "padding": {
          const length = Math.min(this.#padding, chunk.length - offset);
          this.#padding -= length;
          this.#position += length;
          offset += length;
          if (this.#padding === 0) this.#state = "header";
          break;
        }
        case "header":
        case "sparse header":
        case "sparse map": {
          let block: Buffer;
          if (this.#partialLength === 0 && chunk.length - offset >= BLOCK) {
            block = chunk.subarray(offset, offset + BLOCK);
            offset += BLOCK;
          } else {
            const length = Math.min(BLOCK - this.#partialLength, chunk.length - offset);
            chunk.copy(this.#partial, this.#partialLength, offset, offset + length);
            this.#partialLength += length;
            offset += length;
            if (this.#partialLength < BLOCK) return;
            this.#partialLength = 0;
            block = this.#partial;
          }
          this.#position += BLOCK;
          if (this.#state === "header") this.#readHeader(block);
          else if (this.#state === "sparse header") this.#readSparseHeader(block);
          else this.#readSparseMap(block);
          break;
        }
      }
    }
  }

  /** @throws {ImageError} If the archive ends too early. */
  end(): void {
    if (this.#state === "ended") return;
    if (this.#state !== "header" || this.#partialLength > 0) {
      const where = this.#pending === undefined ? "in a header" : `in the entry ${quoteName(this.#pending.name)}`;
      throw new ImageError(`it is truncated: it ends after ${this.#position + this.#partialLength} bytes, ${where}`);
    }
    if (Object.keys(this.#overrides).length > 0) {
      throw new ImageError(`it is truncated: after ${this.#position} bytes, a PAX or long name header has no entry`);
    }
    if (this.#zeroBlocks === 0 && (this.#endMarkerRequired || this.#position === 0)) {
      throw new ImageError(
        this.#position === 0
          ? "it is empty"
          : `it is truncated: it ends after ${this.#position} bytes without the end-of-archive blocks`,
      );
    }
  }

  #readHeader(block: Buffer): void {
    if (block[0] === 0 && isZero(block)) {
      if (Object.keys(this.#overrides).length > 0) {
        throw new ImageError(`a PAX or long name header before byte ${this.#position} has no entry`);
      }
      if (++this.#zeroBlocks === 2) this.#state = "ended";
      return;
    }
    const at = this.#position - BLOCK;
    if (++this.#headers > this.#maxHeaders) throw new ImageError(`it has more than ${this.#maxHeaders} headers`);
    checkSum(block, at);
    if (this.#zeroBlocks === 1) throw new ImageError(`there is an entry behind a block of zeros at byte ${at}`);

    const flag = String.fromCharCode(block[156] as number);
    const size = parseNumber(block, 124, 12, "size", at);
    checkSize(size, at);
    switch (flag) {
      case "L":
      case "K":
        this.#beginMetadata(flag, size, MAX_LONG_NAME_BYTES);
        return;
      case "x":
      case "X":
      case "g":
        this.#beginMetadata(flag, size, MAX_METADATA_BYTES);
        return;
      case "V":
        // The label of a GNU tar volume: not a file.
        this.#pending = undefined;
        this.#skipContent = true;
        this.#beginContent(size);
        return;
      default:
        this.#beginEntry(block, flag, size, at);
    }
  }

  #beginMetadata(flag: string, size: number, limit: number): void {
    if (size > limit) {
      throw new ImageError(`the header at byte ${this.#position - BLOCK} is ${size} bytes long, more than ${limit}`);
    }
    this.#metadataType = flag;
    this.#metadata = Buffer.allocUnsafe(size);
    this.#metadataLength = 0;
    this.#remaining = size;
    this.#padding = paddingOf(size);
    this.#state = "metadata";
    if (size === 0) this.#finishMetadata();
  }

  #readMetadata(chunk: Buffer, offset: number): number {
    const length = Math.min(this.#remaining, chunk.length - offset);
    chunk.copy(this.#metadata, this.#metadataLength, offset, offset + length);
    this.#metadataLength += length;
    this.#remaining -= length;
    this.#position += length;
    if (this.#remaining === 0) this.#finishMetadata();
    return length;
  }

  #finishMetadata(): void {
    this.#state = this.#padding > 0 ? "padding" : "header";
    const data = this.#metadata;
    this.#metadata = Buffer.alloc(0);
    switch (this.#metadataType) {
      case "L":
        this.#overrides.name ??= untilNul(data, 0, data.length);
        break;
      case "K":
        this.#overrides.linkName ??= untilNul(data, 0, data.length);
        break;
      case "g":
        // Go's archive/tar, and so Docker and umoci, do not apply global headers; `git archive` puts a comment there.
        break;
      default:
        parsePax(data, this.#overrides, this.#position);
    }
  }

  #beginEntry(block: Buffer, flag: string, headerSize: number, at: number): void {
    const overrides = this.#overrides;
    this.#overrides = {};
    const isGnu = block.toString("latin1", 257, 265) === "ustar  \0";
    const isUstar = !isGnu && block.toString("latin1", 257, 262) === "ustar";
    let name = overrides.sparse?.name ?? overrides.name ?? untilNul(block, 0, 100);
    if (isUstar && overrides.name === undefined && overrides.sparse?.name === undefined) {
      const prefix = untilNul(block, 345, 155);
      if (prefix !== "") name = `${prefix}/${name}`;
    }
    const type = entryType(flag, name);
    if (type === undefined) {
      throw new ImageError(`the entry ${quoteName(name)} is of type ${JSON.stringify(flag)}, which is not supported`);
    }
    // As Go's archive/tar: what has no content has no bytes behind its header, whatever its size field says. A GNU
    // dump directory ("D") is the exception.
    const size = overrides.size ?? headerSize;
    const stored = type === "file" || flag === "D" ? size : 0;
    const mtime = overrides.mtime ?? { seconds: parseNumber(block, 136, 12, "time", at), nanoseconds: 0 };
    const entry = {
      name,
      type,
      linkName: type === "link" || type === "symlink" ? (overrides.linkName ?? untilNul(block, 157, 100)) : "",
      mode: parseNumber(block, 100, 8, "mode", at) & 0o7777,
      uid: checkId(overrides.uid ?? parseNumber(block, 108, 8, "uid", at), name),
      gid: checkId(overrides.gid ?? parseNumber(block, 116, 8, "gid", at), name),
      size: type === "file" ? size : 0,
      mtimeSeconds: mtime.seconds,
      mtimeNanoseconds: mtime.nanoseconds,
      sparse: false,
      ...(overrides.xattrs === undefined ? {} : { xattrs: overrides.xattrs }),
    } satisfies TarEntry;
    this.#pending = entry;
    this.#skipContent = type !== "file";
    this.#segments = undefined;

    if (flag === "S") {
      // The old GNU form: up to four segments in the header, more in blocks behind it.
      this.#pending = { ...entry, size: parseNumber(block, 483, 12, "size", at), sparse: true };
      this.#segments = [];
      addGnuSegments(this.#segments, block, 386, 4, at);
      this.#remaining = stored;
      if (block[482] !== 0) this.#state = "sparse header";
      else this.#beginContent(stored);
    } else if (overrides.sparse !== undefined && type === "file") {
      const sparse = overrides.sparse;
      if (sparse.size === undefined) throw new ImageError(`the entry ${quoteName(name)} is sparse but has no size`);
      this.#pending = { ...entry, size: sparse.size, sparse: true };
      this.#segments = sparse.segments;
      this.#remaining = stored;
      if (sparse.major === 1 && sparse.minor === 0) {
        this.#segments = [];
        this.#sparseMapText = "";
        this.#state = "sparse map";
        this.#padding = paddingOf(stored);
      } else if (sparse.major === 0) {
        this.#beginContent(stored);
      } else {
        throw new ImageError(
          `the entry ${quoteName(name)} uses GNU sparse format ${sparse.major}.${sparse.minor}, which is not supported`,
        );
      }
    } else {
      this.#beginContent(stored);
    }
  }

  #readSparseHeader(block: Buffer): void {
    const segments = this.#segments as Segment[];
    addGnuSegments(segments, block, 0, 21, this.#position - BLOCK);
    if (segments.length > MAX_SPARSE_SEGMENTS) this.#fail("has too many sparse segments");
    if (block[504] === 0) this.#beginContent(this.#remaining);
  }

  /** GNU sparse 1.0: the map stands before the content, decimal numbers in lines, filled up to a block. */
  #readSparseMap(block: Buffer): void {
    if (this.#remaining < BLOCK) this.#fail("has a broken sparse map");
    this.#remaining -= BLOCK;
    this.#sparseMapText += block.toString("latin1");
    if (this.#sparseMapText.length > MAX_SPARSE_SEGMENTS * 24) this.#fail("has too many sparse segments");
    const end = this.#sparseMapText.indexOf("\n");
    if (end === -1) return;
    const count = Number(this.#sparseMapText.slice(0, end));
    if (!Number.isSafeInteger(count) || count < 0 || count > MAX_SPARSE_SEGMENTS) this.#fail("has a broken sparse map");
    // Parsed again only when enough text is there: a number takes two bytes at least.
    if (this.#sparseMapText.length < end + 1 + count * 4) return;
    const lines = this.#sparseMapText.split("\n");
    if (lines.length < count * 2 + 2) return;
    const segments: Segment[] = [];
    for (let i = 0; i < count; i++) {
      segments.push({ offset: decimal(lines[1 + i * 2]), length: decimal(lines[2 + i * 2]) });
    }
    this.#sparseMapText = "";
    this.#segments = segments;
    this.#beginContent(this.#remaining, this.#padding);
  }

  #beginContent(stored: number, padding = paddingOf(stored)): void {
    this.#remaining = stored;
    this.#padding = padding;
    this.#segment = 0;
    this.#segmentDone = 0;
    this.#contentPosition = 0;
    this.#state = "content";
    const entry = this.#pending;
    if (entry !== undefined) {
      checkSize(entry.size, this.#position);
      if (this.#segments !== undefined) this.#checkSegments(this.#segments, entry.size, stored);
      this.#sink.entry(entry);
    }
    // `skip` may have been called by the sink.
    if (this.#state === "content" && this.#remaining === 0) this.#finishContent();
  }

  #checkSegments(segments: readonly Segment[], size: number, stored: number): void {
    let end = 0;
    let total = 0;
    for (const { offset, length } of segments) {
      if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < end || length < 0) {
        this.#fail("has a broken sparse map");
      }
      end = offset + length;
      total += length;
    }
    if (end > size || total !== stored) this.#fail("has a sparse map that does not fit its size");
  }

  #readContent(chunk: Buffer, offset: number): number {
    let length = Math.min(this.#remaining, chunk.length - offset);
    if (!this.#skipContent) {
      let position = this.#contentPosition;
      if (this.#segments !== undefined) {
        let segment = this.#segments[this.#segment] as Segment;
        while (this.#segmentDone === segment.length) {
          segment = this.#segments[++this.#segment] as Segment;
          this.#segmentDone = 0;
        }
        length = Math.min(length, segment.length - this.#segmentDone);
        position = segment.offset + this.#segmentDone;
        this.#segmentDone += length;
      }
      this.#sink.data(chunk.subarray(offset, offset + length), position);
      this.#contentPosition += length;
    }
    this.#remaining -= length;
    this.#position += length;
    if (this.#remaining === 0) this.#finishContent();
    return length;
  }

  #finishContent(): void {
    this.#state = this.#padding > 0 ? "padding" : "header";
    if (this.#pending !== undefined) {
      this.#pending = undefined;
      this.#sink.end();
    }
  }

  #fail(what: string): never {
    throw new ImageError(`the entry ${quoteName(this.#pending?.name ?? "")} ${what}`);
  }
}

function entryType(flag: string, name: string): TarEntryType | undefined {
  switch (flag) {
    case "0":
    case "\0":
    case "7":
      // Archives older than ustar mark directories by the slash alone.
      return name.endsWith("/") ? "directory" : "file";
    case "S":
      return "file";
    case "1":
      return "link";
    case "2":
      return "symlink";
    case "3":
      return "character";
    case "4":
      return "block";
    case "5":
    case "D":
      return "directory";
    case "6":
      return "fifo";
    default:
      return undefined;
  }
}

/** Reads PAX records: `LENGTH KEY=VALUE\n`, LENGTH counting the whole record. */
function parsePax(data: Buffer, overrides: Overrides, at: number): void {
  const broken = () => new ImageError(`the PAX header before byte ${at} is broken`);
  let offset = 0;
  while (offset < data.length) {
    const space = data.indexOf(0x20, offset);
    if (space === -1 || space - offset > 10) throw broken();
    const length = decimal(data.toString("latin1", offset, space));
    const end = offset + length;
    if (!(length > space - offset + 2) || end > data.length || data[end - 1] !== 0x0a) throw broken();
    const equals = data.indexOf(0x3d, space + 1);
    if (equals === -1 || equals >= end) throw broken();
    const key = data.toString("latin1", space + 1, equals);
    setPax(overrides, key, data.subarray(equals + 1, end - 1), broken);
    offset = end;
  }
}

const XATTR_PREFIX = "SCHILY.xattr.";

function setPax(overrides: Overrides, key: string, value: Buffer, broken: () => ImageError): void {
  const text = () => {
    const string = value.toString("latin1");
    if (string.includes("\0")) throw broken();
    return string;
  };
  const number = () => {
    const result = decimal(value.toString("latin1"));
    if (Number.isNaN(result)) throw broken();
    return result;
  };
  const sparse = () => (overrides.sparse ??= { major: 0, minor: 0, segments: [] });
  if (key.startsWith(XATTR_PREFIX)) {
    overrides.xattrs ??= new Map();
    // A copy: the name and value outlive the header's buffer only by this.
    overrides.xattrs.set(key.slice(XATTR_PREFIX.length), Buffer.from(value));
    return;
  }
  // An empty value takes the record back (POSIX).
  if (value.length === 0) return;
  switch (key) {
    case "path":
      overrides.name = text();
      break;
    case "linkpath":
      overrides.linkName = text();
      break;
    case "size":
      overrides.size = number();
      break;
    case "uid":
      overrides.uid = number();
      break;
    case "gid":
      overrides.gid = number();
      break;
    case "mtime":
      overrides.mtime = parseTime(value.toString("latin1"), broken);
      break;
    case "GNU.sparse.major":
      sparse().major = number();
      break;
    case "GNU.sparse.minor":
      sparse().minor = number();
      break;
    case "GNU.sparse.name":
      sparse().name = text();
      break;
    case "GNU.sparse.size":
    case "GNU.sparse.realsize":
      sparse().size = number();
      break;
    case "GNU.sparse.map": {
      const numbers = value.toString("latin1").split(",").map(decimal);
      if (numbers.length % 2 !== 0 || numbers.length > MAX_SPARSE_SEGMENTS * 2) throw broken();
      const segments: Segment[] = [];
      for (let i = 0; i < numbers.length; i += 2) {
        segments.push({ offset: numbers[i] as number, length: numbers[i + 1] as number });
      }
      sparse().segments = segments;
      break;
    }
    case "GNU.sparse.offset":
      sparse().segments.push({ offset: number(), length: 0 });
      break;
    case "GNU.sparse.numbytes": {
      const segments = sparse().segments;
      const last = segments.pop();
      if (last === undefined) throw broken();
      segments.push({ offset: last.offset, length: number() });
      break;
    }
  }
}

/** `-1.5` is one and a half seconds before 1970: the kernel wants -2 s and 500000000 ns. */
function parseTime(text: string, broken: () => ImageError): { seconds: number; nanoseconds: number } {
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(text);
  if (match === null) throw broken();
  const seconds = Number(match[2]);
  const nanoseconds = Number(`${match[3] ?? ""}000000000`.slice(0, 9));
  if (match[1] !== "-") return { seconds, nanoseconds };
  return nanoseconds === 0
    ? { seconds: -seconds, nanoseconds }
    : { seconds: -seconds - 1, nanoseconds: 1e9 - nanoseconds };
}

/** A non-negative decimal number, else NaN. */
function decimal(text: string | undefined): number {
  return text !== undefined && /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
}

/** An octal number, or (GNU) a big-endian binary one where the first bit is set. */
function parseNumber(block: Buffer, offset: number, length: number, what: string, at: number): number {
  const first = block[offset] as number;
  if ((first & 0x80) !== 0) {
    let value = first & 0x40 ? (first & 0x7f) - 0x80 : first & 0x3f;
    for (let i = 1; i < length; i++) value = value * 256 + (block[offset + i] as number);
    return value;
  }
  let value = 0;
  let digits = false;
  for (let i = offset; i < offset + length; i++) {
    const byte = block[i] as number;
    if (byte >= 0x30 && byte <= 0x37) {
      value = value * 8 + byte - 0x30;
      digits = true;
    } else if (byte === 0 || (byte === 0x20 && digits)) {
      break;
    } else if (byte !== 0x20) {
      throw new ImageError(`the header at byte ${at} has a broken ${what}`);
    }
  }
  return value;
}

function addGnuSegments(segments: Segment[], block: Buffer, from: number, count: number, at: number): void {
  for (let i = 0; i < count; i++) {
    const offset = from + i * 24;
    if (block[offset] === 0 && block[offset + 12] === 0) return;
    segments.push({
      offset: parseNumber(block, offset, 12, "sparse map", at),
      length: parseNumber(block, offset + 12, 12, "sparse map", at),
    });
  }
}

/** The sum of the header's bytes, its own field counted as spaces; old archives summed signed bytes. */
function checkSum(block: Buffer, at: number): void {
  let unsigned = 8 * 0x20;
  let signed = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) {
    if (i === 148) i = 156;
    const byte = block[i] as number;
    unsigned += byte;
    signed += byte > 127 ? byte - 256 : byte;
  }
  const expected = parseNumber(block, 148, 8, "checksum", at);
  if (expected !== unsigned && expected !== signed) {
    throw new ImageError(
      `the header at byte ${at} has checksum ${expected}, computed is ${unsigned}${at === 0 ? "" : ": the archive is damaged"}`,
    );
  }
}

function checkSize(size: number, at: number): void {
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new ImageError(`the header before byte ${at} has the impossible size ${size} bytes`);
  }
}

/** The last id is `(uid_t) -1`, which chown(2) takes for "leave it". */
function checkId(id: number, name: string): number {
  if (!Number.isSafeInteger(id) || id < 0 || id >= 0xffffffff) {
    throw new ImageError(`the entry ${quoteName(name)} has the impossible owner ${id}`);
  }
  return id;
}

function untilNul(block: Buffer, offset: number, length: number): string {
  let end = offset;
  while (end < offset + length && block[end] !== 0) end++;
  return block.toString("latin1", offset, end);
}

function paddingOf(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

function isZero(block: Buffer): boolean {
  for (let i = 0; i < BLOCK; i += 1) if (block[i] !== 0) return false;
  return true;
}
