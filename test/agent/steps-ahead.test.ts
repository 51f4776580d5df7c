import { setImmediate } from "node:timers/promises";
import { beforeEach, describe, expect, test } from "vitest";
import type { RunnableStep } from "../../agent/runnable-step.ts";
import { StepsAhead } from "../../agent/steps-ahead.ts";

/** What was done, in order. */
let events: string[];
/** Ends the preparation of a step. */
let finish: (() => void)[];

beforeEach(() => {
  events = [];
  finish = [];
});

function queue(count: number, needsWorkspace: readonly number[] = [], options: { pids?: number } = {}): StepsAhead {
  const plan = (index: number) => {
    if (index >= count) return undefined;
    events.push(`plan ${index}`);
    const prepare = async () => {
      events.push(`prepare ${index}`);
      const { promise, resolve } = Promise.withResolvers<void>();
      finish[index] = resolve;
      await promise;
    };
    return {
      prepare,
      prepareWithoutWorkspace: () => (needsWorkspace.includes(index) ? undefined : prepare()),
      begin: () => void events.push(`begin ${index}`),
      discard: () => void events.push(`discard ${index}`),
    } as RunnableStep;
  };
  return new StepsAhead(plan, options);
}

async function finishes(...indexes: readonly number[]): Promise<void> {
  for (const index of indexes) finish[index]?.();
  await setImmediate();
}

const prepared = () => events.filter((event) => event.startsWith("prepare"));

describe("StepsAhead", () => {
  test("prepares two at a time, and eight in all", async () => {
    const ahead = queue(20);
    ahead.fill();
    expect(events).toEqual(["plan 0", "prepare 0", "plan 1", "prepare 1"]);
    await finishes(1);
    expect(prepared()).toEqual(["prepare 0", "prepare 1", "prepare 2"]);
    for (const index of [0, 2, 3, 4, 5, 6, 7]) await finishes(index);
    expect(prepared()).toHaveLength(8);
    expect(ahead.take()).toBeDefined();
    ahead.fill();
    await finishes(8);
    expect(prepared()).toHaveLength(9);
  });

  test.each([
    [20, 1],
    [200, 3],
    [100_000, 8],
  ])("where all steps have %d processes together, %d containers wait", async (pids, most) => {
    queue(20, [], { pids }).fill();
    for (let index = 0; index < 20; index++) await finishes(index);
    expect(prepared()).toHaveLength(most);
  });

  test("gives all steps in their order, prepared or not", async () => {
    const ahead = queue(3);
    const steps = [ahead.take(), ahead.take()];
    ahead.fill();
    expect(events).toEqual(["plan 0", "plan 1", "plan 2", "prepare 2"]);
    steps.push(ahead.take());
    expect(new Set(steps).size).toBe(3);
    expect(ahead.take()).toBeUndefined();
    ahead.fill();
    await finishes(2);
    expect(prepared()).toEqual(["prepare 2"]);
  });

  test("prepares a step once that is taken while it is being prepared, and the next one after it", async () => {
    const ahead = queue(4);
    ahead.fill();
    ahead.take();
    ahead.fill();
    await finishes(0, 1, 2, 3);
    await finishes(2, 3);
    expect(prepared()).toEqual(["prepare 0", "prepare 1", "prepare 2", "prepare 3"]);
  });

  test("waits for the workspace with what needs it, and with all behind it", async () => {
    const ahead = queue(4, [1]);
    ahead.fillEarly();
    await finishes(0);
    expect(prepared()).toEqual(["prepare 0"]);
    ahead.fill();
    expect(prepared()).toEqual(["prepare 0", "prepare 1", "prepare 2"]);
  });

  test("prepares one at a time without the workspace, and begins nothing from then on until the first one runs", async () => {
    const ahead = queue(9);
    ahead.fillEarly();
    expect(prepared()).toEqual(["prepare 0"]);
    await finishes(0);
    expect(prepared()).toEqual(["prepare 0", "prepare 1"]);
    ahead.fillFirst();
    await finishes(1);
    expect(prepared()).toEqual(["prepare 0", "prepare 1"]);
    ahead.take();
    ahead.fill();
    expect(prepared()).toEqual(["prepare 0", "prepare 1", "prepare 2", "prepare 3"]);
  });

  test("prepares the first one when the workspace is there, if that had to wait", () => {
    const ahead = queue(3, [0]);
    ahead.fillEarly();
    expect(prepared()).toEqual([]);
    ahead.fillFirst();
    expect(prepared()).toEqual(["prepare 0"]);
  });

  test("begins the one whose turn is next", () => {
    const ahead = queue(3);
    ahead.fill();
    ahead.take();
    ahead.begin();
    expect(events.at(-1)).toBe("begin 1");
  });

  test("discards what waits, and prepares nothing any more", async () => {
    const ahead = queue(5);
    ahead.fill();
    await finishes(0);
    ahead.discard();
    expect(events.slice(-3)).toEqual(["discard 0", "discard 1", "discard 2"]);
    await finishes(1, 2);
    ahead.fill();
    ahead.discard();
    expect(prepared()).toHaveLength(3);
    expect(events.at(-1)).toBe("discard 2");
  });
});
