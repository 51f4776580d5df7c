/** Numbers of repeated runs, and how to print them. */
import { cpus, release, totalmem } from "node:os";

export interface Summary {
  readonly runs: number;
  readonly min: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

export function summarize(values: readonly number[]): Summary {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
  return { runs: sorted.length, min: at(0), median: at(0.5), p99: at(0.99), max: at(1) };
}

/** What every result says about where it was measured. */
export function machine(): string {
  const model = cpus()[0]?.model.trim() ?? "unknown processor";
  return `${cpus().length} × ${model}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, Node ${process.version}`;
}

/** A table with right-aligned numbers; names at the beginning are left-aligned, and columns whose header begins with two blanks. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i]?.length ?? 0)));
  const isText = (i: number) => i === 0 || (header[i]?.startsWith("  ") ?? false);
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => (isText(i) ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
      .join("  ")
      .trimEnd();
  return [line(header), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}

export function milliseconds(value: number): string {
  return value.toFixed(2);
}
