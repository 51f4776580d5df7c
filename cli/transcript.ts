/** What a person sees of a running build: each job's steps and their output, line by line, and a table at the end. */
import { StringDecoder } from "node:string_decoder";
import type { Usage } from "../queue/index.ts";
import { duration, logLine, plain, type Paint } from "./terminal.ts";
import { sumUsage, usageText } from "./usage-text.ts";

/** How a step or a job ended. */
export interface Outcome {
  readonly status: "success" | "failure" | "error" | "canceled" | "skipped";
  readonly durationMs?: number;
  readonly exitCode?: number;
  /** One sentence for a person. */
  readonly reason?: string;
  readonly allowedFailure?: boolean;
  /** What its network has refused, in one line. */
  readonly refused?: string;
  readonly usage?: Usage;
}

/** A job as a transcript shows it; steps and services by their names, in the order of their positions. */
export interface TranscriptJob {
  readonly name: string;
  readonly steps: readonly { readonly name: string }[];
  readonly services?: readonly { readonly name: string }[] | undefined;
}

interface Part {
  readonly name: string;
  /** Runs beside the others; its lines are marked with its name. */
  readonly isService?: boolean;
  outcome?: Outcome;
}

interface Job extends Part {
  readonly steps: Part[];
  readonly label: string;
}

/** One style per job, so that jobs running side by side can be told apart. */
const jobStyles = ["cyan", "magenta", "blue", "yellow", "green"] as const;
/** A line without an end is shown once it is this long. */
const longestLine = 16_384;

const marks = { success: "✓", failure: "✗", error: "!", canceled: "■", skipped: "−" } as const;

/**
 * Writes a build as it happens. Calls may come in any order between jobs; within a job in the order of its steps, with those of
 * services, whose positions follow, at any time.
 */
export class Transcript {
  readonly #paint: Paint;
  readonly #colours: boolean;
  readonly #print: (text: string) => void;
  readonly #jobs: readonly Job[];
  readonly #partial = new Map<string, { decoder: StringDecoder; rest: string }>();

