/** Descriptors on their way to another process: who closes them here, and which numbers they have there. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
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

/**
 * Finds which of so many descriptors from 3 on the caller gave us, for a program to have them, too.
 *
 * Node opens its own before any of our code runs, at the lowest free numbers, an epoll first. Below the first one all is
 * the caller's; above it, what is of a kind that Node has, is not. To be asked before anything is opened here.
 */
export function callersDescriptors(count: number): number[] {
  if (count === 0) return [];
  const kinds = new Map<number, string>();
  const ends = new Map<string, number>();
  for (const name of readdirSync("/proc/self/fd")) {
    try {
      const kind = readlinkSync(`/proc/self/fd/${name}`);
      // Gone: the one with which the directory was read.
      readFileSync(`/proc/self/fdinfo/${name}`);
      kinds.set(Number(name), kind);
      ends.set(kind, (ends.get(kind) ?? 0) + 1);
    } catch {
      continue;
    }
  }
  const all = [...kinds.keys()].filter((fd) => fd >= 3).toSorted((a, b) => a - b);
  const first = all.find((fd) => kinds.get(fd) === "anon_inode:[eventpoll]") ?? Infinity;
  const isNodes = (fd: number) => {
    const kind = kinds.get(fd) ?? "";
    return (
      fd >= first &&
      (/^anon_inode:\[(?:eventpoll|eventfd|io_uring)\]$/.test(kind) ||
        (kind.startsWith("pipe:") && (ends.get(kind) ?? 0) > 1))
    );
  };
  return all.filter((fd) => fd < 3 + count && !isNodes(fd));
}

/** Collects descriptors, then chooses their numbers in the program. */
export class PlacedDescriptors {
  readonly #sources: number[] = [];
  readonly #preserveFds: readonly number[];
  readonly #standard: readonly [number, number, number];

  /**
   * @param preserveFds These stay where they are.
   * @param standard What becomes 0, 1 and 2. @default this process's own
   */
  constructor(preserveFds: readonly number[], standard: readonly [number, number, number] = [0, 1, 2]) {
    this.#preserveFds = preserveFds;
    this.#standard = standard;
  }

  /** Returns the place, to which `base` is to be added when all are known. */
  add(fd: number): number {
    return this.#sources.push(fd) - 1;
  }

  /** Above all that are in use here, so that none is overwritten too early. */
  get base(): number {
    return Math.max(64, ...this.#preserveFds.map((fd) => fd + 1), Math.max(...this.#sources, ...this.#standard) + 1);
  }

  /** Ranges, first and last, of what the program has besides: descriptors without close-on-exec that nobody meant it to have. */
  others(): (readonly [number, number])[] {
    const { base } = this;
    const ranges = [
      [Math.max(2, ...this.#preserveFds) + 1, base - 1],
      [base + this.#sources.length, 0xffff_ffff],
    ] as const;
    return ranges.filter(([first, last]) => first <= last);
  }

  /** For posix_spawn. */
  pairs(): (readonly [number, number])[] {
    const { base } = this;
    return [
      ...this.#standard.map((fd, i) => [fd, i] as const),
      ...this.#preserveFds.map((fd) => [fd, fd] as const),
      ...this.#sources.map((fd, i) => [fd, base + i] as const),
    ];
  }
}
