/** Descriptors on their way to another process: who closes them here, and which numbers they have there. */
import { close, pipe } from "./syscall.ts";

/** Descriptors to close when the other process has its own copies. */
export class OwnedDescriptors {
  readonly #fds = new Set<number>();

  readonly own = (fd: number): number => {
    this.#fds.add(fd);
    return fd;
  };

  pipe(): { readonly read: number; readonly write: number } {
    const ends = pipe();
    this.own(ends.read);
    this.own(ends.write);
    return ends;
  }

  /** Gives them to somebody else, who closes them. */
  release(...fds: readonly number[]): void {
    for (const fd of fds) this.#fds.delete(fd);
  }

  close(...fds: readonly number[]): void {
    for (const fd of fds) if (this.#fds.delete(fd)) close(fd);
  }

  closeAll(): void {
    this.close(...this.#fds);
  }
}

/** Collects descriptors, then chooses their numbers in the program. */
export class PlacedDescriptors {
  readonly #sources: number[] = [];
  readonly #preserveFds: number;
  readonly #standard: readonly [number, number, number];

  /**
   * @param preserveFds So many descriptors from 3 on stay where they are.
   * @param standard What becomes 0, 1 and 2. @default this process's own
   */
  constructor(preserveFds: number, standard: readonly [number, number, number] = [0, 1, 2]) {
    this.#preserveFds = preserveFds;
    this.#standard = standard;
  }

  /** Returns the place, to which `base` is to be added when all are known. */
  add(fd: number): number {
    return this.#sources.push(fd) - 1;
  }

  /** Above all that are in use here, so that none is overwritten too early. */
  get base(): number {
    return Math.max(64, 3 + this.#preserveFds, Math.max(...this.#sources, ...this.#standard) + 1);
  }

  /** For posix_spawn. */
  pairs(): (readonly [number, number])[] {
    const { base } = this;
    const kept = Array.from({ length: this.#preserveFds }, (_, i) => [3 + i, 3 + i] as const);
    return [
      ...this.#standard.map((fd, i) => [fd, i] as const),
      ...kept,
      ...this.#sources.map((fd, i) => [fd, base + i] as const),
    ];
  }
}
