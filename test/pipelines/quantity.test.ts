import { describe, expect, test } from "vitest";
import { formatBytes, formatDuration, parseDuration, parseSize, writeSize } from "../../pipelines/index.ts";
import { DURATION_PATTERN, parseRate, RATE_PATTERN, SIZE_PATTERN } from "../../pipelines/quantity.ts";
import { seededRandom } from "./random.ts";

describe("parseDuration", () => {
  test.for([
    ["1s", 1000],
    ["90s", 90_000],
    ["5m", 300_000],
    ["1h30m", 5_400_000],
    ["2h5s", 7_205_000],
    ["1d", 86_400_000],
    ["7d", 604_800_000],
    ["120m", 7_200_000],
  ] as const)("%s is %i ms", ([text, milliseconds]) => {
    expect(parseDuration(text)).toEqual({ ok: true, value: milliseconds });
  });

  test.for([
    ["", "write hours, minutes and seconds, like 90s, 5m or 1h30m"],
    ["300", "write 300s for seconds or 300m for minutes"],
    ["1.5", "write hours, minutes and seconds, like 90s, 5m or 1h30m"],
    ["1.5h", "did you mean 1h30m?"],
    ["5 minutes", "did you mean 5m?"],
    ["90 sec", "did you mean 1m30s?"],
    ["1H30M", "did you mean 1h30m?"],
    ["30m1h", "did you mean 1h30m?"],
    ["1h1h", "did you mean 2h?"],
    ["500ms", "write hours, minutes and seconds, like 90s, 5m or 1h30m"],
    ["3 months", "write hours, minutes and seconds, like 90s, 5m or 1h30m"],
    ["-5m", "did you mean 5m?"],
    ["0s", "write a duration from 1s to 7d"],
    ["0h0m", "write a duration from 1s to 7d"],
    ["8d", "write a duration from 1s to 7d"],
    ["99999999999999h", "write hours, minutes and seconds, like 90s, 5m or 1h30m"],
  ] as const)("%j is refused: %s", ([text, suggestion]) => {
    expect(parseDuration(text)).toMatchObject({ ok: false, suggestion });
  });

  test("reads what formatDuration writes", () => {
    const random = seededRandom(1);
    for (let round = 0; round < 500; round += 1) {
      const milliseconds = (1 + random.below(604_800)) * 1000;
      const text = formatDuration(milliseconds);
      expect(parseDuration(text)).toEqual({ ok: true, value: milliseconds });
      expect(text).toMatch(new RegExp(DURATION_PATTERN));
    }
  });
});

describe("parseSize", () => {
  test.for([
    ["512MiB", 512 * 1024 ** 2],
    ["512M", 512 * 1024 ** 2],
    ["2GiB", 2 * 1024 ** 3],
    ["2G", 2 * 1024 ** 3],
    ["500MB", 500_000_000],
    ["2GB", 2_000_000_000],
    ["5000kB", 5_000_000],
    ["5000KB", 5_000_000],
    ["5000KiB", 5_120_000],
    ["5000K", 5_120_000],
    ["1TiB", 1024 ** 4],
    ["1.5GiB", 1.5 * 1024 ** 3],
    ["0.3GB", 300_000_000],
    ["5000000B", 5_000_000],
  ] as const)("%s is %i bytes", ([text, bytes]) => {
    expect(parseSize(text)).toEqual({ ok: true, value: bytes });
    expect(text).toMatch(new RegExp(SIZE_PATTERN));
  });

  test.for([
    ["", "write a number and a unit, like 512MiB, 2GiB or 500MB"],
    ["512", "did you mean 512MiB?"],
    ["536870912", "did you mean 536870912B?"],
    ["512mb", "did you mean 512MiB or 512MB?"],
    ["512m", "did you mean 512MiB?"],
    ["2 GiB", "did you mean 2GiB?"],
    ["2 gigabytes", "did you mean 2GiB?"],
    ["many", "write a number and a unit, like 512MiB, 2GiB or 500MB"],
    ["-1GiB", "write a number and a unit, like 512MiB, 2GiB or 500MB"],
    ["1e3M", "write a number and a unit, like 512MiB, 2GiB or 500MB"],
    ["1KiB", "write a size from 4MiB to 16TiB"],
    ["17TiB", "write a size from 4MiB to 16TiB"],
    ["999999999999999TiB", "write a size from 4MiB to 16TiB"],
  ] as const)("%j is refused: %s", ([text, suggestion]) => {
    expect(parseSize(text)).toMatchObject({ ok: false, suggestion });
  });
});

describe("parseRate", () => {
  const range = { least: 64 * 1024, most: 1024 ** 4 };

  test.for([
    ["50MiB/s", 50 * 1024 ** 2],
    ["1.5M/s", 1.5 * 1024 ** 2],
    ["500KB/s", 500_000],
  ] as const)("%s is %i bytes per second", ([text, bytes]) => {
    expect(parseRate(text, range)).toEqual({ ok: true, value: bytes });
    expect(text).toMatch(new RegExp(RATE_PATTERN));
  });

  test.for([
    ["50MiB", "did you mean 50MiB/s?"],
    ["50MiBps", "did you mean 50MiB/s?"],
    ["50MiB / sec", "did you mean 50MiB/s?"],
    ["50mb/s", "did you mean 50MiB/s or 50MB/s?"],
    ["50", "did you mean 50MiB/s?"],
    ["", "write a size per second, like 50MiB/s or 500KB/s"],
    ["fast", "write a size per second, like 50MiB/s or 500KB/s"],
    ["1KiB/s", "write a rate from 64KiB/s to 1TiB/s"],
  ] as const)("%j is refused: %s", ([text, suggestion]) => {
    expect(parseRate(text, range)).toMatchObject({ ok: false, suggestion });
    expect(text).not.toMatch(new RegExp(`^(?!1KiB)${RATE_PATTERN.slice(1)}`));
  });
});

test("writeSize writes what parseSize reads", () => {
  for (const bytes of [5 * 1024 ** 2, 1.5 * 1024 ** 3, 16 * 1024 ** 4]) {
    expect(parseSize(writeSize(bytes))).toEqual({ ok: true, value: bytes });
  }
});

test.for([
  [0, "0 bytes"],
  [1023, "1023 bytes"],
  [1024, "1 KiB"],
  [1536, "1.5 KiB"],
  [1024 ** 2, "1 MiB"],
  [10.26 * 1024 ** 2, "10.3 MiB"],
  [3 * 1024 ** 5, "3072 TiB"],
] as const)("formatBytes: %i is %s", ([bytes, text]) => {
  expect(formatBytes(bytes)).toBe(text);
});
