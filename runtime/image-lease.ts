/** What somebody uses of the image store, which nobody may remove meanwhile. */
import { isNamed } from "./file-lock.ts";
import { close } from "./syscall.ts";

/**
 * Holds parts of the store (layers, blobs) until it is disposed, or the process ends in whatever way.
 *
 * Each part is held by a shared lock on it; removing takes the exclusive one. A lease costs one descriptor a part.
 */
export class ImageLease implements Disposable {
  readonly #locks = new Map<string, number>();
  #disposed = false;

  /** Whether the part is held already. @param part Its absolute path. */
  holds(part: string): boolean {
    const lock = this.#locks.get(part);
    if (lock === undefined) return false;
    if (isNamed(lock, part)) return true;
    // An administrator has deleted the store.
    close(lock);
    this.#locks.delete(part);
    return false;
  }

  /** Takes over a descriptor that has the part locked; of two for the same part one is closed. */
  add(part: string, lock: number): void {
    if (this.#disposed || this.#locks.has(part)) close(lock);
    else this.#locks.set(part, lock);
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const lock of this.#locks.values()) close(lock);
    this.#locks.clear();
  }
}
