import { expect, test } from "vitest";
import { exchangeRoot } from "../../runtime/workspace-owner.ts";

const whole = [{ containerID: 0, hostID: 1000, size: 100 }];

/** What each id is mapped to. */
function meaning(mappings: readonly { containerID: number; hostID: number; size: number }[]): Map<number, number> {
  const ids = new Map<number, number>();
  for (const { containerID, hostID, size } of mappings) {
    for (let i = 0; i < size; i++) ids.set(containerID + i, hostID + i);
  }
  return ids;
}

test.for([1, 7, 98, 99])("exchangeRoot exchanges 0 and %i and leaves every other id", (id) => {
  const expected = meaning(whole);
  expected.set(0, 1000 + id);
  expected.set(id, 1000);
  const exchanged = exchangeRoot(whole, id);
  expect(meaning(exchanged)).toEqual(expected);
  expect(exchanged.length).toBeLessThanOrEqual(4);
});

test("exchangeRoot leaves a map as it is for root and for ids that are not in it", () => {
  expect(exchangeRoot(whole, 0)).toEqual(whole);
  expect(meaning(exchangeRoot(whole, 100))).toEqual(meaning(whole));
  const parts = [
    { containerID: 0, hostID: 1000, size: 10 },
    { containerID: 50, hostID: 2000, size: 10 },
  ];
  expect(meaning(exchangeRoot(parts, 55)).get(0)).toBe(2005);
  expect(meaning(exchangeRoot(parts, 55)).get(55)).toBe(1000);
});
