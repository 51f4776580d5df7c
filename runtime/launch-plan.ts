/**
 * The plan of one container's start: a list of named operations, from the agent's credentials to `execve`.
 *
 * The program runs in three processes. *Stage 0* is a launcher, host root in the agent's namespaces; it clones *init* into
 * new ones with the agent as its parent (so the agent reaps it), writes init's id maps and exits.
 * Init builds its file system, drops what it may not keep and clones the *payload*, which waits for the start and becomes the
 * step's program. Init reaps until the payload is gone, kills whatever is left and exits.
 */
import {
  AT_FDCWD,
  CLONE_INTO_CGROUP,
  CLONE_NEWCGROUP,
  CLONE_NEWNET,
  CLONE_NEWNS,
  CLONE_NEWUSER,
  CLONE_PARENT,
  CLONE_VFORK,
  CLOSE_RANGE_CLOEXEC,
  EACCES,
  ECHILD,
  EINVAL,
  ENOENT,
  ENOSYS,
  ENOTDIR,
  EPERM,
  ESRCH,
  MNT_DETACH,
  MOVE_MOUNT_F_EMPTY_PATH,
  MS_BIND,
  MS_NODEV,
  MS_PRIVATE,
  MS_REC,
  MS_SHARED,
  O_CLOEXEC,
  O_DIRECTORY,
  O_PATH,
  O_RDWR,
  O_WRONLY,
  PR_SET_DUMPABLE,
  PR_SET_NAME,
  PR_SET_PDEATHSIG,
  RLIMIT,
  SIGCHLD,
  SIGKILL,
} from "./linux.ts";
import { joinNetwork, joinOwnNetwork, networkMemory } from "./network-join.ts";
import type { IdMapping, OciConfig, OciProcess } from "./oci-config.ts";
import { beneathRoot, FileSystemPlan, type ResolvedMount } from "./oci-file-system.ts";
import { loopback, names, newNamespaces, oomScore, ownKeyring, sysctls } from "./oci-plan.ts";
import { dropPrivileges, type ProcessPlan, processMemory, readCapabilities, schedule } from "./oci-process.ts";
import type { OverlayByPath } from "./rootfs.ts";
import { messageBytes, type Operation, type Value } from "./program.ts";
import { processBytes, processLayout } from "./process-block.ts";
import { loadSeccomp, type SeccompFilter } from "./seccomp.ts";

/**
 * Messages on the status descriptor beside `failMessage`: { u32 kind, u32 value, u64 0 }. `executed` and `payloadExited` have a struct
 * timespec behind that, when it happened: the agent may be busy with something else and hear of it late. `executed` with a time of
 * zero means that the program was not executed: failed, or abandoned. `payloadExited` says that nothing but init is left;
 * a nested container says `payloadEnding` before it kills what is, which may not be enough.
 */
export const message = { initPid: 2, created: 3, executed: 4, payloadExited: 5, payloadEnding: 6 } as const;

/** How long a message is that begins with `kind`. */
export function messageLength(kind: number): number {
  return kind === message.executed || kind === message.payloadExited ? messageBytes + timespecBytes : messageBytes;
}

const timespecBytes = 16;
const CLOCK_REALTIME = 0;

/** The root file system: mounted by the agent, or out of layers by stage 0, on kernels that take layers by path only. */
export type PlannedRootfs =
  | { readonly fd: number }
  /** Detached idmapped mounts, base first, and what `overlaysByPath` says. */
  | { readonly layerFds: readonly number[]; readonly overlays: readonly OverlayByPath[] };

