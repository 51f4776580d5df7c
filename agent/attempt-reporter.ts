/** Tells the server what an attempt's steps do, beside them. */
import { setTimeout as delay } from "node:timers/promises";
import type { StepReport } from "../queue/index.ts";
import { asError } from "./cause.ts";
import { LogUpload } from "./log-upload.ts";
import type { JobReporter, JobResult, StepResult } from "./report.ts";
import { type AttemptKey, FencedError, type ServerClient } from "./server-client.ts";
import type { StepLog } from "./step-log.ts";

export interface AttemptReporterOptions {
  readonly client: ServerClient;
  readonly attempt: AttemptKey;
  /** Giving up: the agent ends without the server. */
  readonly signal: AbortSignal;
  /** The attempt is another's: called at most once. */
  readonly onFenced: (error: FencedError) => void;
  readonly onProblem: (error: Error) => void;
}

/** How long a step's start waits for the report of the step before it, whose log may still be on its way. */
const orderMs = 250;
const maxReasonCharacters = 2000;

/**
 * Reports steps in order, a step's end only when the server has all of its log.
 *
 * Nothing here is waited for by the job; every request is repeated until it is answered.
 */
export class AttemptReporter implements JobReporter {
  readonly #options: AttemptReporterOptions;
  readonly #giveUp = new AbortController();
  readonly #signal: AbortSignal;
  readonly #uploads = new Map<number, LogUpload>();
  readonly #started = new Map<number, Promise<void>>();
  readonly #all: Promise<void>[] = [];
  #previous: Promise<unknown> = Promise.resolve();

  constructor(options: AttemptReporterOptions) {
    this.#options = options;
    this.#signal = AbortSignal.any([options.signal, this.#giveUp.signal]);
  }

  stepStarted(index: number, { startedAtMs, log }: { readonly startedAtMs: number; readonly log: StepLog }): void {
    const { client, attempt } = this.#options;
    this.#uploads.set(index, new LogUpload(log, { client, attempt, index, signal: this.#signal }));
    const before = Promise.race([this.#previous, delay(orderMs, undefined, { ref: false })]);
    // After this turn of the event loop, in which the step itself is started.
    const start = nextTurn().then(() => this.#report(index, before, { status: "running", startedAtMs }));
    this.#started.set(index, start);
    this.#all.push(start);
  }

  stepFinished(index: number, result: StepResult): void {
    const upload = this.#uploads.get(index)?.done ?? Promise.resolve();
    const before = Promise.all([this.#started.get(index) ?? this.#previous, this.#survive(upload)]);
    const report = this.#report(index, before, toReport(result));
    this.#previous = report;
    this.#all.push(report);
  }

  problem(error: Error): void {
    this.#options.onProblem(error);
  }

  /**
   * Reports the job's end, after all that was reported before.
   *
   * @returns Whether the server accepted it; if not, the attempt is another's or the agent gave up.
   */
  async finish({ status, reason }: Pick<JobResult, "status" | "reason">): Promise<boolean> {
    await Promise.all(this.#all);
    const { client, attempt } = this.#options;
    try {
      await client.finish(attempt, { status, ...shortReason(reason) }, this.#signal);
      return true;
    } catch (error) {
      this.#failed(error);
      return false;
    }
  }

  /** Stops reporting: somebody else does. */
  fence(error: FencedError): void {
    if (this.#giveUp.signal.aborted) return;
    this.#giveUp.abort(error);
    this.#options.onFenced(error);
  }

  async #report(index: number, before: Promise<unknown>, report: StepReport): Promise<void> {
    const { client, attempt } = this.#options;
    try {
      await before;
      await client.reportStep(attempt, index, report, this.#signal);
    } catch (error) {
      this.#failed(error);
    }
  }

  /** A log that cannot be sent does not keep its step's result from being reported. */
  async #survive(upload: Promise<void>): Promise<void> {
    try {
      await upload;
    } catch (error) {
      this.#failed(error);
    }
  }

  #failed(error: unknown): void {
    if (error instanceof FencedError) this.fence(error);
    else if (!this.#signal.aborted) this.#options.onProblem(asError(error));
  }
}

function toReport(result: StepResult): StepReport {
  const { reason, ...facts } = result;
  return { ...facts, ...shortReason(reason) };
}

function shortReason(reason: string | undefined): { reason?: string } {
  return reason === undefined ? {} : { reason: reason.slice(0, maxReasonCharacters) };
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
