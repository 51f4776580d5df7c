import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { BuildView } from "../../server/index.ts";
import { git, Harness, type TestRepository, twoJobs, until } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository();
});
afterAll(() => harness[Symbol.asyncDispose]());

async function hookAndBuild(commit: string, ref?: string): Promise<BuildView> {
  const answer = await repository.hook(repository.payload(commit, ref));
  expect(answer.status).toBe(202);
  const [build] = await harness.builds(repository.id);
  if (!build) throw new Error("no build");
  return harness.build(build.id);
}

async function lastDelivery() {
  await harness.builds(repository.id);
  return (await harness.call("GET", `/api/deliveries?repository=${repository.id}&limit=1`)).json.deliveries[0];
}

describe("a commit's pipeline", () => {
  test("is the one of the commit, not of the branch's tip", async () => {
    const first = repository.commit({ ".slipway.yml": twoJobs });
    repository.commit({ ".slipway.yml": twoJobs.replaceAll("first", "renamed") });
    const build = await hookAndBuild(first);
    expect(build.jobs.map((job) => job.name)).toEqual(["first", "second"]);
  });

  test("is found although the push went over the commit", async () => {
    const lost = repository.commit({ ".slipway.yml": twoJobs, lost: "1" });
    git(repository.work, "reset", "-q", "--hard", "HEAD~1");
    repository.commit({ other: "1" });
    expect((await hookAndBuild(lost)).status).toBe("queued");
  });

  test("of an annotated tag is that of the commit it points to", async () => {
    const commit = repository.commit({ ".slipway.yml": twoJobs.replace("push", "tag") });
    git(repository.work, "tag", "-a", "v1", "-m", "release");
    git(repository.work, "push", "-q", repository.bare, "v1");
    const build = await hookAndBuild(git(repository.work, "rev-parse", "v1"), "refs/tags/v1");
    expect(build.event).toMatchObject({ kind: "tag", commit });
  });

  test("with errors makes a failed build that shows them", async () => {
    const build = await hookAndBuild(
      repository.commit({ ".slipway.yml": "on: { push: {} }\njobs:\n  a:\n    stesp: []\n" }),
    );
    expect(build).toMatchObject({ status: "failure", reason: expect.stringMatching(/error/), jobs: [] });
    expect(build.diagnostics?.formatted).toContain(".slipway.yml:4:5");
    expect(build.diagnostics?.items[0]).toMatchObject({
      line: 4,
      column: 5,
      suggestion: expect.stringContaining("steps"),
    });
  });

  test.each([
    ["that is 10 MB", () => `# ${"x".repeat(10_000_000)}\n${twoJobs}`, /bytes/],
    ["that is not YAML", () => "{ [ }", /error/],
    ["that is binary", () => "\u0000\u0001\u0002", /error/],
    ["whose aliases explode", bomb, /error/],
  ])("%s makes a failed build", async (_what, pipeline, reason) => {
    const build = await hookAndBuild(repository.commit({ ".slipway.yml": pipeline() }));
    expect(build).toMatchObject({ status: "failure", reason: expect.stringMatching(reason), jobs: [] });
  });

  test("that is a symbolic link makes a failed build and is not followed", async () => {
    rmSync(join(repository.work, ".slipway.yml"));
    symlinkSync("/proc/version", join(repository.work, ".slipway.yml"));
    const build = await hookAndBuild(repository.commit({}));
    expect(build).toMatchObject({ status: "failure", reason: expect.stringMatching(/symbolic link/) });
    rmSync(join(repository.work, ".slipway.yml"));
  });

  test("that is a directory makes a failed build", async () => {
    const build = await hookAndBuild(repository.commit({ ".slipway.yml/file": "x" }));
    expect(build).toMatchObject({ status: "failure", reason: expect.stringMatching(/directory/) });
    rmSync(join(repository.work, ".slipway.yml"), { recursive: true });
  });

  test("that is missing makes no build; the delivery says so", async () => {
    const before = (await harness.builds(repository.id)).length;
    await repository.hook(repository.payload(repository.commit({ "README.md": "hi" })));
    expect(await lastDelivery()).toMatchObject({
      status: "ignored",
      reason: expect.stringMatching(/has no .slipway.yml/),
    });
    expect(await harness.builds(repository.id)).toHaveLength(before);
  });

  test("that does not want the event makes no build; the delivery says why", async () => {
    await repository.hook(repository.payload(repository.commit({ ".slipway.yml": twoJobs.replace("push", "tag") })));
    expect(await lastDelivery()).toMatchObject({ status: "ignored", reason: expect.stringMatching(/not on push/) });
  });

  test("is skipped by [skip ci] in the commit's message", async () => {
    const commit = repository.commit({ ".slipway.yml": twoJobs }, { message: "Fix a typo [skip ci]" });
    await repository.hook(repository.payload(commit));
    expect(await lastDelivery()).toMatchObject({ status: "ignored", reason: expect.stringContaining("[skip ci]") });
  });
});

