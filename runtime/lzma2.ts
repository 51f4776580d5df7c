/**
 * Decodes LZMA2, the compression in xz files.
 *
 * @see {@link https://www.7-zip.org/sdk.html} LzmaSpec.cpp, whose names the tables have.
 */
import { ImageError } from "./image-error.ts";

const STATES = 12;
const POS_STATES = 16;
const HALF = 1024;
const END_POS_MODEL = 14;
const ALIGN_BITS = 4;
const MATCH_MIN = 2;

/** Where each table of probabilities begins in the one array that has them all. */
const IS_MATCH = 0;
const IS_REP = IS_MATCH + STATES * POS_STATES;
const IS_REP_G0 = IS_REP + STATES;
const IS_REP_G1 = IS_REP_G0 + STATES;
const IS_REP_G2 = IS_REP_G1 + STATES;
const IS_REP0_LONG = IS_REP_G2 + STATES;
const POS_SLOT = IS_REP0_LONG + STATES * POS_STATES;
const POS_DECODERS = POS_SLOT + 4 * 64;
const ALIGN = POS_DECODERS + 1 + 128 - END_POS_MODEL;
const LEN = ALIGN + 16;
const LEN_LOW = 2;
const LEN_MID = LEN_LOW + POS_STATES * 8;
const LEN_HIGH = LEN_MID + POS_STATES * 8;
const LEN_SIZE = LEN_HIGH + 256;
const REP_LEN = LEN + LEN_SIZE;
const LITERAL = REP_LEN + LEN_SIZE;
/** `lc + lp` is at most 4 in LZMA2. */
const PROBS = LITERAL + (0x300 << 4);

/** The decoder of one block: its dictionary, and what is kept from one chunk to the next. */
export class Lzma2Decoder {
  readonly #dictionary: Uint8Array;
  readonly #probs = new Uint16Array(PROBS);
  /** The range coder's range and code: numbers of 32 bits without a sign, which fields would not hold as such. */
  readonly #coder = new Uint32Array(2);
  #input: Uint8Array = new Uint8Array(0);
  #at = 0;
  /** Where the next byte goes. */
  #position = 0;
  /** How many bytes have been written since the dictionary was empty; at most its size counts. */
  #written = 0;
  #state = 0;
  #reps = [0, 0, 0, 0];
  #lc = 0;
  #lp = 0;
  #pb = 0;
  #needsDictionary = true;
  #needsProperties = true;
  #needsState = true;

  /** @param dictionary At least as large as anything may refer back; what is in it does not matter. */
  constructor(dictionary: Uint8Array) {
    this.#dictionary = dictionary;
  }

