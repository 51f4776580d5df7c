/**
 * The start of an OCI container, and of a further process in one, as a list of operations.
 *
 * *Stage 0* is a child of the command, with its credentials: it joins cgroups and namespaces and clones *init* with the
 * command as parent, so that init belongs to the command's caller once the command has ended. Init builds the container,
 * waits for its start and becomes the user's program: in its pid namespace that is process 1.
 */
import {
  AF_INET,
  AT_FDCWD,
  AT_RECURSIVE,
  CLONE_NEWCGROUP,
  CLONE_NEWIPC,
  CLONE_NEWNET,
  CLONE_NEWNS,
  CLONE_NEWPID,
  CLONE_NEWTIME,
  CLONE_NEWUSER,
  CLONE_NEWUTS,
  CLONE_PARENT,
  EACCES,
  ENOSYS,
  EPERM,
  IFF_RUNNING,
  IFF_UP,
  MNT_DETACH,
  MOUNT_ATTR_RDONLY,
  MOVE_MOUNT_F_EMPTY_PATH,
  MS_REC,
  MS_SHARED,
  MS_SLAVE,
  MS_UNBINDABLE,
  O_CLOEXEC,
  O_WRONLY,
  PR_SET_DUMPABLE,
  PR_SET_NAME,
  SIOCSIFFLAGS,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  EINVAL,
  ENOENT,
  F_SETFD,
  FD_CLOEXEC,
} from "./linux.ts";
import { isNew, type NamespaceType, type OciConfig, type OciDevice, sysctlPath } from "./oci-config.ts";
import { FileSystemPlan, type ResolvedMount, setAttributes } from "./oci-file-system.ts";
import { mountAttr } from "./oci-mount-options.ts";
import {
  dropPrivileges,
  execute,
  openLabel,
  openTerminal,
  processMemory,
  type ProcessPlan,
  runHooks,
  schedule,
} from "./oci-process.ts";
import { messageBytes, type Operation, type Value } from "./program.ts";
import type { Architecture } from "./syscall-table.ts";

/** What the program says on its status descriptor, each but `created` answered on the go socket: by a byte, `mountPlease` with a mount. */
export const ociMessage = { initPid: 2, created: 3, mounted: 6, ready: 7, mountPlease: 8 } as const;

export const namespaceFlags: Readonly<Record<NamespaceType, number>> = {
  user: CLONE_NEWUSER,
  mount: CLONE_NEWNS,
  pid: CLONE_NEWPID,
  network: CLONE_NEWNET,
  ipc: CLONE_NEWIPC,
  uts: CLONE_NEWUTS,
  cgroup: CLONE_NEWCGROUP,
  time: CLONE_NEWTIME,
};

/** Descriptors as the program sees them, and what the host contributed. */
export interface OciPlan {
  readonly id: string;
  readonly config: OciConfig;
  readonly architecture: Architecture;
  readonly statusFd: number;
  readonly goFd: number;
  /** The detached root file system, and the directory of the host on which it is attached. */
  readonly rootFd: number;
  readonly rootPath: string;
  /** It makes a user namespace, and the command, who writes its maps, is not root, not even in its own. */
  readonly isUsers: boolean;
  readonly mounts: readonly ResolvedMount[];
  /** Nodes to be made; none where /dev is the caller's. */
  readonly devices: readonly OciDevice[];
  readonly makesDev: boolean;
  /** Nodes of the host, where none may be made. */
  readonly boundDevices: readonly (ResolvedMount & { readonly kind: "tree"; readonly fd: number })[];
  /** Each takes "0" from a process that joins. */
  readonly cgroupFds: readonly number[];
  /** Operations that put a cgroup's device filter in force, if there is one to load. */
  readonly deviceFilter: readonly Operation[];
  readonly joined: readonly { readonly type: NamespaceType; readonly fd: number }[];
  /** For createContainer hooks, which are programs of the host, without one of their own. */
  readonly hookEnv: readonly string[];
  readonly hookState: number;
  readonly hookOutput: number;
  readonly consoleFd?: number;
  /** A byte here starts the program. */
  readonly startFd: number;
  readonly process: ProcessPlan | undefined;
  readonly newKeyring: boolean;
  readonly usesPivot: boolean;
  /** Where the host has its proc and sysfs, as they must go; for a root that is not pivoted into. */
  readonly hostKernelMounts: readonly string[];
}

