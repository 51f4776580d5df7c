import { describe, expect, test } from "vitest";
import { advance, type Status } from "../../pipelines/index.ts";
import { seededRandom } from "./random.ts";

const diamond = [
  { name: "build", needs: [] },
  { name: "lint", needs: [] },
  { name: "test", needs: ["build"] },
  { name: "release", needs: ["test", "lint"] },
];

function advanceDiamond(statuses: Readonly<Record<string, Status>>): ReturnType<typeof advance> {
  return advance(diamond, new Map(Object.entries(statuses)));
}

describe("advance", () => {
  test("a build that has not begun is queued and its roots are ready, in order", () => {
    expect(advanceDiamond({})).toEqual({ ready: ["build", "lint"], skipped: [], status: "queued", finished: false });
  });

  test("a job is ready once all it needs succeeded, and stays so until its status changes", () => {
    expect(advanceDiamond({ build: "success", lint: "running" })).toMatchObject({ ready: ["test"], status: "running" });
    expect(advanceDiamond({ build: "success", lint: "success", test: "running" }).ready).toEqual([]);
    expect(advanceDiamond({ build: "success", lint: "success", test: "success" }).ready).toEqual(["release"]);
  });

  test("a build between two jobs is running", () => {
    expect(advanceDiamond({ build: "success", lint: "success" })).toMatchObject({ status: "running", finished: false });
  });

  test("what needs a failed job is skipped, with what needs that, while others go on", () => {
    expect(advanceDiamond({ build: "failure", lint: "running" })).toEqual({
      ready: [],
      skipped: [
        { name: "test", reason: 'it needs "build", which failed' },
        { name: "release", reason: 'it needs "test", which was skipped' },
      ],
      status: "running",
      finished: false,
    });
  });

  test.for([
    ["failure", "failed"],
    ["error", "ended with an error"],
    ["canceled", "was canceled"],
    ["skipped", "was skipped"],
  ] as const)("a need that ended in %s skips, because it %s", ([status, text]) => {
    const jobs = [
      { name: "a", needs: [] },
      { name: "b", needs: ["a"] },
    ];
    const { skipped, finished } = advance(jobs, new Map([["a", status]]));
    expect(skipped).toEqual([{ name: "b", reason: `it needs "a", which ${text}` }]);
    expect(finished).toBe(true);
  });

  test("a job that ran already is not skipped", () => {
    expect(advanceDiamond({ build: "failure", test: "success", lint: "success", release: "running" }).skipped).toEqual(
      [],
    );
  });

  test.for<[Status[], Status]>([
    [["success", "success"], "success"],
    [["success", "skipped"], "success"],
    [["success", "canceled"], "canceled"],
    [["canceled", "failure"], "failure"],
    [["failure", "error", "canceled"], "error"],
    [["skipped", "skipped"], "skipped"],
    [[], "success"],
  ])("jobs that ended %j make a build %s", ([statuses, expected]) => {
    const jobs = statuses.map((_, index) => ({ name: `${index}`, needs: [] }));
    const ended = new Map(statuses.map((status, index) => [`${index}`, status]));
    expect(advance(jobs, ended)).toEqual({ ready: [], skipped: [], status: expected, finished: true });
  });

  test("random graphs finish, every job run once after its needs or skipped for a reason", () => {
    const random = seededRandom(11);
    for (let round = 0; round < 200; round += 1) {
      const count = 1 + random.below(12);
      const jobs = Array.from({ length: count }, (_, index) => ({
        name: `j${index}`,
        needs: Array.from({ length: index }, (_, earlier) => `j${earlier}`).filter(() => random.below(3) === 0),
      }));
      // The order of the file is not the order of the graph.
      jobs.sort(() => random.below(3) - 1);
      const statuses = new Map<string, Status>();
      const started: string[] = [];
      const unmet: string[] = [];
      for (let steps = 0; ; steps += 1) {
        expect(steps).toBeLessThanOrEqual(2 * count + 1);
        const { ready, skipped, finished } = advance(jobs, statuses);
        expect(advance(jobs, statuses).ready).toEqual(ready);
        for (const { name } of skipped) statuses.set(name, "skipped");
        const running = [...statuses].filter(([, status]) => status === "running").map(([name]) => name);
        expect(finished).toBe(ready.length === 0 && running.length === 0);
        if (finished) break;
        const job = random.pick([...ready, ...running]);
        if (statuses.get(job) === "running") {
          statuses.set(job, random.pick(["success", "success", "success", "failure", "error", "canceled"] as const));
        } else {
          started.push(job);
          statuses.set(job, "running");
          const needs = jobs.find(({ name }) => name === job)?.needs ?? [];
          unmet.push(...needs.filter((need) => statuses.get(need) !== "success"));
        }
      }
      expect(statuses.size).toBe(count);
      expect(unmet).toEqual([]);
      expect(new Set(started).size).toBe(started.length);
    }
  });
});
