/** A further process in a container: its input, output, terminal and end. */
import { closeSync, readdirSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { Socket } from "node:net";
import { ReadStream } from "node:tty";
import type { OutputSink } from "./container-config.ts";
import { F_DUPFD_CLOEXEC, SIGHUP, SIGKILL, TIOCSWINSZ } from "./linux.ts";
import { PipeReader } from "./output.ts";
import { kill, type Reaped, signalAll } from "./reaper.ts";
import { syscall, trySyscall } from "./syscall.ts";

/** How long an output may stay open behind its process with nothing coming: somebody else holds it. */
const idleOutputMs = 200;
/** Between SIGHUP and SIGKILL. */
const hangUpGraceMs = 2000;

export interface ExecResult {
  /** 0–255; 128 + signal number where a signal ended it. */
  readonly exitCode: number;
  /** `SIGKILL`, where a signal ended it. */
  readonly signal?: string;
}

/** One further process. Disposing it hangs up and waits for its end. */
export class ExecProcess implements AsyncDisposable {
  /** On the host. */
  readonly pid: number;
  /** Resolves once it is reaped and its output is at its end; never rejects. */
  readonly result: Promise<ExecResult>;
  readonly #outputs: readonly PipeReader[];
  readonly #input: Socket;
  readonly #isTerminal: boolean;
  /**
   * The terminal's master once more, until the process has ended: one that closes its standard descriptors before it exits, as
   * coreutils do, ends the reading (EIO), and closing the last master then hangs up the process.
   */
  #terminal: number | undefined;
  #hasEnded = false;
  #isOver = false;
  #grace: NodeJS.Timeout | undefined;

  /** @internal Takes ownership of the descriptors. */
  constructor(
    pid: number,
    ended: Promise<Reaped>,
    made: {
      readonly output: OutputSink;
      readonly terminal?: number;
      readonly pipes?: { readonly stdin: number; readonly stdout: number; readonly stderr: number };
    },
  ) {
    const { output, terminal, pipes } = made;
    this.pid = pid;
    this.#isTerminal = terminal !== undefined;
    if (terminal !== undefined) this.#terminal = syscall("fcntl", terminal, F_DUPFD_CLOEXEC, 0);
    if (pipes === undefined) {
      let master: Socket | undefined;
      const reader = new PipeReader(
        terminal ?? -1,
        (chunk) => output("stdout", chunk),
        (fd, onread) => (master = new ReadStream(fd, { onread })),
      );
      this.#outputs = [reader];
      this.#input = master as unknown as Socket;
    } else {
      this.#outputs = [
        new PipeReader(pipes.stdout, (chunk) => output("stdout", chunk)),
        new PipeReader(pipes.stderr, (chunk) => output("stderr", chunk)),
      ];
      this.#input = new Socket({ fd: pipes.stdin, readable: false, writable: true });
    }
    // EPIPE or EIO: nobody reads it any more.
    this.#input.on("error", () => {});
    this.result = this.#finish(ended);
  }

  /** Passes bytes to its standard input. @param taken Called when it, or the kernel for it, has taken them, or never will. */
  write(bytes: Uint8Array, taken: () => void): void {
    if (this.#input.destroyed || this.#input.writableEnded) taken();
    else this.#input.write(bytes, () => taken());
  }

  /** Ends its standard input; on a terminal as Ctrl-D does. */
  endInput(): void {
    if (!this.#isTerminal) this.#input.end();
    else this.write(Buffer.from([4]), () => {});
  }

  /** Gives its terminal another size, and tells it. */
  resize({ rows, columns }: { readonly rows: number; readonly columns: number }): void {
    if (this.#terminal === undefined) return;
    const size = Buffer.alloc(8); // struct winsize
    size.writeUInt16LE(rows, 0);
    size.writeUInt16LE(columns, 2);
    trySyscall("ioctl", this.#terminal, TIOCSWINSZ, size);
  }

  /** Sends a signal to its process group. */
  signal(name: NodeJS.Signals): void {
    if (!this.#hasEnded) kill(-this.pid, constants.signals[name]);
  }

  /** Goes on reading output after the sink returned `false`. */
  resumeOutput(): void {
    for (const output of this.#outputs) output.resume();
  }

  /**
   * Nobody is there any more: SIGHUP, and after a while SIGKILL, to all processes of its session. When it has ended by itself,
   * what it left in the background goes on.
   */
  hangUp(): void {
    if (this.#grace !== undefined || this.#isOver) return;
    this.#closeTerminal();
    this.#input.destroy();
    for (const output of this.#outputs) output.destroy();
    if (!this.#hasEnded) kill(-this.pid, SIGHUP);
    this.#grace = setTimeout(() => killSession(this.pid), hangUpGraceMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.hangUp();
    await this.result;
  }

  #closeTerminal(): void {
    if (this.#terminal !== undefined) closeSync(this.#terminal);
    this.#terminal = undefined;
  }

  async #finish(ended: Promise<Reaped>): Promise<ExecResult> {
    const { exitCode, signal } = await ended;
    this.#hasEnded = true;
    this.#closeTerminal();
    const watch = setInterval(() => {
      for (const output of this.#outputs) output.destroyIfIdle();
    }, idleOutputMs);
    await Promise.all(this.#outputs.map((output) => output.ended));
    clearInterval(watch);
    this.#input.destroy();
    this.#isOver = true;
    if (this.#grace !== undefined) {
      clearTimeout(this.#grace);
      killSession(this.pid);
    }
    const name = Object.entries(constants.signals).find(([, number]) => number === signal)?.[0];
    return { exitCode: exitCode ?? 128 + (signal ?? 0), ...(name === undefined ? {} : { signal: name }) };
  }
}

/** As long as a process is in the session, its id is nobody else's. */
function killSession(session: number): void {
  signalAll(SIGKILL, () => sessionProcesses(session));
}

function sessionProcesses(session: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        // pid (comm) state ppid pgrp session; a name may hold anything.
        return (
          readFileSync(`/proc/${pid}/stat`, "utf8")
            .replace(/^[^]*\) /, "")
            .split(" ")[3] === `${session}`
        );
      } catch {
        return false; // ended meanwhile
      }
    });
}
