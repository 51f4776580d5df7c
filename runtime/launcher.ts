/**
 * Launchers: processes that have joined a new cgroup and wait to become a container.
 *
 * On cgroup v1 joining takes a lock whose writer waits for an RCU grace period, ten to twenty milliseconds; a start of a
 * process takes half a millisecond more. A few launchers wait ready, so that no container waits for either. One gets the
 * container's program and descriptors over a socket and executes the program; when the agent dies, the socket ends and
 * so does the launcher.
 */
import type { Cgroup } from "./cgroup.ts";
import type { Host } from "./host.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  EPERM,
  F_SETFD,
  FD_CLOEXEC,
  ENOSYS,
  O_RDWR,
  PR_SET_PDEATHSIG,
  SIGKILL,
} from "./linux.ts";
import { compileProgram, type Operation } from "./program.ts";
import { reap, type Reaped } from "./reaper.ts";
import { placeDescriptors, sealedProgram, startSealedProgram } from "./start-program.ts";
import { architecture, close, sendDescriptors, socketPair } from "./syscall.ts";

/** Where a container's program finds its descriptors: standard output and error, then `first`, `first + 1`, … */
export const launchedDescriptors = { programFd: 4, stdout: 5, stderr: 6, first: 7 } as const;

const socketFd = 3;
/**
 * Launchers are started in batches, when few are left: the first of a batch waits for the grace period and holds up every
 * change to cgroups on the host meanwhile, the others find the lock open. The first batch is small, for `slipway run`
 * may need no more; each further one is larger.
 */
const firstBatch = 4;
const largestBatch = 16;

export interface Launcher {
  /** Of its cgroup, and of the container's directory. */
  readonly name: string;
  readonly pid: number;
  readonly ended: Promise<Reaped>;
  readonly cgroup: Cgroup | undefined;
  readonly socket: number;
}

export class Launchers {
  readonly #host: Host;
  readonly #ready: Launcher[] = [];
  /** Made for the batch that is being started, before its first launcher joins: making one waits for the same lock. */
  #cgroups: { readonly name: string; readonly cgroup: Cgroup | undefined }[] = [];
  readonly #programs = new Map<string, number>();
  #sequence = 0;
  #enough = firstBatch;
  #closed = false;

  constructor(host: Host) {
    this.#host = host;
  }

  /** How many processes, each with its cgroup and a descriptor, wait now. */
  get ready(): number {
    return this.#ready.length;
  }

