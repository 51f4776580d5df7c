/** What this host can do, found out by trying it. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, statfsSync } from "node:fs";
import { arch, release } from "node:os";
import { type CgroupHost, findCgroups, findMountedCgroups } from "./cgroup-host.ts";
import { checkDisk, checkIo, checkKernelLog } from "./check-resources.ts";
import { isRootless, jobIds } from "./file-owners.ts";
import { mountLayers } from "./launch-plan.ts";
import { capabilityNames } from "./linux.ts";
import { cloneMount } from "./mount.ts";
import type { RangePlan } from "./own-ids.ts";
import { compileProgram, messageBytes, type Operation } from "./program.ts";
import { makeUpper, mountOverlay, overlaysByPath } from "./rootfs.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import { architecture, close, pipe, SyscallError, syscall, trySyscall } from "./syscall.ts";
import { claimUserCgroup, mendDelegation } from "./user-cgroup.ts";
import { mapUserNamespace } from "./user-namespace.ts";

/** One thing the host can or cannot do. */
export interface HostCheck {
  /** `user namespaces` */
  readonly name: string;
  readonly ok: boolean;
  /** Without it the agent refuses to start. */
  readonly required: boolean;
  /** `max_user_namespaces is 0` or `kernel 6.1, cgroup v2` */
  readonly found: string;
  /** The setting that mends it: `sysctl -w user.max_user_namespaces=10000` */
  readonly mend?: string;
}

/** What containers would be given first. */
const triedRange = () => jobIds().ranges[0] as RangePlan;

/**
 * Tries out what this host can do: kernel, privileges, namespaces, overlay on idmapped layers, cgroups, disk.
 *
 * Takes a few milliseconds and leaves nothing behind.
 *
 * @param options.stateDir Made if missing; its file system is the one that layers and upper directories will be on.
 */
export async function checkHost(options: { readonly stateDir: string }): Promise<HostCheck[]> {
  mkdirSync(options.stateDir, { recursive: true, mode: 0o700 });
  const userNamespaceFd = attempt(holdTriedNamespace);
  try {
    return [
      checkKernel(),
      checkPrivileges(),
      checkNamespaces(),
      checkUserNamespaces(userNamespaceFd),
      checkOverlay(options.stateDir, userNamespaceFd),
      ...(await checkCgroups()),
      checkDisk(options.stateDir),
      checkIo(options.stateDir),
      checkKernelLog(),
    ];
  } finally {
    if (typeof userNamespaceFd === "number") close(userNamespaceFd);
  }
}

function holdTriedNamespace(): number {
  const { mappings } = triedRange();
  return mapUserNamespace(mappings, mappings);
}

