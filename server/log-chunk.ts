import { logRecordBytes, type LogStream } from "../queue/index.ts";

/** A run of bytes that came from one stream at one time. */
export interface LogRecord {
  readonly lengthBytes: number;
  readonly stream: LogStream;
  readonly timeMs: number;
}

/** The body of a log PUT, taken apart without copying. */
export interface LogChunk {
  /** `count` records of 16 bytes, as they are kept in the index. */
  readonly index: Buffer;
  readonly bytes: Buffer;
}

export const maxChunkBytes = 4 << 20;
export const maxChunkRecords = 65_536;
/** The largest body of a log PUT. */
export const maxChunkBodyBytes = 4 + maxChunkRecords * logRecordBytes + maxChunkBytes;

/** The body of a log PUT is malformed. */
export class LogChunkError extends Error {
  override readonly name = "LogChunkError";
}

/**
 * Takes the body of a log PUT apart and checks it, so that whatever is kept can be read back.
 *
 * @throws {LogChunkError} If it is not as protocol.ts says.
 */
export function parseLogChunk(body: Buffer): LogChunk {
  const count = body.length >= 4 ? body.readUInt32LE(0) : 0;
  if (count === 0) throw new LogChunkError("Cannot read the log chunk: it holds no records");
  if (count > maxChunkRecords)
    throw new LogChunkError(`Cannot read the log chunk: ${count} records, at most ${maxChunkRecords}`);
  const indexEnd = 4 + count * logRecordBytes;
  if (body.length < indexEnd)
    throw new LogChunkError(`Cannot read the log chunk: ${count} records announced, the body ends before`);
  const index = body.subarray(4, indexEnd);
  const bytes = body.subarray(indexEnd);
  let total = 0;
  for (let at = 0; at < index.length; at += logRecordBytes) {
    const { lengthBytes, stream, timeMs } = readRecord(index, at);
    if (lengthBytes === 0) throw new LogChunkError("Cannot read the log chunk: a record of 0 bytes");
    if (stream > 2) throw new LogChunkError(`Cannot read the log chunk: stream ${stream} is not 0, 1 or 2`);
    if (!Number.isFinite(timeMs)) throw new LogChunkError("Cannot read the log chunk: a record's time is not a number");
    total += lengthBytes;
  }
  if (total !== bytes.length) {
    throw new LogChunkError(
      `Cannot read the log chunk: its records sum up to ${total} bytes, it holds ${bytes.length}`,
    );
  }
  if (total > maxChunkBytes)
    throw new LogChunkError(`Cannot read the log chunk: ${total} bytes, at most ${maxChunkBytes}`);
  return { index, bytes };
}

/** Reads the record at a byte offset of an index. */
export function readRecord(index: Buffer, at: number): LogRecord {
  return {
    lengthBytes: index.readUInt32LE(at),
    stream: index.readUInt32LE(at + 4) as LogStream,
    timeMs: index.readDoubleLE(at + 8),
  };
}

/** Text with its records counted in UTF-16 code units, as a browser cuts it up. */
export interface LogText {
  readonly text: string;
  readonly records: readonly (readonly [length: number, stream: LogStream, timeMs: number])[];
  /** How many of the bytes are in `text`: an unfinished character at the end is left for the next time. */
  readonly usedBytes: number;
}

/**
 * Decodes bytes as UTF-8, record by record; a character that is cut in two by a record's end is put together if the next
 * record is of the same stream. Bytes that are no UTF-8 become U+FFFD.
 *
 * @param isEnd Nothing comes after: decode an unfinished character too.
 */
export function decodeRecords(bytes: Buffer, records: readonly LogRecord[], isEnd: boolean): LogText {
  let text = "";
  const decoded: [number, LogStream, number][] = [];
  let at = 0;
  let decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const [i, record] of records.entries()) {
    const isLast = i === records.length - 1;
    const keep = isLast && !isEnd ? unfinishedBytes(bytes.subarray(at, at + record.lengthBytes)) : 0;
    const continues = !isLast && records[i + 1]?.stream === record.stream;
    const piece = decoder.decode(bytes.subarray(at, at + record.lengthBytes - keep), { stream: continues });
    if (!continues) decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    text += piece;
    decoded.push([piece.length, record.stream, record.timeMs]);
    at += record.lengthBytes - keep;
  }
  return { text, records: decoded, usedBytes: at };
}

/** Counts the bytes at the end that begin a character of UTF-8 which goes on after them. */
function unfinishedBytes(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] as number;
    if ((byte & 0xc0) === 0x80) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}
