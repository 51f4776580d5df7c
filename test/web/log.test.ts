import { describe, expect, test } from "vitest";

interface Log {
  readonly lines: readonly unknown[];
  append(event: object): void;
  numberOf(index: number): number | undefined;
}
// The dashboard is plain JavaScript: what it exports is stated here.
const url = new URL("../../web/log.js", import.meta.url).href;
const { StepLog } = (await import(url)) as { StepLog: new () => Log };

function event(offset: number, text: string) {
  return { offset, bytes: text.length, records: [[text.length, 1, 0]], text };
}

describe("StepLog.numberOf", () => {
  test("counts from the first line of the log", () => {
    const log = new StepLog();
    log.append(event(0, "a\nb\n"));
    expect(log.lines.map((_line, index) => log.numberOf(index))).toEqual([1, 2]);
  });

  test("goes on counting when early lines are dropped", () => {
    const log = new StepLog();
    log.append(event(0, "x\n".repeat(200_001)));
    expect(log.numberOf(0)).toBe(20_001);
    expect(log.numberOf(log.lines.length - 1)).toBe(200_001);
  });

  test("makes up no number where the beginning was never sent", () => {
    const log = new StepLog();
    log.append(event(1_000_000, "a\nb\n"));
    expect(log.numberOf(0)).toBeUndefined();
  });
});
