/** Input that comes in chunks, of which a decoder has so much in one piece as it asks for. */
export class InputWindow {
  /** What is there stands between `position` and `end`. */
  buffer = Buffer.alloc(1 << 16);
  position = 0;
  end = 0;
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);
  #isDone = false;

  /** @param chunks Each is valid until the next one is asked for. */
  constructor(chunks: AsyncIterable<Buffer>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** Waits until so many bytes are there, or the end of the input is. @returns How many are there. */
  async ensure(bytes: number): Promise<number> {
    while (this.end - this.position < bytes && !this.#isDone) {
      if (this.#rest.length === 0) {
        const next = await this.#chunks.next();
        if (next.done === true) this.#isDone = true;
        else this.#rest = next.value;
        continue;
      }
      this.#makeRoom(bytes);
      const copied = this.#rest.copy(this.buffer, this.end);
      this.#rest = this.#rest.subarray(copied);
      this.end += copied;
    }
    return this.end - this.position;
  }

  /** Reads what is left, for whoever counts and digests it. */
  async drain(): Promise<void> {
    this.position = this.end;
    while ((await this.ensure(1)) > 0) this.position = this.end;
  }

  #makeRoom(bytes: number): void {
    if (this.buffer.length - this.position >= Math.max(bytes, this.end - this.position + 1)) return;
    const size = Math.max(this.buffer.length, bytes * 2);
    const into = size > this.buffer.length ? Buffer.alloc(size) : this.buffer;
    this.buffer.copy(into, 0, this.position, this.end);
    this.buffer = into;
    this.end -= this.position;
    this.position = 0;
  }
}
