/** Tables of what is kept, and how old that is. */
import { UsageError } from "./arguments.ts";

/** Lines whose columns stand below each other; the first row is the heading. */
export function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows.map((row) =>
    row
      .map((text, column) => text.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
}

/** How long ago something was, roughly. @param timeMs Since 1970. */
export function ago(timeMs: number): string {
  const minutes = Math.floor((Date.now() - timeMs) / 60_000);
  if (minutes < 2) return "now";
  if (minutes < 120) return `${minutes} minutes ago`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} hours ago`;
  return `${Math.floor(minutes / 1440)} days ago`;
}

const ageUnitsMs = { d: 86_400_000, h: 3_600_000, m: 60_000 } as const;

/** Reads `30d`, `12h` or `90m` into milliseconds. @throws {UsageError} Naming the option. */
export function parseAge(option: string, text: string): number {
  const [, digits, unit] = /^(\d{1,5})([dhm])$/.exec(text) ?? [];
  if (digits !== undefined) return Number(digits) * ageUnitsMs[unit as keyof typeof ageUnitsMs];
  throw new UsageError(
    `${option} must be a number of days, hours or minutes like 30d, 12h or 90m, not ${JSON.stringify(text)}`,
  );
}
