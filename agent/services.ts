/** The services of one job: containers beside its steps, from before the first one to after the last. */
import type { JobSpec, ServiceSpec } from "../pipelines/index.ts";
import type { Refusals } from "../runtime/index.ts";
import { ServiceFailure } from "./abort.ts";
import { asError } from "./cause.ts";
import { lowerResources } from "./ceiling.ts";
import { LastLines } from "./last-lines.ts";
import type { JobContext } from "./job.ts";
import type { SharedNetwork } from "./job-network.ts";
import { describeRefused, isEmpty } from "./refused.ts";
import type { JobReporter, StepResult } from "./report.ts";
import { ServiceRun, type ServiceContext } from "./service.ts";
import type { LogTap, StepLog } from "./step-log.ts";

export interface ServicesOptions extends JobContext {
  readonly network: SharedNetwork;
  readonly image: (spec: ServiceSpec) => Pick<ServiceContext, "image" | "imageNotes">;
  /** @param tap Receives what is kept of the output. */
  readonly openLog: (spec: ServiceSpec, index: number, tap: LogTap) => StepLog;
  /** Stops the steps: one of the services has failed. */
  readonly fail: (failure: ServiceFailure) => void;
  /** Masks secrets. */
  readonly finish: (result: StepResult) => StepResult;
}

/** Starts, watches and stops the services of one job. Their positions follow those of the steps. */
export class Services {
  readonly #job: JobSpec;
  readonly #options: ServicesOptions;
  readonly #runs: ServiceRun[] = [];
  readonly #logs: StepLog[] = [];
  readonly #results: Promise<StepResult>[] = [];
  #refused: Refusals | undefined;
  #stopping = false;

  constructor(job: JobSpec, options: ServicesOptions) {
    this.#job = job;
    this.#options = options;
  }

  /**
   * Starts all of them; resolves when each is ready or has ended, or the job is canceled. Where the job cannot go on, `fail` was
   * called by then.
   */
  async start(): Promise<void> {
    const { reporter, later, openLog, image, ceiling, signal } = this.#options;
    for (const [i, asked] of (this.#job.services ?? []).entries()) {
      const spec = { ...asked, resources: lowerResources(asked.resources, ceiling) };
      const index = this.#job.steps.length + i;
      const lastLines = new LastLines();
      const log = openLog(spec, index, (stream, bytes) => {
        if (stream !== 0) lastLines.write(bytes);
      });
      reporter.stepStarted?.(index, { startedAtMs: Date.now(), log });
      const run = new ServiceRun(spec, { ...this.#options, index, log, lastLines, ...image(spec) });
      this.#runs.push(run);
      this.#logs.push(log);
      const result = run.ended.then((ended) => {
        const finished = this.#options.finish(
          this.#refused === undefined ? ended : { ...ended, refused: this.#refused },
        );
        later(log.close());
        reporter.stepFinished?.(index, finished, log);
        this.#judge(spec.name, finished);
        return finished;
      });
      this.#results.push(result);
    }
    const { promise: aborted, resolve } = Promise.withResolvers<void>();
    signal.addEventListener("abort", () => resolve(), { once: true });
    if (signal.aborted) resolve();
    const all = Promise.all(this.#runs.map(({ ready }, i) => Promise.race([ready, this.#results[i]])));
    await Promise.race([all, aborted]);
    await this.#noteRefused();
  }

  /** They have one address, so what was refused before the first step is said of all. */
  async #noteRefused(): Promise<void> {
    const { network, reporter } = this.#options;
    const refused = await network.takeRefused().catch((error: unknown) => {
      reporter.problem?.(asError(error));
      return undefined;
    });
    if (refused === undefined || isEmpty(refused)) return;
    this.#refused = refused;
    for (const log of this.#logs) for (const line of describeRefused(refused)) log.note(line);
  }

  #judge(name: string, { status, reason = "unknown reason", allowedFailure }: StepResult): void {
    if (this.#stopping || allowedFailure === true) return;
    if (status !== "failure" && status !== "error") return;
    this.#options.fail(new ServiceFailure(`service "${name}" failed: ${reason}`, status));
  }

  /** Stops all of them; those that never started are skipped. */
  async stop(): Promise<StepResult[]> {
    this.#stopping = true;
    for (const run of this.#runs) run.stop();
    return Promise.all(this.#results);
  }
}

/** What becomes of services that are never started. */
export function skipServices({ steps, services = [] }: JobSpec, reporter: JobReporter): StepResult[] {
  return services.map((_, i) => {
    const result = { status: "skipped" } as const;
    reporter.stepFinished?.(steps.length + i, result, undefined);
    return result;
  });
}