describe("a commit that cannot be had", () => {
  test("makes a build with status error that names it", async () => {
    const commit = "1234567890abcdef1234567890abcdef12345678";
    const build = await hookAndBuild(commit);
    expect(build).toMatchObject({ status: "error", event: { commit }, reason: expect.stringContaining(commit) });
  });

  test("in a repository that is gone makes a build with git's reason", async () => {
    const gone = await harness.repository();
    const commit = gone.commit({ ".slipway.yml": twoJobs });
    rmSync(gone.bare, { recursive: true });
    await gone.hook(gone.payload(commit));
    const [build] = await harness.builds(gone.id);
    expect(build).toMatchObject({
      status: "error",
      reason: expect.stringMatching(/does not appear to be a git repository/),
    });
  });

  test("from a host that refuses shows no credentials anywhere", async () => {
    const seen: (string | undefined)[] = [];
    const forge = createServer((request, response) => {
      seen.push(request.headers.authorization);
      response.writeHead(403).end("no");
    });
    await new Promise<void>((resolve) => void forge.listen(0, "127.0.0.1", resolve));
    const { port } = forge.address() as AddressInfo;
    const cloneUrl = `http://robot:hunter2secret@127.0.0.1:${port}/o/r.git`;
    const added = await harness.call("POST", "/api/repositories", { body: { name: "o/secret", cloneUrl } });
    expect(added.text).not.toContain("hunter2secret");
    expect(added.json.cloneUrl).toBe(`http://***@127.0.0.1:${port}/o/r.git`);
    const answer = await harness.call("POST", "/api/builds", {
      body: { repositoryId: added.json.id, commit: "1234567890abcdef1234567890abcdef12345678" },
    });
    forge.close();
    expect(answer.json).toMatchObject({ status: "error", reason: expect.stringMatching(/403/) });
    // It was used, but is not shown.
    expect(seen).toContain(`Basic ${Buffer.from("robot:hunter2secret").toString("base64")}`);
    for (const path of ["/api/repositories", "/api/builds", "/api/deliveries", `/api/builds/${answer.json.id}`]) {
      const { text } = await harness.call("GET", path);
      expect(text).not.toContain("hunter2secret");
      expect(text).not.toContain(Buffer.from("robot:hunter2secret").toString("base64"));
    }
  });

  test("from a host that never answers makes a build with status error after the time limit", async () => {
    await using hasty = await Harness.start({ fetchTimeoutMs: 1_000 });
    const forge = createServer(() => {});
    await new Promise<void>((resolve) => void forge.listen(0, "127.0.0.1", resolve));
    const { port } = forge.address() as AddressInfo;
    const added = await hasty.call("POST", "/api/repositories", {
      body: { name: "o/tarpit", cloneUrl: `http://127.0.0.1:${port}/o/r.git` },
    });
    const answer = await hasty.call("POST", "/api/builds", { body: { repositoryId: added.json.id, ref: "main" } });
    forge.closeAllConnections();
    forge.close();
    expect(answer).toMatchObject({ status: 422, json: { error: expect.stringMatching(/did not answer within 1 s/) } });
  });
});

