import { expect, test } from "vitest";
import { formatDuration } from "../../agent/duration.ts";

test.each([
  [0, "0 ms"],
  [999, "999 ms"],
  [1500, "1.5 s"],
  [59_949, "59.9 s"],
  [59_999, "1 min"],
  [119_900, "2 min"],
  [150_000, "2 min 30 s"],
  [3_600_000, "1 h"],
  [9_000_000, "2 h 30 min"],
])("formatDuration writes %d ms as %s", (ms, text) => {
  expect(formatDuration(ms)).toBe(text);
});
