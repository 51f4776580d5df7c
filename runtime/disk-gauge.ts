/** How full a file system is, and how much of it has gone since a while ago. */
import { fstatSync } from "node:fs";
import { O_PATH } from "./linux.ts";
import { close, open, trySyscall } from "./syscall.ts";
import type { TreeSize } from "./tree-size.ts";

const GiB = 1024 ** 3;

/**
 * A file system, looked at from time to time. What a container has written since then it has taken out of this: an upper
 * bound that costs one system call for all containers, where measuring costs one for every file.
 */
export class DiskGauge implements Disposable {
  readonly device: number;
  /** Below this the machine is in danger; less where little was free to begin with. */
  readonly reserveBytes: number;
  readonly #reserveFiles: number;
  readonly #fd: number;
  readonly #buffer = Buffer.alloc(120);
  #sizeBytes = 0;
  #freeBytes = 0;
  #sizeFiles = 0;
  #freeFiles = 0;
  #drainedBytes = 0;
  #drainedFiles = 0;

  /** @throws {SyscallError} If there is no such directory. */
  constructor(directory: string) {
    this.#fd = open(directory, O_PATH);
    this.device = fstatSync(this.#fd).dev;
    this.#read();
    this.reserveBytes = Math.min(GiB, this.#sizeBytes / 20, this.#freeBytes / 2);
    this.#reserveFiles = Math.min(this.#sizeFiles / 50, this.#freeFiles / 2);
  }

  /** The sum of all decreases so far: what was freed meanwhile does not hide what was written. */
  get drained(): TreeSize {
    return { bytes: this.#drainedBytes, files: this.#drainedFiles };
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Little is left of its space or its inodes. */
  get isLow(): boolean {
    return this.#freeBytes < this.reserveBytes || this.#freeFiles < this.#reserveFiles;
  }

  sample(): void {
    const [freeBytes, freeFiles] = [this.#freeBytes, this.#freeFiles];
    this.#read();
    this.#drainedBytes += Math.max(0, freeBytes - this.#freeBytes);
    this.#drainedFiles += Math.max(0, freeFiles - this.#freeFiles);
  }

  /** struct statfs: type, bsize, blocks, bfree, bavail, files, ffree. The agent may use what is kept for root. */
  #read(): void {
    const buffer = this.#buffer;
    if (trySyscall("fstatfs", this.#fd, buffer) < 0) return;
    const [blockBytes = 0, blocks = 0, freeBlocks = 0, , files = 0, freeFiles = 0] = [8, 16, 24, 32, 40, 48].map((at) =>
      Number(buffer.readBigUInt64LE(at)),
    );
    this.#sizeBytes = blocks * blockBytes;
    this.#freeBytes = freeBlocks * blockBytes;
    this.#sizeFiles = files;
    this.#freeFiles = freeFiles;
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}
