/**
 * The plan of one container's start: a list of named operations, from the agent's credentials to `execve`.
 *
 * The program runs in three processes. *Stage 0* is a launcher, host root in the agent's namespaces; it clones *init* into
 * new ones with the agent as its parent (so the agent reaps it), writes init's id maps and exits.
 * Init builds its file system, drops what it may not keep and waits for the start. Then it clones the *payload*, which
 * becomes the step's program, and reaps until the payload is gone; when init exits, the kernel kills whatever is left.
 */
import {
  AF_INET,
  AT_FDCWD,
  CLONE_INTO_CGROUP,
  CLONE_NEWCGROUP,
  CLONE_NEWIPC,
  CLONE_NEWNET,
  CLONE_NEWNS,
  CLONE_NEWPID,
  CLONE_NEWUSER,
  CLONE_NEWUTS,
  CLONE_PARENT,
  CLONE_VFORK,
  CLOSE_RANGE_CLOEXEC,
  type CapabilityName,
  capabilityNames,
  EACCES,
  EINVAL,
  ENOENT,
  ENOSYS,
  ENOTDIR,
  EPERM,
  IFF_RUNNING,
  IFF_UP,
  LINUX_CAPABILITY_VERSION_3,
  MNT_DETACH,
  MOVE_MOUNT_F_EMPTY_PATH,
  MS_BIND,
  MS_NODEV,
  MS_NOEXEC,
  MS_NOSUID,
  MS_PRIVATE,
  MS_RDONLY,
  MS_REC,
  MS_REMOUNT,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
  O_RDWR,
  O_WRONLY,
  PR_CAP_AMBIENT,
  PR_CAP_AMBIENT_CLEAR_ALL,
  PR_CAPBSET_DROP,
  PR_SET_DUMPABLE,
  PR_SET_KEEPCAPS,
  PR_SET_NAME,
  PR_SET_NO_NEW_PRIVS,
  PR_SET_PDEATHSIG,
  RLIMIT,
  type RlimitName,
  SIGCHLD,
  SIGKILL,
  SIOCSIFFLAGS,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
} from "./linux.ts";
import { messageBytes, type Operation, type Value } from "./program.ts";
import { attachNetworkSys, joinNetwork, networkMemory } from "./network-join.ts";
import { processBytes, processLayout } from "./process-block.ts";
import { loadSeccomp, type SeccompFilter } from "./seccomp.ts";

/**
 * Messages on the status descriptor beside `failMessage`: { u32 kind, u32 value, u64 0 }. The last two have a struct timespec
 * behind that, when it happened: the agent may be busy with something else and hear of it late.
 */
export const message = { initPid: 2, created: 3, executed: 4, payloadExited: 5 } as const;

/** How long a message is that begins with `kind`. */
export function messageLength(kind: number): number {
  return kind === message.executed || kind === message.payloadExited ? messageBytes + timespecBytes : messageBytes;
}

const timespecBytes = 16;
const CLOCK_REALTIME = 0;

/** A mount inside the root file system; targets are relative to it and lead through directories that we made. */
export type PlannedMount =
  /** A detached mount that the agent made, by descriptor. */
  | { readonly kind: "attach"; readonly fd: number; readonly target: string }
  | {
      readonly kind: "mount";
      readonly type: string;
      readonly target: string;
      readonly flags: number;
      readonly data?: string;
    }
  /** The sysfs of the network that stage 0 has joined. */
  | { readonly kind: "networkSys"; readonly target: string }
  | { readonly kind: "directory"; readonly target: string }
  | { readonly kind: "remount"; readonly target: string; readonly flags: number };

/** The root file system: mounted by the agent, or out of layers by stage 0, on kernels that take layers by path only. */
export type PlannedRootfs =
  | { readonly fd: number }
  /** Detached idmapped mounts, base first, and what `overlayData` says. */
  | { readonly layerFds: readonly number[]; readonly overlayData: string };

