/** Locks on files and directories that end with the process that holds them. */
import { fstatSync, type Stats, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { EAGAIN, ELOOP, ENOENT, ENOTDIR, LOCK_EX, LOCK_NB, LOCK_SH, O_NOFOLLOW, O_RDONLY } from "./linux.ts";
import { close, open, SyscallError, trySyscall } from "./syscall.ts";

/** Of `exclusive` there is one holder and no other; of `shared` any number. */
export type LockMode = "shared" | "exclusive";

/** How often a lock that somebody else holds is tried again. */
const POLL_MS = 10;

/**
 * Locks what a path names, with flock(2), unless somebody else's lock forbids it.
 *
 * The lock belongs to the descriptor, so two locks of one process exclude each other too. Renaming what is locked does not
 * end the lock.
 *
 * @returns The descriptor whose closing unlocks; "held" by somebody else; or "absent": nothing is there, or what was there
 *   has been renamed or deleted by the one who had it locked.
 */
export function tryLock(path: string, mode: LockMode): number | "held" | "absent" {
  let fd: number;
  try {
    fd = open(path, O_RDONLY | O_NOFOLLOW);
  } catch (error) {
    if (error instanceof SyscallError && [ENOENT, ENOTDIR, ELOOP].includes(error.errno)) return "absent";
    throw error;
  }
  try {
    if (!lockDescriptor(fd, mode)) {
      close(fd);
      return "held";
    }
    if (isNamed(fd, path)) return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
  close(fd);
  return "absent";
}

/** Whether somebody has locked it, in whatever mode. */
export function isLocked(path: string): boolean {
  const lock = tryLock(path, "exclusive");
  if (typeof lock === "number") close(lock);
  return lock === "held";
}

/** Takes or changes the lock of a descriptor; false if somebody else's forbids it, and then a lock it had may be gone. */
export function lockDescriptor(fd: number, mode: LockMode): boolean {
  const locked = trySyscall("flock", fd, (mode === "shared" ? LOCK_SH : LOCK_EX) | LOCK_NB);
  if (locked < 0 && locked !== -EAGAIN) throw new SyscallError("flock", -locked, `lock a file of the image store`);
  return locked === 0;
}

/** Whether the path still names what the descriptor has open. */
export function isNamed(fd: number, path: string): boolean {
  const named: Stats | undefined = statSync(path, { throwIfNoEntry: false });
  const opened = fstatSync(fd);
  return named !== undefined && opened.ino === named.ino && opened.dev === named.dev;
}

/**
 * Takes a shared lock; undefined if there is no such file (any more).
 *
 * Whoever has the exclusive lock of a part of the store has it for a moment only: to take the part out, or to see that
 * nobody uses it.
 */
export async function lockShared(path: string): Promise<number | undefined> {
  for (;;) {
    const lock = tryLock(path, "shared");
    if (lock !== "held") return lock === "absent" ? undefined : lock;
    await pause();
  }
}

/**
 * Waits for a lock. The file must exist.
 *
 * @throws What the signal was aborted with, or an Error if the file has gone.
 */
export async function waitForLock(path: string, mode: LockMode, signal?: AbortSignal): Promise<number> {
  for (;;) {
    signal?.throwIfAborted();
    const lock = tryLock(path, mode);
    if (typeof lock === "number") return lock;
    if (lock === "absent") throw new Error(`Cannot lock "${path}": it is not there any more`);
    await pause(signal);
  }
}

/** Until a lock is worth trying again. @throws What the signal was aborted with. */
export async function pause(signal?: AbortSignal): Promise<void> {
  await delay(POLL_MS, undefined, signal === undefined ? {} : { signal }).catch(() => {});
  signal?.throwIfAborted();
}
