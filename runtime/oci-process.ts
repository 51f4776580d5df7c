/** The process of an OCI container as operations: its limits, credentials, terminal, hooks, and at last its program. */
import { descriptorMessage } from "./descriptor-message.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  CLOSE_RANGE_CLOEXEC,
  capabilityNames,
  EACCES,
  EEXIST,
  EINVAL,
  ENOENT,
  ENOSYS,
  ENOTDIR,
  EPERM,
  EROFS,
  LINUX_CAPABILITY_VERSION_3,
  MOVE_MOUNT_F_EMPTY_PATH,
  MOVE_MOUNT_T_EMPTY_PATH,
  O_CLOEXEC,
  O_NOCTTY,
  O_NOFOLLOW,
  O_PATH,
  O_RDWR,
  O_WRONLY,
  OPEN_TREE_CLOEXEC,
  OPEN_TREE_CLONE,
  PR_CAP_AMBIENT,
  PR_CAP_AMBIENT_CLEAR_ALL,
  PR_CAP_AMBIENT_RAISE,
  PR_CAPBSET_DROP,
  PR_SET_KEEPCAPS,
  PR_SET_NO_NEW_PRIVS,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_SYMLINKS,
  S_IFREG,
  SIGCHLD,
  TIOCGPTPEER,
  TIOCSCTTY,
  TIOCSPTLCK,
  TIOCSWINSZ,
} from "./linux.ts";
import { OciConfigError } from "./oci-parser.ts";
import type { OciConfig, OciHook, OciProcess } from "./oci-config.ts";
import { closeMemory } from "./oci-file-system.ts";
import type { Operation, Value } from "./program.ts";
import { loadNotifyingSeccomp, type SeccompAgent } from "./oci-seccomp-agent.ts";
import { loadSeccomp, type SeccompFilter } from "./seccomp.ts";

/** Capabilities as the program sets them, by set; what this kernel lacks or no set may hold is gone, and told. */
export interface Capabilities {
  readonly bounding: bigint;
  readonly effective: bigint;
  readonly permitted: bigint;
  readonly inheritable: bigint;
  readonly ambient: bigint;
  readonly warnings: readonly string[];
}

/** Whether there is a capability of this name, granted or not. */
export function isCapability(name: string): boolean {
  return capabilityNames.some((known) => known === name);
}

/** Reads capability names. The specification wants warnings, not errors, for those that cannot be granted. */
export function readCapabilities(
  sets: OciProcess["capabilities"],
  options: {
    readonly lastCapability: number;
    /** What this process has to give; in a user namespace of its own a container's root has everything. */
    readonly ownBounding: bigint;
    readonly ownPermitted: bigint;
  },
): Capabilities {
  const { lastCapability } = options;
  const warnings = new Set<string>();
  const read = (names: readonly string[] = []) => {
    let mask = 0n;
    for (const name of names) {
      const number = capabilityNames.findIndex((known) => known === name);
      if (number < 0) warnings.add(`Capability ${JSON.stringify(name)} is unknown: not granted`);
      else if (number > lastCapability) warnings.add(`Capability ${name} is unknown to this kernel: not granted`);
      else mask |= 1n << BigInt(number);
    }
    return mask;
  };
  const limit = (what: string, wanted: bigint, most: bigint) => {
    if ((wanted & ~most) !== 0n) warnings.add(`Capabilities ${namesOf(wanted & ~most)} cannot be ${what}: not granted`);
    return wanted & most;
  };
  const bounding = limit("bounding: Slipway itself lacks them", read(sets?.bounding), options.ownBounding);
  const permitted = limit("permitted: Slipway itself lacks them", read(sets?.permitted), options.ownPermitted);
  const inheritable = limit("inheritable: Slipway itself lacks them", read(sets?.inheritable), options.ownBounding);
  const effective = limit("effective without being permitted", read(sets?.effective), permitted);
  const ambient = limit(
    "ambient without being permitted and inheritable",
    read(sets?.ambient),
    permitted & inheritable,
  );
  return { bounding, permitted, inheritable, effective, ambient, warnings: [...warnings] };
}

function namesOf(mask: bigint): string {
  return capabilityNames.filter((_, number) => (mask >> BigInt(number)) & 1n).join(", ");
}