/** Descriptors as the program sees them, and what it does with them. */
export interface LaunchPlan {
  readonly statusFd: number;
  readonly rootfs: PlannedRootfs;
  /** The block with arguments and environment, read just before the start. @see process-block.ts */
  readonly processFd: number;
  /** One byte here starts the payload; its end takes init down. Absent: starts at once. */
  readonly startFd?: number;
  /** There is no payload: init waits for the end of `startFd`, and further processes run meanwhile. */
  readonly isIdle?: true;
  /**
   * An empty directory of the host on which the root file system is attached, in init's own mount namespace. Absent: the
   * launcher is in one, in a namespace of few mounts. It cannot be for layers.
   */
  readonly attachPath?: string | undefined;
  /** v2: the open cgroup directory. On v1 the launcher has joined already. */
  readonly cgroupFd?: number;
  /** The network namespace that the configuration names. */
  readonly networkFd?: number;
  /** The user namespace that it names: its id maps are there already, and init is root of it from the start. */
  readonly userFd?: number;
  /** cgroup.procs of cgroups to join before that, while it is allowed. */
  readonly joinFds?: readonly number[];
  /** cgroup.procs of the cgroup to go to once the cgroup namespace has the one above for its root. */
  readonly leafFd?: number;
  /** Of the configuration what the program does itself: not what runs, not the limits, not the mounts as they were written. */
  readonly config: Pick<OciConfig, "hostname" | "domainname" | "linux"> & { readonly process: OciProcess };
  readonly mounts: readonly ResolvedMount[];
  /** The highest capability of this kernel, /proc/sys/kernel/cap_last_cap. */
  readonly lastCapability: number;
  /** In force for init, too, once it is set up. */
  readonly seccomp?: SeccompFilter;
  /** setgroups(2) is denied in the agent's user namespace and those below: whoever has no subordinate ids. */
  readonly keepsGroups?: boolean;
}

const INIT = "init";
const PAYLOAD = "payload";

/** Mount points of our own making: in the topmost layer, or in what is mounted there. No image can lead them elsewhere. */
const ours = new Set(["dev", "dev/mqueue", "dev/pts", "dev/shm", "proc", "sys", "sys/fs/cgroup", "workspace"]);

/** Lists the operations that start the container, in the order in which they happen. */
export function planLaunch(plan: LaunchPlan): Operation[] {
  const { config } = plan;
  const process = planProcess(plan);
  return [
    ...memory(plan),
    ...processMemory(),
    ...stageZero(plan),
    { label: INIT },
    ...(plan.userFd === undefined ? awaitIdMaps() : becomeInit(plan)),
    ...buildRootFileSystem(plan),
    ...sysctls(config),
    ...enterRootFileSystem(plan),
    ...names(config),
    ...standardInput(),
    ...(hasNewNetwork(plan) ? loopback() : []),
    ...schedule(config.process, config.linux),
    ...limit(config.process),
    ...dropPrivileges(process),
    // Cleared by every change of credentials, so after the last one; the step dies with its agent.
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    // Last: what init does from here on, a filter for ordinary programs lets it do.
    ...(config.process.noNewPrivileges && plan.seccomp !== undefined ? loadSeccomp(plan.seccomp) : []),
    // No process of the container may trace or read init, which speaks for it.
    { name: "protect init", call: "prctl", args: [PR_SET_DUMPABLE, 0, 0, 0, 0] },
    ...(plan.isIdle ? waitForTheEnd(plan) : [...superviseThePayload(plan), { label: PAYLOAD }, ...execute(plan)]),
  ];
}

/** What is decided here about a process of a step, the first one or a further one. */
export function planProcess({
  config,
  lastCapability,
  seccomp,
  keepsGroups = false,
}: Pick<LaunchPlan, "lastCapability" | "seccomp" | "keepsGroups"> & {
  readonly config: { readonly process: OciProcess };
}): ProcessPlan {
  const all = (1n << 64n) - 1n; // root of a new user namespace has everything
  const capabilities = readCapabilities(config.process.capabilities, {
    lastCapability,
    ownBounding: all,
    ownPermitted: all,
  });
  return {
    process: config.process,
    capabilities,
    lastCapability,
    seccomp,
    label: undefined,
    keepsGroups,
    preserveFds: [],
    pipes: [],
  };
}