export interface LaunchPlan {
  /** Descriptors as the program sees them. */
  readonly statusFd: number;
  readonly rootfs: PlannedRootfs;
  /** The block with arguments and environment, read just before the start. @see process-block.ts */
  readonly processFd: number;
  /** One byte here starts the payload; its end takes init down. Absent: starts at once. */
  readonly startFd?: number;
  /** An empty directory of the host on which the root file system is attached, in init's own mount namespace. */
  readonly attachPath: string;
  readonly idMap: { readonly base: number; readonly size: number };
  /** v2: the open cgroup directory. On v1 the launcher has joined already. */
  readonly cgroupFd?: number;
  /** A network of its own with loopback only, the agent's, or a namespace that is there already, by descriptor. */
  readonly network: "own" | "host" | { readonly fd: number };
  readonly hostname: string;
  readonly mounts: readonly PlannedMount[];
  readonly maskedPaths: readonly { readonly path: string; readonly directory: boolean }[];
  readonly readonlyPaths: readonly string[];
  readonly rlimits: readonly { readonly type: RlimitName; readonly soft: bigint; readonly hard: bigint }[];
  /** Everything else leaves the bounding, permitted, effective, inheritable and ambient sets. */
  readonly capabilities: readonly CapabilityName[];
  /** The highest capability of this kernel, /proc/sys/kernel/cap_last_cap. */
  readonly lastCapability: number;
  /** In force from no_new_privs on, for init too. */
  readonly seccomp?: SeccompFilter;
  readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
  readonly cwd: string;
}

const INIT = "init";
const PAYLOAD = "payload";

/** Lists the operations that start the container, in the order in which they happen. */
export function planLaunch(plan: LaunchPlan): Operation[] {
  return [
    ...memory(plan),
    ...stageZero(plan),
    { label: INIT },
    ...awaitIdMaps(),
    ...buildRootFileSystem(plan),
    ...enterRootFileSystem(),
    ...nameAndNetwork(plan),
    ...limit(plan),
    ...dropPrivileges(plan),
    ...awaitStart(plan),
    ...superviseThePayload(plan),
    { label: PAYLOAD },
    ...execute(),
  ];
}

function memory(plan: LaunchPlan): Operation[] {
  const clone = Buffer.alloc(88); // struct clone_args, CLONE_ARGS_SIZE_VER2
  const { cgroupFd } = plan;
  clone.writeBigUInt64LE(
    BigInt(CLONE_PARENT | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER) +
      BigInt(CLONE_NEWPID) +
      (plan.network === "own" ? BigInt(CLONE_NEWNET) : 0n) +
      (cgroupFd === undefined ? 0n : BigInt(CLONE_INTO_CGROUP)),
    0,
  );
  // With CLONE_PARENT the exit signal is stage 0's own, which is SIGCHLD; clone3 wants 0 here.
  if (cgroupFd !== undefined) clone.writeBigUInt64LE(BigInt(cgroupFd), 80);
  return [
    { memory: "cloneArguments", size: 88, bytes: clone },
    { memory: "idMapPipe", size: 8 },
    { memory: "byte", size: 8 },
    { memory: "count", size: 4 },
    { memory: "payloadPid", size: 4 },
    { memory: "reapedPid", size: 4 },
    { memory: "descriptor", size: 4 },
    { memory: "mapDescriptor", size: 4 },
    { memory: "procPath", size: 32, bytes: Buffer.from(`/proc/${"/".repeat(10)}\0`) },
    { memory: "initPidMessage", size: messageBytes, bytes: message_(message.initPid) },
    { memory: "executedMessage", size: 32, bytes: message_(message.executed) },
    { memory: "payloadExitedMessage", size: 32, bytes: message_(message.payloadExited) },
    ...networkMemory,
    { memory: "process", size: processBytes },
  ];
}

function message_(kind: number): Buffer {
  const bytes = Buffer.alloc(messageLength(kind));
  bytes.writeUInt32LE(kind, 0);
  return bytes;
}

