/** Creates containers: file systems, limits, pipes, and a launcher that becomes one. */
import { chownSync, mkdirSync, writeFileSync } from "node:fs";
import { Container, writeProcess } from "./container.ts";
import type { ContainerConfig, PreparedConfig, ProcessConfig } from "./container-config.ts";
import type { Host } from "./host.ts";
import { launchedDescriptors } from "./launcher.ts";
import { type LaunchPlan, type PlannedMount, type PlannedRootfs, planLaunch } from "./launch-plan.ts";
import {
  type CapabilityName,
  MFD_CLOEXEC,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
} from "./linux.ts";
import { cloneMount } from "./mount.ts";
import type { JobNetwork } from "./network.ts";
import { compileProgram, type Program } from "./program.ts";
import { cloneForContainer, mountDev, mountOverlay, overlayData, standardMounts } from "./rootfs.ts";
import { seccompProfile } from "./seccomp.ts";
import { sealedProgram } from "./start-program.ts";
import { architecture, close, cString, pipe, syscall } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/**
 * Creates a container and starts its program.
 *
 * @throws {Error} If the container cannot be created: our failure.
 * @throws {ExecError} If its program cannot be executed (`code` ENOENT, EACCES, ENOEXEC): the user's.
 */
export async function runContainer(host: Host, config: ContainerConfig): Promise<Container> {
  config.signal?.throwIfAborted();
  const container = createContainer(host, config, config);
  try {
    await container.started;
    return container;
  } catch (error) {
    await container[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Creates a container ahead: everything up to the execution of its program, which waits for `Container.start`.
 *
 * Meant for the time in which the step before it runs; one that is not needed is disposed unused. Time limit and
 * cancellation count from the start.
 *
 * @throws {Error} If it cannot be created: our failure. What fails later rejects `started`.
 */
export function prepareContainer(host: Host, config: PreparedConfig): Container {
  return createContainer(host, config, undefined);
}

function createContainer(host: Host, config: PreparedConfig, process: ProcessConfig | undefined): Container {
  if (!/^[A-Za-z0-9_.-]{1,200}$/.test(config.id) || config.id.startsWith(".")) {
    throw new Error(`Cannot create container: its id ${JSON.stringify(config.id)} is not a plain name`);
  }
  const descriptors = new Descriptors();
  const launcher = host.launchers.take();
  const directory = `${host.stateDir}/containers/${launcher.name}`;
  try {
    mkdirSync(directory, { mode: 0o700 });
    launcher.cgroup?.limit(config.resources);
    const stdout = descriptors.pipe();
    const stderr = descriptors.pipe();
    const status = descriptors.pipe();
    const start = process === undefined ? descriptors.pipe() : undefined;
    const processFd = descriptors.own(syscall("memfd_create", cString("slipway-process"), MFD_CLOEXEC));
    // A step may open /dev/stdout again; a pipe asks its owner.
    for (const { write } of [stdout, stderr]) syscall("fchown", write, config.uidRange.base, config.uidRange.base);
    const cgroupFd = launcher.cgroup?.openDirectory();
    const { plan, sources } = prepareLaunch(host, config, {
      descriptors,
      directory,
      statusFd: status.write,
      processFd,
      startFd: start?.read,
      cgroupFd: cgroupFd === undefined ? undefined : descriptors.own(cgroupFd),
    });
    const { program, memoryFd } = compileLaunch(host, plan);
    // Has the container's own paths in it, and is not kept.
    if ("layerFds" in plan.rootfs) descriptors.own(memoryFd);
    const block = program.addressOf("process");
    if (process !== undefined) writeProcess(processFd, block, process);
    host.launchers.launch(launcher, memoryFd, [stdout.write, stderr.write, ...sources]);
    for (const fd of [stdout.read, stderr.read, status.read]) descriptors.release(fd);
    if (start !== undefined) for (const fd of [start.write, processFd]) descriptors.release(fd);
    return new Container(host, config, {
      directory,
      launcher,
      program,
      stdout: stdout.read,
      stderr: stderr.read,
      status: status.read,
      process,
      start: start === undefined ? undefined : { fd: start.write, processFd, block },
    });
  } catch (error) {
    void host.launchers.discard(launcher);
    void host.removeTree(directory);
    throw error;
  } finally {
    descriptors.close();
    host.launchers.replenish();
  }
}

/** The program of a plan, out of the cache where another container may have the same. */
function compileLaunch(host: Host, plan: LaunchPlan): { readonly program: Program; readonly memoryFd: number } {
  const compile = () => planLaunch(plan);
  if ("fd" in plan.rootfs) {
    return host.programs.get(JSON.stringify(plan, planKey), "slipway-init", plan.statusFd, compile);
  }
  const program = compileProgram(compile(), { architecture, statusFd: plan.statusFd });
  return { program, memoryFd: sealedProgram(program.file, "slipway-init") };
}

/** Everything that plans differ in; the seccomp filter is the same for all steps. */
function planKey(name: string, value: unknown): unknown {
  if (name === "seccomp") return undefined;
  return typeof value === "bigint" ? `${value}` : value;
}

/** Makes what is the container's own and gives every descriptor its place in the program. */
function prepareLaunch(
  host: Host,
  config: PreparedConfig,
  made: {
    readonly descriptors: Descriptors;
    readonly directory: string;
    readonly statusFd: number;
    readonly processFd: number;
    readonly startFd: number | undefined;
    readonly cgroupFd: number | undefined;
  },
): { plan: LaunchPlan; sources: readonly number[] } {
  const { descriptors } = made;
  const { image, uidRange: range } = config;
  const hostname = config.hostname ?? "slipway";
  const network = typeof config.network === "object" ? config.network : undefined;
  if (network !== undefined) writeNetworkFiles(made.directory, network, { hostname, owner: range.base });
  const sources: number[] = [];
  const place = (fd: number) => launchedDescriptors.first + sources.push(fd) - 1;
  const attached = image.binds.map(({ source, target }) => ({
    fd: place(descriptors.own(cloneForContainer(source, range, { readonly: true }))),
    target,
  }));
  if (config.workspace !== undefined) {
    const workspace = descriptors.own(workspaceMount(host, config.workspace, range));
    attached.push({ fd: place(workspace), target: "workspace" });
  }
  const mounts: PlannedMount[] = standardMounts({
    dev: place(descriptors.own(mountDev(range))),
    sys:
      config.network === "host"
        ? { fd: place(descriptors.own(cloneHostSys())) }
        : network === undefined
          ? "own"
          : "network",
    cgroupControllers: host.cgroupControllers,
    attached,
  });
  const plan: LaunchPlan = {
    statusFd: place(made.statusFd),
    rootfs: prepareRootfs(host, [...image.layers, host.skeletonDir], {
      range,
      directory: made.directory,
      descriptors,
      place,
    }),
    processFd: place(made.processFd),
    ...(made.startFd === undefined ? {} : { startFd: place(made.startFd) }),
    ...(made.cgroupFd === undefined ? {} : { cgroupFd: place(made.cgroupFd) }),
    attachPath: host.attachDir,
    idMap: { base: range.base, size: range.size },
    network: network === undefined ? (config.network === "host" ? "host" : "own") : { fd: place(network.namespaceFd) },
    hostname,
    mounts,
    maskedPaths: host.maskedPaths,
    readonlyPaths: host.readonlyPaths,
    rlimits: defaultRlimits(host.maxOpenFiles),
    capabilities: defaultCapabilities,
    lastCapability: host.lastCapability,
    seccomp: seccompProfile("default", architecture),
    user: { uid: 0, gid: 0, additionalGids: [] },
    cwd: config.cwd ?? (config.workspace === undefined ? "/" : "/workspace"),
  };
  return { plan, sources };
}

/** /etc/hosts and /etc/resolv.conf of a job's network, over those of the skeleton; before the overlay is mounted. */
function writeNetworkFiles(
  directory: string,
  network: JobNetwork,
  options: { readonly hostname: string; readonly owner: number },
): void {
  const etc = `${directory}/upper/etc`;
  mkdirSync(etc, { recursive: true, mode: 0o755 });
  writeFileSync(`${etc}/hosts`, network.hosts(options.hostname), { mode: 0o644 });
  writeFileSync(`${etc}/resolv.conf`, network.resolvConf, { mode: 0o644 });
  for (const path of [etc, `${etc}/hosts`, `${etc}/resolv.conf`]) chownSync(path, options.owner, options.owner);
}

function prepareRootfs(
  host: Host,
  layers: readonly string[],
  context: {
    readonly range: UidRange;
    readonly directory: string;
    readonly descriptors: Descriptors;
    readonly place: (fd: number) => number;
  },
): PlannedRootfs {
  const { range, directory, descriptors, place } = context;
  if (host.mountsDetachedOverlays) {
    const mounts = layers.map((layer) => host.layerMounts.get(layer, range));
    return { fd: place(descriptors.own(mountOverlay(directory, mounts, range))) };
  }
  host.makeAttachPoints(layers.length);
  return {
    layerFds: layers.map((layer) => place(descriptors.own(cloneMount(layer, { idMapFd: range.userNamespaceFd })))),
    overlayData: overlayData(directory, layers.length, range),
  };
}

function workspaceMount(host: Host, workspace: { dir: string; copyOnWrite?: boolean }, range: UidRange): number {
  if (!workspace.copyOnWrite) return cloneForContainer(workspace.dir, range, { readonly: false });
  const shown = host.copyOnWriteWorkspace(workspace.dir, range);
  if (typeof shown === "string") return cloneForContainer(shown, range, { readonly: false });
  return cloneMount(shown, { attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV });
}

function cloneHostSys(): number {
  return cloneMount("/sys", {
    attributes: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
  });
}

/** Descriptors to close when the container has its own copies. */
class Descriptors {
  readonly #fds = new Set<number>();

  own(fd: number): number {
    this.#fds.add(fd);
    return fd;
  }

  pipe(): { readonly read: number; readonly write: number } {
    const ends = pipe();
    this.own(ends.read);
    this.own(ends.write);
    return ends;
  }

  release(fd: number): void {
    this.#fds.delete(fd);
  }

  close(): void {
    for (const fd of this.#fds) close(fd);
    this.#fds.clear();
  }
}

/** Docker's default set (moby daemon/pkg/oci/caps/defaults.go), held in the container's own user namespace only. */
const defaultCapabilities: readonly CapabilityName[] = [
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_FSETID",
  "CAP_FOWNER",
  "CAP_MKNOD",
  "CAP_NET_RAW",
  "CAP_SETGID",
  "CAP_SETUID",
  "CAP_SETFCAP",
  "CAP_SETPCAP",
  "CAP_NET_BIND_SERVICE",
  "CAP_SYS_CHROOT",
  "CAP_KILL",
  "CAP_AUDIT_WRITE",
];

/** No core files; more descriptors than the usual 1024 allowed, but not by default: select(2) and slow closers. */
function defaultRlimits(maxOpenFiles: bigint): LaunchPlan["rlimits"] {
  const hard = maxOpenFiles < 524_288n ? maxOpenFiles : 524_288n;
  return [
    { type: "RLIMIT_CORE", soft: 0n, hard: 0n },
    { type: "RLIMIT_NOFILE", soft: hard < 1024n ? hard : 1024n, hard },
  ];
}
