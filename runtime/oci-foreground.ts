/** Stays with a process that was started in an OCI container: passes signals and a terminal on, tells how it ended. */
import { createReadStream, write } from "node:fs";
import { constants } from "node:os";
import { TIOCSWINSZ } from "./linux.ts";
import { keepLineFeeds, RawTerminal } from "./raw-terminal.ts";
import { kill, reap } from "./reaper.ts";
import { close, receiveDescriptor, socketPair, trySyscall } from "./syscall.ts";

/** A socket pair: a container's process sends its terminal to one end, we take it from the other. */
export class TerminalSocket {
  /** For the process. */
  readonly theirs: number;
  readonly #ours: number;
  #master: number | undefined;

  constructor() {
    [this.#ours, this.theirs] = socketPair();
  }

  /** Takes the terminal's master end once it has been sent; before the program writes to it, for its output to be as it should. */
  take(): number {
    if (this.#master !== undefined) return this.#master;
    this.#master = receiveDescriptor(this.#ours);
    close(this.#ours);
    close(this.theirs);
    if (!process.stdout.isTTY) keepLineFeeds(this.#master);
    return this.#master;
  }
}

/**
 * Waits for the end of a child of ours and returns what a shell would: its exit code, or 128 and the signal.
 *
 * @param start Starts it, once signals are passed on: one that comes as soon as it runs must not end us alone.
 */
export async function foreground(
  pid: number,
  terminal: TerminalSocket | undefined,
  start: () => void = () => undefined,
): Promise<number> {
  const master = terminal?.take();
  const names = (Object.keys(constants.signals) as NodeJS.Signals[]).filter((name) => !unforwarded.has(name));
  const forward = (_: NodeJS.Signals, number: number) => void kill(pid, number);
  for (const name of names) process.on(name, forward);
  try {
    start();
  } catch (error) {
    for (const name of names) process.off(name, forward);
    throw error;
  }
  const ended = reap(pid);
  const shown = master === undefined ? undefined : showTerminal(master);
  try {
    const { exitCode, signal } = await ended;
    await shown?.ended;
    return exitCode ?? 128 + (signal ?? 0);
  } finally {
    for (const name of names) process.off(name, forward);
    shown?.restore();
  }
}

/** Those that cannot be caught, mean this process, or that Node needs itself. */
const unforwarded = new Set<string>([
  "SIGKILL",
  "SIGSTOP",
  "SIGCHLD",
  "SIGPIPE",
  "SIGURG",
  "SIGWINCH",
  "SIGPROF",
  "SIGSEGV",
  "SIGBUS",
  "SIGFPE",
  "SIGILL",
  "SIGTRAP",
  "SIGABRT",
  "SIGIOT",
  "SIGTSTP",
  "SIGTTIN",
  "SIGTTOU",
]);

function showTerminal(master: number): { readonly ended: Promise<void>; readonly restore: () => void } {
  const resize = () => {
    const size = Buffer.alloc(8);
    size.writeUInt16LE(process.stdout.rows ?? 24, 0);
    size.writeUInt16LE(process.stdout.columns ?? 80, 2);
    trySyscall("ioctl", master, TIOCSWINSZ, size);
  };
  if (process.stdout.isTTY) {
    resize();
    process.stdout.on("resize", resize);
  }
  const raw = RawTerminal.take(0);
  // The last reader of the other end makes the read fail with EIO: that is its end of file.
  const output = createReadStream("", { fd: master, autoClose: false });
  const ended = new Promise<void>((resolve) => {
    output.on("error", () => resolve());
    output.on("end", () => resolve());
  });
  output.on("data", (chunk) => void process.stdout.write(chunk));
  process.stdin.on("data", (chunk: Buffer) => write(master, chunk, () => undefined));
  return {
    ended,
    restore: () => {
      raw?.[Symbol.dispose]();
      process.stdin.pause();
      process.stdout.off("resize", resize);
      close(master);
    },
  };
}
