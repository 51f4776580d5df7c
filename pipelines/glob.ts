/**
 * Glob patterns on branch and tag names.
 *
 * A name is matched against all states of the pattern at once, so a match costs at most pattern × name steps, whatever
 * the pattern; a regular expression would backtrack exponentially on `*a*a*a*b`.
 */
type Token =
  | { readonly kind: "character"; readonly character: string }
  /** `?` */
  | { readonly kind: "one" }
  | { readonly kind: "class"; readonly negated: boolean; readonly ranges: readonly (readonly [number, number])[] }
  /** `*` */
  | { readonly kind: "many" }
  /** `**` */
  | { readonly kind: "anything" }
  /** `**` with a slash after it: any number of whole segments. */
  | { readonly kind: "segments" };

/** Why a pattern means nothing, and what to write. */
export interface GlobFault {
  readonly problem: string;
  readonly suggestion: string;
}

/**
 * Tells whether a name matches a pattern as a whole: `*` is anything but `/`, `**` anything, `**` with a slash after it
 * any number of leading segments (none too), `?` one character but `/`, `[a-z]` and `[!a-z]` one of a class.
 *
 * A pattern that `checkGlob` refuses matches nothing.
 */
export function matchGlob(pattern: string, name: string): boolean {
  const tokens = compile(pattern);
  if (!Array.isArray(tokens)) return false;
  const characters = Array.from(name);
  // reached[i]: the tokens so far match the first i characters.
  let reached: boolean[] = Array.from({ length: characters.length + 1 }, (_, index) => index === 0);
  for (const token of tokens) reached = step(token, reached, characters);
  return reached[characters.length] === true;
}

/** Says what is wrong with a pattern, without its leading `!`. */
export function checkGlob(pattern: string): GlobFault | undefined {
  if (pattern === "") return { problem: "it is empty", suggestion: 'write "**" for every name' };
  const tokens = compile(pattern);
  return Array.isArray(tokens) ? undefined : tokens;
}

function step(token: Token, reached: readonly boolean[], characters: readonly string[]): boolean[] {
  const next: boolean[] = Array.from({ length: reached.length }, () => false);
  const first = reached.indexOf(true);
  if (first === -1) return next;
  for (let index = first; index < reached.length; index += 1) {
    const before = characters[index - 1] ?? "";
    switch (token.kind) {
      case "many":
        next[index] = reached[index] === true || (index > first && next[index - 1] === true && before !== "/");
        break;
      case "anything":
        next[index] = true;
        break;
      case "segments":
        next[index] = reached[index] === true || (index > first && before === "/");
        break;
      case "character":
      case "one":
      case "class":
        next[index] = index > 0 && reached[index - 1] === true && matchesOne(token, before);
        break;
    }
  }
  return next;
}

function matchesOne(token: Exclude<Token, { kind: "many" | "anything" | "segments" }>, character: string): boolean {
  if (token.kind === "character") return token.character === character;
  if (character === "/") return false;
  if (token.kind === "one") return true;
  const code = character.codePointAt(0) ?? 0;
  return token.ranges.some(([low, high]) => low <= code && code <= high) !== token.negated;
}

function compile(pattern: string): Token[] | GlobFault {
  const characters = Array.from(pattern);
  const tokens: Token[] = [];
  for (let at = 0; at < characters.length; at += 1) {
    const character = characters[at] ?? "";
    if (character === "*") {
      let end = at;
      while (characters[end] === "*") end += 1;
      const whole = at === 0 || characters[at - 1] === "/";
      if (end - at === 1) tokens.push({ kind: "many" });
      else if (whole && characters[end] === "/") {
        tokens.push({ kind: "segments" });
        end += 1;
      } else tokens.push({ kind: "anything" });
      at = end - 1;
    } else if (character === "?") tokens.push({ kind: "one" });
    else if (character === "[") {
      const parsed = parseClass(characters, at);
      if ("problem" in parsed) return parsed;
      tokens.push(parsed.token);
      at = parsed.end;
    } else if (character === "\\") {
      return { problem: "it contains a backslash, which no ref name does", suggestion: "separate with /" };
    } else tokens.push({ kind: "character", character });
  }
  return tokens;
}

/** Parses `[a-z]`, `[!a-z]` or `[^a-z]` from its `[` on; a `]` directly after the opening is one of the class. */
function parseClass(characters: readonly string[], start: number): { token: Token; end: number } | GlobFault {
  let at = start + 1;
  const negated = characters[at] === "!" || characters[at] === "^";
  if (negated) at += 1;
  const ranges: [number, number][] = [];
  for (let first = true; first || characters[at] !== "]"; first = false) {
    const low = characters[at]?.codePointAt(0);
    if (low === undefined)
      return { problem: 'it has a "[" without its "]"', suggestion: "close the class, like v[0-9]" };
    const isRange = characters[at + 1] === "-" && characters[at + 2] !== undefined && characters[at + 2] !== "]";
    const high = isRange ? (characters[at + 2]?.codePointAt(0) ?? low) : low;
    if (high < low) {
      const [from, to] = [String.fromCodePoint(low), String.fromCodePoint(high)];
      return { problem: `it has the reversed range ${from}-${to}`, suggestion: `write ${to}-${from}` };
    }
    ranges.push([low, high]);
    at += isRange ? 3 : 1;
  }
  return { token: { kind: "class", negated, ranges }, end: at };
}