/** Lists the operations that create a container and, when the byte comes, start its program. */
export function planOciContainer(plan: OciPlan): Operation[] {
  const files = new FileSystemPlan(plan.rootFd, {
    requests: {
      message: ociMessage.mountPlease,
      statusFd: plan.statusFd,
      socketFd: plan.goFd,
      abandoned: "abandoned",
    },
  });
  const { config, process } = plan;
  const { linux } = config;
  const { env: containerEnv = [] } = process?.process ?? {};
  return [
    ...processMemory(),
    ...files.memory(),
    ...joinCgroups(plan.cgroupFds),
    ...plan.deviceFilter,
    ...oomScore(process?.process),
    ...joinNamespaces(plan.joined),
    ...enterTimeNamespace(config),
    { name: `enter "${plan.rootPath}"`, call: "chdir", args: [{ text: plan.rootPath }] },
    // Id maps of what is undumpable belong to root: another user's command could not write them.
    ...(plan.isUsers ? [] : [becomeUndumpable]),
    ...cloneInit(plan, newNamespaces(config)),
    { name: "take init's name", call: "prctl", args: [PR_SET_NAME, { text: "slipway-oci" }, 0, 0, 0] },
    { name: "close the messages on execution", call: "fcntl", args: [plan.statusFd, F_SETFD, FD_CLOEXEC] },
    ...awaitByte(plan.goFd, "wait for the runtime"),
    ...(plan.isUsers ? [becomeUndumpable] : []),
    ...becomeRoot(config),
    ...session(plan),
    ...(hasNew(config, "network") ? loopback() : []),
    ...attachRoot(plan),
    { name: "clear the umask", call: "umask", args: [0] },
    ...plan.mounts.flatMap((mount) => files.mount(mount)),
    ...(plan.makesDev
      ? [
          ...plan.devices.flatMap((device) => files.device(device, plan.architecture)),
          ...plan.boundDevices.flatMap((device) => files.mount(device)),
          ...files.deviceLinks(),
        ]
      : []),
    ...(process === undefined ? [] : files.directory(process.process.cwd)),
    ...report("the mounts are in place", plan.statusFd, ociMessage.mounted),
    ...awaitByte(plan.goFd, "wait for the hooks"),
    ...runHooks("createContainer", config.hooks?.createContainer ?? [], {
      state: plan.hookState,
      output: plan.hookOutput,
      env: plan.hookEnv,
    }),
    ...sysctls(config),
    ...(process === undefined ? [] : openLabel(process)),
    ...[...new Set(linux?.readonlyPaths)].flatMap((path) => files.readonly(path)),
    ...files.mask([...new Set(linux?.maskedPaths)]),
    ...enterRoot(plan),
    ...(process?.process.terminal && plan.consoleFd !== undefined
      ? openTerminal(process.process, { rootFd: plan.rootFd, socketFd: plan.consoleFd, console: true })
      : []),
    ...files.makeReadonly(),
    ...(config.root?.readonly
      ? [setAttributes("make the root read-only", plan.rootFd, mountAttr({ set: MOUNT_ATTR_RDONLY, clear: 0 }))]
      : []),
    ...names(config),
    { name: "close the root", call: "close", args: [plan.rootFd] },
    ...(process === undefined ? [] : schedule(process.process, linux)),
    ...report("the container is ready", plan.statusFd, ociMessage.ready),
    ...awaitByte(plan.goFd, "wait for the limits"),
    ...(process === undefined ? [] : dropPrivileges(process)),
    ...report("the container is created", plan.statusFd, ociMessage.created),
    ...awaitByte(plan.startFd, "wait for the start"),
    ...runHooks("startContainer", config.hooks?.startContainer ?? [], {
      state: plan.hookState,
      output: plan.hookOutput,
      // Programs of the container: the host's environment is none of their business.
      env: containerEnv,
    }),
    ...(process === undefined ? [{ name: "start the program: there is none", fail: 22 }] : execute(process)),
    { label: "abandoned" },
    { name: "end", call: "exit_group", args: [1] },
  ];
}

/** A further process in a container that runs. */
export interface OciExecPlan {
  readonly statusFd: number;
  readonly goFd: number;
  readonly cgroupFds: readonly number[];
  /** Of the container's init, and the namespaces in which it differs from the runtime. */
  readonly pidFd: number;
  readonly namespaces: readonly NamespaceType[];
  readonly consoleFd?: number;
  readonly process: ProcessPlan;
  /** Of the configuration, for what holds for all processes of a container: personality, memory policy. */
  readonly linux?: OciConfig["linux"];
  readonly affinity: { readonly initial?: Buffer; readonly final?: Buffer };
  /** It must not have the caller's session keyring. @default false */
  readonly ownKeyring?: boolean;
}

