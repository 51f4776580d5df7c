/** Durations and sizes as a pipeline writes them: `1h30m`, `512MiB`. */
import { LIMITS } from "./limits.ts";

/** A number in the base unit, or why the text is none and what was probably meant. */
export type Quantity =
  | { readonly ok: true; readonly value: number }
  | { readonly ok: false; readonly problem: string; readonly suggestion: string };

const durationUnits = new Map([
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1000],
]);

/** @see DURATION_PATTERN is the same language for editors. */
const durationForm = /^(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?$/;
export const DURATION_PATTERN = "^(?=.)(\\d+d)?(\\d+h)?(\\d+m)?(\\d+s)?$";

/** Reads a duration such as `90s`, `5m`, `1h30m` or `2d` into milliseconds. */
export function parseDuration(text: string): Quantity {
  const groups = text === "" ? null : durationForm.exec(text);
  if (groups === null) {
    return {
      ok: false,
      problem: /^[\d_.]+$/.test(text) ? "it has no unit" : "it is no duration",
      suggestion: suggestDuration(text) ?? "write hours, minutes and seconds, like 90s, 5m or 1h30m",
    };
  }
  // The groups stand in the order of the units.
  const value = [...durationUnits.values()].reduce(
    (sum, unit, index) => sum + unit * Number(groups[index + 1] ?? 0),
    0,
  );
  if (value < LIMITS.timeoutMinMs || value > LIMITS.timeoutMaxMs) {
    return {
      ok: false,
      problem: value < LIMITS.timeoutMinMs ? "it is too short" : "it is too long",
      suggestion: `write a duration from ${formatDuration(LIMITS.timeoutMinMs)} to ${formatDuration(LIMITS.timeoutMaxMs)}`,
    };
  }
  return { ok: true, value };
}

/** What a duration in another spelling means: `5 minutes`, `1.5h`, `300`. */
function suggestDuration(text: string): string | undefined {
  if (/^\d{1,9}$/.test(text)) return `write ${text}s for seconds or ${text}m for minutes`;
  const parts = [...text.slice(0, 60).matchAll(/(\d{1,9}(?:\.\d{1,3})?)\s*([a-z]+)/gi)];
  let milliseconds = 0;
  for (const [, amount = "", word = ""] of parts) {
    const unit = /^(ms|mo|milli)/i.test(word) ? undefined : durationUnits.get(word.slice(0, 1).toLowerCase());
    if (unit === undefined) return undefined;
    milliseconds += Number(amount) * unit;
  }
  const seconds = Math.round(milliseconds / 1000);
  return seconds < 1 || seconds * 1000 > LIMITS.timeoutMaxMs
    ? undefined
    : `did you mean ${formatDuration(seconds * 1000)}?`;
}

/** Writes milliseconds the way `parseDuration` reads them, rounded to seconds: `1h30m`. */
export function formatDuration(milliseconds: number): string {
  let rest = Math.round(milliseconds / 1000) * 1000;
  let text = "";
  for (const [unit, size] of durationUnits) {
    const count = Math.floor(rest / size);
    if (count > 0) text += `${count}${unit}`;
    rest -= count * size;
  }
  return text === "" ? "0s" : text;
}

/** One letter is binary, as in `docker run --memory 512M` and systemd; the SI spelling with B is decimal. */
const sizeUnits = new Map<string, number>([
  ["B", 1],
  ["K", 1024],
  ["M", 1024 ** 2],
  ["G", 1024 ** 3],
  ["T", 1024 ** 4],
  ["KiB", 1024],
  ["MiB", 1024 ** 2],
  ["GiB", 1024 ** 3],
  ["TiB", 1024 ** 4],
  ["KB", 1000],
  ["kB", 1000],
  ["MB", 1000 ** 2],
  ["GB", 1000 ** 3],
  ["TB", 1000 ** 4],
]);
export const SIZE_PATTERN = `^\\d+(\\.\\d+)?(${[...sizeUnits.keys()].join("|")})$`;

/** A rate is a size per second. */
export const RATE_PATTERN = SIZE_PATTERN.replace("$", "/s$");

/** From where to where a quantity may be, in bytes. */
export interface SizeRange {
  readonly least: number;
  readonly most: number;
}

/** Reads a size such as `512MiB`, `2GiB`, `1.5G` or `500MB` into whole bytes. */
export function parseSize(text: string, range: SizeRange = memoryRange): Quantity {
  const [, digits = "", unit = ""] = /^(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]{1,3})$/.exec(text) ?? [];
  const factor = sizeUnits.get(unit);
  if (factor === undefined) {
    return {
      ok: false,
      problem: /^[\d_.]+$/.test(text) ? "it has no unit" : "it is no size",
      suggestion: suggestSize(text) ?? "write a number and a unit, like 512MiB, 2GiB or 500MB",
    };
  }
  const value = Math.floor(Number(digits) * factor);
  if (value < range.least || value > range.most) {
    return {
      ok: false,
      problem: value < range.least ? "it is too small" : "it is too large",
      suggestion: `write a size from ${writeSize(range.least)} to ${writeSize(range.most)}`,
    };
  }
  return { ok: true, value };
}

const memoryRange: SizeRange = { least: LIMITS.memoryMinBytes, most: LIMITS.sizeMaxBytes };

/** Writes bytes the way `parseSize` reads them, rounded: `10.5MiB`. */
export function writeSize(bytes: number): string {
  return formatBytes(bytes).replace(" bytes", "B").replace(" ", "");
}

/** Reads a rate such as `50MiB/s` into whole bytes per second. */
export function parseRate(text: string, range: SizeRange): Quantity {
  const [, size = "", per] = /^(.*?)(\s*(?:\/\s*s(?:ec(?:ond)?)?|ps))?$/is.exec(text.slice(0, 60)) ?? [];
  const parsed = parseSize(size, range);
  if (parsed.ok && per === "/s") return parsed;
  if (parsed.ok) return { ok: false, problem: "a rate is a size per second", suggestion: `did you mean ${size}/s?` };
  const suggestion = parsed.suggestion
    .replace(/^(did you mean .*?)\?$/, (_, meant: string) => `${meant.replaceAll(/[KMGT]?i?B\b/g, "$&/s")}?`)
    .replace("a size from", "a rate from")
    .replace(/(\w+) to (\w+)$/, "$1/s to $2/s")
    .replace("a number and a unit, like 512MiB, 2GiB or 500MB", "a size per second, like 50MiB/s or 500KB/s");
  return { ok: false, problem: parsed.problem.replace("size", "rate"), suggestion };
}

/** What a size in another spelling means: `512mb`, `2 gib`, `2048`. */
function suggestSize(text: string): string | undefined {
  const [, digits, word = ""] = /^\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)\s*$/i.exec(text.slice(0, 60)) ?? [];
  if (digits === undefined) return undefined;
  if (word === "") {
    // Nobody limits memory to a few thousand bytes: a small bare number is a count of MiB.
    return Number(digits) >= LIMITS.memoryMinBytes ? `did you mean ${digits}B?` : `did you mean ${digits}MiB?`;
  }
  const [initial = ""] = word.toUpperCase();
  if (!"KMGT".includes(initial)) return undefined;
  return /^.b/i.test(word)
    ? `did you mean ${digits}${initial}iB or ${digits}${initial}B?`
    : `did you mean ${digits}${initial}iB?`;
}

/** Writes bytes for a person: `1 MiB`, `10.5 MiB`, `300 bytes`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} bytes`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number(value.toFixed(1))} ${units[unit]}`;
}
