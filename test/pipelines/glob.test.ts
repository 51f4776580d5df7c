import { describe, expect, test } from "vitest";
import { checkGlob, matchGlob } from "../../pipelines/glob.ts";
import { seededRandom } from "./random.ts";

describe("matchGlob", () => {
  test.for([
    ["main", "main", true],
    ["main", "mainly", false],
    ["main", "Main", false],
    ["*", "main", true],
    ["*", "feature/a", false],
    ["*", "", true],
    ["**", "feature/a/b", true],
    ["feature/*", "feature/a", true],
    ["feature/*", "feature/", true],
    ["feature/*", "feature/a/b", false],
    ["feature/**", "feature/a/b", true],
    ["feature/**", "feature", false],
    ["**/fix", "fix", true],
    ["**/fix", "a/b/fix", true],
    ["**/fix", "prefix", false],
    ["a/**/z", "a/z", true],
    ["a/**/z", "a/b/c/z", true],
    ["a/**/z", "a/bz", false],
    ["a**z", "a/b/z", true],
    ["***", "a/b", true],
    ["v?", "v1", true],
    ["v?", "v/", false],
    ["v?", "v10", false],
    ["?", "👷", true],
    ["v[0-9]*", "v1.2.3", true],
    ["v[0-9]*", "vx", false],
    ["v[!0-9]", "vx", true],
    ["v[^0-9]", "v5", false],
    ["v[!0-9]", "v/", false],
    ["[]]", "]", true],
    ["[a-]", "-", true],
    ["[a-c-e]", "-", true],
    ["[abc]x", "bx", true],
    [".*", "main", false],
    ["a.b", "axb", false],
    ["(a|b)+", "a", false],
    ["", "", true],
    ["", "a", false],
    ["[", "[", false],
  ] as const)("%s on %s is %s", ([pattern, name, expected]) => {
    expect(matchGlob(pattern, name)).toBe(expected);
  });

  test("agrees with a plain recursive matcher on random patterns", () => {
    const random = seededRandom(7);
    for (let round = 0; round < 4000; round += 1) {
      const pattern = random.text("ab/*?", 8);
      const name = random.text("ab/", 8);
      expect(matchGlob(pattern, name), `${pattern} on ${name}`).toBe(matchSlowly(pattern, name));
    }
  });

  test("ends soon on patterns that make regular expressions backtrack", () => {
    expect(matchGlob(`${"*a".repeat(120)}b`, "a".repeat(4000))).toBe(false);
    expect(matchGlob(`${"**/".repeat(80)}b`, "a/".repeat(2000))).toBe(false);
  });
});

describe("checkGlob", () => {
  test.for(["main", "*", "**", "a/**/b", "v[0-9]", "[!a]", "[]]", "{a,b}"])("accepts %s", (pattern) => {
    expect(checkGlob(pattern)).toBeUndefined();
  });

  test.for(["", "[", "v[0-9", "[z-a]", "a\\b", "[]"])("refuses %j", (pattern) => {
    expect(checkGlob(pattern)?.problem).toBeTypeOf("string");
  });
});

/** The definition, without care for time. */
function matchSlowly(pattern: string, name: string, start = true): boolean {
  if (pattern === "") return name === "";
  const stars = /^\*+/.exec(pattern)?.[0].length ?? 0;
  const rest = pattern.slice(stars);
  const splits = Array.from({ length: name.length + 1 }, (_, index) => index);
  if (stars > 1 && start && rest.startsWith("/")) {
    return splits.some((at) => (at === 0 || name[at - 1] === "/") && matchSlowly(rest.slice(1), name.slice(at), true));
  }
  if (stars > 0) {
    return splits.some(
      (at) => (stars > 1 || !name.slice(0, at).includes("/")) && matchSlowly(rest, name.slice(at), false),
    );
  }
  if (name === "") return false;
  const same = pattern[0] === "?" ? name[0] !== "/" : pattern[0] === name[0];
  return same && matchSlowly(pattern.slice(1), name.slice(1), pattern[0] === "/");
}
