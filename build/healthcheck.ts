/** HEALTHCHECK: its command and its durations. */
import { type Problems, quote } from "../pipelines/index.ts";
import type { FlagTable, FlagValues } from "./flags.ts";
import type { Healthcheck, Word } from "./instruction.ts";
import { readJson, splitOnce, type SplitInstruction, wholeWord } from "./split.ts";

export const healthcheckFlags = {
  interval: "text",
  timeout: "text",
  "start-period": "text",
  "start-interval": "text",
  retries: "text",
} as const satisfies FlagTable;

/** Reads `NONE`, or `CMD` and a command either way; undefined if it is reported. */
export function readHealthcheck(
  instruction: SplitInstruction,
  flags: FlagValues<typeof healthcheckFlags>,
  problems: Problems,
): Healthcheck | undefined {
  const { first, rest } = splitOnce(instruction.rest);
  const kind = first.text.toUpperCase();
  const command = rest?.text.trim() ?? "";
  if (kind === "NONE") {
    if (command === "") return { Test: ["NONE"] };
    problems.error(first.span, "HEALTHCHECK NONE takes no arguments");
    return undefined;
  }
  if (kind !== "CMD" || rest === undefined || command === "") {
    const problem = kind === "CMD" ? "HEALTHCHECK CMD needs a command" : "HEALTHCHECK takes NONE, or CMD and a command";
    problems.error(kind === "" ? instruction.name.span : first.span, problem);
    return undefined;
  }
  const json = readJson(command);
  if (json === "not strings" || json?.length === 0) {
    problems.error(wholeWord(rest).span, "the JSON array must hold one string or more, and nothing else");
    return undefined;
  }
  const times = {
    Interval: readDuration(flags.interval, problems),
    Timeout: readDuration(flags.timeout, problems),
    StartPeriod: readDuration(flags["start-period"], problems),
    StartInterval: readDuration(flags["start-interval"], problems),
    Retries: readRetries(flags.retries, problems),
  };
  const given = Object.entries(times).filter(([, value]) => value !== undefined && value !== 0);
  return {
    Test: json === undefined ? ["CMD-SHELL", command] : ["CMD", ...json],
    ...(Object.fromEntries(given) as Partial<Record<keyof typeof times, number>>),
  };
}

const nanoseconds: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  µs: 1e3,
  μs: 1e3,
  ms: 1e6,
  s: 1e9,
  m: 60e9,
  h: 3600e9,
};

/** Reads a duration of Go's (`1m30s`, `1.5h`) into nanoseconds; undefined if it is none. */
export function parseGoDuration(text: string): number | undefined {
  if (text === "0") return 0;
  if (!/^(?:\d+(?:\.\d*)?(?:ns|us|µs|μs|ms|s|m|h))+$/.test(text) || text.length > 100) return undefined;
  let sum = 0;
  for (const [, amount = "", unit = ""] of text.matchAll(/(\d+(?:\.\d*)?)(ns|us|µs|μs|ms|s|m|h)/g)) {
    sum += Number(amount) * (nanoseconds[unit] ?? 0);
  }
  // 2^63 nanoseconds is what Go holds; above 2^53 no double is exact.
  return sum > Number.MAX_SAFE_INTEGER ? undefined : Math.round(sum);
}

function readDuration(word: Word | undefined, problems: Problems): number | undefined {
  if (word === undefined || word.text === "") return undefined;
  const value = parseGoDuration(word.text);
  if (value === undefined) {
    problems.error(
      word.span,
      `${quote(word.text)} is no duration`,
      "write hours, minutes and seconds: 90s, 1m30s, 500ms",
    );
  } else if (value !== 0 && value < 1e6) {
    problems.error(word.span, `the duration ${quote(word.text)} is shorter than a millisecond`);
  } else return value;
  return undefined;
}

function readRetries(word: Word | undefined, problems: Problems): number | undefined {
  if (word === undefined || word.text === "") return undefined;
  if (/^\+?\d{1,9}$/.test(word.text)) return Number(word.text);
  problems.error(word.span, `${quote(word.text)} is no number of retries`, "write a whole number from 0 on");
  return undefined;
}
