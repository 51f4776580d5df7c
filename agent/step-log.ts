/** The log of one step: masks what comes in and appends it to a spool file and its index. */
import { open, type FileHandle } from "node:fs/promises";
import { logRecordBytes, type LogStream } from "../queue/index.ts";
import { asError } from "./cause.ts";
import { Masker, type SecretIndex } from "./masker.ts";

/** One run of masked bytes, as it enters the log; valid during the call only. */
export type LogTap = (stream: LogStream, bytes: Uint8Array, timeMs: number) => void;

export interface StepLogOptions {
  /** The spool file; its index is beside it as `<path>.idx`. Neither is made before there is output. Without: no spool. */
  readonly path?: string;
  readonly secrets?: SecretIndex | undefined;
  /** @default 1 GiB */
  readonly limitBytes?: number;
  readonly tap?: LogTap;
}

const segmentBytes = 1024 * 1024;
const segmentRecords = 4096;
/** Output that dribbles is written this often; output after a pause, and a lot of it, at once. */
const flushIntervalMs = 10;
const flushAtOnceBytes = 256 * 1024;
/** So many segments may wait for the disk before the step must wait too. */
const waitingSegments = 2;

/** A piece of log on its way to the disk. */
interface Segment {
  readonly bytes: Buffer;
  length: number;
  readonly records: Buffer;
  recordCount: number;
}

/** Segments are taken and given back by all logs of the process: a busy agent allocates none. */
const spareSegments: Segment[] = [];

/**
 * The log of one step.
 *
 * The spool holds the masked bytes, the index a record `{ u32le length, u32le stream, f64le timeMs }` for each run of bytes of
 * one stream and millisecond, as in queue/protocol.ts; the index is never ahead of the spool. What is written is kept in
 * memory (two buffers of 1 MiB) until the disk took it; `write` answers `false` when both are full and `onDrain` follows.
 */
export class StepLog {
  readonly path: string | undefined;
  /** Called when `write` may be called again after it answered `false`. */
  onDrain: (() => void) | undefined;
  /** Called once, when the limit is reached; nothing that is written from then on is kept. */
  onFull: (() => void) | undefined;
  /** Called whenever `spooledBytes` has grown, and once at the end. */
  onSpooled: (() => void) | undefined;

  readonly #options: StepLogOptions;
  readonly #limitBytes: number;
  readonly #maskers: readonly [undefined, Masker | undefined, Masker | undefined];
  readonly #waiting: Segment[] = [];
  #segment: Segment | undefined;
  #lengthBytes = 0;
  #spooledBytes = 0;
  #spooledRecords = 0;
  #limitReached = false;
  #closed = false;
  #paused = false;
  #writing: Promise<void> | undefined;
  #flushTimer: NodeJS.Timeout | undefined;
  #flushImmediate: NodeJS.Immediate | undefined;
  #flushedAtMs = 0;
  #error: Error | undefined;
  #files: { readonly spool: FileHandle; readonly index: FileHandle } | undefined;

  constructor(options: StepLogOptions) {
    this.path = options.path;
    this.#options = options;
    this.#limitBytes = options.limitBytes ?? 1024 ** 3;
    const masker = () => (options.secrets === undefined ? undefined : new Masker(options.secrets));
    this.#maskers = [undefined, masker(), masker()];
  }

  /** Length of the log, what the disk has not taken yet included. */
  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** Length of the log that can be read from the spool; `spooledRecords` records say what it is. */
  get spooledBytes(): number {
    return this.#spooledBytes;
  }

  get spooledRecords(): number {
    return this.#spooledRecords;
  }

  /** Nothing is written any more; what was, is in the spool. */
  get closed(): boolean {
    return this.#closed && this.#writing === undefined;
  }

