import { appendFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseLogChunk } from "../../server/log-chunk.ts";
import { LogStore } from "../../server/log-store.ts";
import { logBody, type LogPart } from "./harness.ts";

const key = { buildId: "b1", job: 0, attempt: 1, step: 0 };
let dir: string;
let logs: LogStore;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "slipway-logs-"));
  logs = new LogStore(dir, { limitBytes: 10_000_000 });
});
afterEach(async () => {
  await logs[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});

const chunk = (...parts: LogPart[]) => parseLogChunk(Buffer.from(logBody(parts)));
const file = () => join(dir, "b1/0/1/0.log");
const index = () => join(dir, "b1/0/1/0.idx");

async function reopen(): Promise<void> {
  await logs[Symbol.asyncDispose]();
  logs = new LogStore(dir, { limitBytes: 10_000_000 });
}

async function readAll(from = 0, maxBytes = 1 << 20) {
  await using reader = await logs.reader(key, from);
  let bytes = Buffer.alloc(0);
  const records: [number, number][] = [];
  for (;;) {
    const piece = await reader?.peek(maxBytes);
    if (!reader || !piece) return { text: bytes.toString(), records };
    bytes = Buffer.concat([bytes, piece.bytes]);
    records.push(...piece.records.map(({ lengthBytes, stream }): [number, number] => [lengthBytes, stream]));
    await reader.advance(piece.bytes.length);
  }
}

describe("LogStore", () => {
  test("keeps bytes and records in the format of the protocol", async () => {
    await logs.append(key, 0, chunk({ stream: 1, text: "out" }, { stream: 2, text: "error", timeMs: 7 }));
    expect(readFileSync(file(), "utf8")).toBe("outerror");
    const records = readFileSync(index());
    expect(records).toHaveLength(32);
    expect([records.readUInt32LE(16), records.readUInt32LE(20), records.readDoubleLE(24)]).toEqual([5, 2, 7]);
  });

  test.each([
    ["bytes without records", () => appendFileSync(file(), "half written")],
    ["half a record", () => appendFileSync(index(), Buffer.alloc(7, 1))],
    ["records without bytes", () => appendFileSync(index(), logBody([{ stream: 1, text: "lost" }]).subarray(4, 20))],
    ["zeros in the index", () => appendFileSync(index(), Buffer.alloc(160))],
  ])("drops what a crash left: %s", async (_what, damage) => {
    await logs.append(key, 0, chunk({ stream: 1, text: "whole " }));
    await reopen();
    damage();
    expect(await logs.lengthBytes(key)).toBe(6);
    expect((await logs.append(key, 6, chunk({ stream: 1, text: "again" }))).outcome).toBe("appended");
    expect(await readAll()).toEqual({
      text: "whole again",
      records: [
        [6, 1],
        [5, 1],
      ],
    }); // prettier-ignore
    expect(readFileSync(file(), "utf8")).toBe("whole again");
  });

  test("asks again for bytes that a power cut took", async () => {
    await logs.append(key, 0, chunk({ stream: 1, text: "first" }));
    await logs.append(key, 5, chunk({ stream: 1, text: "second" }));
    await reopen();
    truncateSync(file(), 8);
    expect(await logs.append(key, 11, chunk({ stream: 1, text: "third" }))).toEqual({
      outcome: "mismatch",
      lengthBytes: 5,
    });
  });

  test("survives being closed in the middle of writes", async () => {
    const writes = Array.from({ length: 20 }, (_, i) =>
      logs.append(key, i * 4, chunk({ stream: 1, text: `${1000 + i}` })),
    );
    const closed = logs.close([key]);
    const outcomes = (await Promise.all(writes)).map(({ outcome }) => outcome);
    await closed;
    expect(outcomes).toEqual(Array(20).fill("appended"));
    expect((await readAll()).text).toBe(Array.from({ length: 20 }, (_, i) => 1000 + i).join(""));
    expect((await logs.append(key, 80, chunk({ stream: 1, text: "more" }))).outcome).toBe("appended");
  });

  test("reads from any offset, in pieces of any size, with the records cut to fit", async () => {
    await logs.append(
      key,
      0,
      chunk({ stream: 1, text: "abc" }, { stream: 2, text: "defgh" }, { stream: 1, text: "ij" }),
    );
    for (let from = 0; from <= 10; from++) {
      for (const size of [1, 2, 3, 100]) {
        const { text, records } = await readAll(from, size);
        expect(text).toBe("abcdefghij".slice(from));
        expect(records.reduce((sum, [length]) => sum + length, 0)).toBe(10 - from);
      }
    }
    expect((await readAll(4, 100)).records).toEqual([
      [4, 2],
      [2, 1],
    ]); // prettier-ignore
    expect(await readAll(11)).toEqual({ text: "", records: [] });
  });

  test("reads far into a log of very many records", async () => {
    const line = { stream: 1, text: "0123456789" } as const;
    const lines = Array.from({ length: 60_000 }, () => line);
    await logs.append(key, 0, chunk(...lines));
    await logs.append(key, 600_000, chunk(...lines));
    await logs.append(key, 1_200_000, chunk({ stream: 2, text: "the end" }));
    expect(await readAll(1_200_000)).toEqual({ text: "the end", records: [[7, 2]] });
    expect((await readAll(1_199_995)).text).toBe("56789the end");
  });

  test("knows nothing of a log that was never written", async () => {
    expect(await logs.lengthBytes(key)).toBe(0);
    expect(await logs.reader(key, 0)).toBeUndefined();
    writeFileSync(join(dir, "unrelated"), "");
    await logs.remove("b1");
  });
});
