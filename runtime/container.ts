/** One container from its start to its end. */
import { statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { formatBytes } from "./bytes.ts";
import type { Cgroup } from "./cgroup.ts";
import type { CgroupUsage } from "./cgroup-usage.ts";
import { type ContainerResult, ExecError, type PreparedConfig, type ProcessConfig } from "./container-config.ts";
import { descendants, isPayload } from "./container-processes.ts";
import { describeEnd, type StopReason } from "./container-result.ts";
import { type DiskLimit, filesFor } from "./disk-limit.ts";
import { abortConnections } from "./fuse.ts";
import type { Host } from "./host.ts";
import type { Launcher } from "./launcher.ts";
import { message, messageLength } from "./launch-plan.ts";
import { SIGKILL, SIGTERM } from "./linux.ts";
import type { OomProcess } from "./oom-log.ts";
import { describeOom } from "./oom-reason.ts";
import { PipeReader } from "./output.ts";
import { processBlock } from "./process-block.ts";
import { sampleProcesses, totalMemory } from "./process-sample.ts";
import { failMessage, messageBytes, type Operation, type Program } from "./program.ts";
import { kill, type Reaped, readProcessIo, reap, signalAll } from "./reaper.ts";
import type { RootFileSystem } from "./root-pool.ts";
import type { StepResources } from "./step-resources.ts";
import { close, errnoName, syscall, trySyscall } from "./syscall.ts";

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
  readonly #root: RootFileSystem | undefined;
  readonly #cgroup: Cgroup | undefined;
  /** What it has of what it asked for. */
  readonly #granted: StepResources;
  readonly #program: Program;
  readonly #outputs: readonly PipeReader[];
  readonly #status: PipeReader;
  readonly #stageZero: Promise<Reaped>;
  readonly #isIdle: boolean;
  readonly #payloadGone = Promise.withResolvers<void>();
  readonly #gone = Promise.withResolvers<Reaped>();
  readonly #created = Promise.withResolvers<void>();
  readonly #started = Promise.withResolvers<void>();
  #failure: Error | undefined;
  #payloadStatus: number | undefined;
  #startedAtMs = 0;
  #printedAtMs: number | undefined;
  #exitedAtMs: number | undefined;
  #stopReason: StopReason | undefined;
  #watching: Disposable | undefined;
  #disk: DiskLimit | undefined;
  #sample: { readonly processes: readonly OomProcess[]; readonly atMs: number } | undefined;
  #process: ProcessConfig | undefined;
  #staged: ProcessConfig | undefined;
  #start: { readonly fd: number; readonly processFd: number; readonly block: bigint } | undefined;
  /** Also if stage 0 has yet to say whom. */
  #killed = false;
  /** From then on init's id may mean another process. */
  #reaped: Reaped | undefined;
  #timer: NodeJS.Timeout | undefined;
  #killTimer: NodeJS.Timeout | undefined;
  #stuckTimer: NodeJS.Timeout | undefined;
  #cleaned: Promise<void> | undefined;

  /** @internal Takes ownership of everything in `parts`. */
  constructor(
    host: Host,
    config: PreparedConfig,
    made: {
      readonly directory: string;
      /** To be given back; without, the directory is deleted. */
      readonly root: RootFileSystem | undefined;
      readonly launcher: Launcher;
      readonly program: Program;
      readonly stdout: number;
      readonly stderr: number;
      readonly status: number;
      readonly process: ProcessConfig | undefined;
      /** It has no program of its own. */
      readonly isIdle: boolean;
      /** The write end of the start pipe, and the memory for the process block at address `block`. */
      readonly start: { readonly fd: number; readonly processFd: number; readonly block: bigint } | undefined;
    },
  ) {
    this.#host = host;
    this.#config = config;
    this.#directory = made.directory;
    this.#root = made.root;
    this.#cgroup = made.launcher.cgroup;
    this.#granted = host.limits.granted(config.resources);
    this.#program = made.program;
    this.#process = made.process;
    this.#isIdle = made.isIdle;
    this.#start = made.start;
    this.created = this.#created.promise;
    this.started = this.#started.promise;
    this.#outputs = [
      new PipeReader(made.stdout, (chunk) => this.#print("stdout", chunk)),
      new PipeReader(made.stderr, (chunk) => this.#print("stderr", chunk)),
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

  /** Says ahead what `start` will probably be called with, so that it has less to do. @throws {Error} As `start` does. */
  stage(process: ProcessConfig): void {
    if (this.#start === undefined) return;
    writeProcess(this.#start.processFd, this.#start.block, process);
    this.#staged = process;
  }

  /** Starts the program of a prepared container. Its end, and why it could not be executed, are told by `started` and `result`. */
  async start(process: ProcessConfig): Promise<void> {
    const start = this.#start;
    if (start === undefined) throw new Error(`Cannot start container ${this.#config.id}: it has been started`);
    this.#start = undefined;
    this.#process = process;
    try {
      if (process !== this.#staged) writeProcess(start.processFd, start.block, process);
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

  /** @internal What it was created from, for further processes in it. */
  get origin(): { readonly host: Host; readonly config: PreparedConfig } {
    return { host: this.#host, config: this.#config };
  }

  /**
   * Opens a pidfd of init, the caller's to close.
   *
   * @internal
   * @throws {Error} If there is no init yet, or not any more.
   */
  openInit(): number {
    if (this.pid === 0) throw new Error(`Container ${this.#config.id} is not there yet`);
    // Init may still be there, and takes everybody along who joins it now.
    const hasEnded = this.#payloadStatus !== undefined || this.#reaped !== undefined;
    const fd = hasEnded ? -1 : trySyscall("pidfd_open", this.pid, 0);
    if (fd < 0) throw new Error(`Container ${this.#config.id} has ended`);
    return fd;
  }

  #print(stream: "stdout" | "stderr", chunk: Uint8Array): boolean | void {
    this.#printedAtMs ??= Date.now();
    return this.#config.output(stream, chunk);
  }

  /** Goes on reading output after the sink returned `false`. */
  resumeOutput(): void {
    for (const output of this.#outputs) output.resume();
  }

  /** The stop signal, or SIGTERM to every process but init, and after the grace time SIGKILL to all; the first reason wins. */
  stop(reason: "timeout" | "canceled", message: string): void {
    if (this.#stopReason !== undefined) return;
    this.#stopReason = { reason, message };
    // Before its program runs nobody would hear it; it comes then.
    if (this.#startedAtMs !== 0) this.#terminate();
    this.#killTimer = setTimeout(() => this.#kill(), this.#config.graceMs ?? 10_000);
  }

  /** Kills it at once, for a limit that the kernel does not keep; the first reason wins. @param message `wrote 3 GiB of 2 GiB disk` */
  kill(reason: "disk" | "log", message: string): void {
    // What has ended by itself has kept its limits for as long as it ran.
    if (this.#stopReason !== undefined || this.#exitedAtMs !== undefined) return;
    this.#stopReason = { reason, message };
    this.#kill();
  }

  /** What is to be looked at while it runs. */
  #look(): void {
    if (this.#cgroup === undefined) return;
    if (this.#lostForMemory) this.#kill();
    else if (this.#host.oomReports === undefined) this.#sampleIfFull(this.#cgroup);
  }

  /** v1 kills one process, v2 all; what one of a step's processes needed and did not get the step did not get. */
  get #lostForMemory(): boolean {
    return this.#cgroup?.version === 1 && this.#cgroup.oomKills() > 0;
  }

  /** From now on something runs in it. */
  #keepLimits(): void {
    this.#watching = this.#host.watch.add(() => this.#look());
    this.#disk = this.#limitDisk();
  }

  /** What runs in it are further processes. */
  #limitIdle(): void {
    this.#startedAtMs = Date.now();
    this.#keepLimits();
  }

  #limitDisk(): DiskLimit {
    const { workspace, writableDir, uidRange, nested, mounts = [] } = this.#config;
    // Single files are ours: hosts, resolv.conf.
    const bound = mounts.flatMap((mount) =>
      mount.type === "bind" && mount.readonly !== true && isDirectory(mount.source) ? [mount.source] : [],
    );
    const { diskBytes: bytes, diskFiles } = this.#granted;
    return this.#host.disk.limit({
      ...(bytes !== undefined && { limit: { bytes, files: diskFiles ?? filesFor(bytes) } }),
      directories: [
        { path: this.#directory, isOwn: true },
        ...(writableDir === undefined ? [] : [{ path: writableDir, isOwn: false }]),
        ...bound.map((path) => ({ path, isOwn: false })),
        ...(nested?.stores === undefined ? [] : [{ path: nested.stores, isOwn: false }]),
        ...(workspace === undefined || workspace.isOthers
          ? []
          : [{ path: this.#host.workspaces.store(workspace, uidRange), isOwn: false }]),
      ],
      startedAtMs: this.#startedAtMs,
      processes: () => this.#processes(),
      kill: (message) => this.kill("disk", message),
    });
  }

  /** When a process is killed for memory, it is too late to ask who was there. */
  #sampleIfFull(cgroup: Cgroup): void {
    const used = cgroup.memoryBytes() ?? 0;
    if (used <= this.#granted.memoryBytes * 0.7) return;
    const sample = { processes: sampleProcesses(cgroup.processes()), atMs: performance.now() };
    // One that is being killed has no memory any more: what was seen just before it tells more.
    const isOld = this.#sample === undefined || sample.atMs - this.#sample.atMs > sampleMs;
    if (isOld || totalMemory(sample.processes) >= totalMemory(this.#sample?.processes ?? [])) this.#sample = sample;
  }

  #terminate(): void {
    const { stopSignal } = this.#config;
    if (stopSignal === undefined) signalAll(SIGTERM, () => this.#processes());
    else signalAll(stopSignal, () => this.#processes().filter((pid) => isPayload(pid, this.pid)));
  }

  /** Kills every process at once: the kernel takes a pid namespace down with its init. */
  #kill(): void {
    this.#killed = true;
    if (this.pid === 0 || this.#reaped !== undefined) return;
    kill(this.pid, SIGKILL);
    this.#releaseStuck();
  }

  /**
   * A process that waits for a file system which it serves itself dies of no signal, and one without CPU time not soon: a
   * nested container can have both.
   */
  #releaseStuck(): void {
    if (this.#config.nested === undefined) return;
    this.#stuckTimer ??= setInterval(() => {
      this.#cgroup?.hasten();
      abortConnections(this.#config.uidRange);
    }, stuckMs);
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
        // Not before stage 0 has ended: until init is reaped, its id means nobody else, and stage 0 writes id maps by it.
        void this.#stageZero.then(async () => {
          this.#reaped = await reap(value);
          clearInterval(this.#stuckTimer);
          this.#gone.resolve(this.#reaped);
        });
        if (this.#killed) this.#kill();
        break;
      case message.created:
        if (this.#isIdle) this.#limitIdle();
        this.#created.resolve();
        break;
      case message.executed:
        this.#startedAtMs = timeOf(bytes);
        if (this.#startedAtMs === 0) break; // it was not
        this.#created.resolve();
        this.#keepLimits();
        if (this.#stopReason === undefined) this.#limitTime();
        else this.#terminate();
        if (this.#failure === undefined) this.#started.resolve();
        break;
      case message.payloadEnding:
        // All of it is being killed; only what waits for itself stays.
        this.#releaseStuck();
        break;
      case message.payloadExited:
        this.#payloadStatus = value;
        // The next step of the job has the same ids.
        clearInterval(this.#stuckTimer);
        this.#exitedAtMs = timeOf(bytes);
        this.#payloadGone.resolve();
        if (this.#startedAtMs !== 0 && this.#failure === undefined) {
          const succeeded = value === 0 && this.#stopReason === undefined && (this.#cgroup?.oomKills() ?? 0) === 0;
          this.#config.onExit?.({ succeeded });
        }
        break;
      case failMessage:
        // What fails after we have killed it fails for that.
        if (!this.#killed) this.#failure ??= this.#explain(this.#program.operationAt(bytes.readBigUInt64LE(8)), value);
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
    const isFork = code === "EAGAIN" && name.startsWith("clone ");
    const why = isFork ? `${code}: ${this.#host.limits.explainRefusedFork(this.#config.resources)}` : code;
    return Object.assign(new Error(`Cannot start container ${this.#config.id}: ${name}: ${why}`), { code, errno });
  }

  async #finish(): Promise<ContainerResult> {
    try {
      // Everybody who can speak on the status pipe is gone, or init has said that it is the only one left.
      await Promise.race([this.#payloadGone.promise, this.#status.ended]);
      const isReported = this.#payloadStatus !== undefined;
      if (isReported) this.#status.destroy();
      const stageZero = isReported ? undefined : await this.#stageZero;
      // Its end takes the namespaces along, which takes a while; but what it has used is known only then without a cgroup.
      const end = isReported && this.#cgroup !== undefined ? undefined : await this.#end();
      await this.#outputEnds();
      const finishedAtMs = this.#exitedAtMs ?? Date.now();
      this.#startIfPrinted();
      if (this.#failure !== undefined || this.#startedAtMs === 0) {
        // What fails because it is being stopped says nothing.
        throw this.#stopReason === undefined && this.#failure ? this.#failure : this.#died(stageZero, end);
      }
      const io = readProcessIo(this.pid);
      // In a user namespace only who has reaped it is told.
      if (io.writtenBytes === undefined && this.#reaped === undefined) {
        await Promise.race([this.#end(), delay(reapingLimitMs, undefined, { ref: false })]);
      }
      return this.#describe(end, finishedAtMs, this.#reaped ?? io);
    } catch (error) {
      this.#created.reject(error);
      this.#started.reject(error);
      throw error;
    } finally {
      this.#config.signal?.removeEventListener("abort", this.#onAbort);
      clearTimeout(this.#timer);
      clearTimeout(this.#killTimer);
      this.#watching?.[Symbol.dispose]();
      if (this.#disk !== undefined) this.#host.disk.release(this.#disk);
      this.#cleaned = this.#clean();
    }
  }

  /**
   * Waits for the end of both outputs. Every process of the container is gone, so what the pipes still hold is all there
   * is, unless a descriptor was given away to somebody outside over a socket: for that nobody waits longer than for a sink.
   */
  async #outputEnds(): Promise<void> {
    // At once, where nothing is in the way: the next step waits for it.
    for (const output of this.#outputs) output.drain();
    if (this.#outputs.every(({ isAtEnd }) => isAtEnd)) return;
    const ends = Promise.all(this.#outputs.map(({ ended }) => ended));
    const watch = setInterval(() => {
      for (const output of this.#outputs) output.destroyIfIdle();
    }, idleOutputMs);
    await ends;
    clearInterval(watch);
  }

  /** Killed for what it has printed, before init came to say that it had executed it. */
  #startIfPrinted(): void {
    if (this.#startedAtMs !== 0 || this.#printedAtMs === undefined || this.#failure !== undefined) return;
    this.#startedAtMs = this.#printedAtMs;
    this.#created.resolve();
    this.#started.resolve();
  }

  /** It is gone, and nobody said why: killed while it was being set up. */
  #died(stageZero: Reaped | undefined, end: Reaped | undefined): Error {
    const usage = this.#cgroup?.usage();
    if (this.#process === undefined) return new Error(`Container ${this.#config.id} was not started`);
    if (this.#stopReason !== undefined)
      return new Error(`Container ${this.#config.id} was stopped before its program ran`);
    const why =
      (usage?.oomKills ?? 0) > 0
        ? `its memory limit of ${formatBytes(this.#granted.memoryBytes)} is too small to start in`
        : `it was killed while it was being set up (${JSON.stringify(end ?? stageZero)})`;
    return new Error(`Cannot start container ${this.#config.id}: ${why}`);
  }

  /** @param waited What init and those that it has waited for have read and written. */
  #describe(
    end: Reaped | undefined,
    finishedAtMs: number,
    waited: Pick<Reaped, "readBytes" | "writtenBytes">,
  ): ContainerResult {
    const usage = this.#cgroup?.usage();
    return describeEnd({
      payloadStatus: this.#payloadStatus,
      initSignal: end?.signal,
      stopped: this.#stopReason,
      granted: this.#granted,
      startedAtMs: this.#startedAtMs,
      finishedAtMs,
      usage,
      waited,
      disk: this.#disk,
      explainOom: () => this.#explainOom(usage),
    });
  }

  /** Of init, if there ever was one. */
  async #end(): Promise<Reaped | undefined> {
    return this.pid === 0 ? undefined : await this.#gone.promise;
  }

  #explainOom(usage: CgroupUsage | undefined): string {
    const cgroup = this.#cgroup?.logName ?? "";
    const reachedOwnLimit = this.#cgroup?.reachedOwnMemoryLimit();
    return describeOom({
      limitBytes: this.#granted.memoryBytes,
      initPid: this.pid,
      cgroup,
      ...(usage?.memoryPeakBytes !== undefined && { peakBytes: usage.memoryPeakBytes }),
      ...(reachedOwnLimit !== undefined && { reachedOwnLimit }),
      ...(this.#sample !== undefined && { sample: this.#sample.processes }),
      ...this.#host.oomReports?.take({ cgroup, uids: this.#config.uidRange }),
    });
  }

  async #clean(): Promise<void> {
    this.#abandon();
    await this.#end();
    const { roots } = this.#host;
    const removal = this.#root === undefined ? this.#host.removeTree(this.#directory) : roots.giveBack(this.#root);
    await this.#cgroup?.remove(this.#host.launchers);
    await removal;
  }
}

/** How long an output that is read, and has nothing to be read, may stay open when its container is gone. */
const idleOutputMs = 1000;

/** How long what has been killed may take, before it is looked at what may keep it. */
const stuckMs = 250;
/** For how long a larger sample of a container's memory is worth more than a later one. */
const sampleMs = 1000;
/** How long a result waits for init's end to tell what was read and written, where it cannot be known before. */
const reapingLimitMs = 100;

/** The one operation whose failure is the user's. */
const executeProgram = "execute the program";

/** Puts arguments and environment where the program will read them. @throws {Error} If they are too large or contain a NUL. */
export function writeProcess(processFd: number, address: bigint, process: ProcessConfig): void {
  const block = processBlock(address, process);
  syscall("pwrite64", processFd, block, block.length, 0);
}

/** Of a message that has a struct timespec behind it; milliseconds with a fraction. */
function timeOf(bytes: Buffer): number {
  return Number(bytes.readBigInt64LE(messageBytes)) * 1000 + Number(bytes.readBigInt64LE(messageBytes + 8)) / 1e6;
}

function reasonOf(reason: unknown): string {
  if (reason instanceof Error) return reason.message;
  return typeof reason === "string" ? reason : "no reason given";
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}
