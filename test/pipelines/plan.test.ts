import { describe, expect, test } from "vitest";
import { parsePipeline, type Pipeline, type PipelineEvent, planBuild } from "../../pipelines/index.ts";

const commit = "0123456789012345678901234567890123456789";
const everything = read("");

function read(on: string): Pipeline {
  const { pipeline, diagnostics } = parsePipeline(
    `${on}\njobs: { a: { steps: [make] }, b: { steps: [make], needs: a } }`,
  );
  if (pipeline === undefined) throw new Error(JSON.stringify(diagnostics));
  return pipeline;
}

function push(branch: string, message?: string): PipelineEvent {
  return { kind: "push", ref: `refs/heads/${branch}`, commit, branch, ...(message !== undefined && { message }) };
}

function tag(name: string, message?: string): PipelineEvent {
  return { kind: "tag", ref: `refs/tags/${name}`, commit, tag: name, ...(message !== undefined && { message }) };
}

function pullRequest(base: string, message?: string): PipelineEvent {
  return {
    kind: "pull_request",
    ref: "refs/pull/7/head",
    commit,
    branch: base,
    pullRequest: { number: 7, fromFork: true },
    ...(message !== undefined && { message }),
  };
}

describe("planBuild", () => {
  test("without on every push, tag and pull request starts all jobs in file order", () => {
    for (const event of [push("main"), tag("v1"), pullRequest("main")]) {
      const plan = planBuild(everything, event);
      expect(plan.matched).toBe(true);
      expect(plan.jobs.map((job) => job.name)).toEqual(["a", "b"]);
    }
  });

  test.for<[on: string, event: PipelineEvent, matched: boolean, reason: string]>([
    ["", push("x"), true, "the pipeline runs for every branch"],
    ["on: push", push("x"), true, "the pipeline runs for every branch"],
    ["on: push", tag("v1"), false, "the pipeline runs on push, not on tag"],
    ["on: [tag, pull_request]", push("x"), false, "the pipeline runs on tag and pull_request, not on push"],
    ["on: { branches: main }", push("main"), true, 'branch "main" is listed'],
    ["on: { branches: main }", tag("main"), false, "the pipeline runs on push and pull_request, not on tag"],
    ["on: { branches: [main, release/*] }", push("release/1"), true, 'branch "release/1" matches release/*'],
    ["on: { branches: [main, release/*] }", push("dev"), false, 'branch "dev" matches none of main, release/*'],
    ["on: { branches: [main] }", pullRequest("dev"), false, 'base branch "dev" matches none of main'],
    ['on: { branches: ["!wip/**"] }', push("dev"), true, 'branch "dev" is not excluded'],
    ['on: { branches: ["!wip/**"] }', push("wip/a/b"), false, 'branch "wip/a/b" is excluded by !wip/**'],
    ['on: { branches: ["!a", "*"] }', push("a"), false, 'branch "a" is excluded by !a'],
    ['on: { tag: { tags: "v[0-9]*" } }', tag("v1.2"), true, 'tag "v1.2" matches v[0-9]*'],
    ['on: { tag: { tags: "v[0-9]*" } }', tag("nightly"), false, 'tag "nightly" matches none of v[0-9]*'],
    ["on: push", push("x", "Fix it\n\n[skip ci]"), false, "the commit's message says [skip ci]"],
    ["on: push", push("x", "[CI Skip] text"), false, "the commit's message says [CI Skip]"],
    ["", pullRequest("x", "[no ci]"), false, "the commit's message says [no ci]"],
    ["", tag("v1", "[skip ci]"), true, "the pipeline runs for every tag"],
    ["on: push", push("x", "skip ci"), true, "the pipeline runs for every branch"],
    ["on: tag", { kind: "manual", ref: "refs/heads/x", commit, message: "[skip ci]" }, true, "started by hand"],
  ])("%s", ([on, event, matched, reason]) => {
    const plan = planBuild(read(on), event);
    expect(plan).toMatchObject({ matched, reason });
    expect(plan.jobs).toHaveLength(matched ? 2 : 0);
  });

  test("a branch or tag the event does not name is taken from its ref", () => {
    const pipeline = read('on: { push: { branches: [main] }, tag: { tags: "v*" } }');
    expect(planBuild(pipeline, { kind: "push", ref: "refs/heads/main", commit }).matched).toBe(true);
    expect(planBuild(pipeline, { kind: "tag", ref: "refs/tags/v1", commit }).matched).toBe(true);
    expect(planBuild(pipeline, { kind: "push", ref: "HEAD", commit })).toMatchObject({
      matched: false,
      reason: "the event names no branch",
    });
  });
});
