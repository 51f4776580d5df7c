import { expect, test } from "vitest";
import { sumUsage, usageText } from "../../cli/usage-text.ts";

const usage = {
  cpuTimeMs: 1200,
  cpuThrottledMs: 3400,
  cpuThrottledPeriods: 12,
  memoryPeakBytes: 480 * 1024 ** 2,
  pidsPeak: 12,
  ioReadBytes: 1024 ** 2,
  ioWriteBytes: 20 * 1024 ** 2,
  diskBytes: 10 * 1024 ** 2,
};

test("usageText says what is known, and not what is nothing", () => {
  expect(usageText(usage)).toBe(
    "cpu 1.20 s, throttled 3.40 s, memory 480 MiB, 12 processes, read 1 MiB, wrote 20 MiB, keeps 10 MiB of disk",
  );
  expect(usageText({ cpuTimeMs: 5, pidsPeak: 1, ioReadBytes: 0, cpuThrottledMs: 0, diskBytes: 0 })).toBe(
    "cpu 5.0 ms, 1 process",
  );
});

test("sumUsage adds what is used up, and takes the highest peak", () => {
  expect(sumUsage([])).toBeUndefined();
  expect(sumUsage([usage])).toEqual(usage);
  expect(sumUsage([usage, { cpuTimeMs: 800, memoryPeakBytes: 1, ioReadBytes: 5 }])).toEqual({
    cpuTimeMs: 2000,
    cpuThrottledMs: 3400,
    cpuThrottledPeriods: 12,
    memoryPeakBytes: 480 * 1024 ** 2,
    pidsPeak: 12,
    ioReadBytes: 1024 ** 2 + 5,
    ioWriteBytes: 20 * 1024 ** 2,
  });
});
