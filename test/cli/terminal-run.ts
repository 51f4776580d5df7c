/** Runs `slipway` on a terminal of its own, as a person would, and types. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { ReadStream } from "node:tty";
import { O_NOCTTY, O_RDWR, TIOCGPTPEER, TIOCSPTLCK, TIOCSWINSZ } from "../../runtime/linux.ts";
import { close, open, syscall } from "../../runtime/syscall.ts";
import { bin, environment } from "./command.ts";

/** One command on one terminal. */
export class TerminalRun implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly exited: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
  readonly #master: ReadStream;
  readonly #fd: number;
  #text = "";
  #waiting: (() => void)[] = [];
  #isOver = false;

  constructor(
    args: readonly string[],
    options: {
      readonly rows?: number;
      readonly columns?: number;
      readonly cwd?: string;
      readonly env?: NodeJS.ProcessEnv;
    } = {},
  ) {
    this.#fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    syscall("ioctl", this.#fd, TIOCSPTLCK, Buffer.alloc(4));
    const slave = syscall("ioctl", this.#fd, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    this.resize(options.rows ?? 24, options.columns ?? 80);
    // It becomes the controlling terminal of a session of its own: Ctrl-C and the end of the terminal are signals there.
    this.child = spawn("setsid", ["--ctty", "--wait", process.execPath, bin, ...args], {
      stdio: [slave, slave, slave],
      env: environment(options.env),
      cwd: options.cwd,
    });
    close(slave);
    this.#master = new ReadStream(this.#fd);
    this.#master.setEncoding("utf8");
    this.#master.on("data", (text: string) => this.#add(text));
    this.#master.on("error", () => {}); // EIO: its end
    this.#master.on("close", () => {
      this.#isOver = true;
      this.#add("");
    });
    this.exited = once(this.child, "exit").then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
    }));
  }

  /** All that was shown. */
  get text(): string {
    return this.#text;
  }

  type(text: string): void {
    this.#master.write(text);
  }

  resize(rows: number, columns: number): void {
    const size = Buffer.alloc(8);
    size.writeUInt16LE(rows, 0);
    size.writeUInt16LE(columns, 2);
    syscall("ioctl", this.#fd, TIOCSWINSZ, size);
  }

  /** Waits until all that was shown so far matches; answers the first group. */
  async until(pattern: RegExp): Promise<string> {
    for (;;) {
      const match = pattern.exec(this.#text);
      if (match !== null) return match[1] ?? match[0];
      if (this.#isOver) throw new Error(`The terminal has ended without ${pattern}:\n${this.#text}`);
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#master.destroy();
    await this.exited;
  }

  #add(text: string): void {
    this.#text += text;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
