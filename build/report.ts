/** What is told of a build while it runs, and how it fails. */
import type { Diagnostic } from "../pipelines/index.ts";
import type { ContainerUsage } from "../runtime/index.ts";

/** One thing that is done for an instruction. */
export interface BuildStep {
  /** `[build 2/5] RUN make`: the stage if there are several, its place among the steps of the stage, the instruction. */
  readonly title: string;
}

/** A command that runs. */
export interface BuildCommand {
  /** Lets what its output was told to wait for go on; does nothing if it does not wait. */
  resumeOutput(): void;
}

export interface BuildReporter {
  /** A step begins, or is found in the cache. */
  started?(step: BuildStep): void;
  /** A command runs, and may have had output already. */
  command?(command: BuildCommand): void;
  /** Output of a command; the chunk is valid during the call only. Returning false has the command wait for `resumeOutput`. */
  output?(
    step: BuildStep,
    chunk: { readonly stream: "stdout" | "stderr"; readonly bytes: Uint8Array },
  ): boolean | undefined | void;
  /** A command has ended, well or not, and has used this. */
  used?(step: BuildStep, usage: ContainerUsage): void;
  ended?(step: BuildStep, end: { readonly cached: boolean; readonly durationMs: number }): void;
  /** ADD has fetched something, which may be something else tomorrow. */
  fetched?(url: string): void;
  /** What is no error but probably no intention. */
  warned?(diagnostic: Diagnostic): void;
  /** What a person should know: that a registry was not reached. */
  noted?(note: string): void;
}

/** The build cannot be done as it is written, or a command of it failed: the user's failure, not ours. */
export class BuildError extends Error {
  override readonly name = "BuildError";
  /** Where in the Dockerfile; absent for what is not in it. */
  readonly diagnostic: Diagnostic | undefined;
  /** What else is wrong in the Dockerfile. */
  readonly others: readonly Diagnostic[];
  /** Of the command that failed. */
  readonly exitCode: number | undefined;

  constructor(
    message: string,
    options: {
      readonly diagnostic?: Diagnostic | undefined;
      readonly others?: readonly Diagnostic[];
      readonly exitCode?: number | undefined;
      readonly cause?: unknown;
    } = {},
  ) {
    super(message, { cause: options.cause });
    this.diagnostic = options.diagnostic;
    this.others = options.others ?? [];
    this.exitCode = options.exitCode;
  }
}