/** What init and exec do alike, from the terminal to the user's credentials. */
export interface ProcessPlan {
  readonly process: OciProcess;
  readonly capabilities: Capabilities;
  readonly lastCapability: number;
  readonly seccomp: SeccompFilter | undefined;
  /** Who answers for the kernel, if the filter notifies. */
  readonly seccompAgent?: SeccompAgent;
  /** An LSM's file below /proc/self/attr and what it takes. */
  readonly label: { readonly file: string; readonly text: string } | undefined;
  /** setgroups(2) is denied in this user namespace. */
  readonly keepsGroups: boolean;
  readonly preserveFds: readonly number[];
  /** The standard descriptors that become the user's, so that it can open them again: /dev/stdout. */
  readonly pipes: readonly number[];
}

export function processMemory(): Operation[] {
  return [
    { memory: "byte", size: 8 },
    { memory: "count", size: 4 },
    { memory: "label", size: 4 },
    { memory: "cwdEntered", size: 4, bytes: Buffer.from([1, 0, 0, 0]) },
    { memory: "cwd", size: 4096 },
    { memory: "programFound", size: 4, bytes: Buffer.from([1, 0, 0, 0]) },
  ];
}

/** Opens, while the host's /proc is in sight, the file that takes the label for the next execve. */
export function openLabel({ label }: ProcessPlan): Operation[] {
  if (label === undefined) return [];
  const args: Value[] = [AT_FDCWD, { text: label.file }, O_WRONLY | O_CLOEXEC, 0];
  return [{ name: `open "${label.file}"`, call: "openat", args, store: "label" }];
}

/** Scheduler, I/O priority, personality, memory policy: what needs the credentials of the start. */
export function schedule(process: OciProcess, linux: OciConfig["linux"]): Operation[] {
  const operations: Operation[] = [];
  const { scheduler, ioPriority } = process;
  if (scheduler !== undefined) {
    const attr = Buffer.alloc(48); // struct sched_attr
    attr.writeUInt32LE(48, 0);
    attr.writeUInt32LE(schedulerPolicies[scheduler.policy], 4);
    const flags = (scheduler.flags ?? []).reduce((sum, flag) => sum | schedulerFlags[flag], 0);
    attr.writeBigUInt64LE(BigInt(flags), 8);
    attr.writeInt32LE(scheduler.nice ?? 0, 16);
    attr.writeUInt32LE(scheduler.priority ?? 0, 20);
    attr.writeBigUInt64LE(scheduler.runtime ?? 0n, 24);
    attr.writeBigUInt64LE(scheduler.deadline ?? 0n, 32);
    attr.writeBigUInt64LE(scheduler.period ?? 0n, 40);
    operations.push({
      name: `set scheduler ${scheduler.policy}`,
      call: "sched_setattr",
      args: [0, { bytes: attr }, 0],
    });
  }
  if (ioPriority !== undefined) {
    const value = (ioPriorityClasses[ioPriority.class] << 13) | (ioPriority.priority ?? 0);
    operations.push({ name: `set I/O priority ${ioPriority.class}`, call: "ioprio_set", args: [1, 0, value] });
  }
  if (linux?.personality !== undefined) {
    const domain = linux.personality.domain === "LINUX32" ? 8 : 0;
    operations.push({ name: `set personality ${linux.personality.domain}`, call: "personality", args: [domain] });
  }
  if (linux?.memoryPolicy !== undefined) operations.push(memoryPolicy(linux.memoryPolicy));
  return operations;
}

const schedulerPolicies = {
  SCHED_OTHER: 0,
  SCHED_FIFO: 1,
  SCHED_RR: 2,
  SCHED_BATCH: 3,
  SCHED_IDLE: 5,
  SCHED_DEADLINE: 6,
} as const;
const schedulerFlags = {
  SCHED_FLAG_RESET_ON_FORK: 1,
  SCHED_FLAG_RECLAIM: 2,
  SCHED_FLAG_DL_OVERRUN: 4,
  SCHED_FLAG_KEEP_POLICY: 8,
  SCHED_FLAG_KEEP_PARAMS: 16,
} as const;
const ioPriorityClasses = { IOPRIO_CLASS_RT: 1, IOPRIO_CLASS_BE: 2, IOPRIO_CLASS_IDLE: 3 } as const;
const memoryModes: Readonly<Record<string, number>> = {
  MPOL_DEFAULT: 0,
  MPOL_PREFERRED: 1,
  MPOL_BIND: 2,
  MPOL_INTERLEAVE: 3,
  MPOL_LOCAL: 4,
  MPOL_PREFERRED_MANY: 5,
  MPOL_WEIGHTED_INTERLEAVE: 6,
};
const memoryFlags: Readonly<Record<string, number>> = {
  MPOL_F_STATIC_NODES: 1 << 15,
  MPOL_F_RELATIVE_NODES: 1 << 14,
  MPOL_F_NUMA_BALANCING: 1 << 13,
};