/**
 * Whoever has a session keyring has what is in it, whatever user namespace he is in; it is inherited. Where a kernel has no
 * keyrings there is nothing to be had; any other failure would leave the process with the caller's.
 */
export const ownKeyring: Operation = {
  name: "new session keyring",
  call: "keyctl",
  args: [1 /* KEYCTL_JOIN_SESSION_KEYRING */, { text: "slipway" }],
  tolerate: [ENOSYS],
};

/** Lists the operations that start a further process in a container. */
export function planOciExec(plan: OciExecPlan): Operation[] {
  const { process } = plan;
  const flags = plan.namespaces.reduce((sum, type) => sum | namespaceFlags[type], 0);
  const affinity = (what: string, mask: Buffer | undefined): Operation[] =>
    mask === undefined
      ? []
      : [{ name: `set the ${what} CPU affinity`, call: "sched_setaffinity", args: [0, mask.length, { bytes: mask }] }];
  return [
    ...processMemory(),
    ...affinity("initial", plan.affinity.initial),
    ...joinCgroups(plan.cgroupFds),
    ...affinity("final", plan.affinity.final),
    ...oomScore(process?.process),
    ...openLabel(process),
    // The container's processes may not trace or read one that has not yet dropped what it holds (CVE-2016-9962).
    becomeUndumpable,
    ...(flags === 0 ? [] : [{ name: "join the container's namespaces", call: "setns", args: [plan.pidFd, flags] }]),
    ...cloneInit({ statusFd: plan.statusFd }, 0),
    ...awaitByte(plan.goFd, "wait for the runtime"),
    ...(plan.namespaces.includes("user") ? rootOfNamespace() : []),
    { name: "start a session", call: "setsid", args: [] },
    ...(plan.ownKeyring ? [ownKeyring] : []),
    ...(process.process.terminal && plan.consoleFd !== undefined
      ? openTerminal(process.process, { rootFd: AT_FDCWD, socketFd: plan.consoleFd, console: false })
      : []),
    ...schedule(process.process, plan.linux),
    ...report("the process is ready", plan.statusFd, ociMessage.ready),
    ...awaitByte(plan.goFd, "wait for the limits"),
    ...dropPrivileges(process),
    ...execute(process),
    { label: "abandoned" },
    { name: "end", call: "exit_group", args: [1] },
  ];
}

/** The flags of clone(2) for the namespaces that are to be made, but for time, which only unshare(2) makes. */
export function newNamespaces(config: Pick<OciConfig, "linux">): number {
  const made = (config.linux?.namespaces ?? []).filter((namespace) => isNew(namespace) && namespace.type !== "time");
  return made.reduce((sum, { type }) => sum | namespaceFlags[type], 0);
}

function hasNew(config: OciConfig, type: NamespaceType): boolean {
  return config.linux?.namespaces?.some((namespace) => namespace.type === type && isNew(namespace)) ?? false;
}

function joinCgroups(fds: readonly number[]): Operation[] {
  return fds.flatMap((fd, i): Operation[] => [
    { name: `join cgroup ${i}`, call: "write", args: [fd, { text: "0" }, 1] },
    { name: `close cgroup ${i}`, call: "close", args: [fd] },
  ]);
}

/** Of the process that runs it and all its descendants. */
export function oomScore(process: { readonly oomScoreAdj?: number } | undefined): Operation[] {
  const score = process?.oomScoreAdj;
  return score === undefined ? [] : writeFile("/proc/self/oom_score_adj", `${score}`);
}

let files = 0;

function writeFile(path: string, text: string): Operation[] {
  const memory = `file ${++files}`;
  return [
    { memory, size: 4 },
    {
      name: `open "${path}"`,
      call: "openat",
      args: [AT_FDCWD, { text: path }, O_WRONLY | O_CLOEXEC, 0],
      store: memory,
    },
    {
      name: `write "${text.trim()}" to "${path}"`,
      call: "write",
      args: [{ load: memory }, { text }, Buffer.byteLength(text)],
    },
    { name: `close "${path}"`, call: "close", args: [{ load: memory }] },
  ];
}

/** With the host's credentials all can be joined; the user namespace last, for it changes them. */
function joinNamespaces(joined: OciPlan["joined"]): Operation[] {
  const last = (type: NamespaceType) => (type === "user" ? 2 : type === "mount" ? 1 : 0);
  return joined
    .toSorted((a, b) => last(a.type) - last(b.type))
    .map(({ type, fd }) => ({ name: `join the ${type} namespace`, call: "setns", args: [fd, namespaceFlags[type]] }));
}

