import { describe, expect, test } from "vitest";
import { decodeRecords } from "../../server/log-chunk.ts";

describe("decodeRecords", () => {
  const decode = (isEnd: boolean, ...parts: [number, Buffer][]) =>
    decodeRecords(
      Buffer.concat(parts.map(([, bytes]) => bytes)),
      parts.map(([stream, bytes]) => ({ lengthBytes: bytes.length, stream: stream as 1 | 2, timeMs: 0 })),
      isEnd,
    );
  const boat = Buffer.from("⛵️🚢");

  test("gives the same text wherever one stream is cut", () => {
    for (let cut = 0; cut <= boat.length; cut++) {
      const parts = [boat.subarray(0, cut), boat.subarray(cut)].filter((part) => part.length > 0);
      const { text, records, usedBytes } = decode(false, ...parts.map((part): [number, Buffer] => [1, part]));
      expect(text).toBe("⛵️🚢");
      expect(usedBytes).toBe(boat.length);
      expect(records.reduce((sum, [length]) => sum + length, 0)).toBe(text.length);
    }
  });

  test("leaves an unfinished character for the next time, but not at the end", () => {
    for (let cut = 1; cut < 4; cut++) {
      const ship = Buffer.from("x🚢").subarray(0, 1 + cut);
      expect(decode(false, [1, ship])).toMatchObject({ text: "x", usedBytes: 1 });
      expect(decode(true, [1, ship])).toMatchObject({ text: "x\ufffd", usedBytes: 1 + cut });
    }
  });

  test("does not join characters across streams and shows bytes that are no text", () => {
    expect(decode(true, [1, boat.subarray(0, 1)], [2, Buffer.from("x")]).text).toBe("\ufffdx");
    expect(decode(false, [1, Buffer.from([0xff, 0xfe, 0x41])]).text).toBe("\ufffd\ufffdA");
    expect(decode(false, [1, Buffer.from([0x80, 0x80, 0x80, 0x80])])).toMatchObject({ usedBytes: 4 });
  });
});
