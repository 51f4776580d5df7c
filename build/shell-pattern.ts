/**
 * The patterns of `${name#pattern}` and its relatives: `*` is any text, `?` any character, a backslash takes their meaning
 * away.
 *
 * A pattern is split at its stars and each part is searched for once, so that no pattern, however hostile, costs more than
 * its length times that of the text; a regular expression would backtrack exponentially on `*a*a*a*b`.
 */

/** A part between two stars: characters, and undefined for `?`. */
type Part = readonly (string | undefined)[];

/** A pattern that cannot be read; the message says why. */
export class PatternError extends Error {
  override readonly name = "PatternError";
}

/** A half-open range of UTF-16 code units. */
export interface Match {
  readonly start: number;
  readonly end: number;
}

export class ShellPattern {
  readonly #parts: readonly Part[];

  /** @throws {PatternError} If a backslash stands before anything but `*`, `?`, a backslash, `}` or `/`. */
  constructor(pattern: string) {
    this.#parts = split(pattern);
  }

  /** Where the shortest or longest match at the beginning of the text ends. */
  matchPrefix(text: string, options: { readonly longest: boolean }): number | undefined {
    return matchAt(this.#parts, text, 0, options.longest);
  }

  /** Where the shortest or longest match at the end of the text begins. */
  matchSuffix(text: string, options: { readonly longest: boolean }): number | undefined {
    const turned = this.#parts.toReversed().map((part) => part.toReversed());
    const end = matchAt(turned, Array.from(text).toReversed().join(""), 0, options.longest);
    return end === undefined ? undefined : text.length - end;
  }

  /** The leftmost match from `from` on, as long as it can be there. */
  find(text: string, from: number): Match | undefined {
    const start = indexOf(text, this.#parts[0] ?? [], from);
    if (start === undefined) return undefined;
    // What is nowhere behind the first part is not behind a later one either.
    const end = matchAt(this.#parts, text, start, true);
    return end === undefined ? undefined : { start, end };
  }
}

function matchAt(parts: readonly Part[], text: string, start: number, longest: boolean): number | undefined {
  const [first = [], ...rest] = parts;
  let end = endAt(text, first, start);
  for (const [index, part] of rest.entries()) {
    if (end === undefined) return undefined;
    const isLast = index === rest.length - 1;
    const at: number | undefined = isLast && longest ? lastIndexOf(text, part, end) : indexOf(text, part, end);
    end = at === undefined ? undefined : endAt(text, part, at);
  }
  return end;
}

function split(pattern: string): Part[] {
  const parts: (string | undefined)[][] = [[]];
  const characters = Array.from(pattern);
  for (let at = 0; at < characters.length; at++) {
    const part = parts.at(-1) as (string | undefined)[];
    const character = characters[at] as string;
    if (character === "*") parts.push([]);
    else if (character === "?") part.push(undefined);
    else if (character === "\\") {
      const next = characters[++at];
      if (next === undefined || !"*?\\}/".includes(next)) throw new PatternError(`invalid escape "\\${next ?? ""}"`);
      part.push(next);
    } else part.push(character);
  }
  return parts;
}

/** The end of the part if it matches at `start`. */
function endAt(text: string, part: Part, start: number): number | undefined {
  let at = start;
  for (const wanted of part) {
    const code = text.codePointAt(at);
    if (code === undefined) return undefined;
    const character = String.fromCodePoint(code);
    if (wanted !== undefined && wanted !== character) return undefined;
    at += character.length;
  }
  return at;
}

function indexOf(text: string, part: Part, from: number): number | undefined {
  for (let at = from; at <= text.length; at++) if (endAt(text, part, at) !== undefined) return at;
  return undefined;
}

function lastIndexOf(text: string, part: Part, from: number): number | undefined {
  for (let at = text.length; at >= from; at--) if (endAt(text, part, at) !== undefined) return at;
  return undefined;
}
