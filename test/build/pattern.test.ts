import { describe, expect, test } from "vitest";
import { readIgnoreFile } from "../../build/ignore-file.ts";
import {
  cleanPath,
  hasWildcards,
  matchComponent,
  type MatchState,
  PathPatternError,
  PathPatterns,
} from "../../build/pattern.ts";

/** Asks about a path the two ways there are: at once, and after each of its parents. */
function matches(patterns: PathPatterns, path: string): boolean {
  const { matched } = patterns.match(path);
  const components = path.split("/");
  let state: MatchState | undefined;
  let walked = false;
  for (let length = 1; length <= components.length; length += 1) {
    const result = patterns.match(components.slice(0, length).join("/"), state ?? noParents(patterns));
    state = result.state;
    walked = result.matched;
  }
  expect({ path, matched: walked }).toEqual({ path, matched });
  return matched;
}

/** The state above the top: no pattern has matched. */
function noParents(patterns: PathPatterns): MatchState {
  return patterns.match("\u0001").state.map(() => false);
}

describe("PathPatterns", () => {
  test.for([
    ["**", "file a/b", ""],
    ["**/", "file a/b", ""],
    ["**/**", "file a/b", ""],
    ["dir/**", "dir/x dir/a/b", "dir xdir/x"],
    ["**/dir", "dir dir/x a/dir a/b/dir/c", "xdir"],
    ["**/dir/*", "dir/x a/dir/x a/dir/x/y", "dir a/dir"],
    ["**file", "file xfile a/xfile", "file1"],
    ["**/file*.txt", "file.txt a/file1.txt a/b/file.txt", "xfile.txt a/file.tx"],
    ["a**/*.txt", "a/f.txt a/b/c/f.txt", "a/f.tx b/f.txt"],
    ["a/*.txt", "a/f.txt", "a/b/f.txt"],
    ["a/*.txt**", "a/f.txt a/f.txt.old/x", "a/f.tx"],
    ["a[b-d]e a[^b-d]z", "ace aaz", "ae aae abz"],
    ["a[\\]]b a[\\-x]c", "a]b a-c axc", "axb"],
    [".*", ".foo .git/config", "foo"],
    ["abc.def", "abc.def abc.def/x", "abcdef abcZdef"],
    ["a?c", "abc a☺c", "ac a/c abbc"],
    ["a\\*b a\\\\", "a*b a\\", "aXb"],
    ["a.|)$(}+{bc", "a.|)$(}+{bc", "a"],
    ["/abs ./rel/../dot", "/abs dot", "abs rel"],
    ["한*", "한국어", "국어"],
  ] as const)("%s", ([patterns, matched, others]) => {
    const compiled = new PathPatterns(patterns.split(" "));
    for (const path of matched.split(" ")) expect({ path, is: matches(compiled, path) }).toEqual({ path, is: true });
    for (const path of others.split(" ").filter((each) => each !== "")) {
      expect({ path, is: matches(compiled, path) }).toEqual({ path, is: false });
    }
  });

  test("takes back what ! matches, in order, with everything below", () => {
    const patterns = new PathPatterns(["**", "!docs", "docs/secret", "!docs/secret/public.md"]);
    expect(patterns.hasExceptions).toBe(true);
    const shown = ["docs", "docs/a/b", "docs/secret/public.md"];
    const hidden = ["src", "docs/secret", "docs/secret/x"];
    expect([...shown, ...hidden].filter((path) => matches(patterns, path))).toEqual(hidden);
  });

  test.for(["[", "a[", "a[]", "a[-]", "a[b-a]", "a\\", "!"])("refuses %s", (pattern) => {
    expect(() => new PathPatterns([pattern])).toThrow(PathPatternError);
  });

  test("matches hostile patterns in good time", () => {
    const patterns = new PathPatterns(["*a".repeat(1000), "**/a".repeat(1000), "**".repeat(2000) + "b"]);
    expect(patterns.match("a".repeat(4000)).matched).toBe(true);
    expect(patterns.match("x".repeat(4000)).matched).toBe(false);
  });
});

describe("readIgnoreFile", () => {
  test("reads comments, spaces, leading slashes, exceptions, line ends of Windows", () => {
    const patterns = new PathPatterns(
      readIgnoreFile("\ufeff# comment\r\n  /build/ \r\n\r\n! /build/keep\r\n#*\r\n*.o\r\n"),
    );
    expect(matches(patterns, "build/x")).toBe(true);
    expect(matches(patterns, "build/keep")).toBe(false);
    expect(matches(patterns, "a.o")).toBe(true);
    expect(matches(patterns, "a/b.o")).toBe(false);
  });

  test("names the line of a pattern that means nothing", () => {
    expect(() => readIgnoreFile("a\n[b\n")).toThrow('line 2: the pattern "[b": it has a "[" without its "]"');
    expect(() => readIgnoreFile("a\n!\n")).toThrow('line 2: the pattern "!"');
  });
});

describe("wildcards of COPY", () => {
  test.for([
    ["*", "abc", true],
    ["a*b?c*x", "abxbbxdbxebxczzx", true],
    ["a*b?c*x", "abxbbxdbxebxczzy", false],
    ["**", "ab", true],
    ["[a-z]*", "x1", true],
    ["[^a]", "b", true],
    ["a\\*", "a*", true],
    ["a[", "a[", false],
  ] as const)("%s and %s: %s", ([pattern, name, expected]) => {
    expect(matchComponent(pattern, name)).toBe(expected);
  });

  test("are told from names that escape them", () => {
    expect(["*", "a?", "[x]", "\\\\*", "a\\*", "a", "\\[", "\\"].map(hasWildcards)).toEqual([
      true,
      true,
      true,
      true,
      false,
      false,
      false,
      false,
    ]);
  });
});

test("cleanPath is Go's", () => {
  const paths = ["", ".", "a//b/./c/", "/../a", "../../a/..", "a/../..", "/"];
  expect(paths.map(cleanPath)).toEqual([".", ".", "a/b/c", "/a", "../..", "..", "/"]);
});
