/**
 * Divides a Dockerfile into instructions: joined lines, here-documents, parser directives.
 *
 * The rules are those of BuildKit (frontend/dockerfile/parser/parser.go).
 */
import { isUtf8 } from "node:buffer";
import { formatBytes, type Problems, quote, Source, type Span } from "../pipelines/index.ts";
import { LIMITS } from "./limits.ts";
import { type EscapeCharacter, expandWord, SPACE, WordError } from "./word.ts";

/** `RUN <<EOF … EOF` */
export interface HereDocument {
  readonly name: string;
  /** With line ends; tabs of `<<-` not yet taken off. */
  readonly content: string;
  /** `<<-`: leading tabs do not count. */
  readonly chomp: boolean;
  /** Whether variables in it are replaced: no part of its name is quoted. */
  readonly expand: boolean;
}

/** One instruction: lines joined where a continuation character ends them, comments between them left out. */
export interface LogicalLine {
  readonly text: string;
  /** In the file, here-documents included. */
  readonly span: Span;
  readonly hereDocuments: readonly HereDocument[];
  /** Where a character of `text` stands in the file. */
  readonly place: (at: number) => number;
}

/** `# escape=…`, `# syntax=…` and `# check=…` at the top of a Dockerfile. */
export interface Directives {
  readonly escape: EscapeCharacter;
  readonly syntax?: string;
  readonly check?: string;
}

/** Whether what follows an instruction may be here-documents; told from its joined line. */
export type TakesHereDocuments = (text: string) => boolean;

/**
 * Decodes a Dockerfile; line ends become LF, a byte order mark goes.
 *
 * Where there is a fault, `source` is only good for showing it.
 */
export function readSource(input: string | Uint8Array): { readonly source: Source; readonly fault?: string } {
  const bytes = typeof input === "string" ? Buffer.byteLength(input) : input.length;
  if (bytes > LIMITS.fileBytes) {
    const fault = `the file has ${formatBytes(bytes)}; a Dockerfile has at most ${formatBytes(LIMITS.fileBytes)}`;
    return { source: new Source(""), fault };
  }
  const text = typeof input === "string" ? input : new TextDecoder("utf-8", { ignoreBOM: true }).decode(input);
  const source = new Source(text.replace(/^\ufeff/, "").replaceAll("\r\n", "\n"));
  if (typeof input !== "string" && !isUtf8(input)) return { source, fault: "the file is not UTF-8 text" };
  if (source.text.includes("\0")) return { source, fault: "the file contains a NUL byte" };
  return { source };
}

/** Reads all instructions; what cannot be one is reported and left out. */
export function readLines(
  source: Source,
  problems: Problems,
  takesHereDocuments: TakesHereDocuments,
): { readonly lines: readonly LogicalLine[]; readonly directives: Directives } {
  const reader = new LineReader(source, problems, takesHereDocuments);
  return reader.read();
}

class LineReader {
  readonly #problems: Problems;
  readonly #takesHereDocuments: TakesHereDocuments;
  readonly #text: string;
  readonly #seen = new Set<string>();
  #at = 0;
  #directives: { escape: EscapeCharacter; syntax?: string; check?: string } = { escape: "\\" };
  #inDirectives = true;

  constructor(source: Source, problems: Problems, takesHereDocuments: TakesHereDocuments) {
    this.#problems = problems;
    this.#takesHereDocuments = takesHereDocuments;
    this.#text = source.text;
  }

  read(): { lines: LogicalLine[]; directives: Directives } {
    const lines: LogicalLine[] = [];
    while (this.#at < this.#text.length) {
      const line = this.#instruction();
      if (line === undefined) continue;
      if (lines.length === LIMITS.instructions) {
        this.#problems.error(line.span, `the file has more than ${LIMITS.instructions} instructions`);
        break;
      }
      lines.push(line);
    }
    return { lines, directives: this.#directives };
  }

  /** The next physical line without its end, and where it begins. */
  #line(): { readonly text: string; readonly start: number } {
    const start = this.#at;
    const end = this.#text.indexOf("\n", start);
    this.#at = end === -1 ? this.#text.length : end + 1;
    const text = this.#text.slice(start, end === -1 ? undefined : end);
    if (text.length > LIMITS.lineLength) {
      this.#problems.error({ start, end: start + 1 }, `the line is longer than ${LIMITS.lineLength} characters`);
      return { text: "", start };
    }
    return { text, start };
  }

  #instruction(): LogicalLine | undefined {
    const first = this.#line();
    const trimmed = trimStart(first.text);
    const start = first.start + first.text.length - trimmed.length;
    if (this.#inDirectives) this.#directive(trimmed, start);
    if (trimmed === "" || trimmed.startsWith("#")) return undefined;
    const pieces = new Pieces();
    let continues = this.#append(pieces, trimmed, start);
    let end = first.start + first.text.length;
    let emptyLine: Span | undefined;
    while (continues && this.#at < this.#text.length) {
      const next = this.#line();
      const rest = trimStart(next.text);
      if (rest.startsWith("#")) continue;
      if (rest === "") {
        emptyLine = { start: next.start, end: next.start + 1 };
        continue;
      }
      continues = this.#append(pieces, next.text, next.start);
      end = next.start + next.text.length;
    }
    if (emptyLine !== undefined) {
      this.#problems.warning(
        emptyLine,
        "an empty line inside an instruction",
        "remove it, or the character that continues the line before it",
      );
    }
    if (pieces.text.trim() === "") return undefined;
    if (pieces.text.length > LIMITS.instructionLength) {
      this.#problems.error({ start, end }, `the instruction is longer than ${LIMITS.instructionLength} characters`);
      return undefined;
    }
    const hereDocuments = this.#hereDocuments(pieces, { start, end });
    if (hereDocuments === undefined) return undefined;
    const span = { start, end: hereDocuments.length === 0 ? end : this.#at };
    return { text: pieces.text, span, hereDocuments, place: (at) => pieces.place(at) };
  }

