/** Tells of an image's build in the log of its step. */
import type { BuildCommand, BuildReporter, BuildStep } from "../build/index.ts";
import { type Diagnostic, formatDiagnostic } from "../pipelines/index.ts";
import type { StepLog } from "./step-log.ts";

/**
 * Writes the Dockerfile's steps and the output of their commands as they come. Where commands run side by side, the step's title
 * stands again above what is its output.
 */
export class BuildLog implements BuildReporter {
  readonly #log: StepLog;
  readonly #commands = new Set<BuildCommand>();
  /** Titles that are not written yet: what is found in the cache is said to be so in the same turn of the event loop. */
  readonly #pending = new Map<BuildStep, NodeJS.Immediate>();
  /** Whose output comes at the moment. */
  #current: BuildStep | undefined;

  constructor(log: StepLog) {
    this.#log = log;
    log.onDrain = () => {
      for (const command of this.#commands) command.resumeOutput();
    };
  }

  started(step: BuildStep): void {
    this.#pending.set(
      step,
      setImmediate(() => this.#show(step)),
    );
  }

  command(command: BuildCommand): void {
    this.#commands.add(command);
    // It may have been told to wait before it was known here.
    command.resumeOutput();
  }

  output(step: BuildStep, { stream, bytes }: { stream: "stdout" | "stderr"; bytes: Uint8Array }): boolean {
    if (this.#current !== step) this.#show(step);
    return this.#log.write(stream === "stdout" ? 1 : 2, bytes);
  }

  ended(step: BuildStep, { cached }: { readonly cached: boolean }): void {
    clearImmediate(this.#pending.get(step));
    this.#pending.delete(step);
    if (cached) this.#log.note(`${step.title} (cached)`);
    if (this.#current === step) this.#current = undefined;
  }

  warned(diagnostic: Diagnostic): void {
    this.#log.note(formatDiagnostic(diagnostic));
  }

  noted(note: string): void {
    this.#log.note(note);
  }

  #show(step: BuildStep): void {
    clearImmediate(this.#pending.get(step));
    this.#pending.delete(step);
    this.#current = step;
    this.#log.note(step.title);
  }
}
