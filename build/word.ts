/**
 * Words of a Dockerfile: variables, quotes and escapes, as BuildKit reads them (frontend/dockerfile/shell/lex.go).
 *
 * It is like a shell's and yet not one: no command substitution, no arithmetic, no lists, and what is unset is empty.
 */
import { PatternError, ShellPattern } from "./shell-pattern.ts";

/** What a variable holds; undefined if it is not set. */
export type Lookup = (name: string) => string | undefined;

/** The character that escapes; the directive `escape` chooses it. */
export type EscapeCharacter = "\\" | "`";

export interface WordOptions {
  /** @default "\\" */
  readonly escape?: EscapeCharacter;
  /** Quotes are characters like others: what is in a here-document. @default false */
  readonly literalQuotes?: boolean;
  /** Quotes stay in the result. @default false */
  readonly keepQuotes?: boolean;
  /** Escape characters stay in the result. @default false */
  readonly keepEscapes?: boolean;
  /** What refers to an unset variable stays as it is written. @default false */
  readonly keepUnset?: boolean;
}

export interface ExpandedWord {
  readonly text: string;
  /** The text split at white space that no quote or escape protects. */
  readonly words: readonly string[];
  /** Variables that were referred to but are not set, other than with a default. */
  readonly unset: ReadonlySet<string>;
}

/** A word that means nothing: an unclosed quote, a bad substitution, or `${name:?…}` of an unset variable. */
export class WordError extends Error {
  override readonly name = "WordError";
}

/** What a word may become: variables that hold each other twice would double forty times in a file of forty lines. */
const MAX_EXPANDED = 1 << 20;
/** Substitutions inside each other. */
const MAX_DEPTH = 50;

/**
 * Replaces variables and takes quotes and escapes away.
 *
 * @throws {WordError} If the word means nothing, or becomes longer than 1 MiB.
 */
export function expandWord(source: string, lookup: Lookup, options: WordOptions = {}): ExpandedWord {
  const lexer = new Lexer(source, lookup, options);
  const { text, words } = lexer.until(undefined, options.keepEscapes ?? false);
  return { text, words, unset: lexer.unset };
}

class Lexer {
  readonly unset = new Set<string>();
  readonly #source: string;
  readonly #lookup: Lookup;
  readonly #options: WordOptions;
  readonly #escape: EscapeCharacter;
  #keepEscapes = false;
  #at = 0;
  #depth = 0;

  constructor(source: string, lookup: Lookup, options: WordOptions) {
    this.#source = source;
    this.#lookup = lookup;
    this.#options = options;
    this.#escape = options.escape ?? "\\";
  }

  /** Reads up to a character, which is taken, or to the end. */
  until(stop: "}" | "/" | undefined, keepEscapes: boolean): { text: string; words: string[] } {
    const before = this.#keepEscapes;
    this.#keepEscapes = keepEscapes;
    const output = new Output();
    try {
      for (;;) {
        const character = this.#peek();
        if (character === undefined) break;
        if (character === stop) {
          this.#at++;
          return output.finish();
        }
        this.#piece(character, output);
      }
    } finally {
      this.#keepEscapes = before;
    }
    if (stop !== undefined) throw new WordError(`a \${…} lacks its "${stop}"`);
    return output.finish();
  }

