/** System calls from this process: the one file that loads koffi. */
import { getSystemErrorName } from "node:util";
import koffi from "koffi";
import {
  AF_UNIX,
  AT_FDCWD,
  MSG_NOSIGNAL,
  O_CLOEXEC,
  SCM_RIGHTS,
  SOCK_CLOEXEC,
  SOCK_SEQPACKET,
  SOL_SOCKET,
} from "./linux.ts";
import { type Architecture, syscallNumbers } from "./syscall-table.ts";

/** The architecture this process runs on. */
export const architecture: Architecture = process.arch === "arm64" ? "arm64" : "x64";

/** An integer, an address, or memory that the kernel reads or writes during the call. */
export type SyscallArgument = number | bigint | Uint8Array | null;

/** A system call failed. Carries Node's own field names. */
export class SyscallError extends Error {
  override readonly name = "SyscallError";
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;

  /** @param action What was tried and on what: `mount overlay on "rootfs"`. */
  constructor(syscall: string, errno: number, action?: string) {
    const code = errnoName(errno);
    super(`Cannot ${action ?? syscall}: ${code}`);
    this.code = code;
    this.errno = errno;
    this.syscall = syscall;
  }
}

/** `EINVAL` for 22. */
export function errnoName(errno: number): string {
  try {
    return getSystemErrorName(-errno);
  } catch {
    return `errno ${errno}`;
  }
}

const libc = koffi.load("libc.so.6");
const numbers = syscallNumbers(architecture);
const rawSyscall = libc.func("long syscall(long number, void *a, void *b, void *c, void *d, void *e, void *f)") as (
  number: number,
  ...args: (SyscallArgument | undefined)[]
) => number;

/**
 * Makes a system call and returns its result, or minus errno. Strings must be NUL-terminated buffers (`cString`).
 *
 * Blocks the calling thread for as long as the call takes.
 */
export function trySyscall(
  name: string,
  a: SyscallArgument = 0,
  b: SyscallArgument = 0,
  c: SyscallArgument = 0,
  d: SyscallArgument = 0,
  e: SyscallArgument = 0,
  f: SyscallArgument = 0,
): number {
  const number = numbers.get(name);
  if (number === undefined) throw new Error(`No system call "${name}" on ${architecture}`);
  const result = rawSyscall(number, a, b, c, d, e, f);
  return result === -1 ? -koffi.errno() : result;
}

/** Makes a system call. @throws {SyscallError} */
export function syscall(name: string, ...args: SyscallArgument[]): number {
  const result = trySyscall(name, ...args);
  if (result < 0) throw new SyscallError(name, -result);
  return result;
}

/** A NUL-terminated string for the kernel. @throws {Error} If it contains a NUL. */
export function cString(text: string): Buffer {
  if (text.includes("\0")) throw new Error(`A path or string for the kernel contains a NUL: ${JSON.stringify(text)}`);
  return Buffer.from(`${text}\0`);
}

/** openat2(2), with O_CLOEXEC. `resolve` restricts what a path may lead to. @throws {SyscallError} */
export function openat2(
  directory: number,
  path: string,
  options: { readonly flags: number; readonly mode?: number; readonly resolve?: number },
): number {
  const how = Buffer.alloc(24);
  how.writeBigUInt64LE(BigInt(options.flags | O_CLOEXEC), 0);
  how.writeBigUInt64LE(BigInt(options.mode ?? 0), 8);
  how.writeBigUInt64LE(BigInt(options.resolve ?? 0), 16);
  const result = trySyscall("openat2", directory, cString(path), how, how.length);
  if (result < 0) throw new SyscallError("openat2", -result, `open "${path}"`);
  return result;
}

/** open(2) with O_CLOEXEC, relative to the current directory or absolute. @throws {SyscallError} */
export function open(path: string, flags: number, mode = 0): number {
  const result = trySyscall("openat", AT_FDCWD, cString(path), flags | O_CLOEXEC, mode);
  if (result < 0) throw new SyscallError("open", -result, `open "${path}"`);
  return result;
}

