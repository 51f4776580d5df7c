import { type FileHandle, mkdir, open, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { logRecordBytes } from "../queue/index.ts";
import { type LogChunk, type LogRecord, readRecord } from "./log-chunk.ts";

/** Whose output: positions and numbers only, so that no name of a user's is ever part of a path. */
export interface LogKey {
  readonly buildId: string;
  /** The job's position. */
  readonly job: number;
  /** The attempt's number. */
  readonly attempt: number;
  /** The step's position. */
  readonly step: number;
}

export type AppendOutcome = "appended" | "repeat" | "mismatch" | "full";

/** A log being written. `lengthBytes` and `indexBytes` are what is complete in both files. */
interface OpenLog {
  readonly log: FileHandle;
  readonly index: FileHandle;
  lengthBytes: number;
  indexBytes: number;
  lastUseMs: number;
  isClosing: boolean;
  /** The writes of one log follow each other. */
  tail: Promise<unknown>;
}

const idleMs = 60_000;
const scanBytes = 1 << 20;
const recordsPerRead = 512;

/**
 * Keeps logs in files: `<build>/<job>/<attempt>/<step>.log` holds the bytes, `.idx` beside it the records.
 *
 * Bytes are written before their records, and a log is as long as its records say: what a killed server had half written is
 * not part of the log, and the agent, never answered, sends it again.
 */
export class LogStore implements AsyncDisposable {
  readonly #dir: string;
  readonly #limitBytes: number;
  readonly #logs = new Map<string, Promise<OpenLog>>();
  readonly #closing = new Map<string, Promise<void>>();
  readonly #sweep: NodeJS.Timeout;

  constructor(dir: string, options: { readonly limitBytes: number }) {
    this.#dir = dir;
    this.#limitBytes = options.limitBytes;
    this.#sweep = setInterval(() => void this.#closeIdle(), idleMs).unref();
  }

  /** Where a log's bytes are; the file may be longer than the log (see `lengthBytes`) or missing. */
  path(key: LogKey): string {
    return join(this.#dir, key.buildId, String(key.job), String(key.attempt), `${key.step}.log`);
  }

  /** Appends a chunk that begins at `offset`, or says why not; `lengthBytes` is the log's length afterwards. */
  async append(key: LogKey, offset: number, chunk: LogChunk): Promise<{ outcome: AppendOutcome; lengthBytes: number }> {
    let log = await this.#open(key);
    while (log.isClosing) log = await this.#open(key);
    const result = log.tail.then(() => this.#write(log, offset, chunk));
    log.tail = result.catch(() => {});
    return result;
  }

  /** The length of a log in bytes; 0 for one that nobody has written to. */
  async lengthBytes(key: LogKey): Promise<number> {
    const known = this.#logs.get(this.path(key));
    if (known) return (await known).lengthBytes;
    if (!(await exists(this.path(key)))) return 0;
    return (await this.#open(key)).lengthBytes;
  }

  /** Starts to read at a byte offset; `undefined` if there is no log yet. The caller disposes of the reader. */
  async reader(key: LogKey, offset: number): Promise<LogReader | undefined> {
    if (!(await exists(this.path(key)))) return undefined;
    return LogReader.open(this.path(key), offset);
  }

  /** Writes an attempt's logs through to the disk and closes them. */
  async close(keys: readonly LogKey[]): Promise<void> {
    await Promise.all(keys.map((key) => this.#close(this.path(key))));
  }

  /** Deletes the logs of a build. */
  async remove(buildId: string): Promise<void> {
    const prefix = join(this.#dir, buildId) + "/";
    await Promise.all(
      [...this.#logs.keys()].filter((path) => path.startsWith(prefix)).map((path) => this.#close(path)),
    );
    await rm(join(this.#dir, buildId), { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#sweep);
    await Promise.all([...this.#logs.keys()].map((path) => this.#close(path)));
  }

  async #write(
    log: OpenLog,
    offset: number,
    chunk: LogChunk,
  ): Promise<{ outcome: AppendOutcome; lengthBytes: number }> {
    log.lastUseMs = Date.now();
    const end = offset + chunk.bytes.length;
    if (offset < log.lengthBytes && end <= log.lengthBytes) return { outcome: "repeat", lengthBytes: log.lengthBytes };
    if (offset !== log.lengthBytes) return { outcome: "mismatch", lengthBytes: log.lengthBytes };
    if (end > this.#limitBytes) return { outcome: "full", lengthBytes: log.lengthBytes };
    // At explicit positions: what a failed write left (no space) is written over by the repeat.
    await writeAll(log.log, chunk.bytes, log.lengthBytes);
    await writeAll(log.index, chunk.index, log.indexBytes);
    log.lengthBytes = end;
    log.indexBytes += chunk.index.length;
    return { outcome: "appended", lengthBytes: end };
  }

  #open(key: LogKey): Promise<OpenLog> {
    const path = this.path(key);
    const known = this.#logs.get(path);
    if (known) return known;
    // One that is still being closed may have writes under way: its length is known when they are done.
    const opened = Promise.resolve(this.#closing.get(path)).then(() => openLog(path));
    this.#logs.set(path, opened);
    opened.catch(() => this.#logs.delete(path));
    return opened;
  }

  async #close(path: string): Promise<void> {
    const log = await this.#logs.get(path)?.catch(() => undefined);
    if (!log || log.isClosing) return this.#closing.get(path);
    log.isClosing = true;
    this.#logs.delete(path);
    const closed = finish(log).finally(() => this.#closing.delete(path));
    this.#closing.set(
      path,
      closed.catch(() => {}),
    );
    await closed;
  }

  async #closeIdle(): Promise<void> {
    for (const [path, opened] of this.#logs) {
      const log = await opened.catch(() => undefined);
      if (log && Date.now() - log.lastUseMs > idleMs) await this.#close(path).catch(() => {});
    }
  }
}

/** Reads a log from its files at its own pace; holds nothing of it in memory. */
export class LogReader implements AsyncDisposable {
  readonly #log: FileHandle;
  readonly #index: FileHandle;
  #offset = 0;
  #indexAt = 0;
  /** How much of the record at `#indexAt` is read already. */
  #taken = 0;

  private constructor(log: FileHandle, index: FileHandle) {
    this.#log = log;
    this.#index = index;
  }

  /** @internal */
  static async open(path: string, offset: number): Promise<LogReader> {
    const log = await open(path, "r");
    const index = await open(indexPath(path), "r").catch(async (error: unknown) => {
      await log.close();
      throw error;
    });
    const reader = new LogReader(log, index);
    await reader.#skip(offset);
    return reader;
  }

  /** The offset of what `peek` reads next. */
  get offset(): number {
    return this.#offset;
  }

  /** Reads at most `maxBytes` without going on; `undefined` at the (present) end. */
  async peek(
    maxBytes: number,
  ): Promise<{ readonly bytes: Buffer; readonly records: readonly LogRecord[] } | undefined> {
    const index = Buffer.alloc(recordsPerRead * logRecordBytes);
    const { bytesRead } = await this.#index.read(index, 0, index.length, this.#indexAt);
    const records: LogRecord[] = [];
    let total = 0;
    for (let at = 0; at + logRecordBytes <= bytesRead && total < maxBytes; at += logRecordBytes) {
      const record = readRecord(index, at);
      const rest = record.lengthBytes - (at === 0 ? this.#taken : 0);
      const lengthBytes = Math.min(rest, maxBytes - total);
      records.push({ ...record, lengthBytes });
      total += lengthBytes;
    }
    if (total === 0) return undefined;
    const bytes = Buffer.alloc(total);
    const read = await this.#log.read(bytes, 0, total, this.#offset);
    // Records follow their bytes, so less than they say means the file was cut from outside.
    return read.bytesRead === total ? { bytes, records } : undefined;
  }

  /** Goes on behind the first `usedBytes` of what was peeked at. */
  async advance(usedBytes: number): Promise<void> {
    await this.#skip(this.#offset + usedBytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#log.close(), this.#index.close()]);
  }

  async #skip(offset: number): Promise<void> {
    // Small steps read a few records, a resumption far into a log many at once.
    const index = Buffer.alloc(offset - this.#offset > 1 << 20 ? scanBytes : recordsPerRead * logRecordBytes);
    while (this.#offset < offset) {
      const { bytesRead } = await this.#index.read(index, 0, index.length, this.#indexAt);
      const usable = bytesRead - (bytesRead % logRecordBytes);
      if (usable === 0) return;
      for (let at = 0; at < usable && this.#offset < offset; at += logRecordBytes) {
        const rest = index.readUInt32LE(at) - this.#taken;
        const step = Math.min(rest, offset - this.#offset);
        this.#offset += step;
        this.#taken = step === rest ? 0 : this.#taken + step;
        if (step === rest) this.#indexAt += logRecordBytes;
      }
    }
  }
}

function indexPath(path: string): string {
  return path.replace(/\.log$/, ".idx");
}

async function finish(log: OpenLog): Promise<void> {
  await log.tail;
  try {
    await log.log.datasync();
    await log.index.datasync();
  } finally {
    await log.log.close();
    await log.index.close();
  }
}

async function openLog(path: string): Promise<OpenLog> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const index = await openForUpdate(indexPath(path));
  const log = await openForUpdate(path);
  const { size: fileBytes } = await log.stat();
  const { lengthBytes, indexBytes } = await scan(index, fileBytes);
  if (fileBytes > lengthBytes) await log.truncate(lengthBytes);
  await index.truncate(indexBytes);
  return { log, index, lengthBytes, indexBytes, lastUseMs: Date.now(), isClosing: false, tail: Promise.resolve() };
}

/** "r+" does not create and "a" ignores positions on Linux. */
async function openForUpdate(path: string): Promise<FileHandle> {
  try {
    return await open(path, "r+", 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return open(path, "wx+", 0o600);
  }
}

/** Sums up the records whose bytes are all there. */
async function scan(index: FileHandle, fileBytes: number): Promise<{ lengthBytes: number; indexBytes: number }> {
  const buffer = Buffer.alloc(scanBytes);
  let lengthBytes = 0;
  let indexBytes = 0;
  for (;;) {
    const { bytesRead } = await index.read(buffer, 0, buffer.length, indexBytes);
    const usable = bytesRead - (bytesRead % logRecordBytes);
    if (usable === 0) return { lengthBytes, indexBytes };
    for (let at = 0; at < usable; at += logRecordBytes) {
      const length = buffer.readUInt32LE(at);
      // After a power cut the index may be ahead of the bytes, or hold zeros.
      if (length === 0 || lengthBytes + length > fileBytes) return { lengthBytes, indexBytes };
      lengthBytes += length;
      indexBytes += logRecordBytes;
    }
  }
}

async function writeAll(file: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
