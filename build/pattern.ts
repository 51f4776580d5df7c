/**
 * Patterns on paths: those of .dockerignore and --exclude (moby/patternmatcher), and the wildcards of COPY, one component
 * each (Go's filepath.Match).
 *
 * A path is matched against all states of a pattern at once, so that a match costs at most pattern × path steps, whatever
 * the pattern; a regular expression would backtrack exponentially.
 */
type Token =
  | { readonly kind: "character"; readonly code: number }
  /** `?` */
  | { readonly kind: "one" }
  | { readonly kind: "class"; readonly negated: boolean; readonly ranges: readonly (readonly [number, number])[] }
  /** `*` */
  | { readonly kind: "many" }
  /** `**` at the end. */
  | { readonly kind: "anything" }
  /** `**` elsewhere: nothing, or anything and a slash. */
  | { readonly kind: "segments" };

/** A pattern that means nothing; the message says why. */
export class PathPatternError extends Error {
  override readonly name = "PathPatternError";
}

/** What a path matched: told to the match of what is below it. */
export type MatchState = readonly boolean[];

/** Patterns in order, of which those behind `!` take back what those before them matched. */
export class PathPatterns {
  /** Whether something below a matched directory may not be matched. */
  readonly hasExceptions: boolean;
  readonly #patterns: readonly Pattern[];

  /**
   * @param patterns As written; empty ones do not count.
   * @throws {PathPatternError}
   */
  constructor(patterns: readonly string[]) {
    this.#patterns = patterns
      .map((pattern) => pattern.trim())
      .filter((pattern) => pattern !== "")
      .map((pattern) => new Pattern(cleanPath(pattern)));
    this.hasExceptions = this.#patterns.some(({ isException }) => isException);
  }

  get isEmpty(): boolean {
    return this.#patterns.length === 0;
  }

  /**
   * Matches a path: what is below a directory that matches, matches too.
   *
   * @param path Relative, without `.` and `..`.
   * @param parent The state of its directory; for a path at the top, or one whose parents have not been asked, none.
   */
  match(path: string, parent?: MatchState): { readonly matched: boolean; readonly state: MatchState } {
    const state: boolean[] = [];
    let matched = false;
    for (const [index, pattern] of this.#patterns.entries()) {
      let matches = parent?.[index] ?? false;
      // Nothing can come of matching again, or of taking back what is not matched.
      if (!matches && pattern.isException === matched) {
        matches =
          pattern.matches(path) || (parent === undefined && parentsOf(path).some((each) => pattern.matches(each)));
      }
      state.push(matches);
      if (matches) matched = !pattern.isException;
    }
    return { matched, state };
  }
}

/** Whether one component of a path matches a pattern without `/`. An invalid pattern matches nothing. */
export function matchComponent(pattern: string, name: string): boolean {
  try {
    return run(compile(pattern, { doubleStars: false }), name);
  } catch (error) {
    if (error instanceof PathPatternError) return false;
    throw error;
  }
}

