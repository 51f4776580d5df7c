import { expect, test } from "vitest";
import { parseSignal } from "../../runtime/signal-number.ts";

test.for([
  ["SIGTERM", 15],
  ["quit", 3],
  ["9", 9],
  ["SIGRTMIN", 34],
  ["RTMIN+3", 37],
  ["SIGRTMAX-1", 63],
  ["SIGRTMIN+40", undefined],
  ["65", undefined],
  ["SIGNOTHING", undefined],
  ["constructor", undefined],
  ["", undefined],
] as const)("parseSignal: %s is %s", ([text, number]) => {
  expect(parseSignal(text)).toBe(number);
});