  /** Has a batch started if few launchers are left, each when the agent has nothing better to do. */
  replenish(): void {
    if (this.#closed || this.#cgroups.length > 0 || this.#ready.length >= this.#enough / 4) return;
    try {
      while (this.#ready.length + this.#cgroups.length < this.#enough) this.#cgroups.push(this.#makeCgroup());
      this.#enough = Math.min(2 * this.#enough, largestBatch);
    } catch {
      // Whoever needs one makes it, and gets the error.
    }
    this.#startNext();
  }

  #startNext(): void {
    setImmediate(() => {
      const made = this.#closed ? undefined : this.#cgroups.shift();
      if (made === undefined) return;
      try {
        const launcher = this.#start(made);
        this.#ready.push(launcher);
        void launcher.ended.then(() => this.#forget(launcher));
      } catch {
        void made.cgroup?.remove(); // as above
      }
      this.#startNext();
    });
  }

  /** One that was killed while it waited is of no use. */
  #forget(launcher: Launcher): void {
    const index = this.#ready.indexOf(launcher);
    if (index < 0) return;
    this.#ready.splice(index, 1);
    void this.discard(launcher);
  }

  /** Takes a launcher; the caller owns its cgroup and awaits its end. @throws {Error} If none can be started. */
  take(): Launcher {
    return this.#ready.shift() ?? this.#start(this.#cgroups.shift() ?? this.#makeCgroup());
  }

  /**
   * Turns a launcher into a container.
   *
   * @param descriptors Standard output, standard error, then those that the program expects from
   *   `launchedDescriptors.first` on. Copies: the caller closes its own.
   * @throws {SyscallError} `EPIPE` if the launcher is gone.
   */
  launch(launcher: Launcher, programFd: number, descriptors: readonly number[]): void {
    try {
      sendDescriptors(launcher.socket, [programFd, ...descriptors]);
    } finally {
      close(launcher.socket);
    }
  }

  /** Ends a launcher that is not needed. */
  async discard(launcher: Launcher): Promise<void> {
    close(launcher.socket);
    await launcher.ended;
    await launcher.cgroup?.remove();
  }

  async close(): Promise<void> {
    this.#closed = true;
    const unused = this.#cgroups.splice(0).map(({ cgroup }) => cgroup?.remove());
    await Promise.all([...unused, ...this.#ready.splice(0).map((launcher) => this.discard(launcher))]);
    for (const fd of this.#programs.values()) close(fd);
    this.#programs.clear();
  }

  #makeCgroup(): { readonly name: string; readonly cgroup: Cgroup | undefined } {
    const name = `c${++this.#sequence}`;
    return { name, cgroup: this.#host.cgroups?.create(name) };
  }

  #start({ name, cgroup }: { readonly name: string; readonly cgroup: Cgroup | undefined }): Launcher {
    const joining = cgroup?.openForJoining() ?? [];
    const [ours, theirs] = socketPair();
    try {
      const { targets, pairs } = placeDescriptors<readonly number[]>([theirs, ...joining]);
      const [socket = -1, ...procsFds] = targets;
      const key = targets.join();
      const program = this.#programs.get(key) ?? sealedProgram(compileLauncher(socket, procsFds), "slipway-launcher");
      this.#programs.set(key, program);
      const pid = startSealedProgram(program, "slipway-launcher", pairs);
      return { name, pid, ended: reap(pid), cgroup, socket: ours };
    } catch (error) {
      close(ours);
      void cgroup?.remove();
      throw error;
    } finally {
      close(theirs);
      for (const fd of joining) close(fd);
    }
  }
}

function compileLauncher(socket: number, procsFds: readonly number[]): Uint8Array {
  return compileProgram(planLauncher(socket, procsFds), { architecture, statusFd: socket }).file;
}

const maxDescriptors = 64;

/** Joins, puts its descriptors where the container's program expects them, waits, executes. */
export function planLauncher(socket: number, procsFds: readonly number[]): Operation[] {
  const { programFd, stdout, stderr } = launchedDescriptors;
  return [
    // struct msghdr, with an iovec of one byte and room for control data; filled in below from addresses.
    { memory: "byte", size: 8 },
    { memory: "iovec", size: 16, pointers: [{ at: 0, to: "byte" }], bytes: u64s([0, 1]) },
    { memory: "control", size: 16 + 4 * maxDescriptors },
    {
      memory: "message",
      size: 56,
      pointers: [
        { at: 16, to: "iovec" },
        { at: 32, to: "control" },
      ],
      bytes: u64s([0, 0, 0, 1, 0, 16 + 4 * maxDescriptors, 0]),
    },
    { memory: "count", size: 4 },
    { memory: "argv", size: 16, pointers: [{ at: 0, to: "name" }], bytes: u64s([0, 0]) },
    { memory: "name", size: 16, bytes: Buffer.from("slipway-init\0") },
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    ...procsFds.map((fd): Operation => ({ name: "join the cgroup", call: "write", args: [fd, { text: "0" }, 1] })),
    { name: "open /dev/null", call: "openat", args: [AT_FDCWD, { text: "/dev/null" }, O_RDWR, 0] },
    ...[1, 2].map((fd): Operation => ({ name: `place descriptor ${fd}`, call: "dup3", args: [0, fd, 0] })),
    { name: "place the socket", call: "dup3", args: [socket, socketFd, 0] },
    { name: "close the rest", call: "close_range", args: [socketFd + 1, 0xffff_ffff, 0], tolerate: [ENOSYS, EPERM] },
    { name: "wait for a container", call: "recvmsg", args: [socketFd, { addressOf: "message" }, 0], store: "count" },
    { name: "wait for a container", unequal: [{ load: "count" }, 1], goto: "not needed" },
    { name: "place standard output", call: "dup3", args: [stdout, 1, 0] },
    { name: "place standard error", call: "dup3", args: [stderr, 2, 0] },
    ...[socketFd, programFd, stdout, stderr].map(
      (fd): Operation => ({ name: `let go of descriptor ${fd}`, call: "fcntl", args: [fd, F_SETFD, FD_CLOEXEC] }),
    ),
    {
      name: "execute the container's program",
      call: "execveat",
      args: [programFd, { text: "" }, { addressOf: "argv" }, { addressOf: "argv", offset: 8 }, AT_EMPTY_PATH],
    },
    { label: "not needed" },
    { name: "end", call: "exit_group", args: [0] },
  ];
}

function u64s(values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 8);
  values.forEach((value, i) => bytes.writeBigUInt64LE(BigInt(value), i * 8));
  return bytes;
}
