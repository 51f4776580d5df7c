import { describe, expect, test } from "vitest";
import { findStep } from "../../cli/shell.ts";
import type { BuildView, JobView, StepView } from "../../server/index.ts";

type Part = readonly [string, StepView["status"] | "kept"];

function job(position: number, name: string, steps: readonly Part[], services: readonly Part[] = []): JobView {
  const view = ([step, state]: Part, index: number): StepView => ({
    position: index,
    name: step,
    status: state === "kept" ? "failure" : state,
    ...(state === "kept" && { kept: { untilMs: 1 } }),
  });
  return {
    position,
    name,
    needs: [],
    pool: "default",
    status: "running",
    stepNames: steps.map(([step]) => step),
    serviceNames: services.map(([service]) => service),
    attempts: [
      {
        n: 1,
        status: "running",
        createdAtMs: 0,
        steps: steps.map(view),
        services: services.map((service, index) => view(service, steps.length + index)),
      },
    ],
  };
}

const build = (...jobs: JobView[]): Pick<BuildView, "repository" | "number" | "jobs"> => ({
  repository: { id: "r", name: "team/app" },
  number: 12,
  jobs,
});

const two = build(
  job(0, "lint", [
    ["setup", "success"],
    ["check", "running"],
  ]),
  job(
    1,
    "test",
    [
      ["setup", "success"],
      ["unit/fast tests", "kept"],
      ["never", "skipped"],
    ],
    [["database", "running"]],
  ),
);
const idle = build(job(0, "lint", [["check", "success"]]));

describe("findStep", () => {
  test.for([
    ["lint", 0, 1],
    ["0", 0, 1],
    ["check", 0, 1],
    ["lint/1", 0, 1],
    ["0/check", 0, 1],
    ["test", 1, 1],
    ["test/unit/fast tests", 1, 1],
    ["unit/fast tests", 1, 1],
    ["1/1", 1, 1],
    ["test/database", 1, 3],
    ["database", 1, 3],
    ["1/3", 1, 3],
    // Exactly named, so it is tried: the server says why not.
    ["test/never", 1, 2],
    ["lint/setup", 0, 0],
  ] as const)("%s", ([rest, jobPosition, step]) => {
    expect(findStep(two, rest)).toEqual({ job: jobPosition, step });
  });

  test("takes the only one there is to enter", () => {
    const one = build(job(0, "a", [["x", "success"]]), job(1, "b", [["y", "running"]]));
    expect(findStep(one, "")).toEqual({ job: 1, step: 0 });
  });

  test.for([
    [
      "",
      /Several steps of team\/app#12 can be entered; name one: lint\/check \(running\), test\/unit\/fast tests \(kept\)$/,
    ],
    ["tset", /There is no step "tset" in team\/app#12.*; there are lint\/setup \(success\), lint\/check \(running\)/],
    ["test/unit", /There is no step "test\/unit" in team\/app#12/],
    ["lint/7", /There is no step "lint\/7"/],
  ] as const)("refuses %j, listing what there is", ([rest, message]) => {
    expect(() => findStep(two, rest)).toThrow(message);
  });

  test("says that nothing can be entered", () => {
    expect(() => findStep(idle, "")).toThrow("Nothing of team/app#12 can be entered: no step of it runs");
  });

  test("shows names of others harmlessly", () => {
    expect(() =>
      findStep(
        build(
          job(0, "a", [
            ["\x1b[2Jx", "running"],
            ["y", "running"],
          ]),
        ),
        "",
      ),
    ).toThrow(/a\/\\x1b\[2Jx/);
  });
});
