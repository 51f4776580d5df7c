import { describe, expect, test } from "vitest";
import { UsageError } from "../../cli/arguments.ts";
import { limitArguments, parseLimits } from "../../cli/limits.ts";
import type { Context } from "../../cli/verb.ts";

const nothing = {
  memory: undefined,
  cpus: undefined,
  cpuset: undefined,
  pids: undefined,
  disk: undefined,
  log: undefined,
};
const context = (environment: Record<string, string> = {}) => ({ environment }) as unknown as Context;

describe("parseLimits", () => {
  test("limits nothing where nothing is given", () => {
    expect(parseLimits(nothing, context({ SLIPWAY_MEMORY: "" }))).toEqual({ together: {}, each: {} });
  });

  test("reads what all steps get together and what each gets", () => {
    const values = { memory: "8GiB", cpus: "3.5", cpuset: "0-3,8", pids: "4000", disk: "50GiB", log: "100MiB" };
    const GiB = 1024 ** 3;
    expect(parseLimits(values, context({ SLIPWAY_MEMORY: "1GiB" }))).toEqual({
      together: { memoryBytes: 8 * GiB, cpu: 3.5, cpuset: "0-3,8", pids: 4000, diskBytes: 50 * GiB },
      each: { logBytes: 100 * 1024 ** 2 },
    });
    expect(limitArguments({ ...nothing, memory: "8GiB", pids: "5" })).toEqual(["--memory", "8GiB", "--pids", "5"]);
  });

  test("reads variables of the environment", () => {
    const { together } = parseLimits(nothing, context({ SLIPWAY_MEMORY: "1GiB", SLIPWAY_CPUS: "2" }));
    expect(together).toEqual({ memoryBytes: 1024 ** 3, cpu: 2 });
  });

  test.for([
    [{ memory: "8" }, '--memory cannot be "8": it has no unit; did you mean 8MiB?'],
    [{ disk: "1KiB" }, '--disk cannot be "1KiB": it is too small; write a size from 1MiB to 16TiB'],
    [{ cpus: "none" }, '--cpus must be a number from 0.01 to 100000, not "none"'],
    [{ cpus: "0" }, "--cpus must be"],
    [{ pids: "1.5" }, '--pids must be a whole number from 1 to 4194304, not "1.5"'],
    [{ cpuset: "0-" }, '--cpuset must be a list of CPUs like 0-3,8, not "0-"'],
    [{ cpuset: "0\n1" }, "--cpuset must be"],
  ] as const)("refuses %j", ([values, message]) => {
    const parse = () => parseLimits({ ...nothing, ...values }, context());
    expect(parse).toThrow(UsageError);
    expect(parse).toThrow(message);
  });

  test("names the variable that is wrong", () => {
    expect(() => parseLimits(nothing, context({ SLIPWAY_LOG: "x" }))).toThrow('SLIPWAY_LOG cannot be "x"');
  });
});