  /**
   * @param jobs In the order of the plan.
   * @param output How to write; `colours` also says whether colours in the output of steps stay.
   */
  constructor(
    jobs: readonly TranscriptJob[],
    output: { readonly paint: Paint; readonly colours: boolean; readonly print: (text: string) => void },
  ) {
    this.#paint = output.paint;
    this.#colours = output.colours;
    this.#print = output.print;
    const width = Math.max(0, ...jobs.map(({ name }) => plain(name).length));
    this.#jobs = jobs.map(({ name, steps, services = [] }, index) => ({
      name,
      steps: [
        ...steps.map((step) => ({ name: step.name })),
        ...services.map((service) => ({ name: service.name, isService: true })),
      ],
      label: output.paint(jobStyles[index % jobStyles.length] ?? "cyan", plain(name).padEnd(width)),
    }));
  }

  /** A step begins. */
  stepStarted(job: string, step: number): void {
    const { label, steps } = this.#job(job);
    const part = steps[step];
    const what = part?.isService === true ? `${this.#paint("dim", "service")} ` : "";
    this.#print(`${label} ${this.#paint("dim", "▶")} ${what}${this.#paint("bold", plain(part?.name ?? ""))}\n`);
  }

  /** A piece of a step's output; shown line by line. */
  output(job: string, step: number, stream: "stdout" | "stderr" | "slipway", piece: Uint8Array | string): void {
    const key = JSON.stringify([job, step, stream]);
    let partial = this.#partial.get(key);
    if (partial === undefined) this.#partial.set(key, (partial = { decoder: new StringDecoder("utf8"), rest: "" }));
    const lines = (partial.rest + (typeof piece === "string" ? piece : partial.decoder.write(piece as Buffer))).split(
      "\n",
    );
    partial.rest = lines.pop() ?? "";
    if (partial.rest.length > longestLine) {
      lines.push(partial.rest);
      partial.rest = "";
    }
    if (lines.length > 0) this.#lines(job, step, { stream, lines });
  }

  /** A step has ended; every byte of its output was given before. */
  stepFinished(job: string, step: number, outcome: Outcome): void {
    this.#flush(job, step);
    const { label, steps } = this.#job(job);
    const part = steps[step];
    if (part === undefined) return;
    part.outcome = outcome;
    if (outcome.status === "skipped") return;
    this.#print(`${label} ${this.#ending(part, outcome)}\n`);
  }

  /** A job has ended. Says something only where the steps have not said it. */
  jobFinished(job: string, outcome: Outcome): void {
    const part = this.#job(job);
    part.outcome = outcome;
    const isTold = part.steps.some(
      (step) => step.outcome?.status === outcome.status && step.outcome.allowedFailure !== true,
    );
    if (outcome.status === "success" || isTold) return;
    const why = outcome.reason === undefined ? "" : `: ${plain(outcome.reason)}`;
    this.#print(`${part.label} ${this.#mark(outcome)} ${outcome.status}${why}\n`);
  }

  /** Slipway's own words about a job. */
  note(job: string, text: string): void {
    this.#print(`${this.#job(job).label} ${this.#paint("yellow", plain(text))}\n`);
  }

  /**
   * The table at the end: one row per job, with what all of it used.
   *
   * @param options.reasons Say below a job why it failed, and what its steps were refused: for a reader who has not seen it happen.
   * @param options.usage Say below a job what each of its steps used.
   * @param options.states What jobs without an outcome do now, by name.
   */
  summary(
    options: {
      readonly reasons?: boolean;
      readonly usage?: boolean;
      readonly states?: ReadonlyMap<string, string>;
    } = {},
  ): string {
    const rows = this.#jobs.map(({ name, label, steps, outcome }) => ({
      label,
      mark: outcome === undefined ? " " : this.#mark(outcome),
      status: (outcome?.status ?? options.states?.get(name) ?? "").padEnd(8),
      time: outcome?.durationMs === undefined ? "" : duration(outcome.durationMs),
      steps: steps.map((step) => this.#short(step)).join(this.#paint("dim", ", ")),
      used: options.usage === true ? "" : this.#usedByAll(steps),
      why: options.reasons === true ? this.#why(outcome) + this.#refused(steps) : "",
      usage: options.usage === true ? this.#used(steps) : "",
    }));
    const width = Math.max(0, ...rows.map(({ time }) => time.length));
    return rows
      .map(
        (row) =>
          `${row.mark} ${row.label}  ${row.status}  ${row.time.padStart(width)}  ${row.steps}${row.used}\n${row.why}${row.usage}`,
      )
      .join("");
  }

  #job(name: string): Job {
    const job = this.#jobs.find((candidate) => candidate.name === name);
    if (job === undefined) throw new Error(`No job ${JSON.stringify(name)} in this transcript`);
    return job;
  }

  #lines(
    job: string,
    step: number,
    { stream, lines }: { readonly stream: string; readonly lines: readonly string[] },
  ): void {
    const bar = this.#paint(stream === "stderr" ? "yellow" : "dim", "│");
    const { label, steps } = this.#job(job);
    const part = steps[step];
    const service = part?.isService === true ? `${this.#paint("dim", plain(part.name))} ` : "";
    const prefix = `${label} ${service}${bar} `;
    let text = "";
    for (const line of lines) text += `${prefix}${logLine(line, this.#colours)}\n`;
    this.#print(text);
  }

  /** Shows lines that have not been ended, of all steps. */
  flush(): void {
    for (const { name, steps } of this.#jobs) for (const step of steps.keys()) this.#flush(name, step);
  }

  #flush(job: string, step: number): void {
    for (const stream of ["stdout", "stderr", "slipway"]) {
      const key = JSON.stringify([job, step, stream]);
      const partial = this.#partial.get(key);
      if (partial === undefined) continue;
      this.#partial.delete(key);
      const rest = partial.rest + partial.decoder.end();
      if (rest !== "") this.#lines(job, step, { stream, lines: [rest] });
    }
  }

  #mark(outcome: Outcome): string {
    if (outcome.allowedFailure === true) return this.#paint("yellow", marks.failure);
    const style = { success: "green", failure: "red", error: "red", canceled: "yellow", skipped: "dim" } as const;
    return this.#paint(style[outcome.status], marks[outcome.status]);
  }

  #why(outcome: Outcome | undefined): string {
    const isTold = outcome?.reason === undefined || outcome.status === "success";
    return isTold ? "" : `    ${this.#paint(outcome.status === "skipped" ? "dim" : "red", plain(outcome.reason))}\n`;
  }

  #refused(steps: readonly Part[]): string {
    return steps
      .flatMap(({ name, outcome }) =>
        outcome?.refused === undefined ? [] : [`${plain(name)}: ${plain(outcome.refused)}`],
      )
      .map((line) => `    ${this.#paint("yellow", line)}\n`)
      .join("");
  }

  #usedByAll(steps: readonly Part[]): string {
    const sum = sumUsage(steps.flatMap(({ outcome }) => outcome?.usage ?? []));
    return sum === undefined ? "" : this.#paint("dim", `  (${usageText(sum)})`);
  }

  /** A line for each step that has used something. */
  #used(steps: readonly Part[]): string {
    return steps
      .flatMap(({ name, outcome }) =>
        outcome?.usage === undefined ? [] : [`${plain(name)}: ${usageText(outcome.usage)}`],
      )
      .map((line) => `    ${this.#paint("dim", line)}\n`)
      .join("");
  }

  #ending(part: Part, outcome: Outcome): string {
    const time = outcome.durationMs === undefined ? "" : ` ${this.#paint("dim", duration(outcome.durationMs))}`;
    const what = part.isService === true ? "service " : "";
    const words = `${this.#mark(outcome)} ${what}${plain(part.name)}${time}`;
    if (outcome.status === "success") return words;
    const why = outcome.reason ?? (outcome.exitCode === undefined ? outcome.status : `exit code ${outcome.exitCode}`);
    const allowed = outcome.allowedFailure === true ? " (allowed to fail)" : "";
    return `${words} ${this.#paint(outcome.allowedFailure === true ? "yellow" : "red", `${plain(why)}${allowed}`)}`;
  }

  #short({ name: partName, isService, outcome }: Part): string {
    const name = isService === true ? `service ${partName}` : partName;
    if (outcome === undefined || outcome.status === "skipped") return this.#paint("dim", plain(name));
    const time = outcome.durationMs === undefined ? "" : ` ${this.#paint("dim", duration(outcome.durationMs))}`;
    return `${this.#mark(outcome)} ${plain(name)}${outcome.allowedFailure === true ? " (allowed)" : ""}${time}`;
  }
}