/** The value, or the error that stood in its way. */
function attempt<T>(action: () => T): T | Error {
  try {
    return action();
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function checkKernel(): HostCheck {
  const [major = 0, minor = 0] = release().split(/[.-]/).map(Number);
  const known = arch() === "x64" || arch() === "arm64";
  const ok = known && (major > 5 || (major === 5 && minor >= 19));
  return {
    name: "kernel",
    ok,
    required: true,
    found: `Linux ${release()}, ${arch()}`,
    ...(ok ? {} : { mend: "install Linux 5.19 or newer (overlay on idmapped layers) on x86-64 or arm64" }),
  };
}

function checkPrivileges(): HostCheck {
  const effective = BigInt(
    `0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"}`,
  );
  const needed = [
    "CAP_SYS_ADMIN",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_KILL",
  ] as const;
  const missing = needed.filter((name) => (effective & (1n << BigInt(capabilityNames.indexOf(name)))) === 0n);
  return {
    name: "privileges",
    ok: missing.length === 0,
    required: true,
    found:
      missing.length === 0
        ? `all needed capabilities${isRootless() ? ", in a user namespace" : ""}`
        : `without ${missing.join(", ")}`,
    ...(missing.length === 0 ? {} : { mend: "run the agent as root; in a container give it these capabilities" }),
  };
}

function checkNamespaces(): HostCheck {
  const kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
  const missing = kinds.filter((kind) => !existsSync(`/proc/self/ns/${kind}`));
  return {
    name: "namespaces",
    ok: missing.length === 0,
    required: true,
    found: missing.length === 0 ? kinds.join(", ") : `without ${missing.join(", ")}`,
    ...(missing.length === 0 ? {} : { mend: "use a kernel with these namespaces compiled in (CONFIG_NAMESPACES)" }),
  };
}

function checkUserNamespaces(held: number | Error): HostCheck {
  const name = "user namespaces";
  const limit = attempt(() => readFileSync("/proc/sys/user/max_user_namespaces", "utf8").trim());
  if (typeof held === "number") return { name, ok: true, required: true, found: `at most ${String(limit)}` };
  const none = limit === "0";
  return {
    name,
    ok: false,
    required: true,
    found: none ? "user.max_user_namespaces is 0" : held.message,
    mend: none
      ? "sysctl -w user.max_user_namespaces=10000"
      : "allow clone3 with CLONE_NEWUSER: in a container, run the agent with seccomp and AppArmor unconfined; in a chroot no process may, whatever is allowed: use pivot_root or a container instead",
  };
}

/** Mounts what every container will be mounted from: an overlay with an idmapped lower layer, on the state directory. */
function checkOverlay(stateDir: string, userNamespaceFd: number | Error): HostCheck {
  const name = isRootless() ? "overlay in a user namespace" : "overlay on idmapped layers";
  if (typeof userNamespaceFd !== "number") {
    return { name, ok: false, required: true, found: "not tried without user namespaces" };
  }
  const fileSystem = fileSystemName(stateDir);
  const tried = tryDetachedOverlay(stateDir, userNamespaceFd);
  if (tried === undefined) return { name, ok: true, required: true, found: `works on ${fileSystem}` };
  const byPath = tryOverlayByPath(stateDir, userNamespaceFd);
  if (byPath === undefined) {
    return {
      name,
      ok: true,
      required: true,
      found: `works on ${fileSystem}, mounted by path (Linux 6.15 starts faster)`,
    };
  }
  return {
    name,
    ok: false,
    required: true,
    found: `${byPath.message} on ${fileSystem}`,
    mend: "put the data directory on ext4, xfs or btrfs, not on overlay or a network file system (--data-dir); load the overlay module",
  };
}

/** Whether overlays can be made as containers are best served: by descriptor, detached, and cloned so. */
export function canMountDetachedOverlays(stateDir: string): boolean {
  const userNamespaceFd = holdTriedNamespace();
  try {
    return tryDetachedOverlay(stateDir, userNamespaceFd) === undefined;
  } finally {
    close(userNamespaceFd);
  }
}

function tryDetachedOverlay(stateDir: string, userNamespaceFd: number): Error | undefined {
  return inLowerDirectory(stateDir, (directory, lower) => {
    const layer = cloneLower(lower, userNamespaceFd);
    try {
      const overlay = mountOverlay(directory, [layer], triedRange());
      try {
        close(cloneMount(overlay));
      } finally {
        close(overlay);
      }
    } finally {
      close(layer);
    }
  });
}

/** As a launcher does it on older kernels: in a process and a mount namespace of its own. */
function tryOverlayByPath(stateDir: string, userNamespaceFd: number): Error | undefined {
  return inLowerDirectory(stateDir, (directory, lower) => {
    for (const name of ["root", "l/0"]) mkdirSync(`${directory}/${name}`, { recursive: true });
    const layer = cloneLower(lower, userNamespaceFd);
    const status = pipe();
    try {
      const { targets, pairs } = placeDescriptors([status.write, layer] as const);
      const [statusFd, layerFd] = targets;
      makeUpper(directory, triedRange());
      const rootfs = { layerFds: [layerFd], overlays: overlaysByPath(directory, 1) };
      const plan: Operation[] = [...mountLayers(rootfs, directory), { name: "end", call: "exit_group", args: [0] }];
      const program = compileProgram(plan, { architecture, statusFd });
      const pid = startProgram(program.file, "slipway-check", pairs);
      close(status.write);
      syscall("wait4", pid, Buffer.alloc(4), 0, 0);
      const message = Buffer.alloc(messageBytes);
      if (trySyscall("read", status.read, message, message.length) !== messageBytes) return;
      const operation = program.operationAt(message.readBigUInt64LE(8));
      const name = operation !== undefined && "name" in operation ? operation.name : "mount overlay";
      throw new SyscallError("mount", message.readUInt32LE(4), name);
    } finally {
      close(status.read);
      close(layer);
    }
  });
}

function cloneLower(lower: string, userNamespaceFd: number): number {
  return cloneMount(lower, isRootless() ? {} : { idMapFd: userNamespaceFd });
}

function inLowerDirectory(stateDir: string, action: (directory: string, lower: string) => void): Error | undefined {
  const directory = mkdtempSync(`${stateDir}/check-`);
  const lower = `${directory}/lower`;
  const tried = attempt(() => {
    mkdirSync(lower);
    action(directory, lower);
    return undefined;
  });
  rmSync(directory, { recursive: true, force: true });
  return tried;
}

async function checkCgroups(): Promise<HostCheck[]> {
  const mounted = attempt(findMountedCgroups);
  let refusal = "";
  if (isRootless() && mounted !== undefined && !(mounted instanceof Error)) {
    await claimUserCgroup(mounted).catch((error: Error) => (refusal = ` (${error.message})`));
  }
  const host = attempt(findCgroups);
  const cgroups = checkFoundCgroups(host, refusal);
  const lacksCpuOnly = host !== undefined && !(host instanceof Error) && isCpuAll(host.missing);
  return lacksCpuOnly && isRootless() ? [cgroups, cpuTimeCheck(host)] : [cgroups];
}

const isCpuAll = (missing: readonly string[]) => missing.length === 1 && missing[0] === "cpu";

/** Many a systemd gives users memory and pids only. Nothing of the isolation is missing then. */
function cpuTimeCheck(host: CgroupHost): HostCheck {
  const found = "not limited: the cpu controller is not delegated to this user";
  return { name: "CPU time of steps", ok: false, required: false, found, mend: mendDelegation(host) };
}

function checkFoundCgroups(host: CgroupHost | Error | undefined, refusal: string): HostCheck {
  const name = "cgroups";
  if (host === undefined || host instanceof Error) {
    return {
      name,
      ok: false,
      required: true,
      found: host?.message ?? "no cgroup file system is mounted",
      mend: "mount -t cgroup2 none /sys/fs/cgroup",
    };
  }
  const lacksCpuOnly = isRootless() && isCpuAll(host.missing);
  if (host.missing.length > 0 && !lacksCpuOnly) {
    return {
      name,
      ok: false,
      required: true,
      found: `cgroup v${host.version} without the controllers ${host.missing.join(", ")}${isRootless() ? ` for this user${refusal}` : ""}`,
      mend: isRootless()
        ? mendDelegation(host)
        : "boot with cgroup_enable=memory, or delegate the controllers to the agent (Delegate=yes in its unit)",
    };
  }
  // What is delegated has been looked at; who is in it is arranged when an agent starts.
  const tried = isRootless() ? undefined : attempt(() => tryCgroup(host));
  return {
    name,
    ok: !(tried instanceof Error),
    required: true,
    found:
      tried instanceof Error
        ? tried.message
        : `cgroup v${host.version} with memory, ${lacksCpuOnly ? "" : "cpu, "}pids`,
    ...(tried instanceof Error ? { mend: "mount /sys/fs/cgroup writable for the agent" } : {}),
  };
}

function tryCgroup(host: CgroupHost): void {
  for (const { mountPoint } of host.hierarchies) {
    const directory = `${mountPoint}/slipway-check-${process.pid}`;
    mkdirSync(directory);
    rmdirSync(directory);
  }
}

function fileSystemName(path: string): string {
  const names: Record<number, string> = {
    0xef53: "ext4",
    0x58465342: "xfs",
    0x9123683e: "btrfs",
    0x01021994: "tmpfs",
    0x794c7630: "overlay",
    0x6969: "nfs",
    0x2fc12fc1: "zfs",
  };
  const { type } = statfsSync(path);
  return names[type] ?? `file system 0x${type.toString(16)}`;
}
