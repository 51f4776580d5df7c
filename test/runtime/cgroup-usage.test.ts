import { expect, test } from "vitest";
import { parseBlkio, parseIoStat } from "../../runtime/cgroup-usage.ts";

test("parseIoStat sums up devices", () => {
  const text = [
    "254:999 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=1 dios=1",
    "7:999 rbytes=1 wbytes=1 rios=1 wios=1 dbytes=0 dios=0 cost.vrate=100.00",
    "8:999",
    "",
  ].join("\n");
  expect(parseIoStat(text)).toEqual({
    ioReadBytes: 4097,
    ioWriteBytes: 8193,
    ioReadOperations: 2,
    ioWriteOperations: 3,
  });
  expect(parseIoStat("")).toEqual({ ioReadBytes: 0, ioWriteBytes: 0, ioReadOperations: 0, ioWriteOperations: 0 });
  expect(parseIoStat(undefined)).toBeUndefined();
});

test("parseBlkio sums up reads and writes of devices, and not their totals", () => {
  const bytes =
    "254:999 Read 4096\n254:999 Write 8192\n254:999 Sync 1\n254:999 Total 12288\n7:999 Read 1\nTotal 12289\n";
  const operations = "254:999 Read 2\n254:999 Write 3\nTotal 5\n";
  expect(parseBlkio(bytes, operations)).toEqual({
    ioReadBytes: 4097,
    ioWriteBytes: 8192,
    ioReadOperations: 2,
    ioWriteOperations: 3,
  });
  expect(parseBlkio("Total 0\n", "Total 0\n")?.ioReadBytes).toBe(0);
  expect(parseBlkio(undefined, operations)).toBeUndefined();
});
