/** Decompresses bzip2, which archives that ADD unpacks are compressed with now and then. Node.js knows no bzip2. */
import { ImageError } from "./image-error.ts";
import { InputWindow } from "./input-window.ts";

/** What no block of 900 000 bytes is longer than, however badly it compresses (an intermediate form may have 25 % more). */
const MAX_BLOCK_BYTES = 1_300_000;
const BLOCK_MAGIC = 0x314159265359;
const END_MAGIC = 0x177245385090;
const MAX_CODE_LENGTH = 20;
const GROUP_SIZE = 50;

/**
 * Decompresses one stream after the other, as bzip2(1) does; what stands behind them is left.
 *
 * @param consume Each chunk is valid until it returns.
 * @throws {ImageError} If the data is broken. What `chunks` and `consume` throw.
 */
export async function decompressBzip2(chunks: AsyncIterable<Buffer>, consume: (chunk: Buffer) => void): Promise<void> {
  const input = new InputWindow(chunks);
  for (let streams = 0; (await input.ensure(4)) >= 4 || streams === 0; streams++) {
    if (input.end - input.position < 4) throw broken();
    const level = (input.buffer[input.position + 3] as number) - 0x30;
    const isStream = input.buffer.toString("latin1", input.position, input.position + 3) === "BZh";
    if (!isStream || level < 1 || level > 9) {
      if (streams === 0) throw broken();
      break;
    }
    input.position += 4;
    await readStream(input, level * 100_000, consume);
  }
  await input.drain();
}

async function readStream(input: InputWindow, blockSize: number, consume: (chunk: Buffer) => void): Promise<void> {
  const block = new Block(blockSize);
  const bits = new BitReader(input);
  let combined = 0;
  for (;;) {
    await input.ensure(MAX_BLOCK_BYTES);
    const magic = bits.read(24) * 2 ** 24 + bits.read(24);
    const crc = ((bits.read(16) << 16) | bits.read(16)) >>> 0;
    if (magic === END_MAGIC) {
      if (crc !== combined) throw broken();
      bits.align();
      return;
    }
    if (magic !== BLOCK_MAGIC) throw broken();
    block.read(bits);
    if (block.write(consume) !== crc) throw broken();
    combined = (((combined << 1) | (combined >>> 31)) ^ crc) >>> 0;
  }
}

/** Bits of what an `InputWindow` has at hand, most significant first. */
class BitReader {
  readonly #input: InputWindow;
  #bits = 0;
  #count = 0;

  constructor(input: InputWindow) {
    this.#input = input;
  }

  /** @param count At most 24. */
  read(count: number): number {
    while (this.#count < count) {
      const input = this.#input;
      if (input.position >= input.end) throw broken();
      // No more than 31 bits: a byte joins 23 at most.
      this.#bits = ((this.#bits << 8) | (input.buffer[input.position++] as number)) & 0x7fff_ffff;
      this.#count += 8;
    }
    this.#count -= count;
    const value = this.#bits >>> this.#count;
    this.#bits &= (1 << this.#count) - 1;
    return value;
  }

  /** Leaves out what is left of a byte. */
  align(): void {
    this.#count = 0;
    this.#bits = 0;
  }
}

/** A Huffman code, for decoding bit by bit: the last code of each length, and what stands for those below it. */
interface Code {
  readonly limits: Int32Array;
  readonly offsets: Int32Array;
  readonly symbols: Uint16Array;
  readonly least: number;
}

class Block {
  readonly #size: number;
  /** The last column of the sorted rotations in the low bytes; then also where the next row is, shifted by 8. */
  readonly #rows: Uint32Array;
  readonly #output = Buffer.alloc(1 << 16);
  #length = 0;
  #origin = 0;

  constructor(size: number) {
    this.#size = size;
    this.#rows = new Uint32Array(size);
  }

