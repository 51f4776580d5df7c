/**
 * Launchers: processes that have joined a new cgroup and wait to become a container.
 *
 * On cgroup v1 joining takes a lock whose writer waits for an RCU grace period, ten to twenty milliseconds; a start of a
 * process takes half a millisecond more. A few launchers wait ready, so that no container waits for either. One gets the
 * container's program and descriptors over a socket and executes the program; when the agent dies, the socket ends and
 * so does the launcher. A process of its own makes them, cgroups included, so that the agent's thread does not.
 */
import type { Cgroup } from "./cgroup.ts";
import type { Host } from "./host.ts";
import {
  messageDescriptors,
  moreFollow,
  planLaunchers,
  report,
  reportLength,
  requestLayout,
} from "./launcher-program.ts";
import { ECONNRESET, EINTR, EPIPE } from "./linux.ts";
import { PipeReader } from "./output.ts";
import { compileProgram, failMessage, messageBytes, type Program } from "./program.ts";
import { reap, type Reaped } from "./reaper.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import {
  architecture,
  close,
  errnoName,
  pipe,
  sendDescriptors,
  socketPair,
  type SyscallError,
  trySyscall,
} from "./syscall.ts";

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

/** The process that makes launchers. */
interface Parent {
  /** A socket; closed when nobody asks any more. */
  readonly requests: number;
  readonly reports: PipeReader;
  readonly reportsFd: number;
  /** What was asked for, in the order in which it is made. */
  readonly requested: { readonly name: string; readonly socket: number }[];
  readonly removals: ((isRemoved: boolean) => void)[];
  /** Why it has ended, if it could say so. */
  failure: Error | undefined;
  isAsked: boolean;
  ended: Promise<void>;
}

export class Launchers {
  readonly #host: Host;
  readonly #ready: Launcher[] = [];
  #parent: Parent | undefined;
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

