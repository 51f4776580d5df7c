/** Reads a step's log from its spool, in the pieces that are sent to the server. */
import { type FileHandle, open } from "node:fs/promises";
import { logRecordBytes } from "../queue/index.ts";

const indexBlockRecords = 4096;
/** A step that alternates between its streams byte by byte has more index than log. */
const maxChunkRecords = 16_384;

/** How much of a spool may be read; see `StepLog`. */
export interface SpoolLength {
  readonly spooledBytes: number;
  readonly spooledRecords: number;
}

/**
 * Reads a spool that may still grow.
 *
 * Going on from where the last piece ended is cheap; any other offset is found by going through the index from its beginning.
 */
export class SpoolReader implements AsyncDisposable {
  readonly #path: string;
  #files: { readonly spool: FileHandle; readonly index: FileHandle } | undefined;
  /** The record that `#recordOffset` is the beginning of. */
  #record = 0;
  #recordOffset = 0;
  #buffer = Buffer.alloc(0);
  #block = Buffer.alloc(0);
  #blockStart = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /**
   * Makes the body of a log PUT out of what follows `offset`, as much as there is and fits.
   *
   * @returns The body, valid until the next call, and how many bytes of log are in it.
   */
  async read(
    offset: number,
    length: SpoolLength,
    maxBytes: number,
  ): Promise<{ readonly body: Buffer; readonly lengthBytes: number }> {
    this.#files ??= { spool: await open(this.#path, "r"), index: await open(`${this.#path}.idx`, "r") };
    const wanted = Math.min(maxBytes, length.spooledBytes - offset);
    const records = await this.#records(offset, wanted, length.spooledRecords);
    const lengthBytes = records.reduce((sum, { bytes }) => sum + bytes, 0);
    const head = 4 + records.length * logRecordBytes;
    if (this.#buffer.length < head + lengthBytes) this.#buffer = Buffer.allocUnsafe(head + lengthBytes);
    const body = this.#buffer.subarray(0, head + lengthBytes);
    body.writeUInt32LE(records.length, 0);
    for (const [at, { bytes, stream, timeMs }] of records.entries()) {
      body.writeUInt32LE(bytes, 4 + at * logRecordBytes);
      body.writeUInt32LE(stream, 8 + at * logRecordBytes);
      body.writeDoubleLE(timeMs, 12 + at * logRecordBytes);
    }
    for (let at = 0; at < lengthBytes; ) {
      const { bytesRead } = await this.#files.spool.read(body, head + at, lengthBytes - at, offset + at);
      if (bytesRead === 0) throw new Error(`Cannot read the log "${this.#path}": it is shorter than its index says`);
      at += bytesRead;
    }
    return { body, lengthBytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const files = this.#files;
    this.#files = undefined;
    await files?.spool.close();
    await files?.index.close();
  }

  /** The records of `wanted` bytes from `offset` on, the first and the last cut to fit. */
  async #records(
    offset: number,
    wanted: number,
    spooledRecords: number,
  ): Promise<{ bytes: number; stream: number; timeMs: number }[]> {
    if (offset < this.#recordOffset) {
      this.#record = 0;
      this.#recordOffset = 0;
    }
    const records: { bytes: number; stream: number; timeMs: number }[] = [];
    for (let at = offset; at < offset + wanted && records.length < maxChunkRecords && this.#record < spooledRecords; ) {
      const entry = await this.#entry(this.#record, spooledRecords);
      const length = entry.readUInt32LE(0);
      const end = this.#recordOffset + length;
      if (end > at) {
        const bytes = Math.min(end, offset + wanted) - at;
        records.push({ bytes, stream: entry.readUInt32LE(4), timeMs: entry.readDoubleLE(8) });
        at += bytes;
        if (at < end) break;
      }
      this.#record++;
      this.#recordOffset = end;
    }
    return records;
  }

  async #entry(record: number, spooledRecords: number): Promise<Buffer> {
    const blockEnd = this.#blockStart + this.#block.length / logRecordBytes;
    if (record < this.#blockStart || record >= blockEnd) {
      const count = Math.min(indexBlockRecords, spooledRecords - record);
      const block = Buffer.allocUnsafe(count * logRecordBytes);
      const { bytesRead } = await this.#files!.index.read(block, 0, block.length, record * logRecordBytes);
      this.#block = block.subarray(0, bytesRead - (bytesRead % logRecordBytes));
      this.#blockStart = record;
      if (this.#block.length === 0) throw new Error(`Cannot read the log "${this.#path}": its index is too short`);
    }
    const at = (record - this.#blockStart) * logRecordBytes;
    return this.#block.subarray(at, at + logRecordBytes);
  }
}
