/** Follows a build on a server and shows it as it happens. */
import type { AttemptView, BuildSummary, BuildView, JobView, StepView } from "../server/index.ts";
import type { Api } from "./api.ts";
import { listRefused } from "./refused.ts";
import { plain } from "./terminal.ts";
import { Transcript, type Outcome } from "./transcript.ts";
import type { Context } from "./verb.ts";

interface LogEvent {
  /** Position of the job. */
  readonly job: number;
  readonly step: number;
  readonly attempt: number;
  readonly records: readonly (readonly [length: number, stream: 0 | 1 | 2, timeMs: number])[];
  readonly text: string;
}

/**
 * A step's end may be told before the last of its output has been sent, and a step's first output before its start. So what
 * is known is shown in the order in which it happened, and an end waits until output of a later step shows that there is
 * none left, or until nothing more has come for this long.
 */
const quietMs = 250;

/**
 * Prints a build from its beginning to its end.
 *
 * @param options.follow False: what there is by now.
 * @returns The build as it was last known, undefined if the reader has gone before anything was known.
 */
export async function followBuild(
  api: Api,
  id: string,
  context: Context,
  signal: AbortSignal,
): Promise<FollowedBuild | undefined> {
  let followed: FollowedBuild | undefined;
  for await (const { event, data } of api.events(`/api/builds/${encodeURIComponent(id)}/events`, signal)) {
    switch (event) {
      case "snapshot":
        followed = new FollowedBuild(data as BuildView, context);
        break;
      case "job":
        followed?.job(data as JobView);
        break;
      case "build":
        if (followed !== undefined) followed.summary = data as BuildSummary;
        break;
      case "log":
        followed?.log(data as LogEvent);
        break;
      case "end":
        followed?.end();
        break;
    }
  }
  return followed;
}

/** A build that is being followed. */
export class FollowedBuild {
  summary: BuildSummary;
  readonly transcript: Transcript;
  readonly #jobs: readonly FollowedJob[];

