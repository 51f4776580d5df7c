/** Diagnostics as a person reads them in a terminal. */
import type { Diagnostic } from "./pipeline.ts";

/**
 * Formats a diagnostic as a block of lines without a final line end:
 *
 * ```
 * .slipway.yml:4:5: error: unknown key "stesp" in job "build"
 *   4 |     stesp:
 *     |     ^^^^^
 *   help: did you mean "steps"?
 * ```
 *
 * Nothing of the file reaches the terminal unescaped: control characters and those that reorder or hide text are shown as
 * visible ones, so that a hostile file can neither move the cursor nor look like other text (CVE-2021-42574).
 */
export function formatDiagnostic(diagnostic: Diagnostic, options: { readonly color?: boolean } = {}): string {
  const paint = options.color === true ? painted : plain;
  const tone = diagnostic.severity === "error" ? "red" : "yellow";
  const place = visible(`${diagnostic.file}:${diagnostic.line}:${diagnostic.column}`);
  const lines = [
    `${paint("bold", `${place}:`)} ${paint(tone, `${diagnostic.severity}:`)} ${visible(diagnostic.message)}`,
  ];
  if (diagnostic.snippet.trim() !== "") {
    const first = diagnostic.snippetColumn ?? 1;
    const start = diagnostic.column - first;
    const { text, widthBefore, width } = layOut(diagnostic.snippet, start, diagnostic.endColumn - first);
    const number = String(diagnostic.line);
    const ellipsis = first > 1 ? "…" : "";
    lines.push(`  ${paint("blue", `${number} |`)} ${ellipsis}${text}`);
    const indent = " ".repeat(widthBefore + ellipsis.length);
    lines.push(`  ${paint("blue", `${" ".repeat(number.length)} |`)} ${indent}${paint(tone, "^".repeat(width))}`);
  }
  if (diagnostic.suggestion !== undefined) lines.push(`  ${paint("cyan", "help:")} ${visible(diagnostic.suggestion)}`);
  return lines.join("\n");
}

type Tone = "bold" | "red" | "yellow" | "blue" | "cyan";
const codes: Readonly<Record<Tone, number>> = { bold: 1, red: 31, yellow: 33, blue: 34, cyan: 36 };

function painted(tone: Tone, text: string): string {
  return `\u001b[${codes[tone]}m${text}\u001b[0m`;
}

function plain(_tone: Tone, text: string): string {
  return text;
}

/** Makes a line visible and measures, in terminal cells, where `[start, end)` of its code units is. */
function layOut(line: string, start: number, end: number): { text: string; widthBefore: number; width: number } {
  let text = "";
  let at = 0;
  let cells = 0;
  let widthBefore: number | undefined;
  let widthAfter: number | undefined;
  for (const character of line) {
    if (at >= start) widthBefore ??= cells;
    if (at >= end) widthAfter ??= cells;
    const shown = character === "\t" ? " ".repeat(4 - (cells % 4)) : visible(character);
    text += shown;
    cells += cellsOf(shown);
    at += character.length;
  }
  const before = widthBefore ?? cells;
  return { text: text.trimEnd(), widthBefore: before, width: Math.max(1, (widthAfter ?? cells) - before) };
}

/** C0, DEL, C1, soft hyphen, zero width, bidirectional controls, line separators, half surrogates, private tags. */
const unsafe =
  /[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\u{e0000}-\u{e007f}]|\p{Surrogate}/gu;

/** Replaces characters that act on a terminal by ones that show: ESC becomes ␛, U+202E becomes `<U+202E>`. */
export function visible(text: string): string {
  return text.replace(unsafe, (character) => {
    const code = character.codePointAt(0) ?? 0;
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "␡";
    return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
  });
}

/** East Asian wide and emoji blocks, near enough for a caret. */
const wide =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{1f300}-\u{1f64f}\u{1f680}-\u{1f6ff}\u{1f900}-\u{1f9ff}\u{20000}-\u{3fffd}]/u;

function cellsOf(text: string): number {
  let cells = 0;
  for (const character of text) {
    if (/\p{Mark}/u.test(character)) continue;
    cells += wide.test(character) ? 2 : 1;
  }
  return cells;
}
