import { describe, expect, test } from "vitest";
import { LogCursor } from "../../server/log-cursor.ts";

describe("LogCursor", () => {
  test("reads what it wrote", () => {
    const cursor = LogCursor.parse(undefined);
    cursor.version = 1234;
    for (const ordinal of [0, 1, 2, 5, 36, 37]) cursor.done(ordinal);
    cursor.set(40, 2, 2 ** 40);
    cursor.set(40, 0, 17);
    const id = cursor.id();
    expect(id).toBe("ya~0-2.5.10-11~14:2:e5jcxd1mo.14:0:h".replace("e5jcxd1mo", (2 ** 40).toString(36)));
    const read = LogCursor.parse(id);
    expect(read.id()).toBe(id);
    expect([read.version, read.isDone(1), read.isDone(3), read.offset(40, 2), read.offset(40, 1)]).toEqual([
      1234,
      true,
      false,
      2 ** 40,
      0,
    ]);
  });

  test("is empty and cheap for what it did not write", () => {
    for (const id of [
      "",
      "~",
      "~~",
      "x",
      "1~zzzzzz~",
      "0~0-zzzzzz~",
      "1~~::",
      "1~~a:b",
      `1~${"0.".repeat(100_000)}~`,
    ]) {
      const cursor = LogCursor.parse(id);
      expect(cursor.offset(0, 0)).toBe(0);
      expect(cursor.id().length).toBeLessThan(60);
    }
  });
});
