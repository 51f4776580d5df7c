/** Reads the bodies of answers, however long, slow or endless they are. */
import type { IncomingMessage } from "node:http";
import { formatBytes } from "./image-error.ts";
import { connectionError, RegistryError } from "./registry-error.ts";

export interface ReadOptions {
  /** For messages. */
  readonly host: string;
  readonly signal?: AbortSignal | undefined;
  /** How long no byte may come. @default 30000 */
  readonly stallMs?: number | undefined;
}

const STALL_MS = 30_000;
/** Over each of these, at least so many bytes must come while we read: a body that trickles is no better than none. */
const WINDOW_MS = 60_000;
const MIN_WINDOW_BYTES = 16_384;

/**
 * Hands on a body piece by piece, as it comes.
 *
 * Time in which the consumer is busy does not count as the registry's. Leaving the loop early closes the connection.
 *
 * @throws {RegistryError} If it stalls, trickles or breaks off.
 */
export async function* readPieces(response: IncomingMessage, options: ReadOptions): AsyncGenerator<Buffer, void> {
  const { host, signal, stallMs = STALL_MS } = options;
  const iterator = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let windowMs = 0;
  let windowBytes = 0;
  const abort = () => response.destroy(signal?.reason instanceof Error ? signal.reason : new Error("canceled"));
  signal?.addEventListener("abort", abort, { once: true });
  try {
    for (;;) {
      signal?.throwIfAborted();
      const begin = performance.now();
      const timer = setTimeout(
        () =>
          response.destroy(
            new RegistryError(`"${host}" stalls: nothing came for ${stallMs / 1000} s`, { transient: true }),
          ),
        stallMs,
      );
      let next: IteratorResult<Buffer>;
      try {
        next = await iterator.next();
      } catch (error) {
        signal?.throwIfAborted();
        throw connectionError(error, host);
      } finally {
        clearTimeout(timer);
      }
      if (next.done === true) {
        if (!response.complete) throw new RegistryError(`"${host}" broke the connection`, { transient: true });
        return;
      }
      windowMs += performance.now() - begin;
      windowBytes += next.value.length;
      if (windowMs > WINDOW_MS) {
        if (windowBytes < MIN_WINDOW_BYTES) {
          throw new RegistryError(`"${host}" trickles: ${windowBytes} bytes in ${Math.round(windowMs / 1000)} s`, {
            transient: true,
          });
        }
        windowMs = 0;
        windowBytes = 0;
      }
      yield next.value;
    }
  } finally {
    signal?.removeEventListener("abort", abort);
    if (!response.complete) response.destroy();
  }
}

/**
 * Reads a small body to its end.
 *
 * @throws {RegistryError} If it is longer than `maxBytes`, which is noticed before more than that is read.
 */
export async function readBody(
  response: IncomingMessage,
  options: ReadOptions & { readonly maxBytes: number },
): Promise<Buffer> {
  const { host, maxBytes } = options;
  const tooLong = () => {
    response.destroy();
    return new RegistryError(`"${host}" sends more than ${formatBytes(maxBytes)} where that is the most allowed`, {
      transient: false,
    });
  };
  if (Number(response.headers["content-length"] ?? 0) > maxBytes) throw tooLong();
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of readPieces(response, options)) {
    length += piece.length;
    if (length > maxBytes) throw tooLong();
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}