function hasNewNetwork({ config }: LaunchPlan): boolean {
  return (newNamespaces(config) & CLONE_NEWNET) !== 0;
}

function memory(plan: LaunchPlan): Operation[] {
  const clone = Buffer.alloc(88); // struct clone_args, CLONE_ARGS_SIZE_VER2
  const { cgroupFd } = plan;
  // The cgroup namespace comes later: its root is the cgroup that init is in by then.
  const namespaces = (newNamespaces(plan.config) & ~CLONE_NEWCGROUP) >>> 0;
  clone.writeBigUInt64LE(
    BigInt(CLONE_PARENT) + BigInt(namespaces) + (cgroupFd === undefined ? 0n : BigInt(CLONE_INTO_CGROUP)),
    0,
  );
  // With CLONE_PARENT the exit signal is stage 0's own, which is SIGCHLD; clone3 wants 0 here.
  if (cgroupFd !== undefined) clone.writeBigUInt64LE(BigInt(cgroupFd), 80);
  return [
    { memory: "cloneArguments", size: 88, bytes: clone },
    { memory: "idMapPipe", size: 8 },
    { memory: "payloadPid", size: 4 },
    { memory: "reapedPid", size: 4 },
    { memory: "descriptor", size: 4 },
    { memory: "mapDescriptor", size: 4 },
    { memory: "procPath", size: 32, bytes: Buffer.from(`/proc/${"/".repeat(10)}\0`) },
    { memory: "initPidMessage", size: messageBytes, bytes: message_(message.initPid) },
    { memory: "executedMessage", size: messageBytes, bytes: message_(message.executed).subarray(0, messageBytes) },
    { memory: "executedVector", size: 32, pointers: [{ at: 0, to: "executedMessage" }], bytes: executedVector() },
    { memory: "payloadExitedMessage", size: 32, bytes: message_(message.payloadExited) },
    ...networkMemory,
    { memory: "process", size: processBytes },
  ];
}

function idMapText(mappings: readonly IdMapping[]): string {
  return mappings.map(({ containerID, hostID, size }) => `${containerID} ${hostID} ${size}\n`).join("");
}

function write(name: string, fd: Value, text: string): Operation {
  return { name, call: "write", args: [fd, { text }, Buffer.byteLength(text)] };
}

function message_(kind: number): Buffer {
  const bytes = Buffer.alloc(messageLength(kind));
  bytes.writeUInt32LE(kind, 0);
  return bytes;
}

/** Two struct iovec: the message, and the time behind it in the shared page. */
function executedVector(): Buffer {
  const vector = Buffer.alloc(32);
  vector.writeBigUInt64LE(BigInt(messageBytes), 8);
  vector.writeBigUInt64LE(BigInt(sharedPage), 16);
  vector.writeBigUInt64LE(BigInt(timespecBytes), 24);
  return vector;
}

