/**
 * Decompresses xz, which the archives of root file systems that ADD unpacks are compressed with. Node.js knows no xz.
 *
 * @see {@link https://tukaani.org/xz/xz-file-format.txt}
 */
import { createHash } from "node:crypto";
import { crc32 } from "node:zlib";
import { formatBytes, ImageError } from "./image-error.ts";
import { InputWindow } from "./input-window.ts";
import { broken, Lzma2Decoder } from "./lzma2.ts";

/** `xz -9` needs 64 MiB. */
const MAX_DICTIONARY_BYTES = 256 * 2 ** 20;
/** A chunk's six bytes and what it has of compressed data. */
const MAX_CHUNK_BYTES = 6 + 65_536;
const HEADER_BYTES = 12;
const LZMA2 = 0x21;

/**
 * Decompresses one stream after the other, as xz(1) does. All checks of the format are made: of headers, data, index and footer.
 *
 * @param consume Each chunk is valid until it returns.
 * @throws {ImageError} If the data is broken, or needs more memory than files of xz(1) do. What `chunks` and `consume` throw.
 */
export async function decompressXz(chunks: AsyncIterable<Buffer>, consume: (chunk: Buffer) => void): Promise<void> {
  const input = new InputWindow(chunks);
  const memory: Memory = { dictionary: new Uint8Array(0) };
  do {
    await readStream(input, { memory, consume });
    // Streams are filled up with zeros, and may follow each other.
    while ((await input.ensure(4)) >= 4 && input.buffer.readUInt32LE(input.position) === 0) input.position += 4;
  } while ((await input.ensure(1)) > 0);
}

/** One dictionary for all blocks, the largest that was needed: a file may have millions of them, with nothing in each. */
interface Memory {
  dictionary: Uint8Array;
}

async function readStream(
  input: InputWindow,
  { memory, consume }: { readonly memory: Memory; readonly consume: (chunk: Buffer) => void },
): Promise<void> {
  const header = await take(input, HEADER_BYTES);
  const flags = header.readUInt16BE(6);
  if (header.toString("latin1", 0, 6) !== "\xfd7zXZ\0" || crc32(header.subarray(6, 8)) !== header.readUInt32LE(8))
    throw broken();
  const checkOf = checks[flags];
  if (checkOf === undefined)
    throw new ImageError("it cannot be decompressed: the xz data has a check that is not known");
  const index = createHash("sha256");
  let count = 0;
  for (;;) {
    await input.ensure(1);
    const size = input.buffer[input.position];
    if (input.position >= input.end || size === undefined) throw broken();
    if (size === 0) break;
    const block = await readBlock(input, { headerBytes: (size + 1) * 4, check: checkOf(), memory, consume });
    index.update(`${block.unpadded} ${block.uncompressed}\n`);
    count++;
  }
  const indexBytes = await readIndex(input, { count, digest: index.digest("hex") });
  const footer = await take(input, HEADER_BYTES);
  const isWhole =
    crc32(footer.subarray(4, 10)) === footer.readUInt32LE(0) &&
    (footer.readUInt32LE(4) + 1) * 4 === indexBytes &&
    footer.readUInt16BE(8) === flags &&
    footer.toString("latin1", 10) === "YZ";
  if (!isWhole) throw broken();
}

/** A checksum of what is decompressed. */
interface Check {
  update(chunk: Buffer): void;
  /** As the file has it. */
  digest(): Buffer;
}

/** By the stream's flags. */
const checks: Readonly<Record<number, () => Check>> = {
  0: () => ({ update: () => {}, digest: () => Buffer.alloc(0) }),
  1: () => {
    let value = 0;
    return {
      update: (chunk) => void (value = crc32(chunk, value)),
      digest: () => {
        const bytes = Buffer.alloc(4);
        bytes.writeUInt32LE(value);
        return bytes;
      },
    };
  },
  4: () => new Crc64(),
  10: () => {
    const hash = createHash("sha256");
    return { update: (chunk) => void hash.update(chunk), digest: () => hash.digest() };
  },
};

interface BlockSizes {
  readonly unpadded: number;
  readonly uncompressed: number;
}

async function readBlock(
  input: InputWindow,
  {
    headerBytes,
    check,
    memory,
    consume,
  }: {
    readonly headerBytes: number;
    readonly check: Check;
    readonly memory: Memory;
    readonly consume: (chunk: Buffer) => void;
  },
): Promise<BlockSizes> {
  const header = await take(input, headerBytes);
  const told = readBlockHeader(header);
  if (memory.dictionary.length < told.dictionaryBytes) memory.dictionary = new Uint8Array(told.dictionaryBytes);
  const decoder = new Lzma2Decoder(memory.dictionary);
  let uncompressed = 0;
  const counted = (chunk: Buffer) => {
    uncompressed += chunk.length;
    check.update(chunk);
    consume(chunk);
  };
  let compressed = 0;
  for (let isMore = true; isMore; ) {
    await input.ensure(MAX_CHUNK_BYTES);
    const read = readChunk(input, decoder, counted);
    compressed += read;
    isMore = read > 1;
  }
  if ((await take(input, (4 - (compressed % 4)) % 4)).some((byte) => byte !== 0)) throw broken();
  const expected = check.digest();
  if (!(await take(input, expected.length)).equals(expected)) throw broken();
  if ((told.compressed ?? compressed) !== compressed || (told.uncompressed ?? uncompressed) !== uncompressed)
    throw broken();
  return { unpadded: headerBytes + compressed + expected.length, uncompressed };
}