function memoryPolicy(policy: NonNullable<NonNullable<OciConfig["linux"]>["memoryPolicy"]>): Operation {
  const mode = Object.hasOwn(memoryModes, policy.mode) ? memoryModes[policy.mode] : undefined;
  if (mode === undefined) throw new OciConfigError(`linux.memoryPolicy.mode "${policy.mode}" is unknown`);
  let flags = 0;
  for (const flag of policy.flags ?? []) {
    const value = Object.hasOwn(memoryFlags, flag) ? memoryFlags[flag] : undefined;
    if (value === undefined) throw new OciConfigError(`linux.memoryPolicy.flags "${flag}" is unknown`);
    flags |= value;
  }
  const name = `set memory policy ${policy.mode}`;
  if (!policy.nodes) return { name, call: "set_mempolicy", args: [mode | flags, 0, 0] };
  const nodes = cpuMask(policy.nodes, "linux.memoryPolicy.nodes");
  return { name, call: "set_mempolicy", args: [mode | flags, { bytes: nodes }, nodes.length * 8 + 1] };
}

/** `0-3,7` as a bit mask. @throws {OciConfigError} */
export function cpuMask(text: string, where: string): Buffer {
  const mask = Buffer.alloc(1024 / 8);
  for (const part of text.trim().split(",")) {
    const [, first, last] = /^\s*(\d{1,4})(?:-(\d{1,4}))?\s*$/.exec(part) ?? [];
    const from = Number(first);
    const to = Number(last ?? first);
    if (first === undefined || to < from || to >= 1024)
      throw new OciConfigError(`${where} ${JSON.stringify(text)} is no list`);
    for (let i = from; i <= to; i++) mask[i >> 3] = (mask[i >> 3] ?? 0) | (1 << (i & 7));
  }
  return mask;
}

/**
 * Gives the process a terminal of the container's own devpts: standard descriptors, controlling terminal, /dev/console.
 *
 * The peer is had from the master by ioctl, never by its name (CVE-2025-52565); the master goes to whoever listens.
 *
 * @param options.rootFd What the paths are beneath, AT_FDCWD when "/" is the container's already.
 */
export function openTerminal(
  process: OciProcess,
  options: { readonly rootFd: Value; readonly socketFd: number; readonly console: boolean },
): Operation[] {
  const how = Buffer.alloc(24);
  how.writeBigUInt64LE(BigInt(O_RDWR | O_NOCTTY | O_CLOEXEC), 0);
  how.writeBigUInt64LE(BigInt(RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS), 16);
  const how2 = Buffer.alloc(24);
  how2.writeBigUInt64LE(BigInt(O_PATH | O_NOFOLLOW | O_CLOEXEC), 0);
  how2.writeBigUInt64LE(BigInt(RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS), 16);
  const message = descriptorMessage("terminal", { data: Buffer.from("/dev/ptmx") });
  const { memory, offset } = message.descriptor();
  const master = { load: memory, offset } as const;
  const size = Buffer.alloc(8);
  size.writeUInt16LE(process.consoleSize?.height ?? 0, 0);
  size.writeUInt16LE(process.consoleSize?.width ?? 0, 2);
  const uid = process.user?.uid ?? 0;
  return [
    { memory: "terminal", size: 4 },
    { memory: "consolePlace", size: 4 },
    { memory: "consoleMount", size: 4 },
    ...message.memory,
    {
      name: 'open "/dev/pts/ptmx" in the container',
      call: "openat2",
      args: [options.rootFd, { text: "dev/pts/ptmx" }, { bytes: how }, 24],
      store: { memory, offset },
    },
    {
      name: "unlock the terminal",
      call: "ioctl",
      args: [master, TIOCSPTLCK, { bytes: Buffer.alloc(4) }],
    },
    {
      name: "open the terminal",
      call: "ioctl",
      args: [master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC],
      store: "terminal",
    },
    ...(process.consoleSize === undefined
      ? []
      : [
          {
            name: "set the size of the terminal",
            call: "ioctl",
            args: [{ load: "terminal" }, TIOCSWINSZ, { bytes: size }],
          },
        ]),
    {
      name: "give the terminal to the user",
      call: "fchown",
      args: [{ load: "terminal" }, uid, 0xffff_ffff],
      tolerate: [EPERM, EROFS, EINVAL],
    },
    ...(options.console
      ? [
          {
            name: 'make file "/dev/console" in the container',
            call: "mknodat",
            args: [options.rootFd, { text: "dev/console" }, S_IFREG | 0o600, 0],
            tolerate: [EEXIST],
          },
          {
            name: 'open "/dev/console" in the container',
            call: "openat2",
            args: [options.rootFd, { text: "dev/console" }, { bytes: how2 }, 24] as const,
            store: "consolePlace",
          },
          {
            name: "clone the terminal's mount",
            call: "open_tree",
            args: [{ load: "terminal" }, { text: "" }, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH] as const,
            store: "consoleMount",
          },
          {
            name: 'attach "/dev/console"',
            call: "move_mount",
            args: [
              { load: "consoleMount" },
              { text: "" },
              { load: "consolePlace" },
              { text: "" },
              MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
            ] as const,
          },
          closeMemory("consoleMount"),
          closeMemory("consolePlace"),
        ]
      : []),
    {
      name: "send the terminal to the console socket",
      call: "sendmsg",
      args: [options.socketFd, message.header, 0],
    },
    { name: "close the console socket", call: "close", args: [options.socketFd] },
    closeMemory2(master, "the terminal's other end"),
    ...[0, 1, 2].map(
      (fd): Operation => ({ name: `set descriptor ${fd}`, call: "dup3", args: [{ load: "terminal" }, fd, 0] }),
    ),
    closeMemory("terminal"),
    { name: "take the terminal as the controlling one", call: "ioctl", args: [0, TIOCSCTTY, 0] },
  ];
}

