/** Creates containers: file systems, limits, pipes, and a launcher that becomes one. */
import { mkdirSync, statSync } from "node:fs";
import type { Delegation } from "./cgroup-delegation.ts";
import { Container, writeProcess } from "./container.ts";
import type { ContainerConfig, PreparedConfig, ProcessConfig } from "./container-config.ts";
import { OwnedDescriptors } from "./descriptors.ts";
import { isRootless } from "./file-owners.ts";
import type { Host } from "./host.ts";
import { launchedDescriptors } from "./launcher-program.ts";
import { type LaunchPlan, planLaunch } from "./launch-plan.ts";
import {
  MFD_CLOEXEC,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  O_WRONLY,
} from "./linux.ts";
import { cloneMount } from "./mount.ts";
import type { NetworkLayer } from "./network-files.ts";
import type { OciConfig, OciMount } from "./oci-config.ts";
import type { MountOptions } from "./oci-mount-options.ts";
import { compileProgram, type Operation, type Program } from "./program.ts";
import type { RootFileSystem } from "./root-pool.ts";
import { boundDevices, cloneForContainer, makeUpper, mountDev, mountOverlay, overlaysByPath } from "./rootfs.ts";
import { sealedProgram } from "./start-program.ts";
import { fillStores, listStores, makeHomeDirectories, makeStores, type StoreOwners, writeIdRanges } from "./nested.ts";
import { stepConfig, type StepStore, type StepUser } from "./step-config.ts";
import { type LaunchContext, planStep, type Source } from "./step-launch.ts";
import { architecture, close, cString, open, syscall } from "./syscall.ts";
import { hostIdOf, type UidRange } from "./uid-range.ts";

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

/**
 * Creates a container without a program of its own: once it is `created`, further processes (`execInContainer`) run in it,
 * until it is disposed. It cannot be started.
 *
 * @throws {Error} If it cannot be created. What fails later rejects `created`.
 */
export function openContainer(host: Host, config: PreparedConfig): Container {
  return createContainer(host, config, undefined, { isIdle: true });
}

function createContainer(
  host: Host,
  config: PreparedConfig,
  process: ProcessConfig | undefined,
  kind: { readonly isIdle?: true } = {},
): Container {
  if (!/^[A-Za-z0-9_.-]{1,200}$/.test(config.id) || config.id.startsWith(".")) {
    throw new Error(`Cannot create container: its id ${JSON.stringify(config.id)} is not a plain name`);
  }
  const descriptors = new OwnedDescriptors();
  const launcher = host.launchers.take();
  let root: RootFileSystem | undefined;
  let directory = `${host.stateDir}/containers/${launcher.name}`;
  try {
    if (isPooled(host, config)) {
      root = takeRoot(host, config, launcher.name);
      ({ directory } = root);
    } else {
      mkdirSync(directory, { mode: 0o700 });
      host.disk.adopt(directory);
    }
    const step =
      config.nested === undefined
        ? host.steps.get(config, () => describeStep(host, config, undefined))
        : describeStep(host, config, undefined, directory);
    launcher.cgroup?.limit(step.linux?.resources ?? {});
    const stdout = descriptors.pipe();
    const stderr = descriptors.pipe();
    const status = descriptors.pipe();
    const start = process === undefined ? descriptors.pipe() : undefined;
    const processFd = descriptors.own(syscall("memfd_create", cString("slipway-process"), MFD_CLOEXEC));
    // A step may open /dev/stdout again; a pipe asks its owner.
    const { uid: user, gid: group } = config.user ?? { uid: 0, gid: 0 };
    const [uid, gid] = [hostIdOf(config.uidRange, user, "user"), hostIdOf(config.uidRange, group, "group")];
    for (const { write } of [stdout, stderr]) syscall("fchown", write, uid, gid);
    const delegation =
      config.nested === undefined ? undefined : launcher.cgroup?.delegate(hostIdOf(config.uidRange, 0, "user"));
    const cgroupFd = delegation === undefined ? launcher.cgroup?.openDirectory() : undefined;
    if (cgroupFd !== undefined) descriptors.own(cgroupFd);
    const nested = prepareNested(host, config, directory);
    const { plan, sources } = planStep(step, {
      ...launchContext(host, config, directory, { root }),
      ...kind,
      ...(delegation === undefined ? {} : delegated(delegation)),
      status: there("status", status.write),
      process: there("process", processFd),
      ...(start === undefined ? {} : { start: there("start", start.read) }),
      ...(cgroupFd === undefined ? {} : { cgroup: there("cgroup", cgroupFd) }),
    });
    // What is ours already is owned already; owning it twice is once.
    const fds = sources.map((source) => (source.isOthers ? source.open() : descriptors.own(source.open())));
    if (nested !== undefined && "fd" in plan.rootfs) {
      fillStores(nested.stores, fds[plan.rootfs.fd - launchedDescriptors.first] ?? -1, nested);
    }
    const { program, memoryFd } = compileLaunch(host, plan, step);
    // Has the container's own paths in it, and is not kept.
    if ("layerFds" in plan.rootfs) descriptors.own(memoryFd);
    const block = program.addressOf("process");
    if (process !== undefined) writeProcess(processFd, block, process);
    host.launchers.launch(launcher, memoryFd, [stdout.write, stderr.write, ...fds]);
    descriptors.release(stdout.read, stderr.read, status.read);
    if (start !== undefined) descriptors.release(start.write, processFd);
    return new Container(host, config, {
      directory,
      root,
      launcher,
      program,
      stdout: stdout.read,
      stderr: stderr.read,
      status: status.read,
      process,
      isIdle: kind.isIdle === true,
      start: start === undefined ? undefined : { fd: start.write, processFd, block },
    });
  } catch (error) {
    void host.launchers.discard(launcher);
    void (root === undefined ? host.removeTree(directory) : host.roots.discard(root));
    throw error;
  } finally {
    descriptors.closeAll();
    host.launchers.replenish();
  }
}