  read(bits: BitReader): void {
    // Blocks of randomized rotations have not been written since 1997.
    if (bits.read(1) !== 0) throw broken();
    this.#origin = bits.read(24);
    const used = readUsedBytes(bits);
    const groups = bits.read(3);
    const selectorCount = bits.read(15);
    if (groups < 2 || groups > 6 || selectorCount === 0 || used.length === 0) throw broken();
    const selectors = readSelectors(bits, { groups, count: selectorCount });
    const codes = Array.from({ length: groups }, () => readCode(bits, used.length + 2));
    this.#decode(bits, { used, selectors, codes });
    if (this.#origin >= this.#length) throw broken();
  }

  #decode(
    bits: BitReader,
    tables: { readonly used: Uint8Array; readonly selectors: Uint8Array; readonly codes: readonly Code[] },
  ): void {
    const { selectors, codes } = tables;
    const front = Uint8Array.from(tables.used);
    const end = front.length + 1;
    const rows = this.#rows;
    let length = 0;
    let run = 0;
    let weight = 1;
    for (let at = 0, left = 0, group = 0; ; left--) {
      if (left === 0) {
        if (group >= selectors.length) throw broken();
        at = selectors[group++] as number;
        left = GROUP_SIZE;
      }
      const symbol = readSymbol(bits, codes[at] as Code);
      if (symbol <= 1) {
        if (weight > this.#size) throw broken();
        run += weight << symbol;
        weight *= 2;
        continue;
      }
      if (run > 0) {
        if (length + run > this.#size) throw broken();
        rows.fill(front[0] as number, length, length + run);
        length += run;
        run = 0;
        weight = 1;
      }
      if (symbol === end) break;
      const index = symbol - 1;
      const byte = front[index] as number;
      front.copyWithin(1, 0, index);
      front[0] = byte;
      if (length >= this.#size) throw broken();
      rows[length++] = byte;
    }
    this.#length = length;
  }

  /** Writes what the rotations were made of. @returns Its checksum. */
  write(consume: (chunk: Buffer) => void): number {
    const rows = this.#rows;
    const length = this.#length;
    const starts = new Int32Array(256);
    for (let at = 0; at < length; at++) starts[(rows[at] as number) & 0xff]!++;
    for (let byte = 0, sum = 0; byte < 256; byte++) {
      const count = starts[byte] as number;
      starts[byte] = sum;
      sum += count;
    }
    for (let at = 0; at < length; at++) {
      const to = starts[(rows[at] as number) & 0xff]!++;
      rows[to] = ((rows[to] as number) & 0xff) | (at << 8);
    }
    const output = this.#output;
    let filled = 0;
    let crc = -1;
    let row = (rows[this.#origin] as number) >>> 8;
    let same = 0;
    let last = -1;
    for (let left = length; left > 0; left--) {
      const entry = rows[row] as number;
      row = entry >>> 8;
      let value = entry & 0xff;
      let times = 1;
      if (same === 4) {
        // Four equal bytes are followed by how many more there are.
        times = value;
        value = last;
        same = 0;
        last = -1;
      } else {
        same = value === last ? same + 1 : 1;
        last = value;
      }
      for (; times > 0; times--) {
        output[filled++] = value;
        crc = (crc << 8) ^ (crcTable[(crc >>> 24) ^ value] as number);
        if (filled === output.length) {
          consume(output);
          filled = 0;
        }
      }
    }
    if (filled > 0) consume(output.subarray(0, filled));
    return ~crc >>> 0;
  }
}

/** The bytes that a block has, in their order. */
function readUsedBytes(bits: BitReader): Uint8Array {
  const ranges = bits.read(16);
  const used: number[] = [];
  for (let range = 0; range < 16; range++) {
    if (((ranges >>> (15 - range)) & 1) === 0) continue;
    const map = bits.read(16);
    for (let bit = 0; bit < 16; bit++) if (((map >>> (15 - bit)) & 1) === 1) used.push(range * 16 + bit);
  }
  return Uint8Array.from(used);
}

/** Which code each fifty symbols are written in. */
function readSelectors(
  bits: BitReader,
  { groups, count }: { readonly groups: number; readonly count: number },
): Uint8Array {
  const front = Uint8Array.from({ length: groups }, (_, index) => index);
  return Uint8Array.from({ length: count }, () => {
    let index = 0;
    while (bits.read(1) === 1) if (++index >= groups) throw broken();
    const selector = front[index] as number;
    front.copyWithin(1, 0, index);
    front[0] = selector;
    return selector;
  });
}

function readCode(bits: BitReader, symbolCount: number): Code {
  const lengths = new Uint8Array(symbolCount);
  let length = bits.read(5);
  for (let symbol = 0; symbol < symbolCount; symbol++) {
    for (;;) {
      if (length < 1 || length > MAX_CODE_LENGTH) throw broken();
      if (bits.read(1) === 0) break;
      length += bits.read(1) === 0 ? 1 : -1;
    }
    lengths[symbol] = length;
  }
  const counts = new Int32Array(MAX_CODE_LENGTH + 2);
  for (const each of lengths) counts[each]!++;
  const limits = new Int32Array(MAX_CODE_LENGTH + 2).fill(-1);
  const offsets = new Int32Array(MAX_CODE_LENGTH + 2);
  let least = MAX_CODE_LENGTH;
  for (let each = 1, code = 0, sum = 0; each <= MAX_CODE_LENGTH; each++) {
    const count = counts[each] as number;
    if (count > 0) least = Math.min(least, each);
    offsets[each] = sum - code;
    code += count;
    sum += count;
    limits[each] = code - 1;
    code <<= 1;
  }
  const symbols = new Uint16Array(symbolCount);
  for (let each = 1, at = 0; each <= MAX_CODE_LENGTH; each++) {
    for (let symbol = 0; symbol < symbolCount; symbol++) if (lengths[symbol] === each) symbols[at++] = symbol;
  }
  return { limits, offsets, symbols, least };
}

function readSymbol(bits: BitReader, { limits, offsets, symbols, least }: Code): number {
  let code = bits.read(least);
  for (let length = least; length <= MAX_CODE_LENGTH; length++) {
    if (code <= (limits[length] as number)) {
      const symbol = symbols[code + (offsets[length] as number)];
      if (symbol === undefined) throw broken();
      return symbol;
    }
    code = (code << 1) | bits.read(1);
  }
  throw broken();
}

/** CRC-32 with the most significant bit first. */
const crcTable = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c1_1db7 : crc << 1;
  return crc;
});

function broken(): ImageError {
  return new ImageError("it cannot be decompressed: the bzip2 data is broken or truncated");
}
