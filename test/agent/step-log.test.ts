import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { SecretIndex } from "../../agent/masker.ts";
import { secretForms } from "../../agent/secret-forms.ts";
import { StepLog } from "../../agent/step-log.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "slipway-log-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

interface LogRecord {
  readonly stream: number;
  readonly timeMs: number;
  readonly text: string;
}

async function readSpool(path: string): Promise<{ bytes: Buffer; records: LogRecord[] }> {
  const bytes = await readFile(path);
  const index = await readFile(`${path}.idx`);
  const records: LogRecord[] = [];
  let offset = 0;
  for (let at = 0; at < index.length; at += 16) {
    const length = index.readUInt32LE(at);
    const text = bytes.toString("latin1", offset, offset + length);
    records.push({ stream: index.readUInt32LE(at + 4), timeMs: index.readDoubleLE(at + 8), text });
    offset += length;
  }
  expect(offset).toBe(bytes.length);
  return { bytes, records };
}

const secrets = new SecretIndex(secretForms(["correct-horse"]));

describe("StepLog", () => {
  test("keeps streams and times, and merges what came at once", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path });
    log.write(1, Buffer.from("a"), 1000.5);
    log.write(1, Buffer.from("b"), 1000.5);
    log.write(2, Buffer.from("err"), 1000.5);
    log.write(1, Buffer.from("c"), 1001);
    log.note("said Slipway", 1002);
    await log.close();
    const { records } = await readSpool(path);
    expect(records).toEqual([
      { stream: 1, timeMs: 1000.5, text: "ab" },
      { stream: 2, timeMs: 1000.5, text: "err" },
      { stream: 1, timeMs: 1001, text: "c" },
      { stream: 0, timeMs: 1002, text: "said Slipway\n" },
    ]);
    expect(log.spooledBytes).toBe(log.lengthBytes);
    expect(log.spooledRecords).toBe(4);
    expect(log.closed).toBe(true);
  });

  test("makes no file for a step without output", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path });
    await log.close();
    await expect(readFile(path)).rejects.toThrow("ENOENT");
  });

  test("masks each stream by itself, across chunks and in Slipway's own words", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path, secrets });
    log.write(1, Buffer.from("pass correct-"), 1);
    log.write(2, Buffer.from("horse\n"), 2);
    log.write(1, Buffer.from("horse\n"), 3);
    log.note("cannot use correct-horse", 4);
    await log.close();
    const { records } = await readSpool(path);
    expect(records.map(({ stream, text }) => `${stream} ${text}`)).toEqual([
      "1 pass ",
      "2 horse\n",
      "1 ***\n",
      "0 cannot use ***\n",
    ]);
  });

  test("writes what masking held back when it is closed", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path, secrets });
    log.write(1, Buffer.from("correct"));
    await log.close();
    expect((await readSpool(path)).bytes.toString()).toBe("correct");
  });

  test("stops at its limit with one line, and takes the rest without complaint", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path, limitBytes: 1024 });
    for (let at = 0; at < 100; at++) expect(log.write(1, Buffer.alloc(100, 120))).toBe(true);
    await log.close();
    const { bytes, records } = await readSpool(path);
    expect(bytes.toString()).toBe(`${"x".repeat(1024)}\nlog limit of 1 KiB reached; the rest is not kept\n`);
    expect(records.at(-1)?.stream).toBe(0);
  });

  test("answers false when its buffers are full, and says when to go on", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path });
    const chunk = Buffer.alloc(1024 * 1024, 97);
    let written = 0;
    for (let at = 0; at < 20; at++) {
      const drained = new Promise<void>((resolve) => (log.onDrain = resolve));
      written += chunk.length;
      if (!log.write(1, chunk)) await drained;
    }
    await log.close();
    expect((await readSpool(path)).bytes.length).toBe(written);
  });

  test("keeps everything of many small writes on two streams", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path });
    const want: string[] = [];
    for (let at = 0; at < 20_000; at++) {
      const text = `${at};`;
      want.push(text);
      const drained = new Promise<void>((resolve) => (log.onDrain = resolve));
      if (!log.write(at % 2 === 0 ? 1 : 2, Buffer.from(text), at)) await drained;
      if (at % 1000 === 0) await new Promise(setImmediate);
    }
    await log.close();
    const { records } = await readSpool(path);
    expect(records.map(({ text }) => text)).toEqual(want);
    expect(records.every(({ stream, timeMs }) => stream === (timeMs % 2) + 1)).toBe(true);
  });

  test("announces output on disk while the step still runs", async () => {
    const path = join(dir, "0.log");
    const log = new StepLog({ path });
    const spooled = new Promise<void>((resolve) => (log.onSpooled = resolve));
    log.write(1, Buffer.from("live"));
    await spooled;
    expect(log.closed).toBe(false);
    expect((await readSpool(path)).bytes.toString()).toBe("live");
    await log.close();
  });

  test("says that the disk failed when it is closed, and takes all output meanwhile", async () => {
    await writeFile(join(dir, "file"), "");
    const log = new StepLog({ path: join(dir, "file", "0.log") });
    for (let at = 0; at < 50; at++) {
      const drained = new Promise<void>((resolve) => (log.onDrain = resolve));
      if (!log.write(1, Buffer.alloc(1024 * 1024))) await drained;
    }
    await expect(log.close()).rejects.toThrow(/Cannot write the log ".*0\.log": ENOTDIR/);
  });
});