/** The program of a plan, out of the cache where another container may have the same. */
function compileLaunch(
  host: Host,
  plan: LaunchPlan,
  step: OciConfig,
): { readonly program: Program; readonly memoryFd: number } {
  const compile = () => planLaunch(plan);
  if ("fd" in plan.rootfs) {
    return host.programs.get(host.steps.programKey(step, plan), "slipway-init", plan.statusFd, compile);
  }
  const program = compileProgram(compile(), { architecture, statusFd: plan.statusFd });
  return { program, memoryFd: sealedProgram(program.file, "slipway-init") };
}

/**
 * The configuration of a container that would be created, and the operations that its launcher would run; descriptors are
 * numbered as the launcher sees them. Nothing is made.
 *
 * @throws {OciConfigError} If it asks for something that is not supported.
 */
export function explainContainer(
  host: Host,
  config: PreparedConfig,
  program?: ProcessConfig,
): { readonly config: OciConfig; readonly operations: readonly Operation[] } {
  const directory = `${host.stateDir}/containers/${config.id}`;
  const explained = describeStep(host, config, program, directory);
  const { plan } = planStep(explained, {
    ...launchContext(host, config, directory, { dry: true }),
    status: there("status", -1),
    process: there("process", -1),
    ...(program === undefined ? { start: there("start", -1) } : {}),
    ...(host.cgroups?.version === 2 ? { cgroup: there("cgroup", -1) } : {}),
  });
  return { config: explained, operations: planLaunch(plan) };
}

/** What the step is asked to be, in the terms of step-config.ts. */
export function describeStep(
  host: Host,
  config: PreparedConfig,
  program: ProcessConfig | undefined,
  directory = `${host.stateDir}/containers/${config.id}`,
): OciConfig {
  const { image, uidRange, network, workspace, nested } = config;
  if (
    nested !== undefined &&
    (network === "host" || (typeof network === "object" && network.owner !== uidRange.userNamespaceFd))
  ) {
    throw new Error(`Cannot create container ${config.id}: one with containers of its own needs a network of its own`);
  }
  return stepConfig(
    {
      ...(program === undefined ? {} : { program: { args: program.args, env: program.env } }),
      cwd: config.cwd ?? (workspace === undefined ? "/" : "/workspace"),
      hostname: hostnameOf(config),
      user: config.user ?? { uid: 0, gid: 0 },
      ...(config.capabilities === undefined ? {} : { capabilities: config.capabilities }),
      ...(nested === undefined
        ? {}
        : { nested: { userNamespacePath: pathOf(uidRange.userNamespaceFd), stores: listStores(nested, directory) } }),
      idMappings: uidRange.mappings,
      network: typeof network === "object" ? { path: pathOf(network.namespaceFd) } : network,
      resources: host.limits.resources(config.resources),
      binds: image.binds,
      ...(workspace === undefined
        ? {}
        : {
            workspace: workspace.copyOnWrite
              ? { lower: workspace.dir, writableDir: storeOf(host, workspace, uidRange) ?? `${directory}/workspace` }
              : { source: workspace.dir },
          }),
      mounts: config.mounts ?? [],
      devices: config.devices ?? [],
    },
    host.facts,
  );
}

