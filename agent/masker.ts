/** Replaces secrets in a stream of bytes, whatever the stream's chunks are. */

const replacement = Buffer.from("***");

/**
 * The secrets of one job, compiled for searching; shared by all its streams.
 *
 * The search is Wu and Manber's: a table indexed by two bytes says how far the next possible match is, so most bytes are
 * never looked at and the number of secrets hardly matters.
 */
export class SecretIndex {
  readonly longest: number;
  readonly #shortest: number;
  readonly #shifts: Uint8Array;
  /** Longest first, by the two bytes that end a pattern's first `#shortest` bytes. */
  readonly #byBlock = new Map<number, Uint8Array[]>();
  readonly #byFirstByte: (Uint8Array[] | undefined)[] = [];

  /** @param forms Of at least two bytes each; see `secretForms`. */
  constructor(forms: readonly Uint8Array[]) {
    const sorted = [...forms].sort((a, b) => b.length - a.length);
    this.longest = sorted[0]?.length ?? 0;
    this.#shortest = Math.min(sorted.at(-1)?.length ?? 0, 255);
    this.#shifts = new Uint8Array(65536).fill(this.#shortest - 1);
    for (const form of sorted) {
      for (let at = 1; at < this.#shortest; at++) {
        const block = (form[at - 1]! << 8) | form[at]!;
        this.#shifts[block] = Math.min(this.#shifts[block]!, this.#shortest - 1 - at);
      }
      const block = (form[this.#shortest - 2]! << 8) | form[this.#shortest - 1]!;
      this.#byBlock.set(block, [...(this.#byBlock.get(block) ?? []), form]);
      (this.#byFirstByte[form[0]!] ??= []).push(form);
    }
  }

  /** Calls `found` for the longest secret at every place where one begins, in order of those places. */
  search(bytes: Uint8Array, found: (start: number, end: number) => void): void {
    const window = this.#shortest;
    const shifts = this.#shifts;
    const length = bytes.length;
    for (let at = window - 1; at < length; ) {
      const block = (bytes[at - 1]! << 8) | bytes[at]!;
      const shift = shifts[block]!;
      if (shift > 0) {
        at += shift;
        continue;
      }
      const start = at - window + 1;
      for (const form of this.#byBlock.get(block) ?? []) {
        if (start + form.length <= length && matches(bytes, start, form, form.length)) {
          found(start, start + form.length);
          break;
        }
      }
      at++;
    }
  }

  /** The first place from which all bytes to the end may be the beginning of a secret; `bytes.length` if there is none. */
  unfinishedFrom(bytes: Uint8Array): number {
    const length = bytes.length;
    for (let start = Math.max(0, length - this.longest + 1); start < length; start++) {
      for (const form of this.#byFirstByte[bytes[start]!] ?? []) {
        if (length - start < form.length && matches(bytes, start, form, length - start)) return start;
      }
    }
    return length;
  }
}

function matches(bytes: Uint8Array, start: number, form: Uint8Array, count: number): boolean {
  for (let at = 0; at < count; at++) if (bytes[start + at] !== form[at]) return false;
  return true;
}

/**
 * Masks one stream: every byte that belongs to an occurrence of a secret is left out, and `***` stands for each run of
 * such bytes. The result depends on the stream's bytes alone, never on how they were cut into chunks.
 *
 * Held back is only a tail that may be the beginning of a secret, until more output or the end decides. It is not let go
 * after a while: a step throttled by its CPU limit pauses for longer than a person waits, in the middle of a write.
 */
export class Masker {
  readonly #index: SecretIndex;
  #tail: Uint8Array = new Uint8Array(0);
  /** How many of the tail's first bytes the last `***` already stands for. */
  #tailMasked = 0;
  /** Whether the last thing emitted was `***`, so that a secret right behind it needs no second one. */
  #afterMask = false;

  constructor(index: SecretIndex) {
    this.#index = index;
  }

  /** @param emit Receives bytes that are valid during the call only. */
  write(chunk: Uint8Array, emit: (bytes: Uint8Array) => void): void {
    const bytes = this.#tail.length === 0 ? chunk : Buffer.concat([this.#tail, chunk]);
    this.#emitUntil(bytes, this.#index.unfinishedFrom(bytes), emit);
  }

  /** Emits what was held back; the stream is over. */
  end(emit: (bytes: Uint8Array) => void): void {
    this.#emitUntil(this.#tail, this.#tail.length, emit);
  }

  /** Emits `bytes` masked up to `held` and keeps the rest as the tail. */
  #emitUntil(bytes: Uint8Array, held: number, emit: (bytes: Uint8Array) => void): void {
    let done = this.#tailMasked;
    this.#index.search(bytes, (start, end) => {
      // A secret behind an undecided one is found again with the tail; what is before it may yet belong to that one.
      if (start > held) return;
      if (this.#afterMask && start <= done) {
        done = Math.max(done, end);
        return;
      }
      if (start > done) emit(bytes.subarray(done, start));
      emit(replacement);
      this.#afterMask = true;
      done = end;
    });
    if (held > done) {
      emit(bytes.subarray(done, held));
      this.#afterMask = false;
    }
    this.#tailMasked = Math.max(0, done - held);
    // A copy: the chunk is its owner's again after this call (and slice() of a Buffer would be a view).
    this.#tail = held < bytes.length ? Uint8Array.from(bytes.subarray(held)) : new Uint8Array(0);
  }
}

/** Masks a whole text, for a sentence of ours that quotes something. */
export function maskText(text: string, index: SecretIndex | undefined): string {
  if (index === undefined) return text;
  const parts: Uint8Array[] = [];
  const masker = new Masker(index);
  masker.write(Buffer.from(text), (bytes) => parts.push(Buffer.from(bytes)));
  masker.end((bytes) => parts.push(Buffer.from(bytes)));
  return Buffer.concat(parts).toString();
}