describe("hostile names", () => {
  test("a branch named like an option is built and runs nothing", async () => {
    const marker = join(harness.dir, "pwned");
    const branch = `--upload-pack=touch\${IFS}${marker}`;
    const commit = repository.commit({ ".slipway.yml": twoJobs, hostile: "1" });
    git(repository.work, "update-ref", `refs/heads/${branch}`, commit);
    git(repository.work, "push", "-q", repository.bare, `refs/heads/${branch}:refs/heads/${branch}`);
    const byRef = await harness.call("POST", "/api/builds", { body: { repositoryId: repository.id, ref: branch } });
    expect(byRef.json).toMatchObject({ status: "queued", event: { commit, branch } });
    const build = await hookAndBuild(commit, `refs/heads/${branch}`);
    expect(build.event).toMatchObject({ branch, commit });
    expect(existsSync(marker)).toBe(false);
  });

  test("a branch that was a directory of branches is built", async () => {
    const first = repository.commit({ ".slipway.yml": twoJobs, name: "1" }, { branch: "topic/part" });
    await hookAndBuild(first, "refs/heads/topic/part");
    git(repository.bare, "update-ref", "-d", "refs/heads/topic/part");
    const second = repository.commit({ name: "2" }, { branch: "topic" });
    expect((await hookAndBuild(second, "refs/heads/topic")).status).toBe("queued");
  });
});

describe("the mirror", () => {
  const mirrorDir = () => join(harness.dataDir, "mirrors", `${repository.id}.git`);

  test("does not fetch a commit that is there", async () => {
    const commit = repository.commit({ ".slipway.yml": twoJobs, warm: "1" });
    await hookAndBuild(commit);
    // Without the repository only what is in the mirror can be built.
    const aside = `${repository.bare}.aside`;
    execFileSync("mv", [repository.bare, aside]);
    const build = await hookAndBuild(commit);
    execFileSync("mv", [aside, repository.bare]);
    expect(build.status).toBe("queued");
  });

  test("is made anew where a crash left a lock or damage", async () => {
    writeFileSync(join(mirrorDir(), "shallow.lock"), "");
    const build = await hookAndBuild(repository.commit({ ".slipway.yml": twoJobs, locked: "1" }));
    expect(build.status).toBe("queued");
    expect(readdirSync(mirrorDir())).not.toContain("shallow.lock");
  });

  test("keeps no credentials on the disk", () => {
    for (const dir of readdirSync(join(harness.dataDir, "mirrors"))) {
      expect(readFileSync(join(harness.dataDir, "mirrors", dir, "config"), "utf8")).not.toContain("hunter2");
    }
  });

  test("goes away with its repository", async () => {
    const other = await harness.repository();
    const build = await other.push(twoJobs);
    const dir = join(harness.dataDir, "mirrors", `${other.id}.git`);
    expect(existsSync(dir)).toBe(true);
    expect((await harness.call("DELETE", `/api/repositories/${other.id}`)).status).toBe(204);
    await until(() => !existsSync(dir));
    expect((await harness.call("GET", `/api/builds/${build.id}`)).status).toBe(404);
  });

  test("of a repository with SHA-256 ids works", async () => {
    const bare = join(harness.dir, "sha256.git");
    const work = join(harness.dir, "sha256");
    mkdirSync(work);
    git(harness.dir, "init", "-q", "--bare", "--object-format=sha256", bare);
    git(work, "init", "-q", "--object-format=sha256");
    writeFileSync(join(work, ".slipway.yml"), twoJobs);
    git(work, "add", ".slipway.yml");
    git(work, "commit", "-qm", "first");
    git(work, "push", "-q", bare, "HEAD:refs/heads/main");
    const added = await harness.call("POST", "/api/repositories", { body: { name: "o/sha256", cloneUrl: bare } });
    const commit = git(work, "rev-parse", "HEAD");
    const answer = await harness.call("POST", "/api/builds", {
      body: { repositoryId: added.json.id, ref: "main", commit },
    });
    expect(answer.json).toMatchObject({ status: "queued", event: { commit } });
  });
});

function bomb(): string {
  const levels = Array.from(
    { length: 12 },
    (_, i) => `  l${i + 1}: &l${i + 1} [${Array(9).fill(`*l${i}`).join(", ")}]`,
  );
  return `x:\n  l0: &l0 [lol, lol]\n${levels.join("\n")}\n${twoJobs}`;
}
