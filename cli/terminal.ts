/** What is written to a terminal: colours where they are wanted, and no escape sequence that somebody else wrote. */

type Style = "bold" | "dim" | "red" | "green" | "yellow" | "blue" | "magenta" | "cyan";

const codes: Readonly<Record<Style, readonly [number, number]>> = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  blue: [34, 39],
  magenta: [35, 39],
  cyan: [36, 39],
};

/** Puts a text into a style, or leaves it as it is. */
export type Paint = (style: Style, text: string) => string;

/** A `Paint` for a stream that does or does not show colours. */
export function painter(colours: boolean): Paint {
  return (style, text) => (colours ? `\x1b[${codes[style][0]}m${text}\x1b[${codes[style][1]}m` : text);
}

/**
 * Whether to colour: NO_COLOR (not empty) says no, FORCE_COLOR (not empty, not 0) says yes, else a terminal that is not `dumb` does.
 *
 * @see https://no-color.org
 */
export function wantsColours(environment: NodeJS.ProcessEnv, isTerminal: boolean): boolean {
  if (environment["NO_COLOR"]) return false;
  const force = environment["FORCE_COLOR"];
  if (force !== undefined && force !== "") return force !== "0";
  return isTerminal && environment["TERM"] !== "dumb";
}

// C0 and C1 controls, DEL, and the characters that reorder text (CVE-2021-42574).
const unsafe = /[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/;
const unsafeAll = new RegExp(unsafe, "g");

/** Makes a name from a repository harmless to print: every control character is shown as `\x1b`, none is sent. */
export function plain(text: string): string {
  return unsafe.test(text) ? text.replace(unsafeAll, escaped) : text;
}

/** A name as a table shows it: `plain`, in at most so many characters. */
export function cell(text: string, most: number): string {
  const characters = Array.from(plain(text));
  return characters.length <= most ? characters.join("") : `${characters.slice(0, most - 1).join("")}…`;
}

function escaped(character: string): string {
  const code = character.charCodeAt(0);
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return `\\u{${code.toString(16)}}`;
}

// One alternative each: colours and styles (SGR), every other CSI, strings (OSC, DCS, APC, PM, SOS), other escapes.
const sequence =
  /(\x1b\[[0-9;:]*m)|[\x1b]\[[\x20-\x3f]*[\x40-\x7e]?|\x1b[\]PX^_](?:[^\x07\x1b]|\x1b(?!\\))*(?:\x07|\x1b\\)?|\x1b[\x20-\x2f]*[\x30-\x7e]?|[\x00-\x08\x0a-\x1f\x7f-\x9f]/g;

/**
 * Makes one line of a step's output harmless to print: of all escape sequences only colours stay, and only where colours
 * are wanted; of a line that was overwritten with carriage returns the last version stays.
 */
export function logLine(line: string, colours: boolean): string {
  if (!unsafe.test(line)) return line;
  const shown = line.replace(/\r+$/, "");
  const last = shown.slice(shown.lastIndexOf("\r") + 1);
  let styled = false;
  const clean = last.replace(sequence, (_match, sgr: string | undefined) => {
    if (sgr === undefined || !colours) return "";
    styled = true;
    return sgr;
  });
  return styled ? `${clean}\x1b[0m` : clean;
}

/** `4 ms`, `1.24 s`, `2 min 05 s`. */
export function duration(durationMs: number): string {
  if (durationMs < 9.95) return `${Math.max(0, durationMs).toFixed(1)} ms`;
  if (durationMs < 999.5) return `${Math.round(durationMs)} ms`;
  if (durationMs < 59_995) return `${(durationMs / 1000).toFixed(2)} s`;
  const seconds = Math.round(durationMs / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
}