  /** Takes all of `chunk` (copied) and answers whether more is welcome; `onDrain` follows a `false`. */
  write(stream: 1 | 2, chunk: Uint8Array, timeMs: number = Date.now()): boolean {
    if (this.#limitReached || this.#error !== undefined || this.#closed) return true;
    const masker = this.#maskers[stream];
    if (masker === undefined) this.#append(stream, chunk, timeMs);
    else masker.write(chunk, (bytes) => this.#append(stream, bytes, timeMs));
    this.#scheduleFlush();
    this.#paused = this.#waiting.length >= waitingSegments;
    return !this.#paused;
  }

  /** Adds lines of Slipway's own to the log. */
  note(text: string, timeMs: number = Date.now()): void {
    if (this.#closed) return;
    const parts: Uint8Array[] = [];
    const masker = this.#options.secrets === undefined ? undefined : new Masker(this.#options.secrets);
    const bytes = Buffer.from(text.endsWith("\n") ? text : `${text}\n`);
    masker?.write(bytes, (part) => parts.push(Buffer.from(part)));
    masker?.end((part) => parts.push(Buffer.from(part)));
    this.#keep(0, masker === undefined ? bytes : Buffer.concat(parts), timeMs);
    this.#scheduleFlush();
  }

  /**
   * Ends the log: what masking held back is written, and everything is in the spool when the promise resolves.
   *
   * @throws {Error} If the spool could not be written; the log then ends before that.
   */
  async close(): Promise<void> {
    if (!this.#closed) {
      for (const stream of [1, 2] as const) {
        this.#maskers[stream]?.end((bytes) => this.#append(stream, bytes, Date.now()));
      }
      this.#closed = true;
    }
    do {
      this.#flush();
      await this.#writing;
    } while (this.#segment !== undefined || this.#waiting.length > 0 || this.#files !== undefined);
    this.onSpooled?.();
    if (this.#error !== undefined) throw this.#error;
  }

  #append(stream: LogStream, bytes: Uint8Array, timeMs: number): void {
    if (this.#limitReached) return;
    const room = this.#limitBytes - this.#lengthBytes;
    if (bytes.length <= room) return this.#keep(stream, bytes, timeMs);
    this.#limitReached = true;
    this.#keep(stream, bytes.subarray(0, room), timeMs);
    this.#keep(
      0,
      Buffer.from(`\nlog limit of ${formatBytes(this.#limitBytes)} reached; the rest is not kept\n`),
      timeMs,
    );
    this.onFull?.();
  }

  #keep(stream: LogStream, bytes: Uint8Array, timeMs: number): void {
    if (bytes.length === 0 || this.#error !== undefined) return;
    this.#options.tap?.(stream, bytes, timeMs);
    this.#lengthBytes += bytes.length;
    if (this.path === undefined) return;
    for (let at = 0; at < bytes.length; ) {
      const segment = (this.#segment ??= takeSegment());
      const length = Math.min(bytes.length - at, segmentBytes - segment.length);
      segment.bytes.set(bytes.subarray(at, at + length), segment.length);
      segment.length += length;
      addRecord(segment, length, stream, timeMs);
      at += length;
      if (segment.length === segmentBytes || segment.recordCount === segmentRecords) {
        this.#waiting.push(segment);
        this.#segment = undefined;
      }
    }
  }

  #scheduleFlush(): void {
    if (this.#writing !== undefined || this.#flushImmediate !== undefined) return;
    if (this.#segment === undefined && this.#waiting.length === 0) return;
    const delayMs = this.#flushedAtMs + flushIntervalMs - performance.now();
    if (delayMs <= 0 || this.#waiting.length > 0 || (this.#segment?.length ?? 0) >= flushAtOnceBytes) {
      // What comes in this turn of the event loop goes with it.
      this.#flushImmediate = setImmediate(() => this.#flush());
    } else {
      this.#flushTimer ??= setTimeout(() => this.#flush(), delayMs);
    }
  }

  #flush(): void {
    clearTimeout(this.#flushTimer);
    this.#flushTimer = undefined;
    clearImmediate(this.#flushImmediate);
    this.#flushImmediate = undefined;
    if (this.#writing !== undefined) return;
    this.#writing = this.#drain().finally(() => {
      this.#writing = undefined;
      this.#flushedAtMs = performance.now();
      this.#scheduleFlush();
    });
  }

  /** Writes until nothing waits; on closing also the last, half-full segment, and then closes the files. */
  async #drain(): Promise<void> {
    try {
      for (let first = true; ; first = false) {
        // What came while one write ran goes out with the next, as long as it is much; dribble waits for the timer.
        if (this.#waiting.length === 0 && (first || this.#closed) && this.#segment !== undefined) {
          this.#waiting.push(this.#segment);
          this.#segment = undefined;
        }
        const segment = this.#waiting[0];
        if (segment === undefined) break;
        if (this.#error === undefined) await this.#spool(segment);
        this.#waiting.shift();
        giveBackSegment(segment);
        this.#resume();
        this.onSpooled?.();
      }
    } catch (error) {
      this.#error = new Error(`Cannot write the log "${this.path}": ${asError(error).message}`, { cause: error });
      for (const segment of this.#waiting.splice(0)) giveBackSegment(segment);
      this.#segment = undefined;
      this.#resume();
    }
    if (this.#closed) await this.#closeFiles();
  }

  async #spool(segment: Segment): Promise<void> {
    this.#files ??= { spool: await open(this.path!, "a", 0o600), index: await open(`${this.path}.idx`, "a", 0o600) };
    await writeAll(this.#files.spool, segment.bytes, segment.length);
    await writeAll(this.#files.index, segment.records, segment.recordCount * logRecordBytes);
    this.#spooledBytes += segment.length;
    this.#spooledRecords += segment.recordCount;
  }

  async #closeFiles(): Promise<void> {
    const files = this.#files;
    this.#files = undefined;
    await files?.spool.close();
    await files?.index.close();
  }

  #resume(): void {
    if (!this.#paused || this.#waiting.length >= waitingSegments) return;
    this.#paused = false;
    this.onDrain?.();
  }
}

async function writeAll(file: FileHandle, bytes: Buffer, length: number): Promise<void> {
  for (let at = 0; at < length; ) at += (await file.write(bytes, at, length - at)).bytesWritten;
}

function takeSegment(): Segment {
  const spare = spareSegments.pop();
  if (spare !== undefined) return spare;
  const bytes = Buffer.allocUnsafeSlow(segmentBytes);
  return { bytes, length: 0, records: Buffer.allocUnsafeSlow(segmentRecords * logRecordBytes), recordCount: 0 };
}

function giveBackSegment(segment: Segment): void {
  segment.length = 0;
  segment.recordCount = 0;
  if (spareSegments.length < 8) spareSegments.push(segment);
}

function addRecord(segment: Segment, length: number, stream: LogStream, timeMs: number): void {
  const { records } = segment;
  const last = (segment.recordCount - 1) * logRecordBytes;
  if (last >= 0 && records.readUInt32LE(last + 4) === stream && records.readDoubleLE(last + 8) === timeMs) {
    records.writeUInt32LE(records.readUInt32LE(last) + length, last);
    return;
  }
  const at = last + logRecordBytes;
  records.writeUInt32LE(length, at);
  records.writeUInt32LE(stream, at + 4);
  records.writeDoubleLE(timeMs, at + 8);
  segment.recordCount++;
}

/** `1 GiB`, `512 KiB`, `100 bytes`. */
function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ["GiB", 1024 ** 3],
    ["MiB", 1024 ** 2],
    ["KiB", 1024],
  ] as const) {
    if (bytes >= size) return `${Math.round((bytes / size) * 10) / 10} ${unit}`;
  }
  return `${bytes} bytes`;
}
