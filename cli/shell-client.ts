/** A person's end of a shell: this terminal, or these three streams, joined to a process in a step. */
import { constants, hostname, userInfo } from "node:os";
import {
  agentMessageSchema,
  ShellChannel,
  shellData,
  ShellRefusedError,
  type ShellSocket,
  shellSignals,
} from "../queue/index.ts";
import type { Api } from "./api.ts";
import { EscapeFilter } from "./shell-escape.ts";
import { terminalName, terminalSize } from "./shell-terminal.ts";
import { plain } from "./terminal.ts";
import type { Context } from "./verb.ts";

export interface ShellClientOptions {
  readonly buildId: string;
  readonly query: Readonly<Record<string, string>>;
  readonly args: readonly string[] | undefined;
  readonly hasTerminal: boolean;
  readonly context: Context;
}

/** Who waits longer for the agent than this is told so. */
const patienceMs = 1000;

/** Opens the shell and stays until it has ended; answers its exit code. @throws {Error} If it cannot be opened or was cut off. */
export async function connectShell(api: Api, options: ShellClientOptions): Promise<number> {
  // Heavy, and needed for a terminal only.
  const oci = options.hasTerminal ? await import("../runtime/oci.ts") : undefined;
  const query = new URLSearchParams(options.query).toString();
  const url = new URL(`${api.url}/api/builds/${options.buildId}/shell?${query}`);
  const socket = await ShellChannel.dial(url, { headers: api.authorization }).catch((error: unknown) => {
    if (error instanceof ShellRefusedError)
      throw new Error(`The server refused (${error.status}): ${error.message}`, { cause: error });
    throw api.unreachable(error);
  });
  const client = new ShellClient(socket, { ...options, takeTerminal: () => oci?.RawTerminal.take(0) });
  return await client.ended;
}

interface ClientParts extends ShellClientOptions {
  /** Puts this terminal into raw mode until disposed; undefined if there is none. */
  readonly takeTerminal: () => Disposable | undefined;
}

class ShellClient {
  readonly ended: Promise<number>;
  readonly #options: ClientParts;
  readonly #channel: ShellChannel<ReturnType<typeof agentMessageSchema.parse>>;
  readonly #end = Promise.withResolvers<number>();
  readonly #cleanups: (() => void)[] = [];
  /** The last write to each stream: when it is done, all before it are. */
  readonly #written = new Map<NodeJS.WriteStream, Promise<void>>();
  #patience: NodeJS.Timeout | undefined;
  #isOpened = false;
  #hasExited = false;

  constructor(socket: ShellSocket, options: ClientParts) {
    this.#options = options;
    this.ended = this.#end.promise.finally(() => this.#restore());
    this.#channel = new ShellChannel(socket, agentMessageSchema, {
      message: (message) => {
        switch (message.type) {
          case "waiting":
            this.#patience = setTimeout(() => {
              options.context.warn(`slipway: waiting for agent ${plain(message.agent)}`);
            }, patienceMs);
            break;
          case "opened":
            this.#opened();
            break;
          case "exit":
            void this.#exit(message.exitCode, message.reason);
            break;
          case "error":
            this.#end.reject(new Error(plain(message.message)));
            break;
          case "ack":
        }
      },
      data: (kind, bytes, taken) =>
        this.#write(kind === shellData.stderr ? process.stderr : process.stdout, bytes, taken),
      drain: () => void process.stdin.resume(),
      closed: (reason) => {
        if (this.#hasExited) return;
        this.#end.reject(new Error(`The shell was cut off: ${reason ?? "the server closed the connection"}`));
      },
    });
    const gone = () => this.#breakOff(constants.signals.SIGPIPE);
    options.context.outputClosed.addEventListener("abort", gone, { once: true });
    this.#cleanups.push(() => options.context.outputClosed.removeEventListener("abort", gone));
    this.#watchSignals();
    this.#channel.start();
    this.#channel.send({
      type: "open",
      by: whoAmI(),
      ...(options.args !== undefined && { args: [...options.args] }),
      ...(options.hasTerminal && { terminal: { ...terminalSize(), term: terminalName(options.context) } }),
    });
  }

  #opened(): void {
    clearTimeout(this.#patience);
    if (this.#isOpened) return;
    this.#isOpened = true;
    const { hasTerminal } = this.#options;
    const raw = this.#options.takeTerminal();
    if (raw !== undefined) this.#cleanups.push(() => raw[Symbol.dispose]());
    if (hasTerminal) {
      const resize = () => this.#channel.send({ type: "resize", ...terminalSize() });
      process.stdout.on("resize", resize);
      this.#cleanups.push(() => process.stdout.off("resize", resize));
      // It may have changed while nobody listened.
      resize();
    }
    this.#readInput(raw === undefined ? undefined : new EscapeFilter());
  }

  #readInput(escapes: EscapeFilter | undefined): void {
    const onData = (chunk: Buffer) => {
      const { bytes, isEnd } = escapes?.filter(chunk) ?? { bytes: chunk, isEnd: false };
      if (isEnd) return this.#breakOff(constants.signals.SIGHUP);
      if (bytes.length > 0 && !this.#channel.write(shellData.stdin, bytes)) process.stdin.pause();
    };
    const onEnd = () => this.#channel.send({ type: "end" });
    process.stdin.on("data", onData).on("end", onEnd).on("error", onEnd);
    this.#cleanups.push(() => {
      process.stdin.off("data", onData).off("end", onEnd);
      process.stdin.pause();
    });
  }

  /** Without a terminal signals are the command's, and a second one ours; on a terminal, keys are, and a signal is ours. */
  #watchSignals(): void {
    let isForwarded = false;
    for (const name of shellSignals) {
      const onSignal = () => {
        if (this.#options.hasTerminal || isForwarded || !this.#isOpened) return this.#breakOff(constants.signals[name]);
        isForwarded = true;
        this.#channel.send({ type: "signal", signal: name });
      };
      process.on(name, onSignal);
      this.#cleanups.push(() => process.off(name, onSignal));
    }
  }

  #write(stream: NodeJS.WriteStream, bytes: Buffer, taken: () => void): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    stream.write(bytes, () => {
      taken();
      resolve();
    });
    this.#written.set(stream, promise);
  }

  async #exit(exitCode: number, reason: string | undefined): Promise<void> {
    this.#hasExited = true;
    // Pipes may be slower than the connection; a reader that is gone is no reason to wait.
    const gone = this.#options.context.outputClosed;
    await Promise.race([
      Promise.all(this.#written.values()),
      new Promise((resolve) => gone.addEventListener("abort", resolve, { once: true })),
    ]);
    this.#channel.close();
    this.#restore();
    if (reason !== undefined) this.#options.context.warn(`slipway: ${plain(reason)}`);
    this.#end.resolve(exitCode);
  }

  #breakOff(signal: number): void {
    this.#restore();
    if (this.#options.hasTerminal) this.#options.context.warn("\nslipway: the connection was broken off");
    this.#end.resolve(128 + signal);
    this.#channel.terminate("broken off");
  }

  #restore(): void {
    clearTimeout(this.#patience);
    for (const cleanup of this.#cleanups.splice(0)) cleanup();
  }
}

/** For the step's log; the server adds where it comes from. */
function whoAmI(): string {
  let user = "";
  try {
    user = userInfo().username;
  } catch {
    // An id without a name.
    user = `uid ${process.getuid?.() ?? "unknown"}`;
  }
  return `${user}@${hostname()}`.replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, "").slice(0, 200);
}