/** Its clocks must be set before the first process is in it. */
function enterTimeNamespace(config: OciConfig): Operation[] {
  if (!hasNew(config, "time")) return [];
  const offsets = [...(config.linux?.timeOffsets ?? [])].map(
    ([clock, { secs, nanosecs }]) => `${clock} ${secs ?? 0n} ${nanosecs ?? 0}\n`,
  );
  return [
    { name: "new time namespace", call: "unshare", args: [CLONE_NEWTIME] },
    ...(offsets.length === 0 ? [] : writeFile("/proc/self/timens_offsets", offsets.join(""))),
  ];
}

/** Init's memory, and ours in it, is nobody's to read or change. */
const becomeUndumpable: Operation = { name: "become undumpable", call: "prctl", args: [PR_SET_DUMPABLE, 0, 0, 0, 0] };

function cloneInit({ statusFd }: { readonly statusFd: number }, namespaces: number): Operation[] {
  const clone = Buffer.alloc(88); // struct clone_args; with CLONE_PARENT the exit signal is the caller's own
  clone.writeBigUInt64LE(BigInt(CLONE_PARENT) + BigInt(namespaces >>> 0), 0);
  const initPid = Buffer.alloc(messageBytes);
  initPid.writeUInt32LE(ociMessage.initPid, 0);
  return [
    { memory: "cloneArguments", size: 88, bytes: clone },
    { memory: "initPid", size: messageBytes, bytes: initPid },
    {
      name: "clone into new namespaces",
      call: "clone3",
      args: [{ addressOf: "cloneArguments" }, 88],
      store: { memory: "initPid", offset: 4 },
      ifPositive: "end stage 0",
    },
    { name: "go on as init", unequal: [0, 1], goto: "init" },
    { label: "end stage 0" },
    { name: "report init's process id", call: "write", args: [statusFd, { addressOf: "initPid" }, messageBytes] },
    { name: "end stage 0", call: "exit_group", args: [0] },
    { label: "init" },
  ];
}

function report(name: string, fd: number, kind: number): Operation[] {
  const bytes = Buffer.alloc(messageBytes);
  bytes.writeUInt32LE(kind, 0);
  return [{ name: `report that ${name}`, call: "write", args: [fd, { bytes }, messageBytes] }];
}

/** The end without that byte means that the runtime is gone, or has given up. */
function awaitByte(fd: number, name: string): Operation[] {
  return [
    { name, call: "read", args: [fd, { addressOf: "byte" }, 1], store: "count" },
    { name, unequal: [{ load: "count" }, 1], goto: "abandoned" },
  ];
}

function becomeRoot(config: OciConfig): Operation[] {
  return config.linux?.namespaces?.some(({ type }) => type === "user") ? rootOfNamespace() : [];
}

function rootOfNamespace(): Operation[] {
  return [
    { name: "become group 0", call: "setresgid", args: [0, 0, 0] },
    { name: "become user 0", call: "setresuid", args: [0, 0, 0] },
    { name: "leave all groups", call: "setgroups", args: [0, 0], tolerate: [EPERM] },
  ];
}

const KEYCTL_JOIN_SESSION_KEYRING = 1;
const EDQUOT = 122;

function session({ id, newKeyring }: OciPlan): Operation[] {
  return [
    { name: "start a session", call: "setsid", args: [] },
    ...(newKeyring
      ? [
          {
            name: "new session keyring",
            call: "keyctl",
            args: [KEYCTL_JOIN_SESSION_KEYRING, { text: `_ses.${id}` }],
            // Where a filter or a quota forbids it, the keyring of the caller would be shared by its permissions only.
            tolerate: [ENOSYS, EPERM, EACCES, EDQUOT],
          },
        ]
      : []),
  ];
}

/** Brings up "lo" of a new network namespace. */
export function loopback(): Operation[] {
  const request = Buffer.alloc(40); // struct ifreq
  request.write("lo");
  request.writeUInt16LE(IFF_UP | IFF_RUNNING, 16);
  return [
    { memory: "socket", size: 4 },
    {
      name: "open a socket for the loopback interface",
      call: "socket",
      args: [AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0],
      store: "socket",
    },
    {
      name: "bring the loopback interface up",
      call: "ioctl",
      args: [{ load: "socket" }, SIOCSIFFLAGS, { bytes: request }],
    },
    { name: "close the socket", call: "close", args: [{ load: "socket" }] },
  ];
}