function readBlockHeader(header: Buffer) {
  if (crc32(header.subarray(0, -4)) !== header.readUInt32LE(header.length - 4)) throw broken();
  const flags = header[1] as number;
  const numbers = new Numbers(header, 2);
  const compressed = (flags & 0x40) === 0 ? undefined : numbers.next();
  const uncompressed = (flags & 0x80) === 0 ? undefined : numbers.next();
  const filter = numbers.next();
  if ((flags & 0x03) !== 0 || filter !== LZMA2)
    throw new ImageError("it cannot be decompressed: the xz data has filters for programs; compress it without");
  const bits = numbers.next() === 1 ? numbers.next() : 255;
  if (header.subarray(numbers.position, -4).some((byte) => byte !== 0)) throw broken();
  if ((flags & 0x3c) !== 0 || bits > 40) throw broken();
  const size = bits === 40 ? 2 ** 32 - 1 : (2 | (bits & 1)) * 2 ** ((bits >> 1) + 11);
  if (size > MAX_DICTIONARY_BYTES)
    throw new ImageError(`it cannot be decompressed: the xz data needs ${formatBytes(size)} of memory`);
  return { compressed, uncompressed, dictionaryBytes: size };
}

/** Reads one chunk of LZMA2. @returns How long it was; 1 is the last one. */
function readChunk(input: InputWindow, decoder: Lzma2Decoder, consume: (chunk: Buffer) => void): number {
  const start = input.position;
  const data = input.buffer.subarray(start, input.end);
  const control = data[0];
  if (control === undefined) throw broken();
  if (control === 0) {
    input.position++;
    return 1;
  }
  if (control > 2 && control < 0x80) throw broken();
  const headerBytes = control < 0x80 ? 3 : control < 0xc0 ? 5 : 6;
  if (data.length < headerBytes) throw broken();
  const size = data.readUInt16BE(1) + 1;
  const isCopy = control < 0x80;
  const bytes = isCopy ? size : data.readUInt16BE(3) + 1;
  const content = data.subarray(headerBytes, headerBytes + bytes);
  if (content.length < bytes) throw broken();
  if (isCopy) decoder.copy(control, content, consume);
  else {
    const properties = headerBytes === 6 ? data[5] : undefined;
    decoder.decode({ control, properties, data: content, size: ((control & 0x1f) << 16) + size }, consume);
  }
  input.position += headerBytes + bytes;
  return headerBytes + bytes;
}

/** Reads what the stream says of its blocks, which must be what they were. @returns Its length. */
async function readIndex(
  input: InputWindow,
  { count, digest }: { readonly count: number; readonly digest: string },
): Promise<number> {
  // A block has two numbers of nine bytes at most.
  const most = 1 + 9 + count * 18 + 3 + 4;
  await input.ensure(most);
  const start = input.position;
  const data = input.buffer.subarray(start, Math.min(input.end, start + most));
  const numbers = new Numbers(data, 1);
  if (numbers.next() !== count) throw broken();
  const index = createHash("sha256");
  for (let each = 0; each < count; each++) index.update(`${numbers.next()} ${numbers.next()}\n`);
  const padded = Math.ceil(numbers.position / 4) * 4;
  if (index.digest("hex") !== digest || data.length < padded + 4) throw broken();
  if (data.subarray(numbers.position, padded).some((byte) => byte !== 0)) throw broken();
  if (crc32(data.subarray(0, padded)) !== data.readUInt32LE(padded)) throw broken();
  input.position = start + padded + 4;
  return padded + 4;
}

/** Numbers of as many bytes as they need, seven bits in each. */
class Numbers {
  readonly #data: Buffer;
  position: number;

  constructor(data: Buffer, position: number) {
    this.#data = data;
    this.position = position;
  }

  next(): number {
    let value = 0;
    for (let at = 0; at < 9; at++) {
      const byte = this.#data[this.position++];
      if (byte === undefined || (byte === 0 && at > 0)) throw broken();
      value += (byte & 0x7f) * 2 ** (7 * at);
      if (byte < 0x80) {
        if (value > Number.MAX_SAFE_INTEGER) throw broken();
        return value;
      }
    }
    throw broken();
  }
}

/** CRC-64 of ECMA-182, in two halves. */
class Crc64 implements Check {
  #high = -1;
  #low = -1;

  update(chunk: Buffer): void {
    let high = this.#high;
    let low = this.#low;
    for (let at = 0; at < chunk.length; at++) {
      const entry = ((low ^ (chunk[at] as number)) & 0xff) << 1;
      low = ((low >>> 8) | (high << 24)) ^ (crc64Table[entry] as number);
      high = (high >>> 8) ^ (crc64Table[entry + 1] as number);
    }
    this.#high = high;
    this.#low = low;
  }

  digest(): Buffer {
    const bytes = Buffer.alloc(8);
    bytes.writeInt32LE(~this.#low);
    bytes.writeInt32LE(~this.#high, 4);
    return bytes;
  }
}

/** The low and the high half of each byte's. */
const crc64Table = new Int32Array(512);
for (let byte = 0; byte < 256; byte++) {
  let value = BigInt(byte);
  for (let bit = 0; bit < 8; bit++) value = (value & 1n) === 1n ? (value >> 1n) ^ 0xc96c_5795_d787_0f42n : value >> 1n;
  crc64Table[byte * 2] = Number(BigInt.asIntN(32, value));
  crc64Table[byte * 2 + 1] = Number(BigInt.asIntN(32, value >> 32n));
}

async function take(input: InputWindow, bytes: number): Promise<Buffer> {
  if ((await input.ensure(bytes)) < bytes) throw broken();
  const taken = Buffer.from(input.buffer.subarray(input.position, input.position + bytes));
  input.position += bytes;
  return taken;
}
