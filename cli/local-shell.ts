/** `slipway run --shell-on-failure`: a shell in the step that has failed, in this process. */
import type { KeptStep, StepAccess, StepResult } from "../agent/index.ts";
import type { JobSpec } from "../pipelines/index.ts";
import type { HeldOutput } from "./held-output.ts";
import { terminalName, terminalSize } from "./shell-terminal.ts";
import { plain } from "./terminal.ts";
import type { Context } from "./verb.ts";

export interface LocalShellsOptions {
  readonly context: Context;
  /** Everything else that is shown; waits while somebody is in a shell. */
  readonly held: HeldOutput;
  /** Ends the shell, too. */
  readonly signal: AbortSignal;
}

/** The shells of one local build, one after the other: there is one terminal. */
export class LocalShells {
  readonly #options: LocalShellsOptions;
  #last: Promise<void> = Promise.resolve();

  constructor(options: LocalShellsOptions) {
    this.#options = options;
  }

  /** @param told Shows how the step has ended; the job says it only when the shell has ended. */
  access(job: JobSpec, told: (index: number, result: StepResult) => void): StepAccess {
    return {
      keeps: () => true,
      running: () => {},
      failed: async (index, kept, result) => {
        told(index, result);
        const turn = this.#last.then(() => this.#enter(`${job.name}/${job.steps[index]?.name ?? index}`, kept, result));
        this.#last = turn;
        await turn;
        return undefined;
      },
    };
  }

  async #enter(name: string, kept: KeptStep, { reason }: StepResult): Promise<void> {
    const { context, held, signal } = this.#options;
    if (signal.aborted) return;
    held.hold();
    context.warn(`slipway: a shell in ${plain(name)}, as it failed (${plain(reason ?? "failure")}); exit goes on`);
    try {
      await attach(kept, this.#options);
    } catch (error) {
      context.warn(`slipway: Cannot open a shell: ${(error as Error).message}`);
    } finally {
      held.release();
    }
  }
}

/** Joins this terminal, or these three streams, to a shell in the step until that ends. */
async function attach(kept: KeptStep, { context, signal }: LocalShellsOptions): Promise<void> {
  const { stdin, stdout, stderr } = process;
  const isTerminal = stdin.isTTY && stdout.isTTY;
  await using entered = await kept.enter({
    by: "whoever runs this",
    terminal: isTerminal ? { ...terminalSize(), term: terminalName(context) } : undefined,
    output: (stream, chunk) => {
      // Valid during the call only, and a pipe may take it later.
      const to = stream === "stdout" ? stdout : stderr;
      const isTaken = to.write(Buffer.from(chunk));
      if (!isTaken) to.once("drain", () => entered.process.resumeOutput());
      return isTaken;
    },
  });
  const { process: shell } = entered;
  using cleanups = new DisposableStack();
  if (isTerminal) {
    const { RawTerminal } = await import("../runtime/oci.ts");
    const raw = RawTerminal.take(0);
    if (raw !== undefined) cleanups.use(raw);
    const resize = () => shell.resize(terminalSize());
    stdout.on("resize", resize);
    cleanups.defer(() => stdout.off("resize", resize));
  }
  const onData = (bytes: Buffer) => {
    stdin.pause();
    shell.write(bytes, () => stdin.resume());
  };
  const onEnd = () => shell.endInput();
  const onAbort = () => shell.hangUp();
  // The shell before this one has left it paused.
  stdin.on("data", onData).on("end", onEnd).on("error", onAbort).resume();
  signal.addEventListener("abort", onAbort, { once: true });
  cleanups.defer(() => {
    stdin.off("data", onData).off("end", onEnd).off("error", onAbort).pause();
    // A terminal that is gone says so whenever it likes.
    stdin.off("error", ignore).on("error", ignore);
    signal.removeEventListener("abort", onAbort);
  });
  // The end of the input may have been read by the shell before this one.
  if (stdin.readableEnded) onEnd();
  await shell.result;
}

function ignore(): void {}