/** Closes a descriptor; errors of close(2) cannot be mended and are ignored. */
export function close(fd: number): void {
  trySyscall("close", fd);
}

/** Makes a pipe with O_CLOEXEC on both ends. */
export function pipe(): { readonly read: number; readonly write: number } {
  const fds = Buffer.alloc(8);
  syscall("pipe2", fds, O_CLOEXEC);
  return { read: fds.readInt32LE(0), write: fds.readInt32LE(4) };
}

/** A pair of connected sockets that keep message boundaries, O_CLOEXEC. */
export function socketPair(): readonly [number, number] {
  const fds = Buffer.alloc(8);
  syscall("socketpair", AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds);
  return [fds.readInt32LE(0), fds.readInt32LE(4)];
}

/** Sends copies of descriptors with a byte, or other data. @throws {SyscallError} @see unix(7), SCM_RIGHTS */
export function sendDescriptors(socket: number, descriptors: readonly number[], data: Buffer = Buffer.from("d")): void {
  const iovec = Buffer.alloc(16);
  iovec.writeBigUInt64LE(BigInt(koffi.address(data)), 0);
  iovec.writeBigUInt64LE(BigInt(data.length), 8);
  const control = Buffer.alloc(16 + 4 * descriptors.length + ((4 * descriptors.length) % 8)); // CMSG_SPACE
  control.writeBigUInt64LE(BigInt(16 + 4 * descriptors.length), 0); // CMSG_LEN
  control.writeUInt32LE(SOL_SOCKET, 8);
  control.writeUInt32LE(SCM_RIGHTS, 12);
  descriptors.forEach((fd, i) => control.writeInt32LE(fd, 16 + 4 * i));
  const message = Buffer.alloc(56);
  message.writeBigUInt64LE(BigInt(koffi.address(iovec)), 16);
  message.writeBigUInt64LE(1n, 24);
  message.writeBigUInt64LE(BigInt(koffi.address(control)), 32);
  message.writeBigUInt64LE(BigInt(control.length), 40);
  const result = trySyscall("sendmsg", socket, message, MSG_NOSIGNAL);
  // The buffers must live until the call is over: the message holds only their addresses.
  if (result !== data.length || iovec.length + control.length === 0) {
    throw new SyscallError("sendmsg", -result, `send ${descriptors.length} descriptors`);
  }
}

/** Receives one descriptor, O_CLOEXEC; waits for it. @throws {SyscallError} `ENOMSG` if a message came without one. */
export function receiveDescriptor(socket: number): number {
  return receiveDescriptors(socket, 1)[0] as number;
}

/** Receives as many descriptors as it is told, O_CLOEXEC, in one message. @throws {SyscallError} `ENOMSG` if they did not come. */
export function receiveDescriptors(socket: number, count: number): number[] {
  const data = Buffer.alloc(64);
  const iovec = Buffer.alloc(16);
  iovec.writeBigUInt64LE(BigInt(koffi.address(data)), 0);
  iovec.writeBigUInt64LE(BigInt(data.length), 8);
  const control = Buffer.alloc(Math.ceil((16 + 4 * count) / 8) * 8);
  const message = Buffer.alloc(56);
  message.writeBigUInt64LE(BigInt(koffi.address(iovec)), 16);
  message.writeBigUInt64LE(1n, 24);
  message.writeBigUInt64LE(BigInt(koffi.address(control)), 32);
  message.writeBigUInt64LE(BigInt(control.length), 40);
  const result = trySyscall("recvmsg", socket, message, MSG_CMSG_CLOEXEC);
  const came = data.length + iovec.length > 0 && control.readBigUInt64LE(0) === BigInt(16 + 4 * count);
  if (result < 0 || !came) throw new SyscallError("recvmsg", result < 0 ? -result : ENOMSG, "receive a descriptor");
  return Array.from({ length: count }, (_, i) => control.readInt32LE(16 + 4 * i));
}

const MSG_CMSG_CLOEXEC = 0x40000000;
const ENOMSG = 42;

