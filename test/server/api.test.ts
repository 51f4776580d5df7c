import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Harness, type TestRepository, twoJobs } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository("owner/api");
});
afterAll(() => harness[Symbol.asyncDispose]());

describe("repositories", () => {
  test("are added with a secret that is shown once", async () => {
    const { status, json } = await harness.call("POST", "/api/repositories", {
      body: { name: "owner/new", cloneUrl: "git@git.example.com:owner/new.git" },
    });
    expect(status).toBe(201);
    expect(json).toEqual({
      id: expect.stringMatching(/^r[0-9a-z]{18}$/),
      name: "owner/new",
      cloneUrl: "git@git.example.com:owner/new.git",
      webhookPath: `/hooks/${json.id}`,
      secret: expect.stringMatching(/^[\w-]{43}$/),
      createdAtMs: expect.any(Number),
    });
    const list = await harness.call("GET", "/api/repositories");
    expect(list.json.repositories.map((each: { name: string }) => each.name)).toEqual(["owner/api", "owner/new"]);
    expect(list.text).not.toContain(json.secret);
  });

  test("can bring a secret of their own", async () => {
    const body = { name: "owner/own", cloneUrl: "/srv/own.git", secret: "my own secret" };
    expect((await harness.call("POST", "/api/repositories", { body })).json.secret).toBe("my own secret");
  });

  test.each([
    [{ name: "owner/a\npi", cloneUrl: "/x" }, 400, /"name": must hold no control or invisible characters/],
    [{ name: "owner/\u202eipa", cloneUrl: "/x" }, 400, /"name": must hold no control/],
    [{ name: "owner/api", cloneUrl: "/x" }, 409, /there is one of that name/],
    [{ name: "x", cloneUrl: "ext::sh -c date" }, 400, /clone URL/],
    [{ name: "x", cloneUrl: "-x" }, 400, /option/],
    [{ name: "", cloneUrl: "/x" }, 400, /"name"/],
    [{ name: "x" }, 400, /"cloneUrl"/],
    [{ name: "x", cloneUrl: "/x", secret: "short" }, 400, /"secret"/],
    [{ name: "x", cloneUrl: "/x", colour: "red" }, 400, /colour/],
    [undefined, 400, /"name"/],
  ])("are refused: %j", async (body, status, error) => {
    const answer = await harness.call("POST", "/api/repositories", { ...(body && { body }) });
    expect(answer).toMatchObject({ status, json: { error: expect.stringMatching(error) } });
  });

  test("are deleted with all that is theirs, and their agents are fenced off", async () => {
    const gone = await harness.repository();
    const build = await gone.push(twoJobs);
    const attempt = await harness.claim();
    await attempt.log(0, 0, { stream: 1, text: "x" });
    expect((await harness.call("DELETE", `/api/repositories/${gone.id}`)).status).toBe(204);
    expect((await attempt.call("POST", "/renew")).status).toBe(409);
    expect((await attempt.log(0, 1, { stream: 1, text: "y" })).status).toBe(409);
    expect((await harness.call("GET", `/api/builds/${build.id}`)).status).toBe(404);
    expect((await harness.call("DELETE", `/api/repositories/${gone.id}`)).status).toBe(404);
    expect((await gone.hook(gone.payload(build.event.commit))).status).toBe(404);
  });
});

