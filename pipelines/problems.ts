/** Collects what is wrong with one pipeline file. */
import { LIMITS } from "./limits.ts";
import type { Diagnostic } from "./pipeline.ts";
import type { Source, Span } from "./source.ts";

/** A suggestion may be worked out late: only when the problem is kept. */
export type Suggestion = string | undefined | (() => string | undefined);

interface Problem {
  readonly severity: Diagnostic["severity"];
  readonly span: Span;
  readonly message: string;
  readonly suggestion: string | undefined;
}

/** More problems than this are only counted, so that a hostile file costs neither memory nor time. */
const keptProblems = 4 * LIMITS.diagnostics;
const snippetLength = 200;

export class Problems {
  /** True once an error was reported. */
  failed = false;
  readonly #source: Source;
  readonly #kept: Problem[] = [];
  readonly #seen = new Set<string>();
  #dropped = 0;
  #trustedUntil = Infinity;

  constructor(source: Source) {
    this.#source = source;
  }

  /** False once the syntax is broken: what seems to be missing may stand behind the break. */
  get whole(): boolean {
    return this.#trustedUntil === Infinity;
  }

  /** Drops later reports on what reaches the line of `offset` or stands behind it, because YAML's recovery behind a syntax error is guesswork. */
  trustUntil(offset: number): void {
    this.#trustedUntil = Math.min(this.#trustedUntil, this.#source.lineStart(offset));
  }

  error(span: Span, message: string, suggestion?: Suggestion): void {
    this.#report("error", span, message, suggestion);
  }

  warning(span: Span, message: string, suggestion?: Suggestion): void {
    this.#report("warning", span, message, suggestion);
  }

  #report(severity: Diagnostic["severity"], span: Span, message: string, suggestion: Suggestion): void {
    if (span.start >= this.#trustedUntil || span.end > this.#trustedUntil) return;
    if (severity === "error") this.failed = true;
    if (this.#kept.length >= keptProblems) {
      this.#dropped += 1;
      return;
    }
    // The second reader of an aliased value may find what the first one found.
    const key = `${span.start} ${message}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const advice = typeof suggestion === "function" ? suggestion() : suggestion;
    this.#kept.push({ severity, span, message, suggestion: advice });
  }

  /** All problems in file order; past the limit the last one says how many are left out, errors before warnings. */
  toDiagnostics(file: string): Diagnostic[] {
    const bySeverity = this.#kept.toSorted(
      (a, b) => a.severity.localeCompare(b.severity) || a.span.start - b.span.start,
    );
    const shown = bySeverity.slice(0, LIMITS.diagnostics).sort((a, b) => a.span.start - b.span.start);
    const diagnostics = shown.map((problem) => this.#diagnose(problem, file));
    const left = bySeverity.slice(LIMITS.diagnostics);
    const more = left.length + this.#dropped;
    const next = left[0];
    if (next === undefined) return diagnostics;
    const message = `and ${more} more ${more === 1 ? "problem" : "problems"}`;
    return [...diagnostics, this.#diagnose({ ...next, message, suggestion: "mend those above first" }, file)];
  }

  #diagnose(problem: Problem, file: string): Diagnostic {
    const { line, column } = this.#source.position(problem.span.start);
    const text = this.#source.line(line);
    const lineEnd = Math.max(text.length + 1, column + 1);
    const endColumn = Math.min(lineEnd, Math.max(column + 1, column + problem.span.end - problem.span.start));
    // A long line is cut so that the column stays in view, with some of what stands before it.
    const cut =
      text.length <= snippetLength || column <= snippetLength * 0.75 ? 0 : Math.floor(column - 1 - snippetLength / 4);
    return {
      severity: problem.severity,
      message: problem.message,
      file,
      line,
      column,
      endColumn,
      snippet: text.slice(cut, cut + snippetLength).replaceAll(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, "…"),
      ...(cut > 0 && { snippetColumn: cut + 1 }),
      ...(problem.suggestion !== undefined && { suggestion: problem.suggestion }),
    };
  }
}