function closeMemory2(fd: Value, what: string): Operation {
  return { name: `close ${what}`, call: "close", args: [fd] };
}

/** The order is runc's: seccomp before the credentials only if no_new_privs does not allow it after them. */
export function dropPrivileges(plan: ProcessPlan): Operation[] {
  const { process, capabilities, lastCapability } = plan;
  const uid = process.user?.uid ?? 0;
  const gid = process.user?.gid ?? 0;
  const additional = process.user?.additionalGids ?? [];
  const groups = Buffer.alloc(Math.max(4, additional.length * 4));
  additional.forEach((group, i) => groups.writeUInt32LE(group, i * 4));
  const operations: Operation[] = [{ name: "set the umask", call: "umask", args: [process.user?.umask ?? 0o022] }];
  for (const fd of plan.pipes) {
    operations.push({
      name: `give descriptor ${fd} to user ${uid}`,
      call: "fchown",
      args: [fd, uid, 0xffff_ffff],
      tolerate: [EPERM, EROFS, EINVAL],
    });
  }
  operations.push(
    {
      name: `chdir to cwd "${process.cwd}"`,
      call: "chdir",
      args: [{ text: process.cwd }],
      store: "cwdEntered",
      tolerate: [EACCES],
    },
    ...checkWorkingDirectory(process.cwd, "at first"),
    ...findProgram(process),
  );
  if (!process.noNewPrivileges) operations.push(...filterCalls(plan));
  for (let number = 0; number <= lastCapability; number++) {
    if ((capabilities.bounding >> BigInt(number)) & 1n) continue;
    const name = capabilityNames[number] ?? `capability ${number}`;
    operations.push({ name: `drop ${name}`, call: "prctl", args: [PR_CAPBSET_DROP, number, 0, 0, 0] });
  }
  operations.push({ name: "keep capabilities", call: "prctl", args: [PR_SET_KEEPCAPS, 1, 0, 0, 0] });
  if (!plan.keepsGroups) {
    operations.push({
      name: "set additional groups",
      call: "setgroups",
      args: [additional.length, { bytes: groups }],
    });
  }
  operations.push(
    { name: `become group ${gid}`, call: "setresgid", args: [gid, gid, gid] },
    { name: `become user ${uid}`, call: "setresuid", args: [uid, uid, uid] },
    // A directory that only root may enter has been entered already, one that only the user may enter is now.
    { name: "has it been entered", unequal: [{ load: "cwdEntered" }, 1], goto: "entered" },
    { name: `chdir to cwd "${process.cwd}"`, call: "chdir", args: [{ text: process.cwd }] },
    ...checkWorkingDirectory(process.cwd, "again"),
    { label: "entered" },
    { name: "no longer keep capabilities", call: "prctl", args: [PR_SET_KEEPCAPS, 0, 0, 0, 0] },
    setCapabilities(capabilities),
    {
      name: "clear ambient capabilities",
      call: "prctl",
      args: [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0],
      tolerate: [EINVAL],
    },
  );
  for (let number = 0; number <= lastCapability; number++) {
    if (!((capabilities.ambient >> BigInt(number)) & 1n)) continue;
    operations.push({
      name: `raise ambient ${capabilityNames[number]}`,
      call: "prctl",
      args: [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0],
    });
  }
  if (process.noNewPrivileges) {
    operations.push({ name: "set no_new_privs", call: "prctl", args: [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0] });
  }
  return operations;
}

