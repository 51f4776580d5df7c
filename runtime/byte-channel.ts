/**
 * Bytes on their way from one thread to another: a ring in shared memory, one writer, one reader.
 *
 * Who is faster waits for the other, so that what is under way never takes more memory than the ring.
 */

/** What both threads share; may be posted. */
export interface SharedChannel {
  readonly control: SharedArrayBuffer;
  readonly data: SharedArrayBuffer;
}

// Words of `control`. Positions count bytes since the beginning, modulo 2^32.
const WRITTEN = 0;
const READ = 1;
const STATE = 2;
/** Changes with everything: what both sides wait on. */
const TICK = 3;

const OPEN = 0;
const ENDED = 1;
const FAILED = 2;
const CLOSED = 3;

/** @param bytes Of the ring: a power of two. @default 524288 */
export function createChannel(bytes: number = 2 ** 19): SharedChannel {
  return { control: new SharedArrayBuffer(16), data: new SharedArrayBuffer(bytes) };
}

/** The other side has given up; its own error tells why. */
export class ChannelClosedError extends Error {
  override readonly name = "ChannelClosedError";
}

/** The end that is written to. */
export class ChannelWriter {
  readonly #control: Int32Array;
  readonly #data: Uint8Array;

  constructor({ control, data }: SharedChannel) {
    this.#control = new Int32Array(control);
    this.#data = new Uint8Array(data);
  }

  /** Copies bytes into the ring; resolves when the last one is in. @throws {ChannelClosedError} If the reader has given up. */
  async write(chunk: Uint8Array): Promise<void> {
    const size = this.#data.length;
    for (let done = 0; done < chunk.length; ) {
      const tick = Atomics.load(this.#control, TICK);
      if (Atomics.load(this.#control, STATE) !== OPEN) throw new ChannelClosedError("The reader has given up");
      const written = Atomics.load(this.#control, WRITTEN) >>> 0;
      const free = size - ((written - (Atomics.load(this.#control, READ) >>> 0)) >>> 0);
      if (free === 0) {
        await changed(this.#control, tick);
        continue;
      }
      const at = written % size;
      const length = Math.min(free, chunk.length - done, size - at);
      this.#data.set(chunk.subarray(done, done + length), at);
      Atomics.store(this.#control, WRITTEN, (written + length) | 0);
      announce(this.#control);
      done += length;
    }
  }

  /** All has been written. */
  end(): void {
    Atomics.compareExchange(this.#control, STATE, OPEN, ENDED);
    announce(this.#control);
  }

  /** There will be no more, although there should be. */
  fail(): void {
    Atomics.compareExchange(this.#control, STATE, OPEN, FAILED);
    announce(this.#control);
  }
}

/** The end that is read from. */
export class ChannelReader {
  readonly #control: Int32Array;
  readonly #data: Uint8Array;

  constructor({ control, data }: SharedChannel) {
    this.#control = new Int32Array(control);
    this.#data = new Uint8Array(data);
  }

  /**
   * Copies the next bytes into a buffer.
   *
   * @param options.least Fewer come only at the end.
   * @returns How many; 0 at the end.
   * @throws {ChannelClosedError} If the writer has failed.
   */
  async read(into: Uint8Array, options: { readonly least: number }): Promise<number> {
    const size = this.#data.length;
    for (;;) {
      const tick = Atomics.load(this.#control, TICK);
      const state = Atomics.load(this.#control, STATE);
      if (state === FAILED) throw new ChannelClosedError("The writer has given up");
      const read = Atomics.load(this.#control, READ) >>> 0;
      const available = ((Atomics.load(this.#control, WRITTEN) >>> 0) - read) >>> 0;
      if (available < options.least && state === OPEN) {
        await changed(this.#control, tick);
        continue;
      }
      const length = Math.min(available, into.length);
      const at = read % size;
      const first = Math.min(length, size - at);
      into.set(this.#data.subarray(at, at + first), 0);
      if (first < length) into.set(this.#data.subarray(0, length - first), first);
      Atomics.store(this.#control, READ, (read + length) | 0);
      announce(this.#control);
      return length;
    }
  }

  /** Lets the writer know that nobody reads any more. */
  close(): void {
    Atomics.store(this.#control, STATE, CLOSED);
    announce(this.#control);
  }
}

function announce(control: Int32Array): void {
  Atomics.add(control, TICK, 1);
  Atomics.notify(control, TICK);
}

/** Until something has happened since `tick` was read. A waiter alone does not keep a process alive: this does. */
async function changed(control: Int32Array, tick: number): Promise<void> {
  const waiting = Atomics.waitAsync(control, TICK, tick);
  if (!waiting.async) return;
  const alive = setInterval(() => {}, 1 << 30);
  try {
    await waiting.value;
  } finally {
    clearInterval(alive);
  }
}
