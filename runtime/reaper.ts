/** Notices the end of the processes that we start; no thread waits for them. */
import { readFileSync } from "node:fs";
import { SIGKILL, WNOHANG } from "./linux.ts";
import { close, trySyscall } from "./syscall.ts";

export interface Reaped {
  /** Exit code, if it exited. */
  readonly exitCode?: number;
  /** Signal number, if one ended it. */
  readonly signal?: number;
  /** CPU time of it and all its waited-for descendants. */
  readonly cpuTimeMs: number;
  /** What they read from disks, and what they changed in the cache of files, whenever that is written to a disk. */
  readonly readBytes?: number;
  readonly writtenBytes?: number;
}

const waiting = new Map<number, (reaped: Reaped) => void>();
let keepAlive: NodeJS.Timeout | undefined;
const status = Buffer.alloc(4);
const rusage = Buffer.alloc(144);

/**
 * Resolves when the process has ended and has been reaped. Must be called once for every process that we start; libuv reaps only its own
 * children, so nobody else does.
 */
export function reap(pid: number): Promise<Reaped> {
  return new Promise((resolve) => {
    if (waiting.size === 0) {
      process.on("SIGCHLD", reapAll);
      // A signal handler does not keep Node's event loop alive; a process that we have started must.
      keepAlive = setInterval(reapAll, 1000);
    }
    waiting.set(pid, resolve);
    reapOne(pid); // it may have ended before the handler was there
  });
}

/** Asks the kernel who has ended, for most of ours are launchers that wait. */
function reapAll(): void {
  for (;;) {
    information.fill(0);
    const result = trySyscall("waitid", P_ALL, 0, information, WEXITED | WNOHANG | WNOWAIT, 0);
    const pid = information.readInt32LE(siPid);
    if (result === 0 && pid === 0) return;
    if (result === 0 && waiting.has(pid)) {
      reapOne(pid);
      if (!waiting.has(pid)) continue;
    }
    // libuv's, which libuv reaps; ours may stand behind it.
    for (const other of waiting.keys()) reapOne(other);
    return;
  }
}

const [P_ALL, P_PID, WEXITED, WNOWAIT] = [0, 1, 4, 0x0100_0000];
/** siginfo_t, and where it has si_pid. */
const information = Buffer.alloc(128);
const siPid = 16;

function reapOne(pid: number): void {
  const result = trySyscall("wait4", pid, status, WNOHANG, rusage);
  if (result === 0) return;
  const resolve = waiting.get(pid);
  waiting.delete(pid);
  if (waiting.size === 0) {
    process.off("SIGCHLD", reapAll);
    clearInterval(keepAlive);
  }
  // ECHILD would mean that somebody else reaped it: all we know is that it is gone.
  resolve?.(result < 0 ? { cpuTimeMs: 0 } : { ...decodeWaitStatus(status.readUInt32LE(0)), ...readUsage() });
}

/** @see getrusage(2): the kernel counts blocks of 512 bytes. */
function readUsage(): Pick<Reaped, "cpuTimeMs" | "readBytes" | "writtenBytes"> {
  const timeval = (at: number) =>
    Number(rusage.readBigInt64LE(at)) * 1000 + Number(rusage.readBigInt64LE(at + 8)) / 1000;
  return {
    cpuTimeMs: timeval(0) + timeval(16), // ru_utime, ru_stime
    readBytes: Number(rusage.readBigInt64LE(88)) * 512, // ru_inblock
    writtenBytes: Number(rusage.readBigInt64LE(96)) * 512, // ru_oublock
  };
}

/**
 * What a process that has not been reaped, and those that it has waited for, read from disks and changed in the cache of
 * files; nothing where this process may not ask.
 *
 * @see proc_pid_io(5)
 */
export function readProcessIo(pid: number): Pick<Reaped, "readBytes" | "writtenBytes"> {
  try {
    const text = readFileSync(`/proc/${pid}/io`, "latin1");
    const value = (key: string) => Number(new RegExp(`^${key}: (\\d+)$`, "m").exec(text)?.[1] ?? 0);
    return { readBytes: value("read_bytes"), writtenBytes: value("write_bytes") };
  } catch {
    // In a user namespace, a process whose memory is gone can be read by nobody; its parent may ask once it has ended.
    const flags = WEXITED | WNOHANG | WNOWAIT;
    const result = trySyscall("waitid", P_PID, pid, information, flags, rusage);
    if (result < 0 || information.readInt32LE(siPid) !== pid) return {};
    const { readBytes, writtenBytes } = readUsage();
    return { readBytes: readBytes ?? 0, writtenBytes: writtenBytes ?? 0 };
  }
}

/** @see wait(2) */
export function decodeWaitStatus(status: number): { exitCode?: number; signal?: number } {
  const signal = status & 0x7f;
  return signal === 0 ? { exitCode: (status >> 8) & 0xff } : { signal };
}

/** Sends a signal to a process that has not been reaped; false if it is gone. */
export function kill(pid: number, signal: number = SIGKILL): boolean {
  return trySyscall("kill", pid, signal) === 0;
}

/**
 * Sends a signal to the processes that `list` names. Pidfds keep their ids from meaning other processes in between: only
 * who is still named when all are held gets the signal.
 */
export function signalAll(signal: number, list: () => readonly number[]): void {
  const held = new Map<number, number>();
  for (const pid of list()) {
    const fd = trySyscall("pidfd_open", pid, 0);
    if (fd >= 0) held.set(pid, fd);
  }
  const still = new Set(list());
  for (const [pid, fd] of held) {
    if (still.has(pid)) trySyscall("pidfd_send_signal", fd, signal, 0, 0);
    close(fd);
  }
}