  /** Has a batch made if few launchers are left. */
  replenish(): void {
    const coming = this.#parent?.requested.length ?? 0;
    if (this.#closed || this.#ready.length + coming >= this.#enough / 4) return;
    try {
      const parent = this.#parent ?? this.#startParent();
      for (let n = this.#ready.length + coming; n < this.#enough; n++) this.#request(parent);
      this.#enough = Math.min(2 * this.#enough, largestBatch);
    } catch {
      // Whoever needs one asks again, and gets the error.
    }
  }

  /**
   * Takes a launcher, if need be after waiting for it; the caller owns its cgroup and awaits its end.
   *
   * @throws {Error} If none can be made.
   */
  take(): Launcher {
    for (let attempt = 1; ; ) {
      const ready = this.#ready.shift();
      if (ready !== undefined) return ready;
      const parent = this.#ask();
      if (!awaitReport(parent.reportsFd)) throw new Error("Cannot start a container: its launcher does not come");
      parent.reports.drain();
      if (!parent.reports.isAtEnd) continue;
      // It has been killed, or has said why it ended; another one takes its place.
      this.#lose(parent);
      if (attempt++ === mostAttempts) throw parent.failure ?? new Error(killed);
    }
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
      let rest = [programFd, ...descriptors];
      for (; rest.length > messageDescriptors; rest = rest.slice(messageDescriptors)) {
        sendDescriptors(launcher.socket, rest.slice(0, messageDescriptors), Buffer.from(moreFollow));
      }
      sendDescriptors(launcher.socket, rest);
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

  /** Removes a container's cgroup, whose processes are gone; false if something of it stays, or nobody is there to do it. */
  async removeCgroup(name: string): Promise<boolean> {
    const parent = this.#parent;
    if (parent === undefined || !parent.isAsked) return false;
    const request = Buffer.alloc(requestLayout.removalBytes);
    request.write(name);
    try {
      sendDescriptors(parent.requests, [parent.reportsFd], request);
    } catch {
      return false;
    }
    return new Promise((resolve) => parent.removals.push(resolve));
  }

  async close(): Promise<void> {
    this.#closed = true;
    const parent = this.#parent;
    if (parent !== undefined) {
      // It makes what was asked for, and ends.
      hangUp(parent);
      await parent.ended;
    }
    await Promise.all(this.#ready.splice(0).map((launcher) => this.discard(launcher)));
  }

  /** Sees to it that a launcher is under way. */
  #ask(): Parent {
    const parent = this.#parent ?? this.#startParent();
    // Where this fails the reports have an end, and say why.
    if (parent.requested.length === 0) this.#request(parent);
    return parent;
  }

  #request(parent: Parent): void {
    const name = `c${++this.#sequence}`;
    const request = Buffer.alloc(requestLayout.bytes);
    request.write(name, requestLayout.name);
    request.write(`${name}/cgroup.procs`, requestLayout.procs);
    const [ours, theirs] = socketPair();
    try {
      sendDescriptors(parent.requests, [theirs], request);
      parent.requested.push({ name, socket: ours });
    } catch (error) {
      close(ours);
      if ((error as SyscallError).errno !== EPIPE && (error as SyscallError).errno !== ECONNRESET) throw error;
    } finally {
      close(theirs);
    }
  }

  #startParent(): Parent {
    const { cgroups } = this.#host;
    const directories = cgroups?.directories ?? [];
    const [requests, theirs] = socketPair();
    const { read, write } = pipe();
    try {
      const { targets, pairs } = placeDescriptors([theirs, write]);
      const joins = cgroups?.version === 1;
      const operations = planLaunchers({
        directories,
        joins,
        apartOn: this.#host.keepsLaunchersApart ? this.#host.attachDir : undefined,
        requests: targets[0],
        reports: targets[1],
      });
      const program = compileProgram(operations, { architecture, statusFd: targets[1] });
      const pid = startProgram(program.file, "slipway-launcher", pairs);
      let rest = Buffer.alloc(0);
      const reports = new PipeReader(read, (chunk) => {
        rest = Buffer.concat([rest, chunk]);
        while (rest.length >= messageBytes || rest.length >= reportLength(report.removed, directories.length)) {
          const length = reportLength(rest.readUInt32LE(0), directories.length);
          if (rest.length < length) break;
          this.#receive(parent, program, rest.subarray(0, length));
          rest = rest.subarray(length);
        }
      });
      const ended = Promise.all([reap(pid), reports.ended]).then(() => this.#lose(parent));
      const parent: Parent = {
        requests,
        reports,
        reportsFd: read,
        requested: [],
        removals: [],
        failure: undefined,
        isAsked: true,
        ended,
      };
      this.#parent = parent;
      return parent;
    } catch (error) {
      for (const fd of [requests, read]) close(fd);
      throw error;
    } finally {
      for (const fd of [theirs, write]) close(fd);
    }
  }

  #receive(parent: Parent, program: Program, bytes: Buffer): void {
    const [kind, value] = [bytes.readUInt32LE(0), bytes.readUInt32LE(4)];
    if (kind === failMessage) {
      const operation = program.operationAt(bytes.readBigUInt64LE(8));
      const what = operation !== undefined && "name" in operation ? operation.name : "run";
      const code = errnoName(value);
      const isFork = code === "EAGAIN" && what.startsWith("clone ");
      const why = isFork ? `${code}: ${this.#host.limits.explainRefusedFork()}` : code;
      parent.failure = new Error(`Cannot make launchers of containers: ${what}: ${why}`);
    }
    if (kind === report.removed) parent.removals.shift()?.(bytes.subarray(8).every((byte) => byte === 0));
    if (kind !== report.made) return;
    const asked = parent.requested.shift();
    const ended = reap(value);
    if (asked === undefined) return;
    const launcher = { ...asked, pid: value, ended, cgroup: this.#host.cgroups?.at(asked.name) };
    this.#ready.push(launcher);
    void ended.then(() => this.#forget(launcher));
  }

  /** The parent is no more. What it was asked for does not come. */
  #lose(parent: Parent): void {
    if (this.#parent === parent) this.#parent = undefined;
    hangUp(parent);
    for (const { name, socket } of parent.requested.splice(0)) {
      close(socket);
      void this.#host.cgroups?.at(name).remove();
    }
    for (const resolve of parent.removals.splice(0)) resolve(false);
  }

  /** One that was killed while it waited is of no use. */
  #forget(launcher: Launcher): void {
    const index = this.#ready.indexOf(launcher);
    if (index < 0) return;
    this.#ready.splice(index, 1);
    void this.discard(launcher);
  }
}

const mostAttempts = 2;
const killed = "Cannot start a container: the process that makes its launcher was killed, twice";

function hangUp(parent: Parent): void {
  if (parent.isAsked) close(parent.requests);
  parent.isAsked = false;
}

/** Waits until there is a report, or the end of all. */
function awaitReport(fd: number): boolean {
  const poll = Buffer.alloc(8); // struct pollfd
  poll.writeInt32LE(fd, 0);
  poll.writeInt16LE(POLLIN, 4);
  const timeout = Buffer.alloc(16); // struct timespec
  timeout.writeBigInt64LE(30n, 0);
  const result = trySyscall("ppoll", poll, 1, timeout, 0, 0);
  return result > 0 || result === -EINTR;
}

const POLLIN = 1;
