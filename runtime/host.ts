import { randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { basename, dirname } from "node:path";
import { canMountDetachedOverlays, checkHost } from "./check.ts";
import type { Cgroups } from "./cgroup.ts";
import type { ShownHierarchy } from "./cgroup-mounts.ts";
import { removeCgroupsBelow, sweepDeadAgents } from "./cgroup-sweep.ts";
import { ContainerCaches } from "./container-caches.ts";
import { Disk } from "./disk.ts";
import { HostLimits } from "./host-limits.ts";
import { OomReports } from "./kernel-log.ts";
import { adoptTree, isRootless } from "./file-owners.ts";
import { imageStorePath } from "./image-store-path.ts";
import { KnownSteps } from "./known-steps.ts";
import { Launchers } from "./launcher.ts";
import {
  EAGAIN,
  FS_IOC_GETFLAGS,
  FS_IOC_SETFLAGS,
  FS_TOPDIR_FL,
  LOCK_EX,
  LOCK_NB,
  O_CREAT,
  O_DIRECTORY,
  O_RDONLY,
  O_RDWR,
  RLIMIT,
} from "./linux.ts";
import { mendNetwork } from "./network-mend.ts";
import { closeMounts } from "./mount.ts";
import { type JobNetwork, Networks, type Withheld } from "./network.ts";
import { NetworkFiles } from "./network-files.ts";
import { ProgramCache } from "./program-cache.ts";
import { Removals } from "./removals.ts";
import { RootPool } from "./root-pool.ts";
import { findMaskedPaths, findReadonlyPaths, LayerMounts, seesWritableSysfs } from "./rootfs.ts";
import { runDirectory } from "./run-directory.ts";
import { ShiftedLayers } from "./shifted-layers.ts";
import type { HostFacts } from "./step-config.ts";
import type { Ceiling } from "./step-resources.ts";
import { close, open, SyscallError, syscall, trySyscall } from "./syscall.ts";
import { type UidRange, UidRanges } from "./uid-range.ts";
import { writeSkeleton } from "./skeleton.ts";
import { Workspaces } from "./workspaces.ts";
import { WorkspaceOwners } from "./workspace-owner.ts";
import { Watch } from "./watch.ts";

export interface HostOptions {
  readonly stateDir: string;
  /** Where images are kept; several hosts may share it. On the state directory's file system. @default `images` in the state directory */
  readonly imageStoreDir?: string;
  readonly allow?: readonly "no-cgroups"[];
  /** The most that all containers use together, beside what the machine can bear. */
  readonly ceiling?: Ceiling;
  /** Mount overlays as kernels before 6.15 want it, although this one could do better. @default false */
  readonly overlaysByPath?: boolean;
  readonly networks?: HostNetworks;
  /** What nested steps may keep between builds, all together. @default 21474836480 (20 GiB) */
  readonly containerCacheBytes?: number;
}

const defaultContainerCacheBytes = 20 * 2 ** 30;

/** What jobs' networks are to be on this host. */
export interface HostNetworks {
  /** Give jobs loopback only; works where `checkNetworks` finds something missing. @default false */
  readonly loopbackOnly?: boolean;
  /** Keep jobs from private networks, too. @default false */
  readonly blockPrivateRanges?: boolean;
  /** Servers that no job reaches: the agent's own. */
  readonly withheld?: readonly Withheld[];
}

/**
 * One agent's use of this kernel: state directory, uid ranges, cgroups. Disposing it removes all of it but the image store.
 *
 * No mount of a container is ever attached in the host's mount namespace, so a killed agent leaves only directories and
 * empty cgroups; the next one on the same state directory sweeps them.
 */
export class Host implements AsyncDisposable {
  readonly stateDir: string;
  readonly imageStoreDir: string;
  /** Empty; containers attach their root file system on it, in their own mount namespace. */
  readonly attachDir: string;
  /** For `writableDir`s of containers that outlast them; what is in it is swept like all that a killed agent leaves. */
  readonly keptDir: string;
  /** What nested steps keep between builds. */
  readonly containerCaches: ContainerCaches;
  /** Whether this kernel mounts overlays by descriptor and clones detached mounts (Linux 6.15). */
  readonly mountsDetachedOverlays: boolean;
  /** Whether launchers, and so containers, begin with few mounts instead of the host's; which by path need theirs. */
  readonly keepsLaunchersApart: boolean;
  /** The layer on top of every image's: mount points and /etc files. */
  readonly skeletonDir: string;
  /** Absent only where its absence was allowed explicitly. */
  readonly cgroups: Cgroups | undefined;
  readonly limits: HostLimits;
  readonly watch = new Watch();
  readonly disk: Disk;
  /** Absent where the kernel's log cannot be read. */
  readonly oomReports = OomReports.open();
  readonly layerMounts: LayerMounts;
  readonly #shifted: ShiftedLayers;
  readonly workspaces = new Workspaces(this);
  readonly workspaceOwners = new WorkspaceOwners();
  readonly networkFiles = new NetworkFiles(this);
  readonly roots: RootPool;
  readonly programs = new ProgramCache();
  readonly steps = new KnownSteps();
  readonly removals = new Removals();
  readonly launchers: Launchers;
  readonly lastCapability = Number(readFileSync("/proc/sys/kernel/cap_last_cap", "utf8"));
  /** setgroups(2) is denied: an ordinary user without subordinate ids. */
  readonly keepsGroups = readFileSync("/proc/self/setgroups", "utf8").trim() === "deny";
  /** What steps' configurations depend on. */
  readonly facts: HostFacts;
  /** What /sys/fs/cgroup shows in a container: the whole of v2, or the v1 hierarchies that limit it. */
  readonly shownHierarchies: readonly ShownHierarchy[];
  readonly #uidRanges: UidRanges;
  readonly #lock: number;
  #attachPoints = 0;
  readonly #removals = new Set<Promise<void>>();
  readonly #networkOptions: HostNetworks;
  #networks: Promise<Networks> | undefined;

  private constructor(
    stateDir: string,
    options: HostOptions,
    found: { readonly lock: number; readonly limits: HostLimits; readonly mountsDetachedOverlays: boolean },
  ) {
    const { lock, limits } = found;
    this.mountsDetachedOverlays = found.mountsDetachedOverlays;
    // Where mounts of others are locked, none is shown without those below it.
    this.keepsLaunchersApart = found.mountsDetachedOverlays && !isRootless();
    this.#networkOptions = options.networks ?? {};
    this.stateDir = stateDir;
    this.imageStoreDir = imageStorePath(options.imageStoreDir ?? `${stateDir}/images`);
    const shifted = new ShiftedLayers(this.imageStoreDir, `${stateDir}/workspaces`);
    if (isRootless()) shifted.sweep();
    this.#shifted = shifted;
    this.layerMounts = new LayerMounts(shifted);
    this.attachDir = `${stateDir}/attach`;
    this.keptDir = `${stateDir}/kept`;
    this.containerCaches = new ContainerCaches(`${stateDir}/container-caches`, {
      budgetBytes: options.containerCacheBytes ?? defaultContainerCacheBytes,
      remove: (path) => this.removeTree(path),
    });
    this.skeletonDir = `${stateDir}/skeleton`;
    this.#lock = lock;
    this.limits = limits;
    this.cgroups = limits.cgroups;
    const { diskBytes } = limits.ceiling;
    this.disk = new Disk(stateDir, { watch: this.watch, ...(diskBytes !== undefined && { ceilingBytes: diskBytes }) });
    this.shownHierarchies = limits.cgroups === undefined ? [] : hierarchiesToShow(limits.cgroups);
    this.facts = {
      maskedPaths: findMaskedPaths(),
      readonlyPaths: findReadonlyPaths(),
      maxOpenFiles: hardLimit(RLIMIT.RLIMIT_NOFILE),
      // Whoever has a higher one may not be allowed to lower it.
      oomScoreAdj: Math.max(500, Number(readFileSync("/proc/self/oom_score_adj", "utf8"))),
      hasCgroups: limits.cgroups !== undefined,
      mapsIds: !isRootless(),
      mountsWritableSysfs: seesWritableSysfs(),
    };
    this.#uidRanges = new UidRanges(`${runDirectory()}/uid-ranges`);
    this.roots = new RootPool(this);
    this.launchers = new Launchers(this);
  }

  /**
   * Opens the state directory (0700, made if missing), sweeps what a killed agent left behind and sets up cgroups.
   *
   * @throws {Error} Naming what the host lacks and the setting that mends it; `allow` lists weaker isolation accepted
   *   explicitly ("no-cgroups" is the only one for now). Also if another agent uses the state directory.
   */
  static async open(options: HostOptions): Promise<Host> {
    mkdirSync(options.stateDir, { recursive: true, mode: 0o700 });
    const stateDir = realpathSync(options.stateDir);
    if (Buffer.byteLength(stateDir) > maxStateDirBytes) {
      throw new Error(
        `Cannot use state directory "${stateDir}": its path is longer than ${maxStateDirBytes} bytes; choose a shorter one with --data-dir`,
      );
    }
    chmodSync(stateDir, 0o700); // steps of any user leave files with any mode below it
    const checks = await checkHost({ stateDir });
    const allowed = new Set<string>(options.allow?.includes("no-cgroups") ? ["cgroups"] : []);
    const missing = checks.filter((check) => check.required && !check.ok && !allowed.has(check.name));
    if (missing.length > 0) {
      const lines = missing.map(({ name, found, mend }) => `  ${name}: ${found}${mend ? `; ${mend}` : ""}`);
      throw new Error(`Cannot isolate steps on this host:\n${lines.join("\n")}\n"slipway doctor" tells more`);
    }
    const lock = lockState(stateDir);
    try {
      const limits = HostLimits.open(stateDir, {
        name: cgroupName(stateDir),
        without: allowed.has("cgroups") && checks.some(({ name, ok }) => name === "cgroups" && !ok),
        ceiling: options.ceiling ?? {},
      });
      const mountsDetachedOverlays = !options.overlaysByPath && canMountDetachedOverlays(stateDir);
      const host = new Host(stateDir, options, { lock, limits, mountsDetachedOverlays });
      await host.#prepare();
      return host;
    } catch (error) {
      close(lock);
      throw error;
    }
  }

  /** Takes a free uid range; one per concurrently running job. Disposing it ends the job's copy-on-write workspaces. */
  claimUidRange(): UidRange {
    return this.#begin(this.#uidRanges.claim());
  }

  /**
   * The range for containers whose changes become layers: the job's, unless mounts map no ids. Then it is the one whose ids
   * layers have on disk, whoever else has it.
   *
   * @param job The caller's, which stays its own.
   */
  claimLayerRange(job?: UidRange): UidRange {
    if (isRootless()) return this.#begin(this.#uidRanges.shareFirst());
    return job === undefined ? this.claimUidRange() : { ...job, [Symbol.dispose]: () => {} };
  }

  #begin(range: UidRange): UidRange {
    this.roots.begin(range);
    return {
      ...range,
      [Symbol.dispose]: () => {
        this.workspaces.release(range);
        this.roots.release(range);
        this.networkFiles.release(range);
        const { mounts, copies } = this.layerMounts.release(range);
        this.track(closeMounts(mounts));
        for (const copy of copies) void this.removeTree(copy);
        this.workspaceOwners.release(range);
        range[Symbol.dispose]();
      },
    };
  }

  /**
   * Makes, beside whatever else the agent does, the copies of an image that a job of this range needs where mounts map no
   * ids; else creating its first container does, and nothing else goes on meanwhile. Undefined where there is nothing to do.
   *
   * @throws {Error} If a layer cannot be copied.
   */
  prepareLayers(layers: readonly string[], range: UidRange): Promise<void> | undefined {
    return isRootless() ? this.#shifted.prepare(layers, range) : undefined;
  }

  /**
   * Sets up what all jobs' networks share, which takes a tenth of a second and a thread of its own; else the first
   * `claimNetwork` does.
   *
   * @throws {Error} If the kernel or the privileges do not allow it, saying what mends that.
   */
  async openNetworks(): Promise<void> {
    await this.#openNetworks();
  }

  /**
   * Takes a network for a job; the caller disposes it.
   *
   * @param options.owner Whose nested containers may do with its inside what they like.
   * @throws {Error} As `openNetworks` does, or if none is left.
   */
  async claimNetwork({ owner }: { readonly owner?: UidRange | undefined } = {}): Promise<JobNetwork> {
    return (await this.#openNetworks()).claim({ owner: owner?.userNamespaceFd });
  }

  async #openNetworks(): Promise<Networks> {
    this.#networks ??= Networks.open({ agent: cgroupName(this.stateDir), ...this.#networkOptions });
    try {
      return await this.#networks;
    } catch (error) {
      this.#networks = undefined; // what was missing may have been mended
      const { message, code } = error as NodeJS.ErrnoException;
      const mends = [mendNetwork(code), "or start with --network none, which gives steps loopback only"];
      const mend = mends.filter((one) => one !== undefined).join("; ");
      throw new Error(`Cannot make networks for jobs on this host: ${message}; ${mend}`, { cause: error });
    }
  }

  /** Makes the directories on which a launcher attaches layers and overlay, where it has to. */
  makeAttachPoints(layers: number): void {
    if (this.#attachPoints >= layers) return;
    for (const name of ["base", "root"]) mkdirSync(`${this.attachDir}/${name}`, { recursive: true });
    for (let i = this.#attachPoints; i < layers; i++) mkdirSync(`${this.attachDir}/l/${i}`, { recursive: true });
    this.#attachPoints = layers;
  }

  /** Deletes a directory tree that steps wrote into (any owner, any mode); what cannot be deleted now goes at the next start. */
  removeTree(path: string): Promise<void> {
    const trash = `${this.stateDir}/trash/${randomBytes(8).toString("hex")}`;
    try {
      renameSync(path, trash); // the name is free again at once
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return Promise.resolve();
      // On another file system: in place, then.
      return this.#track(this.removals.remove(path));
    }
    return this.#track(this.removals.remove(trash));
  }

  /** @internal Waits for it when this is closed. */
  track(promise: Promise<void>): void {
    void this.#track(promise);
  }

  #track(removal: Promise<void>): Promise<void> {
    const settled = removal.catch(() => undefined).finally(() => this.#removals.delete(settled));
    this.#removals.add(settled);
    return settled;
  }

  async #prepare(): Promise<void> {
    const { stateDir } = this;
    for (const name of ["containers", "kept", "roots", "workspaces"]) {
      if (existsSync(`${stateDir}/${name}`)) renameSync(`${stateDir}/${name}`, `${stateDir}/${name}.${Date.now()}.old`);
    }
    for (const name of ["attach", "containers", "kept", "roots", "skeleton", "trash", "workspaces"]) {
      mkdirSync(`${stateDir}/${name}`, { recursive: true, mode: 0o755 });
    }
    mkdirSync(this.imageStoreDir, { recursive: true, mode: 0o755 });
    for (const name of ["containers", "kept", "roots", "workspaces"]) spreadDirectories(`${stateDir}/${name}`);
    for (const name of readdirSync(stateDir)) {
      if (name.endsWith(".old")) await this.removeTree(`${stateDir}/${name}`);
    }
    for (const name of readdirSync(`${stateDir}/trash`)) {
      void this.#track(this.removals.remove(`${stateDir}/trash/${name}`));
    }
    for (const directory of [...(this.cgroups?.directories ?? []), ...(this.cgroups?.otherDirectories ?? [])]) {
      // What still runs in them dies with the killed agent (PR_SET_PDEATHSIG).
      removeCgroupsBelow(directory);
      sweepDeadAgents(dirname(directory), basename(directory));
    }
    await this.containerCaches.sweep();
    writeSkeleton(this.skeletonDir);
    adoptTree(this.skeletonDir);
    this.launchers.replenish();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.workspaces.close();
    await Promise.all([
      this.launchers.close(),
      this.#networks?.then(
        (networks) => networks[Symbol.asyncDispose](),
        () => undefined,
      ),
    ]);
    this.oomReports?.close();
    this.programs.close();
    this.roots.close();
    this.networkFiles.close();
    this.layerMounts.close();
    this.workspaceOwners.close();
    this.#uidRanges.close();
    // What is closed is then removed.
    while (this.#removals.size > 0) await Promise.all(this.#removals);
    await this.removals.close();
    await this.disk[Symbol.asyncDispose]();
    this.cgroups?.close();
    rmSync(this.attachDir, { recursive: true, force: true });
    for (const name of ["containers", "kept", "roots", "workspaces", "trash"]) {
      try {
        rmdirSync(`${this.stateDir}/${name}`);
      } catch {
        // not empty: the next start sweeps it
      }
    }
    close(this.#lock);
  }
}

/**
 * Tells ext4 that what is made in a directory is unrelated, so that it goes to different block groups (chattr +T): without
 * a journal, ext4 looks at every inode that was deleted in a group in the last minutes before it makes one there, and
 * containers are made where others have just been deleted. Other file systems do not know the flag.
 */
function spreadDirectories(path: string): void {
  const fd = open(path, O_RDONLY | O_DIRECTORY);
  const flags = Buffer.alloc(8);
  if (trySyscall("ioctl", fd, FS_IOC_GETFLAGS, flags) === 0) {
    flags.writeUInt32LE(flags.readUInt32LE(0) | FS_TOPDIR_FL, 0);
    trySyscall("ioctl", fd, FS_IOC_SETFLAGS, flags);
  }
  close(fd);
}

/** fsconfig(2) takes strings of 255 bytes, and upper directories are below the state directory. */
const maxStateDirBytes = 200;

/** The same for every start on one state directory, so that leftovers are found; another for every other agent. */
function cgroupName(stateDir: string): string {
  const { dev, ino } = statSync(stateDir);
  return `slipway-${dev.toString(36)}-${ino.toString(36)}`;
}

function hierarchiesToShow({ version, controllerSets }: Cgroups): ShownHierarchy[] {
  if (version === 2) return [{ name: "", version, controllers: [] }];
  return controllerSets.map((name) => ({ name, version, controllers: name.split(",") }));
}

function hardLimit(resource: number): bigint {
  const limits = Buffer.alloc(16);
  syscall("prlimit64", 0, resource, 0, limits);
  return limits.readBigUInt64LE(8);
}

function lockState(stateDir: string): number {
  const fd = open(`${stateDir}/lock`, O_RDWR | O_CREAT, 0o600);
  const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
  if (result === 0) return fd;
  close(fd);
  if (result === -EAGAIN) {
    throw new Error(
      `Cannot use state directory "${stateDir}": another agent uses it; give this one its own with --data-dir`,
    );
  }
  throw new SyscallError("flock", -result, `lock state directory "${stateDir}"`);
}
