/**
 * The program behind `Launchers`: one process that makes launchers, and the launchers, which are its clones.
 *
 * The *parent* reads requests. One is a name and one end of a socket: it makes the cgroups of that name, clones itself and
 * reports the clone's process id. Another is a name alone: it removes those cgroups. Whoever changes cgroups waits for whoever
 * else does on this host, so it is better one process than the agent's thread and a few more. The clone, a *launcher*, is the agent's child. It joins the cgroups, waits on the socket
 * for a container's program and descriptors, and executes the program. Cloning a process of a few pages costs a tenth of
 * starting one from the agent, and happens beside it.
 */
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_REMOVEDIR,
  CLONE_NEWNS,
  CLONE_PARENT,
  EBUSY,
  EEXIST,
  EINVAL,
  ENOENT,
  ENOSYS,
  EPERM,
  F_SETFD,
  FD_CLOEXEC,
  MNT_DETACH,
  MS_BIND,
  MS_PRIVATE,
  MS_REC,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
  O_RDWR,
  O_WRONLY,
  PR_SET_NAME,
  PR_SET_PDEATHSIG,
  SIGCHLD,
  SIGKILL,
} from "./linux.ts";
import { messageBytes, type Operation } from "./program.ts";

/** Where a container's program finds its descriptors: standard output and error, then `first`, `first + 1`, … */
export const launchedDescriptors = { programFd: 4, stdout: 5, stderr: 6, first: 7 } as const;

/**
 * What a request is made of beside a descriptor: the name, and, for a launcher, the name of cgroup.procs below it.
 * NUL-terminated. One to remove cgroups ends before that, and its descriptor is only there to be the same.
 */
export const requestLayout = { name: 0, procs: 32, bytes: 80, removalBytes: 32 } as const;

/** The kinds of reports: { u32 made, u32 pid, u64 0 }; { u32 removed, u32 0, u32 left per hierarchy }; or a fail message. */
export const report = { made: 7, removed: 8 } as const;

/** How long a report is that begins with `kind`. */
export function reportLength(kind: number, directories: number): number {
  return kind === report.removed ? 8 + 4 * directories : messageBytes;
}

const socketFd = 3;
/** Of one message; one after which others follow has so many. As they fill the control data, the kernel leaves its length as it was. */
export const messageDescriptors = 64;
/** Says that others follow; the kernel takes 253 descriptors at once, and a container of many layers has more. */
export const moreFollow = "m";
/** CMSG_SPACE of one descriptor. As it is exactly filled, the kernel leaves the length of the control data as it was. */
const oneDescriptor = 24;

export interface LaunchersPlan {
  /** Of the agent's cgroups, one per hierarchy. */
  readonly directories: readonly string[];
  /** Whether launchers join: on v1. Else clone3 puts the container into its cgroup. */
  readonly joins: boolean;
  /** An empty directory of the host. If there: launchers have a mount namespace of few mounts, and are in an empty directory of it. */
  readonly apartOn?: string | undefined;
  /** Descriptors of the parent: where requests come from, and where it reports. */
  readonly requests: number;
  readonly reports: number;
}

