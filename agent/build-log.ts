/** Tells of an image's build in the log of its step. */
import type { BuildCommand, BuildReporter, BuildStep } from "../build/index.ts";
import { type Diagnostic, formatDiagnostic } from "../pipelines/index.ts";
import type { BuildUsage } from "./build-usage.ts";
import { Masker, SecretIndex } from "./masker.ts";
import { secretForms } from "./secret-forms.ts";
import type { StepLog } from "./step-log.ts";

/**
 * Writes the Dockerfile's steps and the output of their commands as they come. Where commands run side by side, the step's title
 * stands again above what is its output.
 */
export class BuildLog implements BuildReporter {
  readonly #log: StepLog;
  readonly #usage: BuildUsage;
  readonly #commands = new Set<BuildCommand>();
  /** Titles that are not written yet: what is found in the cache is said to be so in the same turn of the event loop. */
  readonly #pending = new Map<BuildStep, NodeJS.Immediate>();
  readonly #secrets: Uint8Array[] = [];
  /** Of what has output, by stream. */
  readonly #maskers = new Map<BuildStep, Readonly<Record<"stdout" | "stderr", Masker>>>();
  /** Whose output comes at the moment. */
  #current: BuildStep | undefined;

  /** @param usage Where what commands use is counted. */
  constructor(log: StepLog, usage: BuildUsage) {
    this.#log = log;
    this.#usage = usage;
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
    if (this.#secrets.length === 0) return this.#write(stream, bytes);
    let isWelcome = true;
    const masker = this.#maskers.getOrInsertComputed(step, () => this.#makeMaskers())[stream];
    masker.write(bytes, (part) => void (isWelcome = this.#write(stream, part)));
    return isWelcome;
  }

  /** Masks a secret in the output of commands that begin from now on: who gets it is one of them. */
  hide(secret: Uint8Array): void {
    this.#secrets.push(secret);
  }

  /** Writes what masking has held back: nothing is said of the build from now on. */
  end(): void {
    for (const step of this.#pending.keys()) this.#show(step);
    for (const step of this.#maskers.keys()) this.#flush(step);
  }

  used(_step: BuildStep, usage: Parameters<BuildUsage["add"]>[0]): void {
    this.#usage.add(usage);
  }

  ended(step: BuildStep, { cached }: { readonly cached: boolean }): void {
    clearImmediate(this.#pending.get(step));
    this.#pending.delete(step);
    this.#flush(step);
    if (cached) this.#log.note(`${step.title} (cached)`);
    if (this.#current === step) this.#current = undefined;
  }

  warned(diagnostic: Diagnostic): void {
    this.#log.note(formatDiagnostic(diagnostic));
  }

  noted(note: string): void {
    this.#log.note(note);
  }

  #write(stream: "stdout" | "stderr", bytes: Uint8Array): boolean {
    return this.#log.write(stream === "stdout" ? 1 : 2, bytes);
  }

  #makeMaskers(): Readonly<Record<"stdout" | "stderr", Masker>> {
    const index = new SecretIndex(secretForms(this.#secrets));
    return { stdout: new Masker(index), stderr: new Masker(index) };
  }

  #flush(step: BuildStep): void {
    const maskers = this.#maskers.get(step);
    this.#maskers.delete(step);
    for (const stream of ["stdout", "stderr"] as const) maskers?.[stream].end((part) => this.#write(stream, part));
  }

  #show(step: BuildStep): void {
    clearImmediate(this.#pending.get(step));
    this.#pending.delete(step);
    this.#current = step;
    this.#log.note(step.title);
  }
}
