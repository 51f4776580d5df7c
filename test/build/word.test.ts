import { describe, expect, test } from "vitest";
import { expandWord, WordError, type WordOptions } from "../../build/word.ts";

const variables: Readonly<Record<string, string>> = {
  HOME: "/home",
  EMPTY: "",
  LIST: "a:b:c",
  FILE: "src/app.tar.gz",
  STARS: "a**b*c",
  SPACES: "  x  y ",
  KOREAN: "한국어",
  GLOB: "*/",
};

function expand(word: string, options: WordOptions = {}): string | readonly string[] {
  const lookup = (name: string) => (Object.hasOwn(variables, name) ? variables[name] : undefined);
  return expandWord(word, lookup, options).text;
}

/** What a shell would say is an error reads `✗`. */
function tried(word: string, options?: WordOptions): string | readonly string[] {
  try {
    return expand(word, options);
  } catch (error) {
    if (error instanceof WordError) return "✗";
    throw error;
  }
}

describe("expandWord", () => {
  test.for([
    // quotes and escapes
    [`he'll'o`, "hello"],
    [`he'llo`, "✗"],
    [`he\\'llo`, "he'llo"],
    [`"a\\tb" a\\tb 'a\\tb'`, "a\\tb atb a\\tb"],
    [`"a\\"b\\\\c\\$HOME"`, 'a"b\\c$HOME'],
    [`"open`, "✗"],
    [`end\\`, "end"],
    [`"''" '""'`, `'' ""`],
    // variables
    ["$HOME/x ${HOME}x $HOMEx", "/home/x /homex "],
    ["$KOREAN!", "한국어!"],
    ["'$HOME' \"'$HOME'\" \\$HOME", "$HOME '/home' $HOME"],
    ["$. $", "$. $"],
    ["a$1b$12c$@d$$e", "abcde"],
    ["${}", "✗"],
    ["${{a}", "✗"],
    ["${:-a}", "✗"],
    ["${HOME", "✗"],
    ["${HOME.x}", "✗"],
    ["${HOME}}", "/home}"],
    // defaults
    ["${NONE:-d} ${NONE-d} ${EMPTY:-d} ${EMPTY-d} ${HOME:-d}", "d d d  /home"],
    ["${NONE:+a} ${NONE+a} ${EMPTY:+a} ${EMPTY+a} ${HOME:+a}", "   a a"],
    ["${HOME:?m} ${HOME?m} ${EMPTY?m}", "/home /home "],
    ["${EMPTY:?m}", "✗"],
    ["${NONE?}", "✗"],
    ["${NONE:-${EMPTY:-${HOME}}}/x", "/home/x"],
    ["${NONE:-'a b'}", "a b"],
    ["${NONE:-\\$HOME}", "$HOME"],
    ["${NONE:=d}", "✗"],
    ["${NONE=d}", "✗"],
    // patterns
    ["${FILE#*/} ${FILE##*a} ${FILE%.*} ${FILE%%.*}", "app.tar.gz r.gz src/app.tar src/app"],
    ["${LIST#?:} ${LIST##*:} ${LIST%:?} ${LIST%%:*}", "b:c c a:b a"],
    ["${STARS#a\\*} ${STARS%\\*c} ${STARS##\\*}", "*b*c a**b a**b*c"],
    ["${LIST#x} ${LIST%x} ${LIST#} ${LIST##} ${LIST#*}", "a:b:c a:b:c a:b:c a:b:c a:b:c"],
    ["${LIST/:/-} ${LIST//:/-} ${LIST//:/} ${LIST//*/x}", "a-b:c a-b-c abc x"],
    ["${FILE/src\\//} ${FILE//\\//\\/}", "app.tar.gz src\\/app.tar.gz"],
    ["${STARS/\\*\\*/x} ${STARS//a*b/x}", "axb*c x*c"],
    ["${HOME:#x}", "✗"],
    ["${HOME/x}", "✗"],
    ["${HOME#\\x}", "✗"],
    ["${NONE#x} ${NONE/x/y}", " "],
  ] as const)("reads %s as %s", ([word, expected]) => {
    expect(tried(word)).toBe(expected);
  });

  test("says what ${name:?…} wants", () => {
    expect(() => expand("${NONE:?set it to $HOME}")).toThrow("NONE: set it to /home");
    expect(() => expand("${NONE?}")).toThrow("NONE: is not set");
    expect(() => expand("${EMPTY:?}")).toThrow("EMPTY: is empty");
  });

  test("takes the escape character of the directive", () => {
    expect(expand("C:\\Users`$x", { escape: "`" })).toBe("C:\\Users$x");
  });

  test("leaves quotes of here-documents alone", () => {
    expect(expand(`it's "$HOME" \\$HOME`, { literalQuotes: true })).toBe(`it's "/home" $HOME`);
  });

  test("keeps what is unset, quoted and escaped where asked to", () => {
    const options = { keepUnset: true, keepQuotes: true, keepEscapes: true };
    expect(expand(`$NONE \${NONE} \${NONE:-d} '$x' "\\"" \\y`, options)).toBe(
      `$NONE \${NONE} \${NONE:-d} '$x' "\\"" \\y`,
    );
  });

  test("splits words where nothing quotes the space", () => {
    const words = (word: string) => expandWord(word, (name) => variables[name]).words;
    expect(words(`a  "b c" d\\ e 'f'g`)).toEqual(["a", "b c", "d e", "fg"]);
    expect(words(`x$SPACES!`)).toEqual(["x", "x", "y", "!"]);
    expect(words(`x"$SPACES"!`)).toEqual(["x  x  y !"]);
    expect(words("")).toEqual([]);
  });

  test("tells which variables are not set, but for those with a default", () => {
    const { unset } = expandWord("$A ${B} ${C:-c} $HOME ${D#x}", (name) => variables[name]);
    expect([...unset]).toEqual(["A", "B", "D"]);
  });

  test("does not grow without limit", () => {
    const long = "x".repeat(600_000);
    expect(() => expandWord("$A$A", () => long)).toThrow("longer than");
    expect(() => expandWord("${A//x/yy}", () => long)).toThrow("longer than");
    expect(() => expandWord(`${"${A:-".repeat(60)}${"}".repeat(60)}`, () => undefined)).toThrow("inside each other");
  });

  test("matches hostile patterns in good time", () => {
    const value = "a".repeat(20_000);
    const pattern = "*a".repeat(200);
    expect(expandWord(`\${V##${pattern}b}`, () => value).text).toBe(value);
    expect(expandWord(`\${V%%b${pattern}}`, () => value).text).toBe(value);
    expect(expandWord(`\${V//${pattern}b/x}`, () => value).text).toBe(value);
  });
});
