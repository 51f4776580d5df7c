import { mkdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import type { Cgroup, CgroupUsage } from "./cgroup.ts";
import type { Host } from "./host.ts";
import type { Image } from "./image.ts";
import { launchedDescriptors, type Launcher } from "./launcher.ts";
import {
  type LaunchPlan,
  message,
  messageLength,
  type PlannedMount,
  type PlannedRootfs,
  planLaunch,
} from "./launch-plan.ts";
import { type CapabilityName, MFD_CLOEXEC, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, SIGKILL, SIGTERM } from "./linux.ts";
import { cloneMount } from "./mount.ts";
import { PipeReader } from "./output.ts";
import { processBlock } from "./process-block.ts";
import { failMessage, messageBytes, type Operation, type Program } from "./program.ts";
import { decodeWaitStatus, kill, type Reaped, reap, signalAll } from "./reaper.ts";
import { seccompProfile } from "./seccomp.ts";
import { cloneForContainer, mountDev, mountOverlay, overlayData, standardMounts } from "./rootfs.ts";
import { architecture, close, cString, errnoName, pipe, syscall, trySyscall } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/**
 * Receives output as it comes. `chunk` is valid only during the call (copy what must stay); returning `false` stops reading
 * until `Container.resumeOutput()`.
 */
export type OutputSink = (stream: "stdout" | "stderr", chunk: Uint8Array) => boolean | void;

/** What runs in a container; may be known only when it starts. */
export interface ProcessConfig {
  /** argv; argv[0] is looked up in PATH of `env` when it has no slash. */
  readonly args: readonly string[];
  /** The whole environment; nothing is added. */
  readonly env: Readonly<Record<string, string>>;
}

/** What must be known when a container is created. */
export interface PreparedConfig {
  /** Names it in messages; [A-Za-z0-9_.-]. */
  readonly id: string;
  readonly image: Image;
  readonly uidRange: UidRange;
  /** @default "/workspace" if there is a workspace, else "/" */
  readonly cwd?: string;
  /** @default "slipway" */
  readonly hostname?: string;
  /** Mounted read-write at /workspace. `copyOnWrite` shows the directory without ever changing it. */
  readonly workspace?: { readonly dir: string; readonly copyOnWrite?: boolean };
  readonly resources: { readonly memoryBytes: number; readonly cpu: number; readonly pids: number };
  readonly network: "none" | "host";
  readonly output: OutputSink;
  readonly timeoutMs?: number;
  /** Between SIGTERM and SIGKILL after a cancel or time-out. @default 10000 */
  readonly graceMs?: number;
  /** Canceling; the reason is a string or an Error whose message says why. */
  readonly signal?: AbortSignal;
}

export type ContainerConfig = PreparedConfig & ProcessConfig;

/** Why the container ended. */
export type EndReason = "exited" | "signaled" | "oom" | "timeout" | "canceled";

export interface ContainerResult {
  readonly reason: EndReason;
  /** 0–255; 128 + signal number where a signal ended it. */
  readonly exitCode: number;
  /** `SIGKILL`, where a signal ended it. */
  readonly signal?: string;
  readonly oomKilled: boolean;
  /** One sentence for a person, where there is more to say than the exit code. */
  readonly message?: string;
  /** When the program was executed and when it ended, by the kernel's clock; since the epoch, with a fraction. */
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
  readonly cpuTimeMs: number;
  readonly memoryPeakBytes?: number;
  readonly pidsPeak?: number;
}

/** The program cannot be executed: it is missing, not executable or no program. The user's failure, not ours. */
export class ExecError extends Error {
  override readonly name = "ExecError";
  readonly code: string;

  constructor(code: string, program: string) {
    const reasons: Record<string, string> = {
      ENOENT: "there is no such program in the image (or its interpreter is missing)",
      EACCES: "it is not executable",
      ENOEXEC: "it is not a program for this machine",
      E2BIG: "its arguments and environment are too large",
    };
    super(`Cannot execute "${program}": ${reasons[code] ?? code}`);
    this.code = code;
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

/** One container. Disposing it kills what still runs and removes every trace. */
export class Container implements AsyncDisposable {
  /** The init process on the host; 0 before it exists. */
  pid = 0;
  /**
   * Resolves once everything is reaped and both outputs are at their end; never rejects for what the step did, and only
   * after `started` has resolved.
   */
  readonly result: Promise<ContainerResult>;
  /** Resolves when a prepared container waits for its start. Rejects as `started` does. */
  readonly created: Promise<void>;
  /** Resolves when the program has been executed. Rejects with `ExecError` or, for our failures, `Error`. */
  readonly started: Promise<void>;
  readonly #host: Host;
  readonly #config: PreparedConfig;
  readonly #directory: string;
  readonly #cgroup: Cgroup | undefined;
  readonly #program: Program;
  readonly #outputs: readonly PipeReader[];
  readonly #status: PipeReader;
  readonly #stageZero: Promise<Reaped>;
  readonly #gone = Promise.withResolvers<Reaped | undefined>();
  readonly #created = Promise.withResolvers<void>();
  readonly #started = Promise.withResolvers<void>();
  #failure: Error | undefined;
  #payloadStatus: number | undefined;
  #startedAtMs = 0;
  #exitedAtMs: number | undefined;
  #stopReason: { readonly reason: "timeout" | "canceled"; readonly message: string } | undefined;
  #process: ProcessConfig | undefined;
  #start: { readonly fd: number; readonly processFd: number; readonly block: bigint } | undefined;
  /** Somebody wanted it killed before stage 0 had said who it is. */
  #killWhenKnown = false;
  #timer: NodeJS.Timeout | undefined;
  #killTimer: NodeJS.Timeout | undefined;
  #cleaned: Promise<void> | undefined;

  /** @internal Takes ownership of everything in `parts`. */
  constructor(
    host: Host,
    config: PreparedConfig,
    made: {
      readonly directory: string;
      readonly launcher: Launcher;
      readonly program: Program;
      readonly stdout: number;
      readonly stderr: number;
      readonly status: number;
      readonly process: ProcessConfig | undefined;
      /** The write end of the start pipe, and the memory for the process block at address `block`. */
      readonly start: { readonly fd: number; readonly processFd: number; readonly block: bigint } | undefined;
    },
  ) {
    this.#host = host;
    this.#config = config;
    this.#directory = made.directory;
    this.#cgroup = made.launcher.cgroup;
    this.#program = made.program;
    this.#process = made.process;
    this.#start = made.start;
    this.created = this.#created.promise;
    this.started = this.#started.promise;
    this.#outputs = [
      new PipeReader(made.stdout, (chunk) => config.output("stdout", chunk)),
      new PipeReader(made.stderr, (chunk) => config.output("stderr", chunk)),
    ];
    let rest = Buffer.alloc(0);
    this.#status = new PipeReader(made.status, (chunk) => {
      rest = Buffer.concat([rest, chunk]);
      while (rest.length >= messageBytes) {
        const length = messageLength(rest.readUInt32LE(0));
        if (rest.length < length) break;
        this.#receive(rest);
        rest = rest.subarray(length);
      }
    });
    this.#stageZero = made.launcher.ended;
    this.result = this.#finish();
    this.result.catch(() => undefined); // `started` rejects with the same; nobody has to look at both
    for (const promise of [this.created, this.started]) promise.catch(() => undefined);
    if (this.#process !== undefined) this.#watch();
  }

  /** Starts the program of a prepared container. Its end, and why it could not be executed, are told by `started` and `result`. */
  async start(process: ProcessConfig): Promise<void> {
    const start = this.#start;
    if (start === undefined) throw new Error(`Cannot start container ${this.#config.id}: it has been started`);
    this.#start = undefined;
    this.#process = process;
    try {
      writeProcess(start.processFd, start.block, process);
      // EPIPE: it has failed already, and `started` says why.
      trySyscall("write", start.fd, Buffer.from("s"), 1);
    } finally {
      close(start.processFd);
      close(start.fd);
    }
    this.#watch();
    await this.started;
  }

  /** Cancellation, from the start on. */
  #watch(): void {
    const { signal } = this.#config;
    if (signal?.aborted) this.#onAbort();
    else signal?.addEventListener("abort", this.#onAbort, { once: true });
  }

  readonly #onAbort = () => this.stop("canceled", reasonOf(this.#config.signal?.reason));

  /** Goes on reading output after the sink returned `false`. */
  resumeOutput(): void {
    for (const output of this.#outputs) output.resume();
  }

  /** SIGTERM to every process but init, and after the grace time SIGKILL to all; the first reason wins. */
  stop(reason: "timeout" | "canceled", message: string): void {
    if (this.#stopReason !== undefined) return;
    this.#stopReason = { reason, message };
    // Before its program runs nobody would hear it; it comes then.
    if (this.#startedAtMs !== 0) this.#terminate();
    this.#killTimer = setTimeout(() => this.#kill(), this.#config.graceMs ?? 10_000);
  }

  #terminate(): void {
    signalAll(SIGTERM, () => this.#processes());
  }

  /** Kills every process at once: the kernel takes a pid namespace down with its init. */
  #kill(): void {
    if (this.pid === 0) this.#killWhenKnown = true;
    else kill(this.pid, SIGKILL);
  }

  /** Takes a container that was never started down: its init ends when the start pipe does. */
  #abandon(): void {
    const start = this.#start;
    this.#start = undefined;
    if (start === undefined) return;
    close(start.processFd);
    close(start.fd);
  }

  #processes(): number[] {
    if (this.#cgroup === undefined) return this.pid === 0 ? [] : descendants(this.pid);
    return this.#cgroup.processes().filter((pid) => pid !== this.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abandon();
    this.#kill();
    // A sink that has not resumed would keep the output from ending.
    for (const output of this.#outputs) output.destroy();
    await this.result.catch(() => undefined);
    await this.#cleaned;
  }

  #receive(bytes: Buffer): void {
    const value = bytes.readUInt32LE(4);
    switch (bytes.readUInt32LE(0)) {
      case message.initPid:
        this.pid = value;
        void reap(value).then(this.#gone.resolve);
        if (this.#killWhenKnown) this.#kill();
        break;
      case message.created:
        this.#created.resolve();
        break;
      case message.executed:
        this.#created.resolve();
        this.#startedAtMs = timeOf(bytes);
        if (this.#stopReason === undefined) this.#limitTime();
        else this.#terminate();
        if (this.#failure === undefined) this.#started.resolve();
        break;
      case message.payloadExited:
        this.#payloadStatus = value;
        this.#exitedAtMs = timeOf(bytes);
        break;
      case failMessage:
        this.#failure ??= this.#explain(this.#program.operationAt(bytes.readBigUInt64LE(8)), value);
        break;
    }
  }

  #limitTime(): void {
    const { timeoutMs } = this.#config;
    if (timeoutMs === undefined) return;
    const message = `it ran for longer than ${timeoutMs / 1000} s`;
    this.#timer = setTimeout(() => this.stop("timeout", message), timeoutMs);
  }

  #explain(operation: Operation | undefined, errno: number): Error {
    const code = errnoName(errno);
    const name = operation !== undefined && "name" in operation ? operation.name : "run the program";
    if (name === executeProgram) return new ExecError(code, this.#process?.args[0] ?? "");
    return Object.assign(new Error(`Cannot start container ${this.#config.id}: ${name}: ${code}`), { code, errno });
  }

  async #finish(): Promise<ContainerResult> {
    try {
      const stageZero = await this.#stageZero;
      // Stage 0 has written init's id, if there is an init, before it ended; the pipe may still hold it.
      const gone = await Promise.race([this.#gone.promise, this.#status.ended.then(() => undefined)]);
      const end = this.pid === 0 ? undefined : (gone ?? (await this.#gone.promise));
      // Its last message is there, or else whatever there is to be known comes before the end.
      if (this.#payloadStatus === undefined) await this.#status.ended;
      else this.#status.destroy();
      await this.#outputEnds();
      const finishedAtMs = this.#exitedAtMs ?? Date.now();
      if (this.#failure !== undefined || this.#startedAtMs === 0) {
        throw this.#failure ?? this.#died(stageZero, end);
      }
      return this.#describe(end, finishedAtMs);
    } catch (error) {
      this.#created.reject(error);
      this.#started.reject(error);
      throw error;
    } finally {
      this.#config.signal?.removeEventListener("abort", this.#onAbort);
      clearTimeout(this.#timer);
      clearTimeout(this.#killTimer);
      this.#cleaned = this.#clean();
    }
  }

  /**
   * Waits for the end of both outputs. Every process of the container is gone, so what the pipes still hold is all there
   * is, unless a descriptor was given away to somebody outside over a socket: for that nobody waits longer than for a sink.
   */
  async #outputEnds(): Promise<void> {
    const ends = Promise.all(this.#outputs.map(({ ended }) => ended));
    const watch = setInterval(() => {
      for (const output of this.#outputs) output.destroyIfIdle();
    }, idleOutputMs);
    await ends;
    clearInterval(watch);
  }

  /** It is gone, and nobody said why: killed while it was being set up. */
  #died(stageZero: Reaped, end: Reaped | undefined): Error {
    const usage = this.#cgroup?.usage();
    if (this.#process === undefined) return new Error(`Container ${this.#config.id} was not started`);
    if (this.#stopReason !== undefined)
      return new Error(`Container ${this.#config.id} was stopped before its program ran`);
    const why =
      (usage?.oomKills ?? 0) > 0
        ? `its memory limit of ${mebibytes(this.#config.resources.memoryBytes)} is too small to start in`
        : `it was killed while it was being set up (${JSON.stringify(end ?? stageZero)})`;
    return new Error(`Cannot start container ${this.#config.id}: ${why}`);
  }

  #describe(end: Reaped | undefined, finishedAtMs: number): ContainerResult {
    const usage = this.#cgroup?.usage();
    // Without the payload's own status init was killed, and the payload with it.
    const status: { exitCode?: number; signal?: number } =
      this.#payloadStatus === undefined ? { signal: end?.signal ?? SIGKILL } : decodeWaitStatus(this.#payloadStatus);
    const exitCode = status.exitCode ?? 128 + (status.signal ?? 0);
    const oomKilled = (usage?.oomKills ?? 0) > 0;
    const signal = status.signal === undefined ? undefined : signalName(status.signal);
    const { reason, text } = this.#why({ exitCode, signal, oomKilled, usage });
    return {
      reason,
      exitCode,
      ...(signal === undefined ? {} : { signal }),
      oomKilled,
      ...(text === undefined ? {} : { message: text }),
      startedAtMs: this.#startedAtMs,
      finishedAtMs,
      cpuTimeMs: usage?.cpuTimeMs ?? end?.cpuTimeMs ?? 0,
      ...(usage?.memoryPeakBytes === undefined ? {} : { memoryPeakBytes: usage.memoryPeakBytes }),
      ...(usage?.pidsPeak === undefined ? {} : { pidsPeak: usage.pidsPeak }),
    };
  }

  #why(end: {
    readonly exitCode: number;
    readonly signal: string | undefined;
    readonly oomKilled: boolean;
    readonly usage: CgroupUsage | undefined;
  }): { reason: EndReason; text?: string } {
    const { memoryBytes, pids } = this.#config.resources;
    const refused = end.usage?.pidsRefused ?? 0;
    const forks = refused === 0 ? "" : ` (${refused} forks were refused at the limit of ${pids} processes)`;
    if (this.#stopReason !== undefined) {
      const { reason, message } = this.#stopReason;
      return { reason, text: `${reason === "timeout" ? "timed out" : "canceled"}: ${message}${forks}` };
    }
    if (end.oomKilled && end.exitCode !== 0) {
      const peak = end.usage?.memoryPeakBytes;
      const used = peak === undefined ? "limit" : `used ${mebibytes(peak)} of`;
      return { reason: "oom", text: `killed for memory: ${used} ${mebibytes(memoryBytes)}` };
    }
    if (end.signal !== undefined) return { reason: "signaled", text: `killed by ${end.signal}${forks}` };
    if (end.exitCode !== 0 && refused > 0) return { reason: "exited", text: `exit code ${end.exitCode}${forks}` };
    return { reason: "exited" };
  }

  async #clean(): Promise<void> {
    this.#abandon();
    const removal = this.#host.removeTree(this.#directory);
    await this.#cgroup?.remove();
    await removal;
  }
}

/** How long an output that is read, and has nothing to be read, may stay open when its container is gone. */
const idleOutputMs = 1000;

/** The one operation whose failure is the user's. */
const executeProgram = "execute the program";

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
    const key = JSON.stringify(plan, planKey);
    const { program, memoryFd } = host.programs.get(key, "slipway-init", plan.statusFd, () => planLaunch(plan));
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

/** Everything that plans differ in; the seccomp filter is the same for all steps. */
function planKey(name: string, value: unknown): unknown {
  if (name === "seccomp") return undefined;
  return typeof value === "bigint" ? `${value}` : value;
}

function writeProcess(processFd: number, address: bigint, process: ProcessConfig): void {
  const block = processBlock(address, process);
  syscall("pwrite64", processFd, block, block.length, 0);
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
    ...(config.network === "host" ? { hostSys: place(descriptors.own(cloneHostSys())) } : {}),
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
    ownNetwork: config.network !== "host",
    hostname: config.hostname ?? "slipway",
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
  return cloneMount("/sys", { attributes: 0x1 | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | 0x8 });
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

/** All processes below one, where no cgroup counts them. */
function descendants(pid: number): number[] {
  const found: number[] = [];
  const ahead = [pid];
  for (let at = ahead.pop(); at !== undefined; at = ahead.pop()) {
    try {
      for (const child of readFileSync(`/proc/${at}/task/${at}/children`, "utf8").trim().split(" ").filter(Boolean)) {
        found.push(Number(child));
        ahead.push(Number(child));
      }
    } catch {
      // ended meanwhile
    }
  }
  return found;
}

/** Of a message that has a struct timespec behind it; milliseconds with a fraction. */
function timeOf(bytes: Buffer): number {
  return Number(bytes.readBigInt64LE(messageBytes)) * 1000 + Number(bytes.readBigInt64LE(messageBytes + 8)) / 1e6;
}

function reasonOf(reason: unknown): string {
  if (reason instanceof Error) return reason.message;
  return typeof reason === "string" ? reason : "no reason given";
}

function signalName(signal: number): string {
  const found = Object.entries(constants.signals).find(([, number]) => number === signal);
  return found?.[0] ?? `signal ${signal}`;
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / (1 << 20))} MiB`;
}
