/** What a job needs of a step, whether that runs a script or builds an image. */
import type { KeptStep } from "./kept-step.ts";
import type { StepResult } from "./report.ts";
import type { Enterable } from "./step-access.ts";
import type { StepLog } from "./step-log.ts";

/** One run of one step. */
export interface RunnableStep {
  readonly log: StepLog;
  /** Its program was started before `run` was called. */
  readonly hasBegun: boolean;
  /** Does ahead what can be done while the step before still runs. Resolves when that is done, or cannot be. */
  prepare(): Promise<void>;
  /** The same while the workspace is still being filled; undefined if that cannot be. */
  prepareWithoutWorkspace(): Promise<void> | undefined;
  /** Starts it now if all is ready, for the step before has succeeded and is gone. `run` must follow, or `discard`. */
  begin(): void;
  /** Removes what was prepared for a step that is not run. */
  discard(): void;
  /**
   * Runs the step and says what became of it. Never throws.
   *
   * @param on.running Called when its program runs.
   * @param on.succeeded Called when it has succeeded and nothing of it runs any more, before its result is put together.
   */
  run(on: { readonly running: (step: Enterable) => void; readonly succeeded?: () => void }): Promise<StepResult>;
  /** Hands over what a failed step has left, if that was to be kept; else `forget` must follow. */
  keep(): KeptStep | undefined;
  /** Removes what was to be kept and is not. */
  forget(): void;
}
