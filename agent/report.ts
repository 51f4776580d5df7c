/** What became of a job and its steps, and who is told while it runs. */
import type { Refused, Usage } from "../queue/index.ts";
import type { StepLog } from "./step-log.ts";

export interface StepResult {
  readonly status: "success" | "failure" | "error" | "canceled" | "skipped";
  /** 0–255, as a shell would say it: 126 and 127 where the program could not be executed. */
  readonly exitCode?: number;
  readonly signal?: string;
  /** One sentence for a person. */
  readonly reason?: string;
  /** The step failed and the job went on, as the pipeline allows. */
  readonly allowedFailure?: boolean;
  readonly startedAtMs?: number;
  readonly finishedAtMs?: number;
  readonly usage?: Usage;
  /** Of the image that it has built. */
  readonly imageDigest?: string;
  /** What its network has refused, of the services beside it too. */
  readonly refused?: Refused;
}

export interface JobResult {
  readonly status: "success" | "failure" | "error" | "canceled";
  readonly reason?: string;
  /** One for each step of the job, in order. */
  readonly steps: readonly StepResult[];
  /** One for each service, in order. */
  readonly services: readonly StepResult[];
}

/**
 * Is told what happens, in order. `index` is the position of a step, or of a service: those follow the steps.
 * Nobody waits for it: its methods return at once, do slow things later and do not throw.
 */
export interface JobReporter {
  /** Called right before the step's process is started. The log is empty yet; `log.onSpooled` is the reporter's to set. */
  stepStarted?(index: number, start: { readonly startedAtMs: number; readonly log: StepLog }): void;
  /** Masked output, valid during the call only. Stream 0 is Slipway's own words. */
  stepOutput?(index: number, stream: 0 | 1 | 2, bytes: Uint8Array, timeMs: number): void;
  /**
   * Called once for every step, skipped ones included, when the result is known. `log` is absent for a step that never
   * started; it is complete when `log.close()` (which may be called again) resolves.
   */
  stepFinished?(index: number, result: StepResult, log: StepLog | undefined): void;
  /** Something of ours went wrong beside the job, and does not change its result: a directory that could not be removed. */
  problem?(error: Error): void;
}