describe("builds", () => {
  test("are numbered by repository and listed newest first, page by page", async () => {
    for (let i = 0; i < 5; i++) await repository.push(`${twoJobs}# ${i}\n`);
    const other = await harness.repository();
    expect((await other.push(twoJobs)).number).toBe(1);
    const page = async (query: string) =>
      (await harness.call("GET", `/api/builds?repository=${repository.id}&limit=2${query}`)).json.builds;
    const first = await page("");
    const second = await page(`&before=${first[1].id}`);
    const third = await page(`&before=${second[1].id}`);
    expect([...first, ...second, ...third].map((build: { number: number }) => build.number)).toEqual([5, 4, 3, 2, 1]);
    expect((await harness.call("GET", "/api/builds?limit=1")).json.builds[0].repository.id).toBe(other.id);
    expect((await harness.call("GET", "/api/builds?limit=0")).status).toBe(400);
    expect((await harness.call("GET", "/api/builds?limit=x")).status).toBe(400);
  });

  test("are found by their number", async () => {
    const { json } = await harness.call("GET", `/api/repositories/${repository.id}/builds/2`);
    expect(json).toMatchObject({ number: 2, repository: { id: repository.id, name: "owner/api" } });
    for (const number of ["0", "99", "x", "-1"]) {
      expect((await harness.call("GET", `/api/repositories/${repository.id}/builds/${number}`)).status).toBe(404);
    }
  });

  test("run again with the same commit and event", async () => {
    const build = await repository.push(twoJobs);
    const { status, json } = await harness.call("POST", `/api/builds/${build.id}/rerun`);
    expect(status).toBe(201);
    expect(json).toMatchObject({ number: build.number + 1, status: "queued", rerunOf: build.id, event: build.event });
    expect(json.title).toBe(build.title);
  });

  test("are started by hand for a branch, a ref or a commit", async () => {
    const commit = repository.commit({ ".slipway.yml": twoJobs.replace("push", "tag") });
    const start = (body: object) =>
      harness.call("POST", "/api/builds", { body: { repositoryId: repository.id, ...body } });
    expect((await start({ ref: "main" })).json.event).toEqual({
      kind: "manual",
      ref: "refs/heads/main",
      branch: "main",
      commit,
    });
    expect((await start({ ref: "refs/heads/main" })).json.event).toMatchObject({ commit });
    expect((await start({ ref: "HEAD" })).json.event).toEqual({ kind: "manual", ref: "HEAD", commit });
    expect((await start({ commit })).json.event).toEqual({ kind: "manual", ref: "HEAD", commit, byCommit: true });
    expect(await start({ ref: "nowhere" })).toMatchObject({
      status: 422,
      json: { error: expect.stringMatching(/nowhere does not exist/) },
    });
    expect((await start({ ref: "a b" })).status).toBe(400);
    expect((await start({})).status).toBe(400);
    expect((await start({ commit: "abc" })).status).toBe(400);
    expect((await harness.call("POST", "/api/builds", { body: { repositoryId: "r0", ref: "main" } })).status).toBe(404);
  });

  test("that are started by hand without a pipeline are refused with the reason", async () => {
    const empty = await harness.repository();
    empty.commit({ "README.md": "x" });
    const answer = await harness.call("POST", "/api/builds", { body: { repositoryId: empty.id, ref: "main" } });
    expect(answer).toMatchObject({ status: 422, json: { error: expect.stringMatching(/has no .slipway.yml/) } });
  });
});

describe("logs", () => {
  test("are found by names or positions", async () => {
    const build = await repository.push(twoJobs);
    const get = async (query: string) => harness.call("GET", `/api/builds/${build.id}/log?${query}`);
    expect(await get("job=first&step=greet")).toMatchObject({ status: 200, text: "" });
    expect((await get("job=0&step=0")).status).toBe(200);
    expect((await get("job=nope&step=0")).json.error).toMatch(/has no job "nope"/);
    expect((await get("job=first&step=9")).json.error).toMatch(/has no step or service "9"/);
    expect((await get("job=first&step=../../../admin-token")).status).toBe(404);
    expect((await get("job=first")).status).toBe(400);
    expect((await get("job=first&step=0&attempt=-1")).status).toBe(400);
    expect((await get("job=first&step=0&offset=-1")).status).toBe(400);
  });
});

describe("errors", () => {
  test("are JSON with one sentence", async () => {
    expect(await harness.call("GET", "/api/nothing")).toMatchObject({
      status: 404,
      json: { error: "There is nothing at GET /api/nothing" },
    });
    expect(
      (await harness.call("POST", "/api/builds", { body: "{", headers: { "content-type": "application/json" } }))
        .status,
    ).toBe(400);
    const big = await harness.call("POST", "/api/builds", { body: { filler: "x".repeat(2 << 20) } });
    expect(big.status).toBe(413);
  });
});