/** Lists the operations of the parent and its clones. Failures go to `reports`. */
export function planLaunchers({ directories, joins, apartOn, requests, reports }: LaunchersPlan): Operation[] {
  return [
    { memory: "request", size: requestLayout.bytes },
    ...received("request", requestLayout.bytes, oneDescriptor),
    { memory: "report", size: messageBytes, bytes: u32s([report.made, 0, 0, 0]) },
    {
      memory: "removal",
      size: 8 + 4 * directories.length,
      bytes: u32s([report.removed, 0, ...directories.map(() => 0)]),
    },
    ...directories.map((_, i): Operation => ({ memory: `directory ${i}`, size: 4 })),
    ...launcherMemory(),
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    { name: "name itself", call: "prctl", args: [PR_SET_NAME, { text: "slipway-launch" }, 0, 0, 0] },
    { name: "open /dev/null", call: "openat", args: [AT_FDCWD, { text: "/dev/null" }, O_RDWR, 0], store: "procs" },
    ...[0, 1, 2].map(
      (fd): Operation => ({
        name: `place descriptor ${fd}`,
        call: "dup3",
        args: [{ load: "procs" }, fd, 0],
        tolerate: [EINVAL], // it is there
      }),
    ),
    ...directories.map(
      (path, i): Operation => ({
        name: `open cgroup "${path}"`,
        call: "openat",
        args: [AT_FDCWD, { text: path }, O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
        store: `directory ${i}`,
      }),
    ),
    ...(apartOn === undefined ? [] : leaveMounts(apartOn)),
    { label: "next" },
    {
      name: "wait for a request",
      call: "recvmsg",
      args: [requests, { addressOf: "request message" }, 0],
      store: "count",
    },
    { name: "wait for a request", unequal: [{ load: "count" }, requestLayout.bytes], goto: "remove" },
    ...directories.map(
      (path, i): Operation => ({
        name: `make a cgroup in "${path}"`,
        call: "mkdirat",
        args: [{ load: `directory ${i}` }, { addressOf: "request", offset: requestLayout.name }, 0o755],
        tolerate: [EEXIST],
      }),
    ),
    {
      name: "clone a launcher",
      call: "clone",
      args: [CLONE_PARENT | SIGCHLD, 0, 0, 0, 0],
      store: { memory: "report", offset: 4 },
      ifPositive: "report",
    },
    { name: "go on as a launcher", unequal: [0, 1], goto: "launcher" },
    { label: "report" },
    { name: "report a launcher", call: "write", args: [reports, { addressOf: "report" }, messageBytes] },
    { label: "requested" },
    { name: "let go of its descriptor", call: "close", args: [{ load: "request control", offset: 16 }] },
    { name: "go on", unequal: [0, 1], goto: "next" },
    { label: "remove" },
    { name: "wait for a request", unequal: [{ load: "count" }, requestLayout.removalBytes], goto: "not needed" },
    ...directories.flatMap((path, i): Operation[] => [
      // A call that succeeds stores zero.
      { name: "assume that it stays", call: "getpid", args: [], store: { memory: "removal", offset: 8 + 4 * i } },
      {
        name: `remove a cgroup from "${path}"`,
        call: "unlinkat",
        args: [{ load: `directory ${i}` }, { addressOf: "request", offset: requestLayout.name }, AT_REMOVEDIR],
        store: { memory: "removal", offset: 8 + 4 * i },
        tolerate: [EBUSY, ENOENT],
      },
    ]),
    {
      name: "report what stays",
      call: "write",
      args: [reports, { addressOf: "removal" }, reportLength(report.removed, directories.length)],
    },
    { name: "go on", unequal: [0, 1], goto: "requested" },
    { label: "launcher" },
    ...join(joins ? directories : []),
    ...launch(),
    { label: "not needed" },
    { name: "end", call: "exit_group", args: [0] },
  ];
}

/**
 * A container begins with a copy of its launcher's mounts, which takes longer the more the host has, and is as long in
 * going. What it needs are mounts of its own and, to be allowed to make its own of these kinds, a proc and a sysfs that show all.
 *
 * @see mount_too_revealing in Linux' fs/namespace.c
 */
function leaveMounts(directory: string): Operation[] {
  const seen = ["proc", "sys"];
  return [
    { name: "new mount namespace", call: "unshare", args: [CLONE_NEWNS] },
    { name: "keep its mounts to itself", call: "mount", args: [0, { text: "/" }, 0, MS_REC | MS_PRIVATE, 0] },
    {
      name: `mount a root on "${directory}"`,
      call: "mount",
      args: [{ text: "tmpfs" }, { text: directory }, { text: "tmpfs" }, 0, { text: "size=1m,mode=755" }],
    },
    { name: "enter the new root", call: "chdir", args: [{ text: directory }] },
    ...[...seen, "attach"].map(
      (name): Operation => ({ name: `make "${name}"`, call: "mkdirat", args: [AT_FDCWD, { text: name }, 0o755] }),
    ),
    ...seen.map(
      (name): Operation => ({
        name: `show "/${name}"`,
        call: "mount",
        args: [{ text: `/${name}` }, { text: name }, 0, MS_BIND, 0],
      }),
    ),
    // The old root is stacked on the new one, and goes. @see pivot_root(2)
    { name: "pivot into the new root", call: "pivot_root", args: [{ text: "." }, { text: "." }] },
    { name: "detach the host's root", call: "umount2", args: [{ text: "." }, MNT_DETACH] },
    { name: "wait where containers attach theirs", call: "chdir", args: [{ text: "/attach" }] },
  ];
}

function launcherMemory(): Operation[] {
  return [
    { memory: "byte", size: 8 },
    ...received("byte", 1, 16 + 4 * messageDescriptors),
    { memory: "count", size: 4 },
    { memory: "procs", size: 4 },
    { memory: "argv", size: 16, pointers: [{ at: 0, to: "name" }], bytes: u64s([0, 0]) },
    { memory: "name", size: 16, bytes: Buffer.from("slipway-init\0") },
  ];
}

/** What recvmsg(2) takes: struct msghdr, with an iovec for the bytes and room for control data. */
function received(memory: string, bytes: number, controlBytes: number): Operation[] {
  return [
    { memory: `${memory} vector`, size: 16, pointers: [{ at: 0, to: memory }], bytes: u64s([0, bytes]) },
    { memory: `${memory} control`, size: controlBytes },
    {
      memory: `${memory} message`,
      size: 56,
      pointers: [
        { at: 16, to: `${memory} vector` },
        { at: 32, to: `${memory} control` },
      ],
      bytes: u64s([0, 0, 0, 1, 0, controlBytes, 0]),
    },
  ];
}

function join(directories: readonly string[]): Operation[] {
  return directories.flatMap((path, i): Operation[] => [
    {
      name: `open cgroup.procs in "${path}"`,
      call: "openat",
      args: [{ load: `directory ${i}` }, { addressOf: "request", offset: requestLayout.procs }, O_WRONLY, 0],
      store: "procs",
    },
    { name: "join the cgroup", call: "write", args: [{ load: "procs" }, { text: "0" }, 1] },
  ]);
}

/** Puts its descriptors where the container's program expects them, waits, executes. */
function launch(): Operation[] {
  const { programFd, stdout, stderr } = launchedDescriptors;
  return [
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    {
      name: "place the socket",
      call: "dup3",
      args: [{ load: "request control", offset: 16 }, socketFd, 0],
      tolerate: [EINVAL], // it is there
    },
    { name: "close the rest", call: "close_range", args: [socketFd + 1, 0xffff_ffff, 0], tolerate: [ENOSYS, EPERM] },
    { label: "incomplete" },
    {
      name: "wait for a container",
      call: "recvmsg",
      args: [socketFd, { addressOf: "byte message" }, 0],
      store: "count",
    },
    { name: "wait for a container", unequal: [{ load: "count" }, 1], goto: "not needed" },
    { name: "is that all", unequal: [{ load: "byte" }, moreFollow.charCodeAt(0)], goto: "complete" },
    { name: "wait for the rest", unequal: [0, 1], goto: "incomplete" },
    { label: "complete" },
    { name: "place standard output", call: "dup3", args: [stdout, 1, 0] },
    { name: "place standard error", call: "dup3", args: [stderr, 2, 0] },
    ...[socketFd, programFd, stdout, stderr].map(
      (fd): Operation => ({ name: `let go of descriptor ${fd}`, call: "fcntl", args: [fd, F_SETFD, FD_CLOEXEC] }),
    ),
    {
      name: "execute the container's program",
      call: "execveat",
      args: [programFd, { text: "" }, { addressOf: "argv" }, { addressOf: "argv", offset: 8 }, AT_EMPTY_PATH],
    },
  ];
}

function u32s(values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, i) => bytes.writeUInt32LE(value, i * 4));
  return bytes;
}

function u64s(values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 8);
  values.forEach((value, i) => bytes.writeBigUInt64LE(BigInt(value), i * 8));
  return bytes;
}
