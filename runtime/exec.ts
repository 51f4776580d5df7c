/**
 * A further process in a container that runs, or that has no program of its own.
 *
 * It is started as `slipway oci exec` starts one (oci-plan.ts, planOciExec): a sealed program joins the cgroup and the
 * namespaces of the container's init, clones, drops what the container's processes may not have, and executes. Nothing of
 * the agent is within the container's reach meanwhile: the program is not dumpable (CVE-2016-9962), cannot be written to
 * (CVE-2019-5736), holds nothing of the host open across its execve, and refuses a working directory that leads out
 * (CVE-2024-21626).
 */
import type { Container } from "./container.ts";
import { ExecError, type OutputSink, type ProcessConfig } from "./container-config.ts";
import { describeStep } from "./create-container.ts";
import { OwnedDescriptors, PlacedDescriptors } from "./descriptors.ts";
import { ExecProcess } from "./exec-process.ts";
import { cgroupFiles, differingNamespaces, limitProcess } from "./join-target.ts";
import { planProcess } from "./launch-plan.ts";
import { O_RDWR, O_WRONLY } from "./linux.ts";
import type { OciConfig, OciProcess } from "./oci-config.ts";
import { ociMessage, planOciExec } from "./oci-plan.ts";
import { PipeReader } from "./output.ts";
import { compileProgram, failMessage, messageBytes, type Program } from "./program.ts";
import { kill, reap, type Reaped } from "./reaper.ts";
import { startProgram } from "./start-program.ts";
import { filterOf } from "./step-launch.ts";
import { architecture, close, errnoName, open, receiveDescriptor, socketPair, syscall, trySyscall } from "./syscall.ts";
import { hostIdOf } from "./uid-range.ts";

export interface ExecOptions extends ProcessConfig {
  /** @default the container's */
  readonly cwd?: string;
  /** Its own terminal, of this size; its output is all "stdout" then. @default three pipes */
  readonly terminal?: TerminalDimensions;
  readonly output: OutputSink;
}

/** Of a terminal, in characters. */
export interface TerminalDimensions {
  readonly rows: number;
  readonly columns: number;
}

/** What joins a container touches its file system once, to open a terminal: a file system of the container's may hang. */
const startLimitMs = 10_000;

/**
 * Starts a process in a container, with the container's user, capabilities, filter and limits. It ends with the container.
 *
 * The container must be created.
 *
 * @throws {ExecError} If the program cannot be executed.
 * @throws {Error} If the container does not run, has no processes or memory left, or it cannot be joined.
 */
export async function execInContainer(container: Container, options: ExecOptions): Promise<ExecProcess> {
  const { host, config } = container.origin;
  const step = describeStep(host, config, options);
  const descriptors = new OwnedDescriptors();
  const { own } = descriptors;
  try {
    const initFd = own(container.openInit());
    const process = execProcess(step, options);
    const { standard, ours } = openStandard(descriptors, options.terminal !== undefined);
    // A program may open /dev/stdout again; a pipe asks its owner.
    const { uid = 0, gid = 0 } = process.user ?? {};
    const owner = [hostIdOf(config.uidRange, uid, "user"), hostIdOf(config.uidRange, gid, "group")] as const;
    for (const fd of ours.kept) syscall("fchown", fd, ...owner);
    const status = descriptors.pipe();
    const go = descriptors.pipe();
    const placed = new PlacedDescriptors([], standard);
    const cgroups = cgroupFiles(container.pid).map((path) => placed.add(own(open(path, O_WRONLY))));
    const places = [status.write, go.read, initFd, ...ours.console].map((fd) => placed.add(fd));
    const [statusFd = 0, goFd = 0, pidFd = 0, consoleFd] = places.map((place) => placed.base + place);
    const operations = planOciExec({
      statusFd,
      goFd,
      pidFd,
      cgroupFds: cgroups.map((place) => placed.base + place),
      namespaces: differingNamespaces(container.pid),
      ...(consoleFd === undefined ? {} : { consoleFd }),
      process: planProcess({
        config: { process },
        lastCapability: host.lastCapability,
        keepsGroups: host.keepsGroups,
        ...filter(step),
      }),
      affinity: {},
      ownKeyring: config.nested !== undefined,
    });
    const program = compileProgram(operations, { architecture, statusFd });
    const stage = startProgram(program.file, "slipway-exec", placed.pairs());
    descriptors.release(status.read);
    const start = new ExecStart(stage, { status: status.read, go: go.write, program, args: options.args });
    descriptors.close(status.write, go.read, ...standard, ...ours.theirs);
    let terminal: number | undefined;
    const { pid, ended } = await start.run((id) => {
      if (ours.socket !== undefined) terminal = own(receiveTerminal(ours.socket));
      limitProcess(id, process.rlimits);
    });
    const [stdin = -1, stdout = -1, stderr = -1] = ours.kept;
    const { output } = options;
    const running = new ExecProcess(pid, ended, {
      output,
      ...(terminal === undefined ? { pipes: { stdin, stdout, stderr } } : { terminal }),
    });
    descriptors.release(stdin, stdout, stderr, terminal ?? -1);
    return running;
  } catch (error) {
    if (!isGone(error as NodeJS.ErrnoException)) throw error;
    throw new Error(`Container ${config.id} has ended`, { cause: error });
  } finally {
    descriptors.closeAll();
  }
}

