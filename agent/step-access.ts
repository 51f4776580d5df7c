/** Ways into a step, beside the one that its log is: what a job offers to whoever wants in. */
import type { StepSpec } from "../pipelines/index.ts";
import type { ExecOptions, ExecProcess, TerminalDimensions } from "../runtime/index.ts";
import type { KeptStep } from "./kept-step.ts";
import type { StepResult } from "./report.ts";

/** Is told what can be entered. Its methods do not throw. */
export interface StepAccess {
  /** Whether this step is to be kept if it fails; asked before its container is made. */
  keeps(step: StepSpec): boolean;
  /** The program of a step or service runs; indices of services follow those of steps. */
  running(index: number, step: Enterable): void;
  /**
   * A step that is to be kept has failed and ended its job, which waits for the answer: undefined, and the step is disposed of;
   * or what its log is to say of it, and it is taken over by whoever says so.
   */
  failed(index: number, kept: KeptStep, result: StepResult): Promise<string | undefined>;
}

/** A step that a person can enter: one that runs, or a kept one. */
export interface Enterable {
  /** Opens a shell, or runs a command, as the step's program would be run. @throws {Error} If that is not possible. */
  enter(options: EnterOptions): Promise<Entered>;
  /** Resolves when nobody can be in it any more, and says why. */
  readonly ended: Promise<string>;
}

export interface EnterOptions {
  /** Who it is, for the step's log. */
  readonly by: string;
  /** @default the image's shell: bash where there is one, else sh */
  readonly args?: readonly string[] | undefined;
  /** With what the person's terminal is called. @default three pipes */
  readonly terminal?: (TerminalDimensions & { readonly term: string }) | undefined;
  readonly output: ExecOptions["output"];
}

/** A process in a step. Disposing it hangs up and waits until nothing of it is left. */
export interface Entered extends AsyncDisposable {
  readonly process: ExecProcess;
  /** Resolves with the reason if something else than the process itself ended it. */
  readonly cut: Promise<string>;
  /** Says, for the step's log, how it went; the first word counts. */
  left(how: string): void;
}

/** The image's own shell, the way an interactive one is started: no login, which would set another PATH. */
const imageShell = ["/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi"] as const;

/** What to execute for a person, in the environment of the step. */
export function shellProcess(
  { args, terminal, output }: EnterOptions,
  env: Readonly<Record<string, string>>,
): ExecOptions {
  return {
    args: args ?? imageShell,
    env: terminal === undefined ? env : { ...env, TERM: terminal.term },
    ...(terminal === undefined ? {} : { terminal }),
    output,
  };
}