  constructor(build: BuildView, context: Context) {
    this.summary = build;
    const named = (names: readonly string[]) => names.map((name) => ({ name }));
    const jobs = build.jobs.map(({ name, stepNames, serviceNames }) => ({
      name,
      steps: named(stepNames),
      services: named(serviceNames),
    }));
    this.transcript = new Transcript(jobs, context);
    this.#jobs = build.jobs.map(({ name }) => new FollowedJob(name, this.transcript));
    for (const [position, { needs }] of build.jobs.entries()) {
      for (const need of this.#jobs.filter(({ name }) => needs.includes(name))) this.#jobs[position]?.follows(need);
    }
    if (build.diagnostics !== undefined) context.print(`${plainLines(build.diagnostics.formatted)}\n`);
    for (const job of build.jobs) this.job(job);
  }

  job(view: JobView): void {
    this.#jobs[view.position]?.update(view);
  }

  log(event: LogEvent): void {
    this.#jobs[event.job]?.log(event);
  }

  end(): void {
    for (const job of this.#jobs) job.flush();
    this.transcript.flush();
  }
}

const streams = { 0: "slipway", 1: "stdout", 2: "stderr" } as const;

/** What is known of one step. */
interface FollowedStep {
  isStarted: boolean;
  end?: Outcome;
  /** Output that came before the step's turn. */
  readonly early: LogEvent[];
}

/** One job of it: shows its steps one after the other, each with its start, its output and its end. */
class FollowedJob {
  readonly name: string;
  /** Jobs it needs: shown to their end before it begins. */
  readonly #before: FollowedJob[] = [];
  readonly #after: FollowedJob[] = [];
  readonly #transcript: Transcript;
  #attempt = 0;
  #steps: FollowedStep[] = [];
  /** The step whose turn it is, and whether its start has been shown. */
  #current = 0;
  #isOpen = false;
  /** Those that have started, by position. */
  readonly #services = new Map<number, { hasEnded: boolean }>();
  #end: Outcome | undefined;
  #hasEnded = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(name: string, transcript: Transcript) {
    this.name = name;
    this.#transcript = transcript;
  }

  follows(need: FollowedJob): void {
    this.#before.push(need);
    need.#after.push(this);
  }

  update(view: JobView): void {
    const attempt = view.attempts.at(-1);
    if (attempt !== undefined && attempt.n !== this.#attempt) this.#begin(attempt);
    for (const [index, step] of (attempt?.steps ?? []).entries()) this.#know(index, step);
    for (const service of attempt?.services ?? []) this.#knowService(service);
    const { status } = view;
    if (status !== "queued" && status !== "running") this.#end ??= outcome(status, view);
    this.#show(false);
  }

  log(event: LogEvent): void {
    if (event.attempt !== this.#attempt) return;
    if (event.step >= this.#steps.length) return this.#printOfService(event);
    // Of an earlier step: it is late, but not lost.
    if (event.step < this.#current || (event.step === this.#current && this.#isOpen)) this.#print(event);
    else this.#steps[event.step]?.early.push(event);
    this.#show(false);
  }

  /** Shows everything that is known, of the jobs it needs first. */
  flush(): void {
    for (const job of this.#before) if (!job.#hasEnded) job.flush();
    this.#show(true);
  }

  #begin(attempt: AttemptView): void {
    this.flush();
    if (this.#attempt > 0) this.#transcript.note(this.name, `attempt ${attempt.n}`);
    this.#attempt = attempt.n;
    this.#steps = attempt.steps.map(() => ({ isStarted: false, early: [] }));
    this.#current = 0;
    this.#isOpen = false;
    this.#services.clear();
  }

  /** Beside the steps: shown as it comes. */
  #knowService(view: StepView): void {
    if (view.status === "queued" || view.status === "skipped") return;
    const service = this.#startService(view.position);
    if (view.status === "running" || service.hasEnded) return;
    service.hasEnded = true;
    this.#transcript.stepFinished(this.name, view.position, outcome(view.status, view));
  }

  #printOfService(event: LogEvent): void {
    this.#startService(event.step);
    this.#print(event);
  }

  #startService(position: number): { hasEnded: boolean } {
    let service = this.#services.get(position);
    if (service === undefined) {
      this.#services.set(position, (service = { hasEnded: false }));
      this.#transcript.stepStarted(this.name, position);
    }
    return service;
  }

  #know(index: number, view: StepView): void {
    const step = this.#steps[index];
    if (step === undefined || view.status === "queued") return;
    step.isStarted = view.status !== "skipped";
    if (view.status !== "running") step.end ??= outcome(view.status, view);
  }

  #show(isQuiet: boolean): void {
    clearTimeout(this.#timer);
    if (this.#before.some((job) => job.#end !== undefined && !job.#hasEnded)) return;
    while (this.#showNext(isQuiet));
    const isWaiting = this.#end !== undefined || this.#steps[this.#current]?.end !== undefined;
    if (isWaiting && !isQuiet) this.#timer = setTimeout(() => this.flush(), quietMs);
    if (this.#end === undefined || !isQuiet || this.#hasEnded) return;
    this.#hasEnded = true;
    this.#transcript.jobFinished(this.name, this.#end);
    for (const job of this.#after) job.#show(false);
  }

  /** Shows the next thing, if its turn has come. */
  #showNext(isQuiet: boolean): boolean {
    const step = this.#steps[this.#current];
    if (step === undefined) return false;
    if (step.isStarted && !this.#isOpen) {
      this.#isOpen = true;
      this.#transcript.stepStarted(this.name, this.#current);
      for (const event of step.early.splice(0)) this.#print(event);
      return true;
    }
    if (step.end === undefined) return false;
    const isComplete =
      !step.isStarted || isQuiet || this.#steps.slice(this.#current + 1).some(({ early }) => early.length > 0);
    if (!isComplete) return false;
    this.#transcript.stepFinished(this.name, this.#current, step.end);
    this.#current++;
    this.#isOpen = false;
    return true;
  }

  #print({ step, records, text }: LogEvent): void {
    let at = 0;
    for (const [length, stream] of records) {
      this.#transcript.output(this.name, step, streams[stream], text.slice(at, at + length));
      at += length;
    }
  }
}

/** A step's or job's end as the transcript shows it. */
function outcome(
  status: Outcome["status"],
  view: Pick<StepView, "startedAtMs" | "finishedAtMs" | "exitCode" | "reason" | "allowedFailure" | "refused" | "usage">,
): Outcome {
  const { startedAtMs, finishedAtMs, exitCode, reason, allowedFailure, refused, usage } = view;
  const durationMs = startedAtMs !== undefined && finishedAtMs !== undefined ? finishedAtMs - startedAtMs : undefined;
  return {
    status,
    ...(durationMs !== undefined && { durationMs }),
    ...(exitCode !== undefined && { exitCode }),
    ...(reason !== undefined && { reason }),
    ...(allowedFailure !== undefined && { allowedFailure }),
    ...(refused !== undefined && { refused: listRefused(refused) }),
    ...(usage !== undefined && { usage }),
  };
}

function plainLines(text: string): string {
  return text.split("\n").map(plain).join("\n");
}

/** Prints what a build has put out by now, job by job, step by step. */
export async function printBuild(api: Api, build: BuildView, context: Context): Promise<void> {
  const { transcript } = new FollowedBuild(
    { ...build, jobs: build.jobs.map((job) => ({ ...job, attempts: [], status: "queued" })) },
    context,
  );
  for (const job of build.jobs) {
    const attempt = job.attempts.at(-1);
    for (const step of [...(attempt?.steps ?? []), ...(attempt?.services ?? [])]) {
      if (context.outputClosed.aborted) return;
      if (step.status === "queued" || step.status === "skipped") continue;
      transcript.stepStarted(job.name, step.position);
      const query = new URLSearchParams({
        job: String(job.position),
        step: String(step.position),
        attempt: String(attempt?.n ?? 1),
      });
      for await (const bytes of api.bytes(`/api/builds/${build.id}/log?${query.toString()}`)) {
        transcript.output(job.name, step.position, "stdout", bytes);
      }
      transcript.stepFinished(
        job.name,
        step.position,
        step.status === "running" ? { status: "skipped" } : outcome(step.status, step),
      );
    }
    if (job.status !== "queued" && job.status !== "running") transcript.jobFinished(job.name, outcome(job.status, job));
  }
}
