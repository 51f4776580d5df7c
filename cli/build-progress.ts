/** What a person sees of an image that is built: a line for each step, its output, and how long it took. */
import { StringDecoder } from "node:string_decoder";
import type { BuildReporter, BuildStep } from "../build/index.ts";
import { type Diagnostic, formatDiagnostic } from "../pipelines/index.ts";
import { cachedLine, stepLabel, summary } from "./image-build.ts";
import { duration, logLine, painter, plain } from "./terminal.ts";
import type { Context } from "./verb.ts";

/** A line without an end is shown once it is this long. */
const longestLine = 16_384;

interface Shown {
  /** `[build 2/5]` */
  readonly label: string;
  readonly streams: Map<string, { readonly decoder: StringDecoder; rest: string }>;
  isShown: boolean;
  /** The end of what was printed, where it is shown only if the command fails. */
  readonly kept: string[];
}

/** Lines of a failed command that are shown where nothing else is. */
const MAX_KEPT = 200;

/** Writes to standard error as a build goes on. */
export class BuildProgress implements BuildReporter {
  readonly #context: Context;
  readonly #steps = new Map<BuildStep, Shown>();
  readonly #isQuiet: boolean;
  readonly #startedAtMs = performance.now();
  /** Of the steps, in the order in which they ended. */
  readonly titles: string[] = [];
  /** Something was warned of, noted, or fetched from elsewhere. */
  hasSaidMore = false;
  #cached = 0;

  /** @param options.isQuiet Shows warnings and notes only, and the output of the command that failed. */
  constructor(context: Context, options: { readonly isQuiet: boolean }) {
    this.#context = context;
    this.#isQuiet = options.isQuiet;
  }

  started(step: BuildStep): void {
    const label = stepLabel(step.title);
    const shown: Shown = { label, streams: new Map(), isShown: false, kept: [] };
    this.#steps.set(step, shown);
    // One that is found in the cache ends before anything else happens: it gets one line.
    if (!this.#isQuiet) queueMicrotask(() => this.#show(step, shown));
  }

  output(step: BuildStep, { stream, bytes }: { readonly stream: "stdout" | "stderr"; readonly bytes: Uint8Array }) {
    const shown = this.#steps.get(step);
    if (shown === undefined) return;
    if (!this.#isQuiet) this.#show(step, shown);
    let partial = shown.streams.get(stream);
    if (partial === undefined) shown.streams.set(stream, (partial = { decoder: new StringDecoder(), rest: "" }));
    const lines = (partial.rest + partial.decoder.write(bytes as Buffer)).split("\n");
    partial.rest = lines.pop() ?? "";
    if (partial.rest.length > longestLine) {
      lines.push(partial.rest);
      partial.rest = "";
    }
    this.#lines(shown, lines);
  }

  ended(step: BuildStep, { cached, durationMs }: { readonly cached: boolean; readonly durationMs: number }): void {
    const shown = this.#steps.get(step);
    if (shown === undefined) return;
    this.#steps.delete(step);
    this.titles.push(step.title);
    if (cached) this.#cached++;
    if (this.#isQuiet) return;
    if (cached && !shown.isShown) {
      shown.isShown = true;
      this.#write(cachedLine(step.title, this.#context));
      return;
    }
    this.#flush(shown);
    const paint = painter(this.#context.errorColours);
    this.#write(`${paint("cyan", plain(shown.label))} ${paint("dim", `done in ${duration(durationMs)}`)}`);
  }

  warned(diagnostic: Diagnostic): void {
    this.hasSaidMore = true;
    this.#write(formatDiagnostic(diagnostic, { color: this.#context.errorColours }));
  }

  fetched(): void {
    this.hasSaidMore = true;
  }

  noted(note: string): void {
    this.hasSaidMore = true;
    this.#write(`slipway: ${plain(note)}`);
  }

  /** Says what there is now. @param names Of the image, in full. */
  finished(names: readonly string[]): void {
    if (this.#isQuiet) return;
    const durationMs = performance.now() - this.#startedAtMs;
    this.#write(summary(names, { steps: this.titles.length, cached: this.#cached, durationMs }));
  }

  /** Shows what commands have printed without an end of line before they failed. */
  flush(): void {
    for (const [step, shown] of this.#steps) {
      this.#flush(shown);
      if (shown.kept.length === 0) continue;
      this.#show(step, shown);
      for (const line of shown.kept) this.#write(line);
    }
  }

  #show(step: BuildStep, shown: Shown): void {
    if (shown.isShown) return;
    shown.isShown = true;
    const paint = painter(this.#context.errorColours);
    this.#write(`${paint("cyan", plain(shown.label))}${paint("bold", plain(step.title.slice(shown.label.length)))}`);
  }

  #flush(shown: Shown): void {
    for (const partial of shown.streams.values()) {
      const rest = partial.rest + partial.decoder.end();
      partial.rest = "";
      if (rest !== "") this.#lines(shown, [rest]);
    }
  }

  #lines({ label, kept }: Shown, lines: readonly string[]): void {
    const { errorColours } = this.#context;
    const mark = painter(errorColours)("cyan", plain(label));
    for (const line of lines) {
      const text = `${mark} ${logLine(line, errorColours)}`;
      if (!this.#isQuiet) this.#write(text);
      else if (kept.push(text) > MAX_KEPT) kept.shift();
    }
  }

  #write(line: string): void {
    this.#context.writeError(`${line}\n`);
  }
}