  /** Adds a physical line; whether its end continues the instruction. */
  #append(pieces: Pieces, text: string, start: number): boolean {
    const { escape } = this.#directives;
    let length = text.length;
    while (text[length - 1] === " " || text[length - 1] === "\t") length--;
    const content = text.slice(0, length);
    // Two of them are one that is meant.
    const continues = content.endsWith(escape) && content.at(-2) !== escape;
    pieces.add(continues ? content.slice(0, -1) : text, start);
    return continues;
  }

  /** @returns undefined if one of them does not end. */
  #hereDocuments(pieces: Pieces, line: Span): HereDocument[] | undefined {
    const { text } = pieces;
    if (!text.includes("<<") || !this.#takesHereDocuments(text)) return [];
    const documents: HereDocument[] = [];
    for (const { name, chomp, expand } of findHereDocuments(text)) {
      const start = this.#at;
      let content: string | undefined;
      while (content === undefined && this.#at < this.#text.length) {
        const lineStart = this.#at;
        const newline = this.#text.indexOf("\n", lineStart);
        this.#at = newline === -1 ? this.#text.length : newline + 1;
        const candidate = this.#text.slice(lineStart, newline === -1 ? undefined : newline);
        if ((chomp ? candidate.replace(/^\t+/, "") : candidate) === name) content = this.#text.slice(start, lineStart);
      }
      if (content === undefined) {
        const at = Math.max(0, text.indexOf("<<"));
        this.#problems.error(
          { start: pieces.place(at), end: Math.min(line.end, pieces.place(at) + 2 + name.length) },
          `the here-document ${quote(name)} does not end`,
          `write ${quote(name)} alone on the line behind it`,
        );
        return undefined;
      }
      documents.push({ name, content, chomp, expand });
    }
    return documents;
  }

  #directive(line: string, start: number): void {
    const match = line.startsWith("#") ? /^([a-zA-Z][a-zA-Z0-9]*)\s*=/.exec(trimStart(line.slice(1, 300))) : null;
    const key = match?.[1]?.toLowerCase();
    const value = line.slice(line.indexOf("=") + 1).trim();
    if ((key !== "escape" && key !== "syntax" && key !== "check") || value === "") {
      this.#inDirectives = false;
      return;
    }
    const span = { start, end: start + line.length };
    if (this.#seen.has(key)) {
      this.#problems.error(span, `a second parser directive "${key}"`, "write each of them once");
      return;
    }
    this.#seen.add(key);
    if (key !== "escape") this.#directives[key] = value;
    else if (value === "\\" || value === "`") this.#directives.escape = value;
    else this.#problems.error(span, `${quote(value)} cannot escape`, "write # escape=\\ or # escape=`");
  }
}

/** Text put together of parts that stand apart in the file. */
class Pieces {
  text = "";
  readonly #starts: { readonly at: number; readonly place: number }[] = [];

  add(text: string, place: number): void {
    this.#starts.push({ at: this.text.length, place });
    this.text += text;
  }

  place(at: number): number {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#starts[middle]?.at ?? 0) <= at) low = middle;
      else high = middle - 1;
    }
    const piece = this.#starts[low] ?? { at: 0, place: 0 };
    return piece.place + at - piece.at;
  }
}

/** The here-documents that a line announces, in order. */
function findHereDocuments(line: string): Omit<HereDocument, "content">[] {
  try {
    const { words } = expandWord(line, () => undefined, { keepQuotes: true, keepEscapes: true, keepUnset: true });
    return words.flatMap((word) => parseHereDocument(word) ?? []);
  } catch (error) {
    // What is no word of ours may be one of the shell's.
    if (error instanceof WordError) return [];
    throw error;
  }
}

/** Reads `<<EOF`, `<<-EOF`, `3<<"EOF"`; undefined if the word is something else. */
export function parseHereDocument(word: string): Omit<HereDocument, "content"> | undefined {
  const match = /^\d*<<(-?)([^<]+)$/.exec(word);
  if (match === null) return undefined;
  const [, dash, rest = ""] = match;
  try {
    const unset = () => undefined;
    const { words } = expandWord(rest, unset, { keepUnset: true });
    const { words: quoted } = expandWord(rest, unset, { keepUnset: true, keepQuotes: true });
    const [name] = words;
    if (name === undefined || words.length !== 1) return undefined;
    return { name, chomp: dash === "-", expand: quotes(name) === quotes(quoted[0] ?? "") };
  } catch (error) {
    if (error instanceof WordError) return undefined;
    throw error;
  }
}

function quotes(text: string): number {
  return text.replaceAll(/[^"']/g, "").length;
}

const leadingSpace = new RegExp(`^[${SPACE}]+`);

function trimStart(text: string): string {
  return text.replace(leadingSpace, "");
}
