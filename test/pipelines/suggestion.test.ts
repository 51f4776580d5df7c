import { describe, expect, test } from "vitest";
import { enumerate, nearest, quote, typingDistance } from "../../pipelines/suggestion.ts";
import { seededRandom } from "./random.ts";

describe("typingDistance", () => {
  test("agrees with the full table on random words, up to its limit", () => {
    const random = seededRandom(3);
    for (let round = 0; round < 3000; round += 1) {
      const [left, right] = [random.text("abc", 8), random.text("abc", 8)];
      const limit = random.below(5);
      const full = fullDistance(left, right);
      expect(typingDistance(left, right, limit), `${left} ${right} ${limit}`).toBe(full <= limit ? full : Infinity);
    }
  });
});

describe("nearest", () => {
  const keys = ["name", "run", "image", "env", "timeout", "resources", "allow_failure", "network"];

  test.for([
    ["nmae", "name"],
    ["rn", "run"],
    ["rnu", "run"],
    ["Image", "image"],
    ["envs", "env"],
    ["time_out", "timeout"],
    ["timeuot", "timeout"],
    ["resource", "resources"],
    ["allow-failure", "allow_failure"],
    ["allowFailure", "allow_failure"],
    ["x", undefined],
    ["colour", undefined],
    ["", undefined],
  ] as const)("%s means %s", ([word, expected]) => {
    expect(nearest(word, keys)).toBe(expected);
  });
});

test("quote escapes control characters and cuts long text", () => {
  expect(quote('a"b\u001b[2J\n')).toBe(String.raw`"a\"b\u001b[2J\n"`);
  expect(quote("x".repeat(100))).toBe(`"${"x".repeat(59)}…"`);
});

test("enumerate", () => {
  expect([enumerate([]), enumerate(["a"]), enumerate(["a", "b"]), enumerate(["a", "b", "c"], "or")]).toEqual([
    "",
    "a",
    "a and b",
    "a, b or c",
  ]);
});

/** Optimal string alignment by its definition. */
function fullDistance(left: string, right: string): number {
  const rows = Array.from({ length: left.length + 1 }, (_, row) =>
    Array.from({ length: right.length + 1 }, (_, column) => (row === 0 ? column : column === 0 ? row : 0)),
  );
  const at = (row: number, column: number): number => rows[row]?.[column] ?? Infinity;
  for (let row = 1; row <= left.length; row += 1) {
    for (let column = 1; column <= right.length; column += 1) {
      const wrong = left[row - 1] === right[column - 1] ? 0 : 1;
      const swapped = left[row - 1] === right[column - 2] && left[row - 2] === right[column - 1];
      const best = Math.min(
        at(row - 1, column) + 1,
        at(row, column - 1) + 1,
        at(row - 1, column - 1) + wrong,
        swapped ? at(row - 2, column - 2) + 1 : Infinity,
      );
      rows[row]?.splice(column, 1, best);
    }
  }
  return at(left.length, right.length);
}
