/** Writes a log to a file whose disk may be full for a while. */
import { fstatSync, writeSync } from "node:fs";

/** What could not be written, once something can be again. */
export interface LostLines {
  readonly count: number;
  /** Of the last failure: `ENOSPC`. */
  readonly code: string;
}

/**
 * Writes whole lines, as long as that is possible, and counts those that it is not.
 *
 * Node's own stream of standard error gives up for good at the first error.
 */
export class LogFile {
  readonly #fd: number;
  readonly #onLost: (lost: LostLines) => void;
  #count = 0;
  #code = "";
  /** The last thing in the file is half a line. */
  #isCut = false;

  /** @param onLost Called behind the first line that is written after some were lost; may write itself. */
  constructor(fd: number, onLost: (lost: LostLines) => void) {
    this.#fd = fd;
    this.#onLost = onLost;
  }

  /** Never throws. */
  write(line: string): void {
    const bytes = Buffer.from(this.#isCut ? `\n${line}` : line);
    let written = 0;
    try {
      while (written < bytes.length) written += writeSync(this.#fd, bytes, written);
      this.#isCut = false;
    } catch (error) {
      // Behind half a line, nothing more of this one: a newline that was written has ended the one before.
      if (written > 0) this.#isCut = bytes[written - 1] !== 10;
      this.#count++;
      this.#code = (error as NodeJS.ErrnoException).code ?? "unknown";
      return;
    }
    if (this.#count === 0) return;
    const lost = { count: this.#count, code: this.#code };
    this.#count = 0;
    this.#onLost(lost);
  }
}

/** Whether a descriptor is a file's: pipes and terminals are full for other reasons, and nobody waits for room there. */
export function isFile(fd: number): boolean {
  try {
    return fstatSync(fd).isFile();
  } catch {
    return false;
  }
}