function filterCalls({ seccomp, seccompAgent }: ProcessPlan): Operation[] {
  if (seccomp === undefined) return [];
  return seccompAgent === undefined ? loadSeccomp(seccomp) : loadNotifyingSeccomp(seccomp, seccompAgent);
}

/** "(unreachable)": outside the root, through a descriptor that somebody leaked (CVE-2024-21626). */
function checkWorkingDirectory(cwd: string, when: string): Operation[] {
  const inside = `the working directory is in the container, ${when}`;
  return [
    { name: "look where that is", call: "getcwd", args: [{ addressOf: "cwd" }, 4096] },
    {
      name: "compare the working directory",
      unequal: [{ load: "cwd" }, Buffer.from("(unr").readUInt32LE(0)],
      goto: inside,
    },
    { name: `chdir to cwd "${cwd}": it leads out of the container`, fail: EPERM },
    { label: inside },
  ];
}

function setCapabilities({ effective, permitted, inheritable }: Capabilities): Operation {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(LINUX_CAPABILITY_VERSION_3, 0);
  const sets = Buffer.alloc(24);
  [effective, permitted, inheritable].forEach((mask, i) => {
    sets.writeUInt32LE(Number(mask & 0xffff_ffffn), 4 * i);
    sets.writeUInt32LE(Number(mask >> 32n), 12 + 4 * i);
  });
  return { name: "set capabilities", call: "capset", args: [{ bytes: header }, { bytes: sets }] };
}

/**
 * Runs hooks one after the other, each with the state on its standard input; the first that fails ends all.
 *
 * @param options `env` is for those without one.
 */
export function runHooks(
  kind: string,
  hooks: readonly OciHook[],
  options: {
    readonly state: number;
    readonly output: number;
    readonly env?: readonly string[];
  },
): Operation[] {
  const { state, output } = options;
  return hooks.flatMap((hook, i): Operation[] => {
    const id = `${kind} hook ${i}`;
    const vectors = [
      ...stringVector(`${id} argv`, hook.args?.length ? hook.args : [hook.path]),
      ...stringVector(`${id} envp`, hook.env ?? options.env ?? []),
    ];
    const timer = Buffer.alloc(32); // struct itimerval; SIGALRM ends it
    timer.writeBigInt64LE(BigInt(hook.timeout ?? 0), 16);
    return [
      ...vectors,
      { memory: `${id} pid`, size: 4 },
      { memory: `${id} status`, size: 4 },
      { name: "rewind the state", call: "lseek", args: [state, 0, 0] },
      {
        name: `clone the ${kind} hook "${hook.path}"`,
        call: "clone",
        args: [SIGCHLD, 0, 0, 0, 0],
        store: `${id} pid`,
        ifPositive: id,
      },
      { name: "set its standard input", call: "dup3", args: [state, 0, 0] },
      { name: "set its standard output", call: "dup3", args: [output, 1, 0] },
      { name: "set its standard error", call: "dup3", args: [output, 2, 0] },
      closeOnExec(3),
      ...(hook.timeout === undefined
        ? []
        : [{ name: "set its time limit", call: "setitimer", args: [0, { bytes: timer }, 0] as const }]),
      {
        name: `execute the ${kind} hook "${hook.path}"`,
        call: "execve",
        args: [{ text: hook.path }, { addressOf: `${id} argv` }, { addressOf: `${id} envp` }],
      },
      { label: id },
      {
        name: `wait for the ${kind} hook "${hook.path}"`,
        call: "wait4",
        args: [{ load: `${id} pid` }, { addressOf: `${id} status` }, 0, 0],
      },
      { name: `${kind} hook "${hook.path}"`, unequal: [{ load: `${id} status` }, 0], goto: `${id} failed` },
      { name: "go on", unequal: [0, 1], goto: `${id} succeeded` },
      { label: `${id} failed` },
      { name: `${kind} hook #${i}: "${hook.path}" failed`, fail: EPERM },
      { label: `${id} succeeded` },
    ];
  });
}