/** Clones init and writes its id maps: all that needs the host's credentials. */
function stageZero(plan: LaunchPlan): Operation[] {
  const { base, size } = plan.idMap;
  const map = `0 ${base} ${size}\n`;
  const writeMap = (file: string): Operation[] => [
    {
      name: `open ${file}`,
      call: "openat",
      args: [{ load: "descriptor" }, { text: file }, O_WRONLY | O_CLOEXEC, 0],
      store: "mapDescriptor",
    },
    { name: `write ${file}`, call: "write", args: [{ load: "mapDescriptor" }, { text: map }, map.length] },
  ];
  return [
    { name: "make a pipe", call: "pipe2", args: [{ addressOf: "idMapPipe" }, O_CLOEXEC] },
    ...("layerFds" in plan.rootfs ? mountLayers(plan.rootfs, plan.attachPath) : []),
    // The child's working directory follows it into its copy of the mount namespace, so attaching the root file system
    // on "." needs no path that the child, which owns nothing on the host, would have to be allowed to walk.
    ...("fd" in plan.rootfs
      ? [{ name: `enter "${plan.attachPath}"`, call: "chdir", args: [{ text: plan.attachPath }] }]
      : []),
    ...(typeof plan.network === "object" ? joinNetwork(plan.network.fd) : []),
    {
      name: "clone into new namespaces",
      call: "clone3",
      args: [{ addressOf: "cloneArguments" }, 88],
      store: { memory: "initPidMessage", offset: 4 },
      ifPositive: "map ids",
    },
    // In init from here on; "map ids" stands behind a jump that the child does not take.
    { name: "go on as init", unequal: [0, 1], goto: INIT },
    { label: "map ids" },
    // First of all: from here on the agent must reap init, whatever happens next.
    {
      name: "report init's process id",
      call: "write",
      args: [plan.statusFd, { addressOf: "initPidMessage" }, messageBytes],
    },
    {
      name: "format init's process id",
      decimal: { load: "initPidMessage", offset: 4 },
      endsAt: { addressOf: "procPath", offset: "/proc/".length + 10 },
    },
    // Not the path: between here and there the id could be another process's only if the agent had reaped init.
    {
      name: "open init's /proc directory",
      call: "openat",
      args: [AT_FDCWD, { addressOf: "procPath" }, O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
      store: "descriptor",
    },
    ...writeMap("uid_map"),
    ...writeMap("gid_map"),
    { name: "let init go on", call: "write", args: [{ load: "idMapPipe", offset: 4 }, { text: "m" }, 1] },
    { name: "end stage 0", call: "exit_group", args: [0] },
  ];
}

/**
 * Mounts the overlay in a mount namespace of the caller's own, so that the host never sees it. `attachPath` has an empty
 * directory `root`, and one for each layer in `l`.
 */
export function mountLayers(
  { layerFds, overlayData }: { readonly layerFds: readonly number[]; readonly overlayData: string },
  attachPath: string,
): Operation[] {
  return [
    { name: "new mount namespace for the layers", call: "unshare", args: [CLONE_NEWNS] },
    { name: "keep its mounts to itself", call: "mount", args: [0, { text: "/" }, 0, MS_REC | MS_PRIVATE, 0] },
    { name: `enter "${attachPath}"`, call: "chdir", args: [{ text: attachPath }] },
    ...layerFds.map(
      (fd, i): Operation => ({
        name: `attach layer ${i}`,
        call: "move_mount",
        args: [fd, { text: "" }, AT_FDCWD, { text: `l/${i}` }, MOVE_MOUNT_F_EMPTY_PATH],
      }),
    ),
    {
      name: "mount overlay",
      call: "mount",
      args: [{ text: "overlay" }, { text: "root" }, { text: "overlay" }, MS_NODEV, { text: overlayData }],
    },
    { name: "enter the overlay", call: "chdir", args: [{ text: "root" }] },
  ];
}

/** Waits until stage 0 has written the id maps; its end without that byte means that it failed, and has said so. */
function awaitIdMaps(): Operation[] {
  return [
    { name: "take init's name", call: "prctl", args: [PR_SET_NAME, { text: "slipway-init" }, 0, 0, 0] },
    { name: "close the pipe", call: "close", args: [{ load: "idMapPipe", offset: 4 }] },
    {
      name: "wait for the id maps",
      call: "read",
      args: [{ load: "idMapPipe" }, { addressOf: "byte" }, 1],
      store: "count",
    },
    { name: "wait for the id maps", unequal: [{ load: "count" }, 1], goto: "abandoned" },
  ];
}

function buildRootFileSystem(plan: LaunchPlan): Operation[] {
  return [
    ...attachRootFileSystem(plan.rootfs),
    // Root of the new user namespace, so that what is mounted and made from here on belongs to it.
    { name: "become group 0", call: "setresgid", args: [0, 0, 0] },
    { name: "become user 0", call: "setresuid", args: [0, 0, 0] },
    { name: "leave all groups", call: "setgroups", args: [0, 0] },
    { name: "new cgroup namespace", call: "unshare", args: [CLONE_NEWCGROUP], tolerate: [EINVAL] },
    ...plan.mounts.map(plannedMount),
    ...maskPaths(plan.maskedPaths),
    ...plan.readonlyPaths.flatMap((path): Operation[] => [
      {
        name: `bind "/${path}"`,
        call: "mount",
        args: [{ text: path }, { text: path }, 0, MS_BIND | MS_REC, 0],
      },
      {
        name: `make "/${path}" read-only`,
        call: "mount",
        args: [0, { text: path }, 0, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0],
      },
    ]),
  ];
}

function attachRootFileSystem(rootfs: PlannedRootfs): Operation[] {
  if ("fd" in rootfs) {
    return [
      {
        name: "attach the root file system",
        call: "move_mount",
        args: [rootfs.fd, { text: "" }, AT_FDCWD, { text: "." }, MOVE_MOUNT_F_EMPTY_PATH],
      },
      { name: "enter the root file system", call: "fchdir", args: [rootfs.fd] },
    ];
  }
  // What came along from stage 0 is locked here and cannot become a root; a bind of it is our own and can.
  return [
    { name: "bind the root file system", call: "mount", args: [{ text: "." }, { text: "." }, 0, MS_BIND | MS_REC, 0] },
    { name: "enter the root file system", call: "chdir", args: [{ text: "../root" }] },
  ];
}

function plannedMount(mount: PlannedMount): Operation {
  const target: Value = { text: mount.target };
  switch (mount.kind) {
    case "attach":
      return {
        name: `attach "/${mount.target}"`,
        call: "move_mount",
        args: [mount.fd, { text: "" }, AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH],
      };
    case "mount":
      return {
        name: `mount ${mount.type} on "/${mount.target}"`,
        call: "mount",
        args: [{ text: mount.type }, target, { text: mount.type }, mount.flags, mount.data ? { text: mount.data } : 0],
      };
    case "networkSys":
      return attachNetworkSys(mount.target);
    case "directory":
      return { name: `make directory "/${mount.target}"`, call: "mkdirat", args: [AT_FDCWD, target, 0o755] };
    case "remount":
      return {
        name: `remount "/${mount.target}"`,
        call: "mount",
        args: [0, target, 0, MS_BIND | MS_REMOUNT | mount.flags, 0],
      };
  }
}

/** Covers files with /dev/null and directories with one empty read-only tmpfs. */
function maskPaths(paths: LaunchPlan["maskedPaths"]): Operation[] {
  const operations: Operation[] = [];
  let emptyDirectory: string | undefined;
  for (const { path, directory } of paths) {
    if (directory && emptyDirectory === undefined) {
      emptyDirectory = path;
      operations.push({
        name: `mask "/${path}"`,
        call: "mount",
        args: [
          { text: "tmpfs" },
          { text: path },
          { text: "tmpfs" },
          MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
          { text: "nr_blocks=1,nr_inodes=1,mode=755" },
        ],
      });
    } else {
      const source = directory ? (emptyDirectory ?? path) : "dev/null";
      operations.push({
        name: `mask "/${path}"`,
        call: "mount",
        args: [{ text: source }, { text: path }, 0, MS_BIND, 0],
        tolerate: [ENOENT],
      });
    }
  }
  return operations;
}

/** pivot_root(".", ".") stacks the old root on the new one; detaching "." then leaves only the new. @see pivot_root(2) */
function enterRootFileSystem(): Operation[] {
  return [
    { name: "pivot into the root file system", call: "pivot_root", args: [{ text: "." }, { text: "." }] },
    { name: "detach the host's root", call: "umount2", args: [{ text: "." }, MNT_DETACH] },
    { name: 'enter "/"', call: "chdir", args: [{ text: "/" }] },
  ];
}

function nameAndNetwork(plan: LaunchPlan): Operation[] {
  const operations: Operation[] = [
    {
      name: `set the host name "${plan.hostname}"`,
      call: "sethostname",
      args: [{ text: plan.hostname }, Buffer.byteLength(plan.hostname)],
    },
    // Standard input is the container's own /dev/null, not the host's.
    { name: "open /dev/null", call: "openat", args: [AT_FDCWD, { text: "/dev/null" }, O_RDWR, 0], store: "descriptor" },
    { name: "set standard input", call: "dup3", args: [{ load: "descriptor" }, 0, 0] },
    { name: "close /dev/null", call: "close", args: [{ load: "descriptor" }] },
  ];
  if (plan.network === "own") {
    const request = Buffer.alloc(40); // struct ifreq
    request.write("lo");
    request.writeUInt16LE(IFF_UP | IFF_RUNNING, 16);
    operations.push(
      {
        name: "open a socket for the loopback interface",
        call: "socket",
        args: [AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0],
        store: "descriptor",
      },
      {
        name: "bring the loopback interface up",
        call: "ioctl",
        args: [{ load: "descriptor" }, SIOCSIFFLAGS, { bytes: request }],
      },
      { name: "close the socket", call: "close", args: [{ load: "descriptor" }] },
    );
  }
  return operations;
}

function limit(plan: LaunchPlan): Operation[] {
  const operations = plan.rlimits.map(({ type, soft, hard }): Operation => {
    const limits = Buffer.alloc(16);
    limits.writeBigUInt64LE(soft, 0);
    limits.writeBigUInt64LE(hard, 8);
    return { name: `set ${type}`, call: "prlimit64", args: [0, RLIMIT[type], { bytes: limits }, 0] };
  });
  return [...operations, { name: "set the umask", call: "umask", args: [0o022] }];
}

/** Bounding set before the user changes, capabilities after; no_new_privs last. Order of runc's finalizeNamespace. */
function dropPrivileges(plan: LaunchPlan): Operation[] {
  const keep = new Set<string>(plan.capabilities);
  const operations: Operation[] = [];
  for (let capability = 0; capability <= plan.lastCapability; capability++) {
    const name = capabilityNames[capability] ?? `capability ${capability}`;
    if (!keep.has(name)) {
      operations.push({ name: `drop ${name}`, call: "prctl", args: [PR_CAPBSET_DROP, capability, 0, 0, 0] });
    }
  }
  const { uid, gid, additionalGids } = plan.user;
  if (uid !== 0 || gid !== 0 || additionalGids.length > 0) {
    const groups = Buffer.alloc(Math.max(4, additionalGids.length * 4));
    additionalGids.forEach((group, i) => groups.writeUInt32LE(group, i * 4));
    operations.push(
      { name: "keep capabilities", call: "prctl", args: [PR_SET_KEEPCAPS, 1, 0, 0, 0] },
      { name: "set additional groups", call: "setgroups", args: [additionalGids.length, { bytes: groups }] },
      { name: `become group ${gid}`, call: "setresgid", args: [gid, gid, gid] },
      { name: `become user ${uid}`, call: "setresuid", args: [uid, uid, uid] },
    );
  }
  // Whoever is not root holds no capability; the inheritable set is empty for everyone (CVE-2022-24769).
  const mask = capabilityMask(plan.capabilities.filter((name) => capabilityNames.indexOf(name) <= plan.lastCapability));
  const held = uid === 0 ? mask : 0n;
  const header = Buffer.alloc(8);
  header.writeUInt32LE(LINUX_CAPABILITY_VERSION_3, 0);
  const sets = Buffer.alloc(24);
  for (const half of [0, 1]) {
    const bits = Number((held >> BigInt(32 * half)) & 0xffffffffn);
    sets.writeUInt32LE(bits, 12 * half); // effective
    sets.writeUInt32LE(bits, 12 * half + 4); // permitted
  }
  operations.push(
    { name: "set capabilities", call: "capset", args: [{ bytes: header }, { bytes: sets }] },
    {
      name: "clear ambient capabilities",
      call: "prctl",
      args: [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0],
      tolerate: [EINVAL],
    },
    // Cleared by every change of credentials, so after the last one; the step dies with its agent.
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    { name: `enter "${plan.cwd}"`, call: "chdir", args: [{ text: plan.cwd }] },
    { name: "set no_new_privs", call: "prctl", args: [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0] },
    // Last: what init does from here on, a filter for ordinary programs lets it do.
    ...(plan.seccomp === undefined ? [] : loadSeccomp(plan.seccomp)),
  );
  return operations;
}

function capabilityMask(names: readonly CapabilityName[]): bigint {
  return names.reduce((mask, name) => mask | (1n << BigInt(capabilityNames.indexOf(name))), 0n);
}

function awaitStart(plan: LaunchPlan): Operation[] {
  const readProcess: Operation = {
    name: "read the arguments and environment",
    call: "pread64",
    args: [plan.processFd, { addressOf: "process" }, processBytes, 0],
  };
  if (plan.startFd === undefined) return [readProcess];
  return [
    {
      name: "report that the container is created",
      call: "write",
      args: [plan.statusFd, { bytes: message_(message.created) }, messageBytes],
    },
    {
      name: "wait for the start",
      call: "read",
      args: [plan.startFd, { addressOf: "byte" }, 1],
      store: "count",
    },
    { name: "wait for the start", unequal: [{ load: "count" }, 1], goto: "abandoned" },
    readProcess,
  ];
}

/** Clones the payload and reaps everything until it is gone; its wait status is the last word. */
function superviseThePayload(plan: LaunchPlan): Operation[] {
  return [
    // The payload may not trace or read init, which speaks for the container.
    { name: "protect init", call: "prctl", args: [PR_SET_DUMPABLE, 0, 0, 0, 0] },
    // Before, not after: when init goes on, a short program may have ended already.
    readClock("executedMessage"),
    {
      name: "clone the payload",
      call: "clone",
      // CLONE_VFORK: init goes on when the payload has executed its program, and can then say so.
      args: [CLONE_VFORK | SIGCHLD, 0, 0, 0, 0],
      store: "payloadPid",
      ifPositive: "reap",
    },
    { name: "go on as the payload", unequal: [0, 1], goto: PAYLOAD },
    { label: "reap" },
    report("report that the program was executed", plan.statusFd, "executedMessage"),
    ...[1, 2].map((fd): Operation => ({ name: `close descriptor ${fd}`, call: "close", args: [fd] })),
    { label: "reap one" },
    {
      name: "wait for a process",
      call: "wait4",
      args: [-1, { addressOf: "payloadExitedMessage", offset: 4 }, 0, 0],
      store: "reapedPid",
    },
    {
      name: "reap until the payload is gone",
      unequal: [{ load: "reapedPid" }, { load: "payloadPid" }],
      goto: "reap one",
    },
    readClock("payloadExitedMessage"),
    report("report the payload's end", plan.statusFd, "payloadExitedMessage"),
    { label: "abandoned" },
    { name: "end init", call: "exit_group", args: [0] },
  ];
}

/** Into the timespec behind a message. */
function readClock(memory: string): Operation {
  const time: Value = { addressOf: memory, offset: messageBytes };
  return { name: "read the clock", call: "clock_gettime", args: [CLOCK_REALTIME, time] };
}

function report(name: string, statusFd: number, memory: string): Operation {
  return { name, call: "write", args: [statusFd, { addressOf: memory }, messageBytes + timespecBytes] };
}

function execute(): Operation[] {
  const block = (offset: number): Value => ({ load: "process", offset });
  const execve = (candidate: number, tolerate: readonly number[]): Operation => ({
    name: "execute the program",
    call: "execve",
    args: [block(processLayout.candidates + 4 * candidate), block(processLayout.argv), block(processLayout.envp)],
    tolerate,
  });
  return [
    { name: "become dumpable", call: "prctl", args: [PR_SET_DUMPABLE, 1, 0, 0, 0] },
    { name: "start a session", call: "setsid", args: [] },
    // The status descriptor included: its end at execve is how nobody but init can speak on it.
    {
      name: "close inherited descriptors",
      call: "close_range",
      args: [3, 0xffff_ffff, CLOSE_RANGE_CLOEXEC],
      tolerate: [ENOSYS, EPERM],
    },
    // One candidate: its own errno is the answer. Several: the first that can be executed, as execvp(3) does.
    { name: "search in PATH", unequal: [block(processLayout.count), 1], goto: "search" },
    execve(0, []),
    { label: "search" },
    ...Array.from({ length: processLayout.maxCandidates }, (_, i) => execve(i, [ENOENT, ENOTDIR, EACCES])),
    { name: "execute the program", fail: ENOENT },
  ];
}
