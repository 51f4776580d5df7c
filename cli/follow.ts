/** Follows a build on a server and shows it as it happens. */
import type { BuildSummary, BuildView, JobView, StepView } from "../server/index.ts";
import type { Api } from "./api.ts";
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

/** Something to show once the output before it has been shown. */
interface Transition {
  readonly step: number;
  readonly what: "start" | "finish";
  readonly show: () => void;
}

/**
 * The server tells of a step's end before the last of its output has been sent. What is due waits until output of a later
 * step shows that there is none left, or until nothing more has come for this long.
 */
const quietMs = 100;

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
    const jobs = build.jobs.map(({ name, stepNames }) => ({ name, steps: stepNames.map((step) => ({ name: step })) }));
    this.transcript = new Transcript(jobs, context);
    this.#jobs = build.jobs.map(({ name }) => new FollowedJob(name, this.transcript));
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
  }
}

const streams = { 0: "slipway", 1: "stdout", 2: "stderr" } as const;

/** One job of it: keeps status changes and output in the order in which they happened. */
class FollowedJob {
  readonly #name: string;
  readonly #transcript: Transcript;
  #attempt = 0;
  #seen = new Set<string>();
  #due: Transition[] = [];
  #timer: NodeJS.Timeout | undefined;

  constructor(name: string, transcript: Transcript) {
    this.#name = name;
    this.#transcript = transcript;
  }

  update(view: JobView): void {
    const attempt = view.attempts.at(-1);
    if (attempt !== undefined && attempt.n !== this.#attempt) {
      this.flush();
      if (this.#attempt > 0) this.#transcript.note(this.#name, `attempt ${attempt.n}`);
      this.#attempt = attempt.n;
      this.#seen = new Set();
    }
    for (const step of attempt?.steps ?? []) this.#step(step);
    if (view.status !== "queued" && view.status !== "running") {
      const { status } = view;
      const end = outcome(status, view);
      this.#add("end", { step: Infinity, what: "finish", show: () => this.#transcript.jobFinished(this.#name, end) });
    }
    this.#wait();
  }

  log({ step, attempt, records, text }: LogEvent): void {
    if (attempt !== this.#attempt) return;
    this.#showDue((due) => due.step < step || (due.step === step && due.what === "start"));
    let at = 0;
    for (const [length, stream] of records) {
      this.#transcript.output(this.#name, step, streams[stream], text.slice(at, at + length));
      at += length;
    }
    this.#wait();
  }

  /** Shows everything that is due. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#showDue(() => true);
  }

  #step(step: StepView): void {
    const { position, status } = step;
    if (status === "queued") return;
    if (status !== "skipped") {
      const show = () => this.#transcript.stepStarted(this.#name, position);
      this.#add(`start ${position}`, { step: position, what: "start", show });
    }
    if (status === "running") return;
    const end = outcome(status, step);
    const show = () => this.#transcript.stepFinished(this.#name, position, end);
    this.#add(`finish ${position}`, { step: position, what: "finish", show });
  }

  #add(key: string, transition: Transition): void {
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.#due.push(transition);
  }

  #showDue(isNow: (due: Transition) => boolean): void {
    while (this.#due[0] !== undefined && isNow(this.#due[0])) this.#due.shift()?.show();
  }

  #wait(): void {
    clearTimeout(this.#timer);
    if (this.#due.length > 0) this.#timer = setTimeout(() => this.flush(), quietMs);
  }
}

/** A step's or job's end as the transcript shows it. */
function outcome(
  status: Outcome["status"],
  view: Pick<StepView, "startedAtMs" | "finishedAtMs" | "exitCode" | "reason" | "allowedFailure">,
): Outcome {
  const { startedAtMs, finishedAtMs, exitCode, reason, allowedFailure } = view;
  const durationMs = startedAtMs !== undefined && finishedAtMs !== undefined ? finishedAtMs - startedAtMs : undefined;
  return {
    status,
    ...(durationMs !== undefined && { durationMs }),
    ...(exitCode !== undefined && { exitCode }),
    ...(reason !== undefined && { reason }),
    ...(allowedFailure !== undefined && { allowedFailure }),
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
    for (const step of attempt?.steps ?? []) {
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
