/** Ranges of host ids: every concurrently running job has one that nobody else has. */
import { mkdirSync } from "node:fs";
import { holdUserNamespace } from "./user-namespace.ts";
import { EAGAIN, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from "./linux.ts";
import { close, open, SyscallError, trySyscall } from "./syscall.ts";

/** `size` host ids from `base` on: id 0 of the container is `base` on the host. Held until disposed; no other agent on this host has it. */
export interface UidRange extends Disposable {
  readonly base: number;
  readonly size: number;
  /** A user namespace with exactly this mapping, for idmapped mounts. Open until disposed. */
  readonly userNamespaceFd: number;
}

/** Nested builders need more than 65536 ids: their images map 65536 beyond the first 100000. */
const rangeSize = 1 << 18;
/** Beyond what /etc/subuid hands out by default and below what systemd-nspawn picks from the top. */
const firstBase = 1 << 28;
const maxRanges = 1024;

/** Hands out ranges; locks in one directory keep the agents of a host apart, and end with the process that holds them. */
export class UidRanges {
  readonly #lockDir: string;
  /** User namespaces are kept for the next job: making one costs a process. */
  readonly #namespaces = new Map<number, number>();
  readonly #taken = new Set<number>();

  /** @param lockDir The same for all agents of this host: /run/slipway/uid-ranges. */
  constructor(lockDir: string) {
    this.#lockDir = lockDir;
    mkdirSync(lockDir, { recursive: true, mode: 0o755 });
  }

  /** @throws {Error} If all are taken. */
  claim(): UidRange {
    for (let index = 0; index < maxRanges; index++) {
      if (this.#taken.has(index)) continue;
      const lock = this.#lock(index);
      if (lock === undefined) continue;
      this.#taken.add(index);
      const base = firstBase + index * rangeSize;
      const release = () => {
        if (this.#taken.delete(index)) close(lock);
      };
      try {
        const known = this.#namespaces.get(index);
        const userNamespaceFd = known ?? holdUserNamespace({ base, size: rangeSize });
        this.#namespaces.set(index, userNamespaceFd);
        return { base, size: rangeSize, userNamespaceFd, [Symbol.dispose]: release };
      } catch (error) {
        release();
        throw error;
      }
    }
    throw new Error(`Cannot claim a uid range: all ${maxRanges} are taken by jobs on this host`);
  }

  #lock(index: number): number | undefined {
    const fd = open(`${this.#lockDir}/${index}`, O_RDWR | O_CREAT, 0o600);
    const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
    if (result === 0) return fd;
    close(fd);
    if (result === -EAGAIN) return undefined;
    throw new SyscallError("flock", -result, `lock uid range ${index} in "${this.#lockDir}"`);
  }

  close(): void {
    for (const fd of this.#namespaces.values()) close(fd);
    this.#namespaces.clear();
  }
}
