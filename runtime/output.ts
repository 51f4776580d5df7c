/** Reads a pipe or a terminal into one reused buffer and hands every piece on. */
import { type OnReadOpts, Socket } from "node:net";
import { trySyscall } from "./syscall.ts";

const bufferBytes = 64 << 10;
/** Buffers of readers that have ended: a new one each time would drive the garbage collector more than anything else does. */
const spareBuffers: Buffer[] = [];
const mostSpareBuffers = 32;

export class PipeReader {
  /** Resolves at the end of the pipe: every process that could write has closed it. */
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  /** The sink wants no more for now. */
  #paused = false;
  /** Nothing has come since the last look. */
  #idle = false;
  readonly #fd: number;
  readonly #take: (length: number) => boolean;
  readonly #buffer = spareBuffers.pop() ?? Buffer.allocUnsafeSlow(bufferBytes);
  #atEnd = false;

  /**
   * @param fd The read end; belongs to the reader from now on.
   * @param onData Returning `false` pauses until `resume()`. The chunk is valid only during the call.
   * @param open Opens what is no pipe.
   */
  constructor(fd: number, onData: (chunk: Uint8Array) => boolean | void, open: OpenReader = openPipe) {
    const buffer = this.#buffer;
    this.#fd = fd;
    this.#take = (length) => this.#taken(onData(buffer.subarray(0, length)));
    this.#socket = open(fd, { buffer, callback: this.#take });
    this.ended = new Promise((resolve) => {
      this.#socket.on("close", () => {
        this.#atEnd = true;
        if (spareBuffers.length < mostSpareBuffers) spareBuffers.push(buffer);
        resolve();
      });
      // A pipe's read end does not fail; should it, its end has come all the same. A terminal's fails at its end (EIO).
      this.#socket.on("error", () => undefined);
    });
    this.#socket.resume();
  }

  /** All has been handed on, or nobody wants it. */
  get isAtEnd(): boolean {
    return this.#atEnd;
  }

  #taken(wanted: boolean | void): boolean {
    this.#idle = false;
    this.#paused = wanted === false;
    return !this.#paused;
  }

  resume(): void {
    this.#paused = false;
    this.#socket.resume();
  }

  /** Stops reading if nothing has come since the last call although it was wanted. */
  destroyIfIdle(): void {
    if (this.#idle && !this.#paused) this.destroy();
    this.#idle = !this.#paused;
  }

  /**
   * Reads on, now, as long as there is something and it is wanted; at the end `isAtEnd` is true, and `ended` resolves when
   * the event loop comes to it. Nothing is buffered between the pipe and the sink, so this is as good as waiting for it.
   */
  drain(): void {
    while (!this.#paused && !this.#socket.destroyed && !this.#atEnd) {
      const length = trySyscall("read", this.#fd, this.#buffer, this.#buffer.length);
      if (length < 0) return; // EAGAIN: somebody has it open still
      if (length > 0) this.#take(length);
      else {
        this.#atEnd = true;
        this.#socket.destroy();
      }
    }
  }

  /** Stops reading; `ended` resolves. */
  destroy(): void {
    this.#socket.destroy();
  }
}

/** Makes a socket that reads a descriptor by `onread`. */
export type OpenReader = (fd: number, onread: OnReadOpts) => Socket;

const openPipe: OpenReader = (fd, onread) => new Socket({ fd, readable: true, writable: false, onread });
