import { expect, test } from "vitest";
import { lowerResources } from "../../agent/index.ts";
import { DEFAULTS } from "../../pipelines/index.ts";

const asked = { ...DEFAULTS.resources, memoryBytes: 8 * 1024 ** 3, io: { weight: 500, readBytesPerSecond: 1e6 } };

test("lowerResources gives a step the least of what it asks for and all ceilings", () => {
  expect(
    lowerResources(asked, { memoryBytes: 4 * 1024 ** 3, cpu: 100 }, undefined, { memoryBytes: 1e9, pids: 10 }),
  ).toEqual({
    ...asked,
    memoryBytes: 1e9,
    pids: 10,
  });
});

test("lowerResources limits I/O that was not limited, and raises nothing", () => {
  const ceiling = { io: { weight: 100, readBytesPerSecond: 1e9, writeBytesPerSecond: 5e6 } };
  expect(lowerResources(asked, ceiling).io).toEqual({ weight: 100, readBytesPerSecond: 1e6, writeBytesPerSecond: 5e6 });
  expect(lowerResources(DEFAULTS.resources, ceiling).io).toEqual(ceiling.io);
});

test("lowerResources without a ceiling grants what is asked for", () => {
  expect(lowerResources(asked)).toEqual(asked);
  expect(lowerResources(asked, {}, undefined)).toEqual(asked);
});