/** Where a copy-on-write workspace keeps what is written; undefined if it has not been made. */
function storeOf(host: Host, workspace: NonNullable<PreparedConfig["workspace"]>, range: UidRange): string | undefined {
  const store = host.workspaces.store(workspace, range);
  return store === workspace.dir ? undefined : store;
}

/** Of a descriptor of ours, for whoever reads the configuration. */
function pathOf(fd: number): string {
  if (fd < 0) return "/proc/AGENT/fd/NETWORK"; // of a network that has not been made
  return `/proc/${globalThis.process.pid}/fd/${fd}`;
}

const hostnameOf = ({ hostname = "slipway" }: PreparedConfig) => hostname;

/** How this host gets there. */
function launchContext(
  host: Host,
  config: PreparedConfig,
  directory: string,
  { dry = false, root }: { readonly dry?: boolean; readonly root?: RootFileSystem | undefined } = {},
): Omit<LaunchContext, "status" | "process" | "start" | "cgroup"> {
  const { uidRange: range, network, nested } = config;
  return {
    architecture,
    attachPath: host.keepsLaunchersApart ? undefined : host.attachDir,
    lastCapability: host.lastCapability,
    keepsGroups: host.keepsGroups,
    hierarchies: host.shownHierarchies,
    ...(typeof network === "object" ? { network: there("network", network.namespaceFd) } : {}),
    ...(nested === undefined ? {} : { user: there("user namespace", range.userNamespaceFd) }),
    rootfs:
      root === undefined
        ? rootfsOf(host, config, config.writableDir ?? directory, { dry })
        : { whole: { name: "root file system", open: () => root.open() } },
    make: {
      bind: (mount, options) => bind(mount, options, { range, dry, owner: workspaceOwner(config, mount), host }),
      dev: (_, { linux }) =>
        root === undefined || linux?.devices?.length ? mountDev(range, linux?.devices) : root.openDev(),
      boundDevices: ({ linux }) => boundDevices(linux?.devices),
      hostSys: cloneHostSys,
      overlay: () => showWorkspace(host, config),
      files: ({ destination }) => mountFiles(config, destination),
    },
  };
}

function delegated({ join, leaf, shown }: Delegation): Pick<LaunchContext, "hierarchies" | "delegation"> {
  const source = (path: string): Source => ({ name: path, open: () => open(path, O_WRONLY) });
  return {
    hierarchies: shown,
    delegation: { join: join.map(source), ...(leaf === undefined ? {} : { leaf: source(leaf) }) },
  };
}

/** What a nested container finds on disk; nothing for others. */
function prepareNested(
  host: Host,
  { nested, image, user = { uid: 0, gid: 0 }, uidRange: range, writableDir }: PreparedConfig,
  directory: string,
): (StoreOwners & { readonly stores: readonly StepStore[] }) | undefined {
  if (nested === undefined) return undefined;
  const owners = { range, user, home: nested.home };
  const stores = listStores(nested, directory);
  makeStores(stores, owners);
  const { layers } = image;
  const upper = `${writableDir ?? directory}/upper`;
  if (!host.mountsDetachedOverlays) makeHomeDirectories(stores, { ...owners, layers, upper });
  writeIdRanges({ layers, upper, range, uids: [0, user.uid] });
  return { ...owners, stores };
}

/** A descriptor that somebody else closes. */
function there(name: string, fd: number): Source {
  return { name, open: () => fd, isOthers: true };
}

/**
 * Whether the next container may have the same root file system, if this one changes nothing in it: not where somebody looks
 * at what was written, and not where what a container has made may outlive it in the kernel.
 */
function isPooled(host: Host, { writableDir, topLayer, nested }: PreparedConfig): boolean {
  return host.mountsDetachedOverlays && writableDir === undefined && topLayer === undefined && nested === undefined;
}

function takeRoot(host: Host, config: PreparedConfig, name: string): RootFileSystem {
  const files = networkFiles(host, config);
  const { image, uidRange: range } = config;
  return host.roots.take([...image.layers, host.skeletonDir], files === undefined ? [] : [files], { range, name });
}

