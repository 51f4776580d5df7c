/** What server and agent say about themselves: JSON lines for programs, one readable line each on a terminal. */
import { pino, type Logger } from "pino";
import { plain, type Paint } from "./terminal.ts";

export const logLevels = ["trace", "debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

/** Fields that every line has or that say nothing to a person. */
const hidden = new Set(["level", "time", "msg", "pid", "hostname", "component", "err"]);

/**
 * Makes the logger of one process.
 *
 * @param options.component `server`, `agent` or `up`; part of each line.
 * @param options.paint Given on a terminal: lines are for people, with colours if it wants them.
 * @param options.write Receives whole lines with their newline.
 */
export function createLogger(options: {
  readonly component: string;
  readonly level: LogLevel;
  readonly paint?: Paint;
  readonly write: (line: string) => void;
}): Logger {
  const { component, level, paint, write } = options;
  const stream = paint === undefined ? { write } : { write: (line: string) => write(readable(line, component, paint)) };
  const redact = { paths: ["token", "*.token", "cloneUrl", "*.cloneUrl", "req.headers.authorization"], remove: true };
  return pino({ level, base: { component }, timestamp: pino.stdTimeFunctions.isoTime, redact }, stream);
}

const levelNames: Readonly<Record<number, readonly [string, Parameters<Paint>[0]]>> = {
  10: ["trace", "dim"],
  20: ["debug", "dim"],
  30: ["info ", "green"],
  40: ["warn ", "yellow"],
  50: ["error", "red"],
  60: ["fatal", "red"],
};

/** Turns pino's line of JSON into one for people: time, level, who, message, the other fields as key=value. */
export function readable(line: string, component: string, paint: Paint): string {
  const record = JSON.parse(line) as Record<string, unknown> & { level: number; time: string; msg?: string };
  const [name, style] = levelNames[record.level] ?? ["?    ", "dim"];
  const time = new Date(record.time).toTimeString().slice(0, 8);
  const fields = Object.entries(record).filter(([key]) => !hidden.has(key));
  const shown = fields.map(([key, value]) => paint("dim", `${plain(key)}=${plain(text(value))}`));
  const error = record["err"] as { message?: string } | undefined;
  if (error?.message !== undefined) shown.push(plain(error.message));
  const words = [
    paint("dim", time),
    paint(style, name),
    paint("cyan", component.padEnd(6)),
    plain(record.msg ?? ""),
    ...shown,
  ];
  return `${words.join(" ")}\n`;
}

function text(value: unknown): string {
  return typeof value === "string" ? value : (JSON.stringify(value) ?? "");
}