/** An array of strings with a null pointer at its end, as execve(2) wants it. */
function stringVector(memory: string, strings: readonly string[]): Operation[] {
  return [
    ...strings.map((text, i): Operation => {
      const bytes = Buffer.from(`${text}\0`);
      return { memory: `${memory} ${i}`, size: bytes.length, bytes };
    }),
    {
      memory,
      size: 8 * (strings.length + 1),
      bytes: Buffer.alloc(8 * (strings.length + 1)),
      pointers: strings.map((_, i) => ({ at: 8 * i, to: `${memory} ${i}` })),
    },
  ];
}

/**
 * Closes what the runtime's caller left open. A created container would hold it until its start, and who waits for the end of
 * a pipe would wait for that.
 *
 * @param others Ranges of descriptors that are not the program's. @see PlacedDescriptors.others
 */
export function closeInherited(others: readonly (readonly [number, number])[]): Operation[] {
  return others.map(([first, last]) => ({
    name: "close the caller's descriptors",
    call: "close_range",
    args: [first, last, 0],
    tolerate: [ENOSYS, EPERM], // They are closed on execution.
  }));
}

function closeOnExec(first: number): Operation {
  return {
    name: "close inherited descriptors",
    call: "close_range",
    args: [first, 0xffff_ffff, CLOSE_RANGE_CLOEXEC],
    // ENOSYS: a filter that does not know the call; ours are all close-on-exec as they are.
    tolerate: [ENOSYS, EPERM],
  };
}

/** The last steps of every process: label, filter, `execve`. */
export function execute(plan: ProcessPlan): Operation[] {
  const { process, label } = plan;
  const { args = [], env = [] } = process;
  const candidates = programCandidates(args[0] ?? "", env);
  const execve = (path: string, tolerate: readonly number[]): Operation => ({
    name: `execute "${args[0]}"`,
    call: "execve",
    args: [{ text: path }, { addressOf: "argv" }, { addressOf: "envp" }],
    tolerate,
  });
  return [
    ...stringVector("argv", args),
    ...stringVector("envp", env),
    closeOnExec(Math.max(2, ...plan.preserveFds) + 1),
    ...(label === undefined
      ? []
      : [
          {
            name: `set the label "${label.text}"`,
            call: "write",
            args: [{ load: "label" }, { text: label.text }, Buffer.byteLength(label.text)] as const,
          },
        ]),
    ...(process.noNewPrivileges ? filterCalls(plan) : []),
    ...candidates.map((path) => execve(path, candidates.length === 1 ? [] : [ENOENT, ENOTDIR, EACCES])),
    { name: `execute "${args[0]}"`, fail: ENOENT },
  ];
}

/** A program that is not there fails the creation: who starts a container has no use for one that cannot start. */
function findProgram({ args = [], env = [] }: OciProcess): Operation[] {
  const [name] = args;
  if (name === undefined) return [];
  const X_OK = 1;
  const candidates = programCandidates(name, env);
  const look = (path: string, tolerate: readonly number[]): Operation => ({
    name: `execute "${name}"`,
    call: "faccessat",
    args: [AT_FDCWD, { text: path }, X_OK],
    store: "programFound",
    tolerate,
  });
  const [only] = candidates;
  if (candidates.length === 1 && only !== undefined) return [look(only, [])];
  return [
    ...candidates.map((path) => look(path, [ENOENT, ENOTDIR, EACCES])),
    { name: "has it been found", unequal: [{ load: "programFound" }, 1], goto: "program is there" },
    { name: `execute "${name}"`, fail: ENOENT },
    { label: "program is there" },
  ];
}

/** Where execvp(3) would look; a name with a slash is itself the only candidate. */
function programCandidates(name: string, env: readonly string[]): string[] {
  if (name.includes("/") || name === "") return [name];
  const path = env.findLast((entry) => entry.startsWith("PATH="))?.slice("PATH=".length);
  const directories = (path ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":");
  return [...new Set(directories.map((directory) => `${directory === "" ? "." : directory}/${name}`))];
}