/** What there was to be joined has just gone: its init, with that its files in /proc, and its cgroup. */
function isGone({ code, syscall }: NodeJS.ErrnoException): boolean {
  if (code === "ENOENT") return syscall === "open" || syscall === "readlink";
  return code === "ESRCH" || code === "ENODEV";
}

function execProcess(step: OciConfig, { cwd, terminal }: ExecOptions): OciProcess {
  if (step.process === undefined) throw new Error("A step's configuration has a process");
  const { rows: height, columns: width } = terminal ?? { rows: 0, columns: 0 };
  return {
    ...step.process,
    ...(cwd === undefined ? {} : { cwd }),
    ...(terminal === undefined ? {} : { terminal: true, consoleSize: { height, width } }),
  };
}

function filter({ linux }: OciConfig): { readonly seccomp?: ReturnType<typeof filterOf> } {
  return linux?.seccomp === undefined ? {} : { seccomp: filterOf(linux.seccomp, architecture) };
}

interface Standard {
  readonly standard: readonly [number, number, number];
  readonly ours: {
    /** This end of the pipes: standard input, output, error. */
    readonly kept: readonly number[];
    /** To be closed when the program has its copies. */
    readonly theirs: readonly number[];
    readonly console: readonly number[];
    readonly socket?: number;
  };
}

function openStandard(descriptors: OwnedDescriptors, isTerminal: boolean): Standard {
  if (!isTerminal) {
    const [stdin, stdout, stderr] = [descriptors.pipe(), descriptors.pipe(), descriptors.pipe()];
    return {
      standard: [stdin.read, stdout.write, stderr.write],
      ours: { kept: [stdin.write, stdout.read, stderr.read], theirs: [], console: [] },
    };
  }
  // Until it has its terminal.
  const nothing = descriptors.own(open("/dev/null", O_RDWR));
  const [socket, theirs] = socketPair().map(descriptors.own) as [number, number];
  return { standard: [nothing, nothing, nothing], ours: { kept: [], theirs: [theirs], console: [theirs], socket } };
}

const DEVPTS_SUPER_MAGIC = 0x1cd1;

/**
 * Takes the terminal's master. What /dev/pts/ptmx is in a container is the container's affair, and a file of a file system
 * that it serves itself could keep this process waiting for ever.
 *
 * @throws {Error} If it is no terminal of the kernel's.
 */
function receiveTerminal(socket: number): number {
  const master = receiveDescriptor(socket);
  const statfs = Buffer.alloc(120);
  if (trySyscall("fstatfs", master, statfs) === 0 && statfs.readBigInt64LE(0) === BigInt(DEVPTS_SUPER_MAGIC)) {
    return master;
  }
  close(master);
  throw new Error("Cannot open a terminal in the container: its /dev/pts/ptmx is none of the kernel's");
}

