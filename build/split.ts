/**
 * Takes the joined line of an instruction apart: its name, its flags, its words.
 *
 * The rules are those of BuildKit (frontend/dockerfile/parser/split_command.go, line_parsers.go), oddities included:
 * quotes group in ENV, LABEL, ARG and flags, but not in COPY.
 */
import type { Span } from "../pipelines/index.ts";
import type { Word } from "./instruction.ts";
import { type EscapeCharacter, SPACE } from "./word.ts";

/** A joined line, or the part of it behind ONBUILD. */
export interface Text {
  readonly text: string;
  readonly place: (at: number) => number;
}

export interface SplitInstruction {
  readonly name: Word;
  /** Without their quotes: `--chown=a:b`. */
  readonly flags: readonly Word[];
  /** Everything behind the flags, trimmed. */
  readonly rest: Text;
}

const space = new RegExp(`[${SPACE}]`);
const blank = /[\t\v\f\r ]+/;

/** Splits off the name and the flags, which end at the first word that does not begin with `--`, or behind `--`. */
export function splitInstruction(line: Text, escape: EscapeCharacter): SplitInstruction {
  const start = line.text.length - line.text.trimStart().length;
  const name = /^[^\t\v\f\r ]*/.exec(line.text.slice(start))?.[0] ?? "";
  const flags: Word[] = [];
  let at = skipSpace(line.text, start + name.length);
  while (line.text.startsWith("--", at)) {
    const flag = readFlag(line.text, at, escape);
    if (flag.text === "--") {
      at = flag.end;
      break;
    }
    if (flag.text !== "") flags.push({ text: flag.text, span: spanOf(line, at, flag.end) });
    at = skipSpace(line.text, flag.end);
  }
  return {
    name: { text: name, span: spanOf(line, start, start + name.length) },
    flags,
    rest: trim(part(line, at, line.text.length)),
  };
}

function readFlag(text: string, start: number, escape: EscapeCharacter): { text: string; end: number } {
  let flag = "";
  let quote = "";
  let at = start;
  for (; at < text.length; at++) {
    const character = text[at] as string;
    if (quote === "" && space.test(character)) break;
    if (quote === "" ? character === "'" || character === '"' : character === quote) {
      quote = quote === "" ? character : "";
    } else if (character === escape) {
      at++;
      flag += text[at] ?? "";
    } else flag += character;
  }
  return { text: flag, end: Math.min(at, text.length) };
}

/** Words between white space, quotes and escapes kept for `expandWord`; a quoted space does not separate. */
export function splitWords(line: Text, escape: EscapeCharacter): Word[] {
  const { text } = line;
  const words: Word[] = [];
  for (let at = skipSpace(text, 0); at < text.length; at = skipSpace(text, at)) {
    const start = at;
    let word = "";
    let quote = "";
    for (; at < text.length; at++) {
      const character = text[at] as string;
      if (quote === "" && space.test(character)) break;
      if (character === escape && quote !== "'") {
        // At the end of the line it means nothing.
        if (at + 1 === text.length) continue;
        word += character + (text[++at] as string);
        continue;
      }
      if (quote === "" && (character === "'" || character === '"')) quote = character;
      else if (character === quote) quote = "";
      word += character;
    }
    words.push({ text: word, span: spanOf(line, start, at) });
  }
  return words;
}

/** Words between blanks; quotes mean nothing. */
export function splitBlanks(line: Text): Word[] {
  const words: Word[] = [];
  for (const { 0: text, index } of line.text.matchAll(/[^\t\v\f\r ]+/g)) {
    words.push({ text, span: spanOf(line, index, index + text.length) });
  }
  return words;
}

/** The first word and everything behind the blanks that follow it; no second one if there are none. */
export function splitOnce(line: Text): { readonly first: Word; readonly rest?: Text } {
  const match = blank.exec(line.text);
  const end = match?.index ?? line.text.length;
  const first = { text: line.text.slice(0, end), span: spanOf(line, 0, end) };
  if (match === null) return { first };
  return { first, rest: part(line, end + match[0].length, line.text.length) };
}

/** A JSON array: of strings, of something else (a NUL cannot be an argument), or none at all, as `CMD [ -f x ] && y` is. */
export function readJson(text: string): readonly string[] | "not strings" | undefined {
  if (!text.trimStart().startsWith("[")) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!Array.isArray(value)) return undefined;
  const areStrings = value.every((item) => typeof item === "string" && !item.includes("\0"));
  return areStrings ? (value as string[]) : "not strings";
}

/** All of a text as one word. */
export function wholeWord(line: Text): Word {
  return { text: line.text, span: spanOf(line, 0, line.text.length) };
}

function part(line: Text, start: number, end: number): Text {
  return { text: line.text.slice(start, end), place: (at) => line.place(start + at) };
}

function trim(line: Text): Text {
  const start = line.text.length - line.text.trimStart().length;
  return part(line, start, start + line.text.trim().length);
}

function skipSpace(text: string, from: number): number {
  let at = from;
  while (at < text.length && space.test(text[at] as string)) at++;
  return at;
}

function spanOf(line: Text, start: number, end: number): Span {
  const last = Math.max(start, end - 1);
  return { start: line.place(start), end: line.place(last) + (end > start ? 1 : 0) };
}