  /** Copies a chunk that is not compressed. @param control Its first byte: 1 or 2. */
  copy(control: number, data: Uint8Array, consume: (chunk: Buffer) => void): void {
    if (control === 1) this.#forgetDictionary();
    else if (this.#needsDictionary) throw broken();
    const size = this.#dictionary.length;
    for (let from = 0; from < data.length; ) {
      const length = Math.min(data.length - from, size - this.#position);
      this.#dictionary.set(data.subarray(from, from + length), this.#position);
      this.#advance(length, consume);
      from += length;
    }
  }

  /**
   * Decodes a chunk.
   *
   * @param control Its first byte, from 0x80 on.
   * @param properties Its byte of properties, if it has one.
   * @param data What is compressed.
   * @param size How many bytes that become.
   */
  decode(
    {
      control,
      properties,
      data,
      size,
    }: {
      readonly control: number;
      readonly properties: number | undefined;
      readonly data: Uint8Array;
      readonly size: number;
    },
    consume: (chunk: Buffer) => void,
  ): void {
    if (control >= 0xe0) this.#forgetDictionary();
    else if (this.#needsDictionary) throw broken();
    if (properties !== undefined) this.#setProperties(properties);
    else if (this.#needsProperties) throw broken();
    if (control >= 0xa0) this.#resetState();
    else if (this.#needsState) throw broken();
    if (data.length < 5 || data[0] !== 0) throw broken();
    this.#input = data;
    this.#at = 5;
    this.#coder[0] = 0xffff_ffff;
    this.#coder[1] =
      (((data[1] as number) << 24) | ((data[2] as number) << 16) | ((data[3] as number) << 8) | (data[4] as number)) >>>
      0;
    this.#symbols(size, consume);
    if (this.#at !== data.length || this.#coder[1] !== 0) throw broken();
  }

  #forgetDictionary(): void {
    this.#written = 0;
    this.#needsDictionary = false;
    this.#needsState = true;
  }

  #setProperties(byte: number): void {
    if (byte >= 9 * 5 * 5) throw broken();
    this.#lc = byte % 9;
    this.#lp = Math.floor(byte / 9) % 5;
    this.#pb = Math.floor(byte / 45);
    if (this.#lc + this.#lp > 4) throw broken();
    this.#needsProperties = false;
  }

  #resetState(): void {
    this.#probs.fill(HALF);
    this.#state = 0;
    this.#reps = [0, 0, 0, 0];
    this.#needsState = false;
  }

  /** Hands on what has been written into the dictionary, which does not wrap around within it. */
  #advance(length: number, consume: (chunk: Buffer) => void): void {
    const { buffer, byteOffset } = this.#dictionary;
    const start = this.#position;
    this.#position += length;
    this.#written += length;
    if (this.#position === this.#dictionary.length) this.#position = 0;
    if (length > 0) consume(Buffer.from(buffer as ArrayBuffer, byteOffset + start, length));
  }

  #symbols(size: number, consume: (chunk: Buffer) => void): void {
    const dictionary = this.#dictionary;
    const reps = this.#reps;
    const posMask = (1 << this.#pb) - 1;
    let start = this.#position;
    let position = start;
    let written = this.#written;
    let left = size;
    let state = this.#state;
    const wrap = () => {
      this.#advance(position - start, consume);
      start = this.#position;
      position = start;
    };
    while (left > 0) {
      const posState = written & posMask;
      if (this.#bit(IS_MATCH + (state << 4) + posState) === 0) {
        dictionary[position] = this.#literal(written, position, state);
        state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
        position++;
        written++;
        left--;
        if (position === dictionary.length) wrap();
        continue;
      }
      let length: number;
      if (this.#bit(IS_REP + state) === 0) {
        reps[3] = reps[2] as number;
        reps[2] = reps[1] as number;
        reps[1] = reps[0] as number;
        length = this.#length(LEN, posState);
        state = state < 7 ? 7 : 10;
        reps[0] = this.#distance(length);
      } else {
        if (this.#bit(IS_REP_G0 + state) === 0) {
          if (this.#bit(IS_REP0_LONG + (state << 4) + posState) === 0) {
            state = state < 7 ? 9 : 11;
            length = 1 - MATCH_MIN;
          } else length = this.#length(REP_LEN, posState);
        } else {
          let distance: number;
          if (this.#bit(IS_REP_G1 + state) === 0) distance = reps[1] as number;
          else {
            if (this.#bit(IS_REP_G2 + state) === 0) distance = reps[2] as number;
            else {
              distance = reps[3] as number;
              reps[3] = reps[2] as number;
            }
            reps[2] = reps[1] as number;
          }
          reps[1] = reps[0] as number;
          reps[0] = distance;
          length = this.#length(REP_LEN, posState);
        }
        if (length >= 0) state = state < 7 ? 8 : 11;
      }
      length += MATCH_MIN;
      const distance = (reps[0] as number) + 1;
      if (distance > written || distance > dictionary.length || length > left) throw broken();
      let from = position - distance;
      if (from < 0) from += dictionary.length;
      left -= length;
      written += length;
      for (; length > 0; length--) {
        dictionary[position++] = dictionary[from++] as number;
        if (from === dictionary.length) from = 0;
        if (position === dictionary.length) wrap();
      }
    }
    this.#state = state;
    // `#advance` counts what has been written.
    this.#advance(position - start, consume);
  }

  #normalize(): void {
    const coder = this.#coder;
    if ((coder[0] as number) >= 0x100_0000) return;
    if (this.#at >= this.#input.length) throw broken();
    coder[0] = (coder[0] as number) << 8;
    coder[1] = ((coder[1] as number) << 8) | (this.#input[this.#at++] as number);
  }

  #bit(index: number): 0 | 1 {
    const coder = this.#coder;
    const probs = this.#probs;
    const probability = probs[index] as number;
    const bound = ((coder[0] as number) >>> 11) * probability;
    let bit: 0 | 1;
    if ((coder[1] as number) < bound) {
      coder[0] = bound;
      probs[index] = probability + ((2048 - probability) >> 5);
      bit = 0;
    } else {
      coder[0] = (coder[0] as number) - bound;
      coder[1] = (coder[1] as number) - bound;
      probs[index] = probability - (probability >> 5);
      bit = 1;
    }
    this.#normalize();
    return bit;
  }

  #direct(bits: number): number {
    const coder = this.#coder;
    let value = 0;
    for (let left = bits; left > 0; left--) {
      const half = (coder[0] as number) >>> 1;
      coder[0] = half;
      const bit = (coder[1] as number) >= half ? 1 : 0;
      if (bit === 1) coder[1] = (coder[1] as number) - half;
      value = value * 2 + bit;
      this.#normalize();
    }
    return value;
  }

  #tree(start: number, bits: number): number {
    let symbol = 1;
    for (let left = bits; left > 0; left--) symbol = (symbol << 1) | this.#bit(start + symbol);
    return symbol - (1 << bits);
  }

  #reverseTree(start: number, bits: number): number {
    let index = 1;
    let symbol = 0;
    for (let at = 0; at < bits; at++) {
      const bit = this.#bit(start + index);
      index = (index << 1) | bit;
      symbol |= bit << at;
    }
    return symbol;
  }

  #literal(written: number, position: number, state: number): number {
    const dictionary = this.#dictionary;
    const back = (distance: number) => {
      const from = position - distance;
      return dictionary[from < 0 ? from + dictionary.length : from] as number;
    };
    const before = written > 0 ? back(1) : 0;
    const table = LITERAL + 0x300 * (((written & ((1 << this.#lp) - 1)) << this.#lc) + (before >> (8 - this.#lc)));
    let symbol = 1;
    if (state >= 7) {
      const distance = (this.#reps[0] as number) + 1;
      if (distance > written || distance > dictionary.length) throw broken();
      let matched = back(distance);
      while (symbol < 0x100) {
        const matchBit = (matched >> 7) & 1;
        matched <<= 1;
        const bit = this.#bit(table + ((1 + matchBit) << 8) + symbol);
        symbol = (symbol << 1) | bit;
        if (matchBit !== bit) break;
      }
    }
    while (symbol < 0x100) symbol = (symbol << 1) | this.#bit(table + symbol);
    return symbol - 0x100;
  }

  #length(table: number, posState: number): number {
    if (this.#bit(table) === 0) return this.#tree(table + LEN_LOW + (posState << 3), 3);
    if (this.#bit(table + 1) === 0) return 8 + this.#tree(table + LEN_MID + (posState << 3), 3);
    return 16 + this.#tree(table + LEN_HIGH, 8);
  }

  #distance(length: number): number {
    const slot = this.#tree(POS_SLOT + (Math.min(length, 3) << 6), 6);
    if (slot < 4) return slot;
    const bits = (slot >> 1) - 1;
    const base = (2 | (slot & 1)) * 2 ** bits;
    if (slot < END_POS_MODEL) return base + this.#reverseTree(POS_DECODERS + base - slot, bits);
    return base + this.#direct(bits - ALIGN_BITS) * 16 + this.#reverseTree(ALIGN, ALIGN_BITS);
  }
}

/** Of any part of an xz file. */
export function broken(): ImageError {
  return new ImageError("it cannot be decompressed: the xz data is broken or truncated");
}
