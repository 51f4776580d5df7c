import { describe, expect, test } from "vitest";
import { newId, sameToken } from "../../server/token.ts";

describe("newId", () => {
  test("sorts by time and fits BullMQ, URLs and file names", () => {
    const ids = Array.from({ length: 1000 }, () => newId("a"));
    expect(new Set(ids).size).toBe(1000);
    for (const id of ids) expect(id).toMatch(/^a[0-9a-z]{18}$/);
    expect((ids[0] as string).slice(0, 11) <= (ids.at(-1) as string).slice(0, 11)).toBe(true);
  });
});

describe("sameToken", () => {
  test("compares tokens of any lengths", () => {
    expect([sameToken("a", "a"), sameToken("a", "b"), sameToken("", "a"), sameToken("aa", "a")]).toEqual([
      true,
      false,
      false,
      false,
    ]);
  });
});
