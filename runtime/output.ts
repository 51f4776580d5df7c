/** Reads a pipe into one reused buffer and hands every piece on. */
import { Socket } from "node:net";

const bufferBytes = 64 << 10;

export class PipeReader {
  /** Resolves at the end of the pipe: every process that could write has closed it. */
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  /** The sink wants no more for now. */
  #paused = false;
  /** Nothing has come since the last look. */
  #idle = false;

  /**
   * @param fd The read end; belongs to the reader from now on.
   * @param onData Returning `false` pauses until `resume()`. The chunk is valid only during the call.
   */
  constructor(fd: number, onData: (chunk: Uint8Array) => boolean | void) {
    const buffer = Buffer.allocUnsafeSlow(bufferBytes);
    const options = {
      fd,
      readable: true,
      writable: false,
      onread: { buffer, callback: (length: number) => this.#take(onData(buffer.subarray(0, length))) },
    };
    this.#socket = new Socket(options);
    this.ended = new Promise((resolve) => {
      this.#socket.on("close", () => resolve());
      // A pipe's read end does not fail; should it, its end has come all the same.
      this.#socket.on("error", () => undefined);
    });
    this.#socket.resume();
  }

  #take(wanted: boolean | void): boolean {
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

  /** Stops reading; `ended` resolves. */
  destroy(): void {
    this.#socket.destroy();
  }
}
