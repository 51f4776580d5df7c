/** The way out of a shell that does not answer any more, as ssh has it: `~.` at the beginning of a line. */

const [tilde, dot, carriageReturn, lineFeed] = [0x7e, 0x2e, 0x0d, 0x0a];

/** Looks for the escape in what is typed, however it is cut into pieces. */
export class EscapeFilter {
  #isLineStart = true;
  /** A tilde at the beginning of a line is held back until it is known what it means. */
  #isPending = false;

  /** Answers what is to be sent, and whether the person wants to leave; what comes behind that is dropped. */
  filter(chunk: Uint8Array): { readonly bytes: Uint8Array; readonly isEnd: boolean } {
    const bytes = Buffer.allocUnsafe(chunk.length + 1);
    let length = 0;
    for (const byte of chunk) {
      if (this.#isPending) {
        this.#isPending = false;
        if (byte === dot) return { bytes: bytes.subarray(0, length), isEnd: true };
        // `~~` is one tilde; another one was none of ours.
        bytes[length++] = tilde;
        if (byte === tilde) {
          this.#isLineStart = false;
          continue;
        }
      } else if (byte === tilde && this.#isLineStart) {
        this.#isPending = true;
        continue;
      }
      bytes[length++] = byte;
      this.#isLineStart = byte === carriageReturn || byte === lineFeed;
    }
    return { bytes: bytes.subarray(0, length), isEnd: false };
  }
}
