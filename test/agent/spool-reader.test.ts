import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { SpoolReader } from "../../agent/spool-reader.ts";
import { StepLog } from "../../agent/step-log.ts";
import { temporaryDir } from "./git-fixture.ts";

let dir: ReturnType<typeof temporaryDir>;
beforeEach(() => {
  dir = temporaryDir();
});
afterEach(() => dir[Symbol.dispose]());

interface Piece {
  readonly text: string;
  readonly records: readonly (readonly [length: number, stream: number, timeMs: number])[];
}

async function pieceAt(reader: SpoolReader, log: StepLog, offset: number, maxBytes: number): Promise<Piece> {
  const { body, lengthBytes } = await reader.read(offset, log, maxBytes);
  const count = body.readUInt32LE(0);
  const records = Array.from({ length: count }, (_, at) => {
    const start = 4 + at * 16;
    return [body.readUInt32LE(start), body.readUInt32LE(start + 4), body.readDoubleLE(start + 8)] as const;
  });
  const text = body.toString("latin1", 4 + count * 16);
  expect(text.length).toBe(lengthBytes);
  expect(records.reduce((sum, [length]) => sum + length, 0)).toBe(lengthBytes);
  return { text, records };
}

describe("SpoolReader", () => {
  test("cuts records to fit a piece, going on, going back and skipping", async () => {
    const log = new StepLog({ path: join(dir.path, "0.log") });
    log.write(1, Buffer.from("0123456789"), 1);
    log.write(2, Buffer.from("abcdef"), 2);
    await log.close();
    await using reader = new SpoolReader(log.path ?? "");
    expect(await pieceAt(reader, log, 0, 4)).toEqual({ text: "0123", records: [[4, 1, 1]] });
    expect(await pieceAt(reader, log, 4, 9)).toEqual({
      text: "456789abc",
      records: [
        [6, 1, 1],
        [3, 2, 2],
      ],
    });
    expect(await pieceAt(reader, log, 13, 100)).toEqual({ text: "def", records: [[3, 2, 2]] });
    expect((await pieceAt(reader, log, 2, 3)).text).toBe("234");
    expect((await pieceAt(reader, log, 15, 3)).text).toBe("f");
  });

  test("reads every byte once at any piece length, with more records than one piece may hold", async () => {
    const log = new StepLog({ path: join(dir.path, "0.log") });
    const want: string[] = [];
    for (let at = 0; at < 40_000; at++) {
      const text = String(at % 10).repeat((at % 3) + 1);
      want.push(text);
      const drained = new Promise<void>((resolve) => (log.onDrain = resolve));
      if (!log.write(at % 2 === 0 ? 1 : 2, Buffer.from(text), at)) await drained;
    }
    await log.close();
    for (const maxBytes of [777, 1024 * 1024]) {
      await using reader = new SpoolReader(log.path ?? "");
      let text = "";
      while (text.length < log.spooledBytes) text += (await pieceAt(reader, log, text.length, maxBytes)).text;
      expect(text === want.join("")).toBe(true);
    }
  });
});