function attachRoot({ rootFd, config, rootPath }: OciPlan): Operation[] {
  const hasMounts = config.linux?.namespaces?.some(({ type }) => type === "mount");
  return [
    // Slaves, not private: what is unmounted on the host must not live on here until the host's root is detached.
    ...(hasMounts
      ? [{ name: "keep mounts to itself", call: "mount", args: [0, { text: "/" }, 0, MS_REC | MS_SLAVE, 0] } as const]
      : []),
    // The working directory came along into this namespace.
    {
      name: `attach the root file system on "${rootPath}"`,
      call: "move_mount",
      args: [rootFd, { text: "" }, AT_FDCWD, { text: "." }, MOVE_MOUNT_F_EMPTY_PATH],
    },
    { name: "enter the root file system", call: "fchdir", args: [rootFd] },
  ];
}

/** Kernel parameters of the container's own namespaces. */
export function sysctls(config: Pick<OciConfig, "linux">): Operation[] {
  // Through the host's /proc, which no image can have prepared (CVE-2025-52881); a sysctl is that of the writer's namespaces.
  return [...(config.linux?.sysctl ?? [])].flatMap(([key, value]): Operation[] => {
    const path = sysctlPath(key);
    // These files are the machine's root's, their calls any root's. Of a line the kernel takes what is before its end.
    if (path === "kernel/hostname") return names({ hostname: value.replace(/\n.*/s, "") });
    if (path === "kernel/domainname") return names({ domainname: value.replace(/\n.*/s, "") });
    return writeFile(`/proc/sys/${path}`, value);
  });
}

const propagations: Readonly<Record<string, number>> = {
  shared: MS_SHARED,
  rshared: MS_SHARED | MS_REC,
  unbindable: MS_UNBINDABLE,
  runbindable: MS_UNBINDABLE | MS_REC,
};

/**
 * Without pivot_root the host's mounts stay below the container's root. A proc or sysfs among them that nothing hides lets a
 * user namespace in the container mount another one, without what is masked in the container's.
 */
function dropKernelMounts(places: readonly string[]): Operation[] {
  return places.map((place) => ({
    name: `unmount "${place}" of the host`,
    call: "umount2",
    args: [{ text: place }, MNT_DETACH],
    tolerate: [EINVAL, ENOENT],
  }));
}

function enterRoot({ config, usesPivot, rootFd, hostKernelMounts }: OciPlan): Operation[] {
  const hasMounts = config.linux?.namespaces?.some(({ type }) => type === "mount");
  // Private and slave were set on the detached tree; a root that is shared cannot be pivoted into.
  const flag = propagations[config.linux?.rootfsPropagation ?? ""];
  const attr = mountAttr({ set: 0, clear: 0 }, { propagation: (flag ?? 0) & ~MS_REC });
  const recursive = flag !== undefined && (flag & MS_REC) !== 0 ? AT_RECURSIVE : 0;
  return [
    ...(usesPivot && hasMounts
      ? [
          { name: "enter the root file system", call: "fchdir", args: [rootFd] } as const,
          {
            name: "pivot into the root file system",
            call: "pivot_root",
            args: [{ text: "." }, { text: "." }],
          } as const,
          { name: "detach the host's root", call: "umount2", args: [{ text: "." }, MNT_DETACH] } as const,
        ]
      : [
          ...(hasMounts
            ? [
                ...dropKernelMounts(hostKernelMounts),
                {
                  name: "move the root file system over the host's",
                  call: "move_mount",
                  args: [rootFd, { text: "" }, AT_FDCWD, { text: "/" }, MOVE_MOUNT_F_EMPTY_PATH],
                } as const,
              ]
            : []),
          { name: "enter the root file system", call: "fchdir", args: [rootFd] } as const,
          { name: "change the root", call: "chroot", args: [{ text: "." }] } as const,
        ]),
    { name: 'enter "/"', call: "chdir", args: [{ text: "/" }] },
    ...(flag === undefined
      ? []
      : [
          {
            name: `make the root ${config.linux?.rootfsPropagation}`,
            call: "mount_setattr",
            args: [rootFd, { text: "" }, 0x1000 | recursive, { bytes: attr }, attr.length] as const,
          },
        ]),
  ];
}

/** Host name and domain name. */
export function names({ hostname, domainname }: Pick<OciConfig, "hostname" | "domainname">): Operation[] {
  const operations: Operation[] = [];
  if (hostname) {
    const args: Value[] = [{ text: hostname }, Buffer.byteLength(hostname)];
    operations.push({ name: `set the host name "${hostname}"`, call: "sethostname", args });
  }
  if (domainname) {
    const args: Value[] = [{ text: domainname }, Buffer.byteLength(domainname)];
    operations.push({ name: `set the domain name "${domainname}"`, call: "setdomainname", args });
  }
  return operations;
}