/** Whether a component of a COPY source has wildcards. */
export function hasWildcards(text: string): boolean {
  return /^(?:[^*?[\\]|\\.)*[*?[]/s.test(text);
}

class Pattern {
  readonly isException: boolean;
  /** Compared as it is where nothing in it is special. */
  readonly #exact: string | undefined;
  readonly #suffix: string | undefined;
  readonly #tokens: readonly Token[];

  constructor(text: string) {
    this.isException = text.startsWith("!");
    const pattern = this.isException ? text.slice(1) : text;
    if (pattern === "") throw new PathPatternError('"!" takes nothing back');
    this.#exact = /[*?[\]\\]/.test(pattern) ? undefined : pattern;
    // patternmatcher's own shortcut, which makes `**x` match `ax`.
    this.#suffix = /^\*\*[^*?[\]\\]*$/.test(pattern) ? pattern.slice(2) : undefined;
    this.#tokens = compile(pattern, { doubleStars: true });
  }

  matches(path: string): boolean {
    if (this.#exact !== undefined) return path === this.#exact;
    if (this.#suffix === undefined) return run(this.#tokens, path);
    return path.endsWith(this.#suffix) || `/${path}` === this.#suffix;
  }
}

function compile(pattern: string, options: { readonly doubleStars: boolean }): Token[] {
  const characters = Array.from(pattern);
  const tokens: Token[] = [];
  for (let at = 0; at < characters.length; at++) {
    const character = characters[at] as string;
    if (character === "*" && options.doubleStars && characters[at + 1] === "*") {
      at += characters[at + 2] === "/" ? 2 : 1;
      tokens.push({ kind: at + 1 >= characters.length ? "anything" : "segments" });
    } else if (character === "*") tokens.push({ kind: "many" });
    else if (character === "?") tokens.push({ kind: "one" });
    else if (character === "[") {
      const { token, end } = readClass(characters, at);
      tokens.push(token);
      at = end;
    } else if (character === "\\") {
      const escaped = characters[++at];
      if (escaped === undefined) throw new PathPatternError("it ends with a backslash");
      tokens.push(literal(escaped));
    } else tokens.push(literal(character));
  }
  return tokens;
}

function literal(character: string): Token {
  return { kind: "character", code: character.codePointAt(0) ?? 0 };
}

/** Reads `[a-z]` or `[^a-z]` from its `[` on. */
function readClass(characters: readonly string[], start: number): { token: Token; end: number } {
  let at = start + 1;
  const negated = characters[at] === "^";
  if (negated) at++;
  const ranges: [number, number][] = [];
  const next = (): number => {
    if (characters[at] === "-" || characters[at] === "]") throw new PathPatternError("it has an empty class or range");
    if (characters[at] === "\\") at++;
    const code = characters[at++]?.codePointAt(0);
    if (code === undefined) throw new PathPatternError('it has a "[" without its "]"');
    return code;
  };
  while (characters[at] !== "]" || ranges.length === 0) {
    const low = next();
    let high = low;
    if (characters[at] === "-" && characters[at + 1] !== "]") {
      at++;
      high = next();
    }
    if (high < low) throw new PathPatternError("it has a reversed range");
    ranges.push([low, high]);
  }
  return { token: { kind: "class", negated, ranges }, end: at };
}

const SLASH = 0x2f;

function run(tokens: readonly Token[], path: string): boolean {
  const codes = Array.from(path, (character) => character.codePointAt(0) as number);
  // reached[i]: the tokens so far match the first i characters.
  let reached = new Uint8Array(codes.length + 1);
  let next = new Uint8Array(codes.length + 1);
  reached[0] = 1;
  for (const token of tokens) {
    next.fill(0);
    if (!step(token, reached, next, codes)) return false;
    [reached, next] = [next, reached];
  }
  return reached[codes.length] === 1;
}

/** @returns Whether anything is reached. */
function step(token: Token, reached: Uint8Array, next: Uint8Array, codes: readonly number[]): boolean {
  const first = reached.indexOf(1);
  let any = false;
  for (let index = first; index < reached.length; index++) {
    const before = codes[index - 1];
    let hit: boolean;
    if (token.kind === "anything") hit = true;
    else if (token.kind === "many") {
      hit = reached[index] === 1 || (index > first && next[index - 1] === 1 && before !== SLASH);
    } else if (token.kind === "segments") hit = reached[index] === 1 || (index > first && before === SLASH);
    else hit = index > 0 && reached[index - 1] === 1 && matchesOne(token, before as number);
    if (!hit) continue;
    next[index] = 1;
    any = true;
  }
  return any;
}

function matchesOne(token: Extract<Token, { kind: "character" | "one" | "class" }>, code: number): boolean {
  if (token.kind === "character") return token.code === code;
  if (token.kind === "one") return code !== SLASH;
  return token.ranges.some(([low, high]) => low <= code && code <= high) !== token.negated;
}

/** `a/b/c` → `a`, `a/b`. */
function parentsOf(path: string): string[] {
  const parents: string[] = [];
  for (let at = path.indexOf("/"); at !== -1; at = path.indexOf("/", at + 1)) parents.push(path.slice(0, at));
  return parents;
}

/** Go's filepath.Clean. */
export function cleanPath(path: string): string {
  const isAbsolute = path.startsWith("/");
  const components: string[] = [];
  for (const component of path.split("/")) {
    if (component === "" || component === ".") continue;
    if (component !== "..") components.push(component);
    else if (components.length > 0 && components.at(-1) !== "..") components.pop();
    else if (!isAbsolute) components.push("..");
  }
  return (isAbsolute ? "/" : "") + components.join("/") || ".";
}