/** Clones init and writes its id maps: all that needs the host's credentials. */
function stageZero(plan: LaunchPlan): Operation[] {
  return [
    ...(plan.userFd === undefined ? oomScore(plan.config.process) : []),
    { name: "make a pipe", call: "pipe2", args: [{ addressOf: "idMapPipe" }, O_CLOEXEC] },
    ...("layerFds" in plan.rootfs ? mountLayers(plan.rootfs, plan.attachPath ?? ".") : []),
    // The child's working directory follows it into its copy of the mount namespace, so attaching the root file system
    // on "." needs no path that the child, which owns nothing on the host, would have to be allowed to walk.
    ...("fd" in plan.rootfs && plan.attachPath !== undefined
      ? [{ name: `enter "${plan.attachPath}"`, call: "chdir", args: [{ text: plan.attachPath }] }]
      : []),
    ...(plan.networkFd === undefined
      ? []
      : plan.userFd === undefined
        ? joinNetwork(plan.networkFd)
        : [joinOwnNetwork(plan.networkFd)]),
    ...(plan.joinFds ?? []).map(
      (fd): Operation => ({ name: "join the delegated cgroup", call: "write", args: [fd, { text: "0" }, 1] }),
    ),
    // Last: what the host allows is over from here on.
    ...(plan.userFd === undefined
      ? []
      : [{ name: "join the job's user namespace", call: "setns", args: [plan.userFd, CLONE_NEWUSER] } as const]),
    {
      name: "clone into new namespaces",
      call: "clone3",
      args: [{ addressOf: "cloneArguments" }, 88],
      store: { memory: "initPidMessage", offset: 4 },
      ifPositive: "report",
    },
    // In init from here on; "report" stands behind a jump that the child does not take.
    { name: "go on as init", unequal: [0, 1], goto: INIT },
    { label: "report" },
    // First of all: from here on the agent must reap init, whatever happens next.
    {
      name: "report init's process id",
      call: "write",
      args: [plan.statusFd, { addressOf: "initPidMessage" }, messageBytes],
    },
    ...(plan.userFd === undefined ? mapIds(plan) : []),
    { name: "end stage 0", call: "exit_group", args: [0] },
  ];
}

function mapIds(plan: LaunchPlan): Operation[] {
  const { uidMappings = [], gidMappings = [] } = plan.config.linux ?? {};
  const writeMap = (file: string, mappings: readonly IdMapping[]): Operation[] => [
    {
      name: `open ${file}`,
      call: "openat",
      args: [{ load: "descriptor" }, { text: file }, O_WRONLY | O_CLOEXEC, 0],
      store: "mapDescriptor",
    },
    write(`write ${file}`, { load: "mapDescriptor" }, idMapText(mappings)),
  ];
  return [
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
    ...writeMap("uid_map", uidMappings),
    ...writeMap("gid_map", gidMappings),
    { name: "let init go on", call: "write", args: [{ load: "idMapPipe", offset: 4 }, { text: "m" }, 1] },
  ];
}

/**
 * Mounts the overlay in a mount namespace of the caller's own, so that the host never sees it. `attachPath` has an empty
 * directories `base` and `root`, and one for each layer in `l`.
 */
export function mountLayers(
  { layerFds, overlays }: { readonly layerFds: readonly number[]; readonly overlays: readonly OverlayByPath[] },
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
    ...overlays.map(
      ({ target, data }): Operation => ({
        name: "mount overlay",
        call: "mount",
        args: [{ text: "overlay" }, { text: target }, { text: "overlay" }, MS_NODEV, { text: data }],
      }),
    ),
    { name: "enter the overlay", call: "chdir", args: [{ text: "root" }] },
  ];
}

const takeName: Operation = {
  name: "take init's name",
  call: "prctl",
  args: [PR_SET_NAME, { text: "slipway-init" }, 0, 0, 0],
};

/**
 * In a user namespace that is there already. The score is set by somebody who has no right on the host to: so it may be
 * lowered again, to the agent's, as runtimes do for their containers.
 */
function becomeInit({ config }: LaunchPlan): Operation[] {
  return [takeName, ...oomScore(config.process)];
}