/** The layer over all others, where a job's network has something to say. */
function networkFiles(host: Host, config: PreparedConfig): NetworkLayer | undefined {
  const { network, topLayer, uidRange: range } = config;
  if (typeof network !== "object" || topLayer !== undefined) return undefined;
  return host.networkFiles.get(network, { hostname: hostnameOf(config), range });
}

function rootfsOf(
  host: Host,
  config: PreparedConfig,
  directory: string,
  { dry }: { readonly dry: boolean },
): LaunchContext["rootfs"] {
  const { image, uidRange: range, topLayer } = config;
  if (host.mountsDetachedOverlays) {
    const open = () => {
      // One of the caller's own is no other container's.
      const top = topLayer === undefined ? undefined : host.layerMounts.clone(topLayer, range);
      try {
        const shared = top === undefined ? [...image.layers, host.skeletonDir] : image.layers;
        const mounts = shared.map((layer) => host.layerMounts.get(layer, range).mount);
        return mountOverlay(directory, [...mounts, top ?? networkFiles(host, config)?.mount ?? []].flat(), range);
      } finally {
        if (top !== undefined) close(top);
      }
    };
    return { whole: { name: "root file system", open } };
  }
  const layers = [...image.layers, topLayer ?? host.skeletonDir].map((layer) => ({
    name: `layer ${layer}`,
    open: () => host.layerMounts.clone(layer, range),
  }));
  const files = dry ? undefined : networkFiles(host, config);
  if (files !== undefined) layers.push({ name: "network files", open: () => cloneMount(files.directory) });
  if (!dry) {
    host.makeAttachPoints(layers.length);
    makeUpper(directory, range);
  }
  return { layers, overlays: overlaysByPath(directory, layers.length) };
}

function bind(
  mount: OciMount,
  options: MountOptions,
  context: {
    readonly host: Host;
    readonly range: UidRange;
    readonly dry: boolean;
    readonly owner: StepUser | undefined;
  },
): { readonly open: () => number; readonly isDirectory: boolean } {
  const { host, range, dry, owner } = context;
  const { source = "" } = mount;
  const { recursiveBind: recursive, idMap } = options;
  const attributes = (recursive ? options.recursiveAttributes : options.attributes).set;
  const stat = statSync(source, { throwIfNoEntry: false });
  if (stat === undefined && !dry) {
    throw new Error(`Cannot mount "${source}" on "${mount.destination}": there is no such file`);
  }
  return {
    // Without a map: its files have ids of the range on disk, too.
    open: () =>
      idMap === "none"
        ? cloneMount(source, { attributes, recursive })
        : cloneForContainer(source, range, { attributes, recursive, idMapFd: ownerMap(host, range, owner) }),
    isDirectory: stat?.isDirectory() ?? true,
  };
}

/** To whom the files of a mount are to belong: those of the workspace to the step's user, all others to whom they do on disk. */
function workspaceOwner({ workspace, user }: PreparedConfig, { source, destination }: OciMount): StepUser | undefined {
  return workspace !== undefined && source === workspace.dir && destination === "/workspace" ? user : undefined;
}

function ownerMap(host: Host, range: UidRange, owner: StepUser | undefined): number | undefined {
  return owner === undefined || isRootless() ? undefined : host.workspaceOwners.get(range, owner);
}

/** A copy-on-write workspace. */
function showWorkspace(host: Host, { workspace, uidRange: range, user }: PreparedConfig): number {
  const shown = host.workspaces.copyOnWrite(workspace?.dir ?? "", range);
  const attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  if (typeof shown === "string") {
    return cloneForContainer(shown, range, { attributes, recursive: false, idMapFd: ownerMap(host, range, user) });
  }
  return cloneMount(shown, { attributes });
}

function mountFiles({ mounts = [], uidRange: range, user }: PreparedConfig, target: string): number {
  const found = mounts.find((mount) => mount.type === "files" && mount.target === target);
  if (found?.type !== "files") throw new Error(`There are no files for "${target}"`);
  const { uid, gid } = user ?? { uid: 0, gid: 0 };
  const owner = { uid: hostIdOf(range, uid, "user"), gid: hostIdOf(range, gid, "group") };
  return found.files.mount(hostIdOf(range, 0, "user"), owner);
}

function cloneHostSys(): number {
  return cloneMount("/sys", {
    attributes: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
  });
}