const spawnAttributes = Buffer.alloc(512);
const POSIX_SPAWN_SETSIGDEF = 4;
const POSIX_SPAWN_SETSIGMASK = 8;
const posix = {
  spawn: libc.func(
    "int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attributes, void *argv, void *envp)",
  ) as (pid: [number], path: string, actions: Buffer, attributes: Buffer, argv: Buffer, envp: Buffer) => number,
  actionsInit: libc.func("int posix_spawn_file_actions_init(void *actions)"),
  actionsDestroy: libc.func("int posix_spawn_file_actions_destroy(void *actions)"),
  addDup2: libc.func("int posix_spawn_file_actions_adddup2(void *actions, int fd, int newfd)"),
  attributesInit: libc.func("int posix_spawnattr_init(void *attributes)"),
  setFlags: libc.func("int posix_spawnattr_setflags(void *attributes, short flags)"),
  setSigDefault: libc.func("int posix_spawnattr_setsigdefault(void *attributes, void *set)"),
  setSigMask: libc.func("int posix_spawnattr_setsigmask(void *attributes, void *set)"),
};
// Node ignores SIGPIPE and a child inherits that through execve: every signal goes back to its default, none is blocked.
posix.attributesInit(spawnAttributes);
posix.setFlags(spawnAttributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
posix.setSigDefault(spawnAttributes, Buffer.alloc(128, 0xff));
posix.setSigMask(spawnAttributes, Buffer.alloc(128, 0));

/**
 * Starts a program with posix_spawn(3): no fork of this process's memory. The environment is empty.
 *
 * @param descriptors Pairs of [descriptor here, descriptor there]; everything else here is O_CLOEXEC. A descriptor there
 *   must not be the source of a later pair.
 * @returns The process id; the caller reaps it.
 * @throws {SyscallError}
 */
export function spawn(path: string, argv0: string, descriptors: readonly (readonly [number, number])[]): number {
  return posixSpawn(path, [argv0], descriptors);
}

/**
 * Executes a program in this process's place, with an empty environment; every thread ends.
 *
 * @throws {SyscallError} If it cannot be executed; this process goes on then.
 */
export function execute(path: string, args: readonly string[]): never {
  const strings = args.map(cString);
  const argv = Buffer.alloc(8 * (args.length + 1));
  strings.forEach((string, i) => argv.writeBigUInt64LE(BigInt(koffi.address(string)), 8 * i));
  const result = trySyscall("execve", cString(path), argv, Buffer.alloc(8));
  // The strings must live until the call is over: argv holds only their addresses.
  throw new SyscallError("execve", strings.length === 0 ? 0 : -result, `execute "${path}"`);
}

/** Starts a program with arguments and this process's standard descriptors; for benchmarks, which time peers fairly so. */
export function spawnProgram(path: string, args: readonly string[]): number {
  // Node marks its standard descriptors close-on-exec; placing each on itself takes that mark off.
  return posixSpawn(
    path,
    [path, ...args],
    [
      [0, 0],
      [1, 1],
      [2, 2],
    ],
  );
}

function posixSpawn(
  path: string,
  args: readonly string[],
  descriptors: readonly (readonly [number, number])[],
): number {
  const actions = Buffer.alloc(256);
  posix.actionsInit(actions);
  try {
    for (const [fd, target] of descriptors) posix.addDup2(actions, fd, target);
    const strings = args.map(cString);
    const argv = Buffer.alloc(8 * (args.length + 1));
    strings.forEach((string, i) => argv.writeBigUInt64LE(BigInt(koffi.address(string)), 8 * i));
    const pid: [number] = [0];
    const error = posix.spawn(pid, path, actions, spawnAttributes, argv, Buffer.alloc(8));
    // The strings must live until the call is over: argv holds only their addresses.
    if (error !== 0 || strings.length === 0) throw new SyscallError("posix_spawn", error, `start "${path}"`);
    return pid[0];
  } finally {
    posix.actionsDestroy(actions);
  }
}
