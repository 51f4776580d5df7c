/** The agent's end of one shell. */
import { setTimeout as delay } from "node:timers/promises";
import { agentInboxSchema, ShellChannel, shellData, type ShellOpenStep, type ShellSocket } from "../queue/index.ts";
import type { ExecResult } from "../runtime/index.ts";
import { asError } from "./cause.ts";
import type { Enterable, Entered } from "./step-access.ts";

export interface ShellSessionOptions {
  readonly attemptId: string;
  /** Finds the step that is to be entered. @throws {Error} If it cannot be. */
  readonly find: (step: number) => Promise<Enterable>;
}

/** A killed process may be told before the end of its step, which killed it, is. */
const endDelayMs = 1000;

/** Serves one shell over a connection that the server has accepted, until it ends or nobody is there any more. Never throws. */
export async function serveShell(socket: ShellSocket, options: ShellSessionOptions): Promise<void> {
  const session = new ShellSession(socket, options);
  await session.over;
}

class ShellSession {
  readonly over: Promise<void>;
  readonly #options: ShellSessionOptions;
  readonly #channel: ShellChannel<ReturnType<typeof agentInboxSchema.parse>>;
  readonly #closed = Promise.withResolvers<void>();
  #entered: Entered | undefined;
  #serving: Promise<void> | undefined;
  #isClosed = false;

  constructor(socket: ShellSocket, options: ShellSessionOptions) {
    this.#options = options;
    this.#channel = new ShellChannel(socket, agentInboxSchema, {
      message: (message) => {
        if (message.type === "open") {
          if ("attemptId" in message) this.#serving ??= this.#serve(message);
          return;
        }
        const process = this.#entered?.process;
        if (message.type === "resize") process?.resize(message);
        else if (message.type === "signal") process?.signal(message.signal);
        else if (message.type === "end") process?.endInput();
      },
      data: (_kind, bytes, taken) => {
        if (this.#entered === undefined) taken();
        else this.#entered.process.write(bytes, taken);
      },
      drain: () => this.#entered?.process.resumeOutput(),
      closed: () => {
        this.#isClosed = true;
        this.#closed.resolve();
      },
    });
    this.over = this.#closed.promise.then(async () => await this.#serving);
    this.#channel.start();
  }

  async #serve(open: ShellOpenStep): Promise<void> {
    const channel = this.#channel;
    try {
      if (open.attemptId !== this.#options.attemptId) throw new Error("It is about another attempt");
      const step = await this.#options.find(open.step);
      if (this.#isClosed) return;
      await this.#run(step, open);
    } catch (error) {
      channel.send({ type: "error", message: `Cannot open a shell: ${asError(error).message}` });
    }
    channel.close();
  }

  async #run(step: Enterable, { args, terminal, by }: ShellOpenStep): Promise<void> {
    const entered = await step.enter({
      by,
      args,
      terminal,
      output: (stream, chunk) => this.#channel.write(shellData[stream], chunk),
    });
    this.#entered = entered;
    this.#channel.send({ type: "opened", text: args === undefined ? "a shell" : (args[0] ?? "") });
    // Nobody is there any more: what runs is hung up, and its end told to nobody.
    const gone = this.#closed.promise.then(() => undefined);
    const result = await Promise.race([entered.process.result, gone]);
    const reason = result === undefined ? undefined : await whyCut(entered, result);
    entered.left(result === undefined ? "nobody is there any more" : (reason ?? `exit code ${result.exitCode}`));
    await entered[Symbol.asyncDispose]();
    if (result === undefined) return;
    const { exitCode } = result;
    this.#channel.send({ type: "exit", exitCode, ...(reason !== undefined && { reason }) });
  }
}

/** What the exit code does not say. */
async function whyCut({ cut }: Entered, { signal }: ExecResult): Promise<string | undefined> {
  const mayBeTold = signal === "SIGKILL" || signal === "SIGTERM" || signal === "SIGHUP";
  return await Promise.race([cut, mayBeTold ? delay(endDelayMs, undefined, { ref: false }) : undefined]);
}
