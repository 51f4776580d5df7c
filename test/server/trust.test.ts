/** Pull requests of strangers, as forges tell of them. */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isUntrusted } from "../../server/trust.ts";
import { git, Harness, type TestRepository } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;
beforeAll(async () => {
  harness = await Harness.start({ untrustedPool: "strangers" });
  repository = await harness.repository("team/app");
});
afterAll(async () => harness[Symbol.asyncDispose]());

// What a stranger would like: the pipeline file is theirs, too.
const pipeline = "jobs: { deploy: { pool: trusted, steps: [ { run: make, network: host } ] } }";

/** Commits the pipeline and sends a forge's webhook about it; returns the build. */
async function send(fixture: string) {
  const commit = repository.commit({ ".slipway.yml": pipeline }, { branch: "main", message: fixture });
  git(repository.work, "push", "-q", "-f", repository.bare, "HEAD:refs/pull/7/head");
  const body = readFileSync(new URL(`fixtures/${fixture}.json`, import.meta.url), "utf8").replaceAll(
    "{commit}",
    commit,
  );
  const isGitea = fixture.startsWith("gitea");
  const headers = isGitea ? { "x-gitea-event": "pull_request", "x-gitea-delivery": commit } : undefined;
  const answer = await repository.hook(body, {
    event: "pull_request",
    delivery: commit,
    ...(headers !== undefined && { headers }),
  });
  expect(answer.status).toBe(202);
  const [summary] = await harness.builds(repository.id);
  if (summary === undefined) throw new Error("no build was made");
  return harness.build(summary.id);
}

describe("a pull request", () => {
  test.for(["github", "gitea"])("of a fork on %s is untrusted, and cannot choose its agents", async (forge) => {
    const build = await send(`${forge}-pull-request-fork`);
    expect(build).toMatchObject({ untrusted: true, event: { pullRequest: { number: 7, fromFork: true } } });
    expect(build.jobs.map(({ pool }) => pool)).toEqual(["strangers"]);
    const attempt = await harness.claim("strangers");
    expect(attempt.claimed.build.untrusted).toBe(true);
    await attempt.finish({ status: "failure" });
    const [listed] = await harness.builds(repository.id);
    expect(listed?.untrusted).toBe(true);
  });

  test.for(["github", "gitea"])("of a fork on %s that was deleted is untrusted", async (forge) => {
    const build = await send(`${forge}-pull-request-deleted-fork`);
    expect(build).toMatchObject({ untrusted: true, jobs: [{ pool: "strangers" }] });
    await (await harness.claim("strangers")).finish({ status: "failure" });
  });

  test.for(["github", "gitea"])("of a branch of the repository on %s is not", async (forge) => {
    const build = await send(`${forge}-pull-request-branch`);
    expect(build).not.toHaveProperty("untrusted");
    expect(build.jobs.map(({ pool }) => pool)).toEqual(["trusted"]);
    const attempt = await harness.claim("trusted");
    expect(attempt.claimed.build).not.toHaveProperty("untrusted");
    await attempt.finish({ status: "failure" });
  });

  test("of a fork stays untrusted when it is built again", async () => {
    const build = await send("github-pull-request-fork");
    const answer = await harness.call("POST", `/api/builds/${build.id}/rerun`, { body: {} });
    expect(answer.json).toMatchObject({ untrusted: true, jobs: [{ pool: "strangers" }] });
  });

  test("that somebody builds by hand by its ref is untrusted", async () => {
    await send("github-pull-request-branch");
    const body = { repositoryId: repository.id, ref: "refs/pull/7/head" };
    const answer = await harness.call("POST", "/api/builds", { body });
    expect(answer.json).toMatchObject({ untrusted: true, jobs: [{ pool: "strangers" }] });
  });
});

describe("isUntrusted", () => {
  const fork = { number: 1, fromFork: true };
  test.for([
    [{ kind: "push", ref: "refs/heads/main" }, false],
    [{ kind: "tag", ref: "refs/tags/v1" }, false],
    [{ kind: "manual", ref: "refs/heads/main" }, false],
    [{ kind: "manual", ref: "HEAD" }, false],
    // A branch may be called so; nobody but those who may write made it.
    [{ kind: "manual", ref: "refs/heads/refs/pull/1/head" }, false],
    [{ kind: "manual", ref: "refs/pull/1/merge" }, true],
    [{ kind: "manual", ref: "refs/merge-requests/1/head" }, true],
    [{ kind: "pull_request", ref: "refs/pull/1/head", pullRequest: fork }, true],
    [{ kind: "pull_request", ref: "refs/pull/1/head", pullRequest: { ...fork, fromFork: false } }, false],
    [{ kind: "pull_request", ref: "refs/heads/main" }, true],
  ] as const)("says of %j: %s", ([event, expected]) => {
    expect(isUntrusted(event)).toBe(expected);
  });
});