interface Started {
  readonly pid: number;
  readonly ended: Promise<Reaped>;
}

const endedOrFull = "; the container has ended, or its memory is used up";

/** The conversation with the program until its execve. */
class ExecStart {
  readonly #stage: number;
  readonly #stageEnded: Promise<Reaped>;
  readonly #go: number;
  readonly #program: Program;
  readonly #args: readonly string[];
  readonly #status: PipeReader;
  #said = Buffer.alloc(0);
  #listener: (() => void) | undefined;
  #hasEnded = false;
  #isLate = false;

  constructor(
    stage: number,
    made: {
      readonly status: number;
      readonly go: number;
      readonly program: Program;
      readonly args: readonly string[];
    },
  ) {
    this.#stage = stage;
    this.#stageEnded = reap(stage);
    this.#go = made.go;
    this.#program = made.program;
    this.#args = made.args;
    this.#status = new PipeReader(made.status, (chunk) => {
      this.#said = Buffer.concat([this.#said, chunk]);
      this.#listener?.();
    });
    void this.#status.ended.then(() => {
      this.#hasEnded = true;
      this.#listener?.();
    });
  }

  /** @param prepare Called before it drops what it has and becomes the user's. */
  async run(prepare: (pid: number) => void): Promise<Started> {
    let started: Started | undefined;
    const timer = setTimeout(() => {
      this.#isLate = true;
      kill(started?.pid ?? this.#stage);
      this.#status.destroy();
    }, startLimitMs);
    try {
      const pid = await this.#expect(ociMessage.initPid);
      started = { pid, ended: reap(pid) };
      this.#goOn();
      await this.#expect(ociMessage.ready);
      prepare(pid);
      this.#goOn();
      const message = await this.#next();
      if (message !== undefined) throw this.#failure(message);
      if (this.#isLate) throw this.#failure(undefined);
      return started;
    } catch (error) {
      if (started !== undefined) kill(started.pid);
      await started?.ended;
      throw error;
    } finally {
      clearTimeout(timer);
      this.#status.destroy();
      await this.#stageEnded;
    }
  }

  #goOn(): void {
    // EPIPE: it has failed, and said so.
    trySyscall("write", this.#go, Buffer.from("g"), 1);
  }

  async #expect(kind: number): Promise<number> {
    const message = await this.#next();
    if (message?.kind !== kind) throw this.#failure(message);
    return message.value;
  }

  /** Undefined at the end: it has executed the program, or was killed. */
  async #next(): Promise<Message | undefined> {
    while (this.#said.length < messageBytes && !this.#hasEnded) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#listener = resolve;
      await promise;
    }
    if (this.#said.length < messageBytes) return undefined;
    const bytes = this.#said;
    this.#said = bytes.subarray(messageBytes);
    return { kind: bytes.readUInt32LE(0), value: bytes.readUInt32LE(4), address: bytes.readBigUInt64LE(8) };
  }

  #failure(message: Message | undefined): Error {
    const cannot = "Cannot start a process in the container";
    if (this.#isLate) return new Error(`${cannot}: it did not start within ${startLimitMs / 1000} s`);
    if (message === undefined) return new Error(`${cannot}: it was killed${endedOrFull}`);
    if (message.kind !== failMessage) return new Error(`${cannot}: it said ${message.kind} out of turn`);
    const operation = this.#program.operationAt(message.address);
    const name = operation !== undefined && "name" in operation ? operation.name : "run the program";
    const code = errnoName(message.value);
    if (name.startsWith("execute ")) return new ExecError(code, this.#args[0] ?? "");
    if (code === "EAGAIN" && name.startsWith("clone")) {
      return new Error(`${cannot}: it has as many processes as it may have`);
    }
    // Also the answer of a pid namespace whose init is about to be gone (fork(2)).
    if (code === "ENOMEM") return new Error(`${cannot}: ${name}: ENOMEM${endedOrFull}`);
    return Object.assign(new Error(`${cannot}: ${name}: ${code}`), { code, errno: message.value });
  }
}

interface Message {
  readonly kind: number;
  readonly value: number;
  readonly address: bigint;
}