/** Waits until stage 0 has written the id maps; its end without that byte means that it failed, and has said so. */
function awaitIdMaps(): Operation[] {
  return [
    takeName,
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
  const { maskedPaths = [], readonlyPaths = [] } = plan.config.linux ?? {};
  const { cwd } = plan.config.process;
  // The working directory is the root file system from here on.
  const files = new FileSystemPlan(AT_FDCWD, { ours, nullDevice: "dev/null" });
  return [
    ...files.memory(),
    ...attachRootFileSystem(plan.rootfs),
    // Root of the new user namespace, so that what is mounted and made from here on belongs to it.
    { name: "become group 0", call: "setresgid", args: [0, 0, 0] },
    { name: "become user 0", call: "setresuid", args: [0, 0, 0] },
    ...(plan.keepsGroups ? [] : [{ name: "leave all groups", call: "setgroups", args: [0, 0] }]),
    // Other steps may ask for no key: their filter forbids it.
    ...(plan.userFd === undefined ? [] : [ownKeyring]),
    { name: "new cgroup namespace", call: "unshare", args: [CLONE_NEWCGROUP], tolerate: [EINVAL] },
    ...(plan.leafFd === undefined
      ? []
      : [
          // A cgroup with processes in it may not hand controllers on: the root of the delegated part has none.
          { name: "go below the delegated cgroup", call: "write", args: [plan.leafFd, { text: "0" }, 1] } as const,
        ]),
    { name: "clear the umask", call: "umask", args: [0] },
    ...plan.mounts.flatMap((mount) => files.mount(mount)),
    ...(cwd === "/" || ours.has(beneathRoot(cwd)) ? [] : files.directory(cwd)),
    ...readonlyPaths.flatMap((path) => files.readonly(path)),
    ...files.mask(maskedPaths),
    ...files.makeReadonly(),
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

/** pivot_root(".", ".") stacks the old root on the new one; detaching "." then leaves only the new. @see pivot_root(2) */
function enterRootFileSystem({ config }: LaunchPlan): Operation[] {
  return [
    { name: "pivot into the root file system", call: "pivot_root", args: [{ text: "." }, { text: "." }] },
    { name: "detach the host's root", call: "umount2", args: [{ text: "." }, MNT_DETACH] },
    { name: 'enter "/"', call: "chdir", args: [{ text: "/" }] },
    ...(config.linux?.rootfsPropagation === "rshared"
      ? [{ name: "share mounts", call: "mount", args: [0, { text: "/" }, 0, MS_REC | MS_SHARED, 0] } as const]
      : []),
  ];
}

/** Standard input is the container's own /dev/null, not the host's. */
function standardInput(): Operation[] {
  return [
    { name: "open /dev/null", call: "openat", args: [AT_FDCWD, { text: "/dev/null" }, O_RDWR, 0], store: "descriptor" },
    { name: "set standard input", call: "dup3", args: [{ load: "descriptor" }, 0, 0] },
    { name: "close /dev/null", call: "close", args: [{ load: "descriptor" }] },
  ];
}

function limit({ rlimits = [] }: OciProcess): Operation[] {
  return rlimits.map(({ type, soft, hard }): Operation => {
    const limits = Buffer.alloc(16);
    limits.writeBigUInt64LE(soft, 0);
    limits.writeBigUInt64LE(hard, 8);
    return { name: `set ${type}`, call: "prlimit64", args: [0, RLIMIT[type], { bytes: limits }, 0] };
  });
}

/**
 * Clones the payload and reaps everything until nothing but init is left; its wait status is the last word.
 *
 * The payload is there before its start, one `execve` away from the step's program. Its end is reported when no other
 * process of the step is left: the next step may start at once, although init and the namespaces still have to go.
 */
function superviseThePayload(plan: LaunchPlan): Operation[] {
  return [
    {
      name: "share a page with the payload",
      call: "mmap",
      args: [
        sharedPage,
        4096,
        PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
        0xffff_ffff_ffff_ffffn,
        0,
      ],
    },
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
    {
      name: "report that the program was executed",
      call: "writev",
      args: [plan.statusFd, { addressOf: "executedVector" }, 2],
    },
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
    readClock({ addressOf: "payloadExitedMessage", offset: messageBytes }),
    ...(plan.userFd === undefined
      ? []
      : [
          {
            name: "report that what is left is killed",
            call: "write",
            args: [plan.statusFd, { bytes: message_(message.payloadEnding) }, messageBytes],
          } as const,
        ]),
    // Whoever is forking meanwhile fails at that: what this leaves alive is nobody but init.
    { name: "kill what is left", call: "kill", args: [-1, SIGKILL], tolerate: [ESRCH] },
    { label: "reap the rest" },
    {
      name: "wait for what is left",
      call: "wait4",
      args: [-1, 0, WALL, 0],
      ifPositive: "reap the rest",
      tolerate: [ECHILD],
    },
    {
      name: "report the payload's end",
      call: "write",
      args: [plan.statusFd, { addressOf: "payloadExitedMessage" }, messageBytes + timespecBytes],
    },
    { label: "abandoned" },
    { name: "end init", call: "exit_group", args: [0] },
  ];
}

/** Waits without a payload; the kernel reaps what further processes leave to init. */
function waitForTheEnd(plan: LaunchPlan): Operation[] {
  const SIG_IGN = 1n;
  const action = Buffer.alloc(32); // struct sigaction of the kernel
  action.writeBigUInt64LE(SIG_IGN, 0);
  return [
    { name: "leave no zombies", call: "rt_sigaction", args: [SIGCHLD, { bytes: action }, 0, 8] },
    ...awaitStart(plan),
    { label: "abandoned" },
    { name: "end init", call: "exit_group", args: [0] },
  ];
}

/** Where init and payload see the same memory: a timespec, zero until the program is about to be executed. */
const sharedPage = 0x2000_0000;
const [PROT_READ, PROT_WRITE] = [1, 2];
const [MAP_SHARED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE] = [0x01, 0x20, 0x10_0000];
/** Also children whose end sends another signal than SIGCHLD. */
const WALL = 0x4000_0000;

/** Into a timespec. */
function readClock(time: Value): Operation {
  return { name: "read the clock", call: "clock_gettime", args: [CLOCK_REALTIME, time] };
}

function awaitStart({ statusFd, startFd }: LaunchPlan): Operation[] {
  if (startFd === undefined) return [];
  return [
    {
      name: "report that the container is created",
      call: "write",
      args: [statusFd, { bytes: message_(message.created) }, messageBytes],
    },
    { name: "wait for the start", call: "read", args: [startFd, { addressOf: "byte" }, 1], store: "count" },
    { name: "wait for the start", unequal: [{ load: "count" }, 1], goto: "abandoned" },
  ];
}

/** The payload's part: everything that can be done before the start, the start, `execve`. */
function execute(plan: LaunchPlan): Operation[] {
  const block = (offset: number): Value => ({ load: "process", offset });
  const execve = (candidate: number, tolerate: readonly number[]): Operation => ({
    name: "execute the program",
    call: "execve",
    args: [block(processLayout.candidates + 4 * candidate), block(processLayout.argv), block(processLayout.envp)],
    tolerate,
  });
  return [
    { name: "start a session", call: "setsid", args: [] },
    // The status descriptor included: its end at execve is how nobody but init can speak on it.
    {
      name: "close inherited descriptors",
      call: "close_range",
      args: [3, 0xffff_ffff, CLOSE_RANGE_CLOEXEC],
      tolerate: [ENOSYS, EPERM],
    },
    ...awaitStart(plan),
    { name: "become dumpable", call: "prctl", args: [PR_SET_DUMPABLE, 1, 0, 0, 0] },
    {
      name: "read the arguments and environment",
      call: "pread64",
      args: [plan.processFd, { addressOf: "process" }, processBytes, 0],
    },
    readClock(sharedPage),
    // One candidate: its own errno is the answer. Several: the first that can be executed, as execvp(3) does.
    { name: "search in PATH", unequal: [block(processLayout.count), 1], goto: "search" },
    execve(0, []),
    { label: "search" },
    ...Array.from({ length: processLayout.maxCandidates }, (_, i) => execve(i, [ENOENT, ENOTDIR, EACCES])),
    { name: "execute the program", fail: ENOENT },
  ];
}