  #piece(character: string, output: Output): void {
    const { literalQuotes = false } = this.#options;
    if (character === "$") output.split(this.#dollar());
    else if (character === "<") output.whole(this.#hereDocument());
    else if (character === "'" && !literalQuotes) output.whole(this.#singleQuoted());
    else if (character === '"' && !literalQuotes) output.whole(this.#doubleQuoted());
    else if (character === this.#escape) {
      this.#at++;
      if (this.#keepEscapes) output.whole(character);
      const escaped = this.#next();
      if (escaped !== undefined) output.whole(escaped);
    } else {
      this.#at++;
      output.split(character);
    }
  }

  #peek(): string | undefined {
    return this.#source[this.#at];
  }

  #next(): string | undefined {
    return this.#source[this.#at++];
  }

  #singleQuoted(): string {
    const end = this.#source.indexOf("'", this.#at + 1);
    if (end === -1) throw new WordError("a single quote is not closed");
    const inner = this.#source.slice(this.#at + 1, end);
    this.#at = end + 1;
    return this.#options.keepQuotes ? `'${inner}'` : inner;
  }

  #doubleQuoted(): string {
    this.#at++;
    let result = "";
    for (;;) {
      const character = this.#peek();
      if (character === undefined) throw new WordError("a double quote is not closed");
      if (character === '"') {
        this.#at++;
        return this.#options.keepQuotes ? `"${result}"` : result;
      }
      if (character === "$") {
        result += this.#dollar();
        continue;
      }
      this.#at++;
      if (character !== this.#escape) {
        result += character;
        continue;
      }
      if (this.#keepEscapes) result += character;
      const escaped = this.#peek();
      // At the end of the word it goes; before anything but these it is a character like others.
      if (escaped === undefined) continue;
      if (escaped === '"' || escaped === "$" || escaped === this.#escape) result += this.#next() as string;
      else result += character;
    }
  }

  /** `<<` and the space between it and its word are kept together, so that the space does not split. */
  #hereDocument(): string {
    this.#at++;
    if (this.#peek() !== "<") return "<";
    const start = this.#at - 1;
    this.#at++;
    while (/^[\t\r ]$/.test(this.#peek() ?? "")) this.#at++;
    return this.#source.slice(start, this.#at);
  }

  #dollar(): string {
    this.#at++;
    if (this.#peek() !== "{") {
      const name = this.#name();
      if (name === "") return "$";
      return this.#value(name) ?? (this.#options.keepUnset ? `$${name}` : "");
    }
    if (++this.#depth > MAX_DEPTH) throw new WordError(`more than ${MAX_DEPTH} substitutions are inside each other`);
    this.#at++;
    const result = this.#substitution();
    this.#depth--;
    return result;
  }

  /** What stands behind `${`. */
  #substitution(): string {
    const first = this.#peek();
    if (first === undefined) throw new WordError('a ${…} lacks its "}"');
    if (first === "{" || first === "}" || first === ":") throw new WordError(`bad substitution "\${${first}"`);
    const name = this.#name();
    let operator = this.#next();
    if (operator === undefined) throw new WordError('a ${…} lacks its "}"');
    if (operator === "}") return this.#value(name) ?? (this.#options.keepUnset ? `\${${name}}` : "");
    if (operator === "/") return this.#replacement(name);
    const colon = operator === ":";
    if (colon) operator = this.#next();
    if (operator === "-" || operator === "+" || operator === "?") return this.#conditional(name, operator, colon);
    if (!colon && (operator === "#" || operator === "%")) return this.#trimmed(name, operator);
    throw new WordError(`"\${${name}${colon ? ":" : ""}${operator ?? ""}…}" is no substitution`);
  }

  #conditional(name: string, operator: "-" | "+" | "?", colon: boolean): string {
    const { text: word } = this.until("}", false);
    const value = this.#lookup(name);
    if (value === undefined && this.#options.keepUnset) return `\${${name}${colon ? ":" : ""}${operator}${word}}`;
    const missing = value === undefined || (colon && value === "");
    switch (operator) {
      case "-":
        return missing ? word : value;
      case "+":
        return missing ? "" : word;
      case "?":
        if (!missing) return value;
        throw new WordError(`${name}: ${word === "" ? `is ${value === undefined ? "not set" : "empty"}` : word}`);
    }
  }

  #trimmed(name: string, operator: "#" | "%"): string {
    const { text } = this.until("}", true);
    const value = this.#value(name);
    if (value === undefined) return this.#options.keepUnset ? `\${${name}${operator}${text}}` : "";
    const longest = text.startsWith(operator);
    const pattern = compile(longest ? text.slice(1) : text);
    if (operator === "#") return value.slice(pattern.matchPrefix(value, { longest }) ?? 0);
    return value.slice(0, pattern.matchSuffix(value, { longest }) ?? value.length);
  }

  #replacement(name: string): string {
    const all = this.#peek() === "/";
    if (all) this.#at++;
    const { text: pattern } = this.until("/", true);
    const { text: replacement } = this.until("}", true);
    const value = this.#value(name);
    if (value === undefined) return this.#options.keepUnset ? `\${${name}/${pattern}/${replacement}}` : "";
    const compiled = compile(pattern);
    let result = "";
    let copied = 0;
    for (let from = 0; from <= value.length; ) {
      const match = compiled.find(value, from);
      if (match === undefined) break;
      const isEmpty = match.start === match.end;
      // An empty match right behind another one is none.
      if (!isEmpty || match.start !== copied || copied === 0) {
        result += value.slice(copied, match.start) + replacement;
        checkLength(result.length);
        copied = match.end;
      }
      from = isEmpty ? match.end + 1 : match.end;
      if (!all) break;
    }
    return result + value.slice(copied);
  }

  #value(name: string): string | undefined {
    const value = this.#lookup(name);
    if (value === undefined) this.unset.add(name);
    return value;
  }

  /** Letters, digits and `_`; all digits of a number; or one of the shell's special characters. */
  #name(): string {
    variableName.lastIndex = this.#at;
    const name = variableName.exec(this.#source)?.[0] ?? "";
    this.#at += name.length;
    return name;
  }
}

const variableName = /\p{Nd}+|[@*#?$!-]|[\p{L}_][\p{L}\p{Nd}_]*/uy;

function compile(pattern: string): ShellPattern {
  try {
    return new ShellPattern(pattern);
  } catch (error) {
    if (error instanceof PatternError) throw new WordError(`${error.message} in a pattern`, { cause: error });
    throw error;
  }
}

/** Text, and the same split at white space. */
class Output {
  readonly #words: string[] = [];
  #text = "";
  #word = "";

  /** Adds text whose white space separates words. */
  split(text: string): void {
    this.#grow(text);
    for (const piece of text.split(separators)) {
      if (piece === "") continue;
      if (!separator.test(piece)) this.#word += piece;
      else if (this.#word !== "") this.#end();
    }
  }

  /** Adds text that is part of a word whatever it holds. */
  whole(text: string): void {
    this.#grow(text);
    this.#word += text;
  }

  #grow(text: string): void {
    this.#text += text;
    checkLength(this.#text.length);
  }

  #end(): void {
    this.#words.push(this.#word);
    this.#word = "";
  }

  finish(): { text: string; words: string[] } {
    if (this.#word !== "") this.#end();
    return { text: this.#text, words: this.#words };
  }
}

function checkLength(length: number): void {
  if (length > MAX_EXPANDED) throw new WordError(`it becomes longer than ${MAX_EXPANDED} characters`);
}

/** White space as Go's unicode.IsSpace has it. */
export const SPACE = "\\t\\n\\v\\f\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const separators = new RegExp(`([${SPACE}]+)`);
const separator = new RegExp(`^[${SPACE}]`);
