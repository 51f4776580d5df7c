import { describe, expect, test } from "vitest";
import { lowerToCeiling, withoutReserve } from "../../runtime/ceiling.ts";
import { type ResourceFacts, ceilingResources, stepResources, weightProblem } from "../../runtime/step-resources.ts";

const GiB = 1024 ** 3;
const step = { memoryBytes: GiB, cpu: 1.5, pids: 64 };
const device = { major: 8, minor: 16, name: "sdb" };
const v2: ResourceFacts = {
  version: 2,
  limitsCpu: true,
  countsSwap: false,
  countsTcp: false,
  killsTogether: true,
  io: { device, weight: "bfq" },
};
const v1: ResourceFacts = { ...v2, version: 1, countsSwap: true, countsTcp: true, killsTogether: false };

describe("stepResources", () => {
  test("leaves no swap, and lets v2 kill the step as a whole", () => {
    expect(stepResources(step, v2)).toEqual({
      memory: { limit: BigInt(GiB), swap: BigInt(GiB) },
      cpu: { quota: 150_000n, period: 100_000n },
      pids: { limit: 64n },
      unified: new Map([["memory.oom.group", "1"]]),
    });
  });

  test("limits on v1 only what is counted there", () => {
    expect(stepResources(step, v1).memory).toEqual({ limit: BigInt(GiB), swap: BigInt(GiB), kernelTCP: BigInt(GiB) });
    const withoutCpu = { ...v2, limitsCpu: false };
    expect(stepResources(step, withoutCpu).cpu).toBeUndefined();
    // A ceiling is somebody's wish: it is not dropped, but refused when it is set.
    expect([ceilingResources({}, withoutCpu).cpu, ceilingResources({ cpu: 1 }, withoutCpu).cpu]).toEqual([
      {},
      { quota: 100_000n, period: 100_000n },
    ]);
    expect(stepResources(step, { ...v1, countsSwap: false, countsTcp: false }).memory).toEqual({ limit: BigInt(GiB) });
    expect(stepResources(step, v1).unified).toBeUndefined();
  });

  test("asks for the millisecond of CPU that the kernel wants at least", () => {
    expect(stepResources({ ...step, cpu: 0.001 }, v2).cpu?.quota).toBe(1000n);
  });

  test("throttles the disk of the state directory", () => {
    const io = { readBytesPerSecond: 1e6, writeOperationsPerSecond: 100 };
    expect(stepResources({ ...step, io }, v2).blockIO).toEqual({
      throttleReadBpsDevice: [{ major: 8, minor: 16, rate: 1_000_000n }],
      throttleWriteIOPSDevice: [{ major: 8, minor: 16, rate: 100n }],
    });
    expect(stepResources({ ...step, io: {} }, v2).blockIO).toBeUndefined();
  });

  test("says a share in the terms of the version and the scheduler", () => {
    const shares = { ...step, io: { weight: 50 } };
    expect(stepResources(shares, v1).blockIO).toEqual({ weight: 50 });
    expect(stepResources(shares, v2).unified?.get("io.bfq.weight")).toBe("50");
    expect(stepResources(shares, { ...v2, io: { device, weight: "io.weight" } }).unified?.get("io.weight")).toBe("50");
  });

  test("refuses limits that the host cannot set, and lets shares go", () => {
    const none: ResourceFacts = { ...v2, io: { problem: "this host has no disk" } };
    const limited = { ...step, io: { writeBytesPerSecond: 1e6, weight: 50 } };
    expect(() => stepResources(limited, none)).toThrow("Cannot limit a step's I/O: this host has no disk");
    const shares = { ...step, io: { weight: 50 } };
    expect(stepResources(shares, none)).toEqual(stepResources(step, none));
    expect(weightProblem(shares, none)).toBe("this host has no disk");
    const noop: ResourceFacts = { ...v2, io: { device, weight: { problem: "it is not scheduled" } } };
    expect(stepResources(shares, noop)).toEqual(stepResources(step, noop));
    expect(weightProblem(shares, noop)).toBe("it is not scheduled");
    expect(weightProblem(shares, v2)).toBeUndefined();
    expect(weightProblem(step, none)).toBeUndefined();
  });
});

test("ceilingResources takes away a limit that is not given any more", () => {
  expect(ceilingResources({}, v1)).toEqual({
    memory: { limit: -1n, swap: -1n },
    cpu: { quota: -1n, period: 100_000n },
    pids: { limit: -1n },
  });
  expect(ceilingResources({ cpuset: "0-1", cpu: 4, pids: 10, memoryBytes: GiB }, v2)).toEqual({
    memory: { limit: BigInt(GiB) },
    cpu: { quota: 400_000n, period: 100_000n, cpus: "0-1" },
    pids: { limit: 10n },
  });
});

test("lowerToCeiling gives a step no more than all steps have", () => {
  const asked = { ...step, diskBytes: 5 * GiB };
  expect(lowerToCeiling(asked, {})).toEqual(asked);
  expect(lowerToCeiling(asked, { memoryBytes: 1e6, cpu: 8, diskBytes: GiB })).toEqual({
    ...asked,
    memoryBytes: 1e6,
    diskBytes: GiB,
  });
  expect(lowerToCeiling(step, { diskBytes: GiB }).diskBytes).toBe(GiB);
});

test.for([
  [0.5, 0.375],
  [1, 0.75],
  [4, 3.6],
  [24, 23],
  [256, 255],
])("withoutReserve leaves steps %d GiB → %d GiB", ([total = 0, rest = 0]) => {
  expect(withoutReserve(total * GiB) / GiB).toBeCloseTo(rest, 5);
});
