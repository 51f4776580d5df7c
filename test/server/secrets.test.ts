/** Secrets from the API to the claim of an agent: who gets which, and where values are. */
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ClaimedJob } from "../../queue/index.ts";
import { git, Harness, type TestRepository } from "./harness.ts";

const value = "a value that nobody may read";
let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository("team/app");
});
afterAll(async () => harness[Symbol.asyncDispose]());

const set = (body: object) => harness.call("POST", "/api/secrets", { body });
const pipeline = (uses: string, more = "") =>
  `${more}jobs: { j: { steps: [{ name: deploy, run: x, secrets: ${uses} }] } }`;

/** What the agent that claims the build's job is given. */
async function claim(text = pipeline("[TOKEN]"), of = repository): Promise<ClaimedJob> {
  await of.push(text);
  return await finishClaim();
}

async function finishClaim(): Promise<ClaimedJob> {
  const attempt = await harness.claim();
  await attempt.finish({ status: "failure" });
  return attempt.claimed;
}

const opened = ({ secrets = {} }: ClaimedJob) =>
  Object.fromEntries(Object.entries(secrets).map(([name, text]) => [name, Buffer.from(text, "base64").toString()]));

describe("a secret that is set", () => {
  test("is given to the job that names it, and shown to nobody", async () => {
    const answer = await set({ scope: "team/app", name: "TOKEN", value });
    expect(answer).toMatchObject({ status: 201, json: { scope: "team/app", name: "TOKEN" } });
    expect((await set({ scope: "team/app", name: "OTHER", value })).status).toBe(201);
    const listed = await harness.call("GET", "/api/secrets?scope=team/app");
    expect(listed.json.secrets.map(({ name }: { name: string }) => name)).toEqual(["OTHER", "TOKEN"]);
    for (const { text } of [answer, listed]) expect(text).not.toMatch(/nobody may read|sealed|keyId/);
    const claimed = await claim();
    expect(opened(claimed)).toEqual({ TOKEN: value });
    expect(claimed).not.toHaveProperty("secretProblems");
    expect(JSON.stringify(claimed.job)).not.toContain("nobody");
    // Replaced, also the rules.
    expect(
      (await set({ scope: "team/app", name: "TOKEN", valueBase64: Buffer.from("another one").toString("base64") }))
        .status,
    ).toBe(200);
    expect(opened(await claim())).toEqual({ TOKEN: "another one" });
    expect((await harness.call("DELETE", "/api/secrets?scope=team/app&name=OTHER")).status).toBe(204);
    expect((await harness.call("DELETE", "/api/secrets?scope=team/app&name=OTHER")).status).toBe(404);
  });

  test("is in no file but sealed: neither database, log of it, Redis, nor the key's", async () => {
    await set({ scope: "team/app", name: "TOKEN", value });
    await claim();
    const encodings = [value, Buffer.from(value).toString("base64").slice(0, 30), Buffer.from(value).toString("hex")];
    const words = encodings.flatMap((text) => ["-e", text]);
    expect(spawnSync("grep", ["-rlaF", ...words, harness.dir], { encoding: "utf8" }).stdout).toBe("");
    // What the search would find.
    expect(spawnSync("grep", ["-rlaF", "-e", "TOKEN", harness.dataDir], { encoding: "utf8" }).stdout).toContain(
      "sqlite",
    );
  });

  test("wants the admin token, for its name, too", async () => {
    const headers = { authorization: undefined };
    for (const [method, path, body] of [
      ["GET", "/api/secrets", undefined],
      ["POST", "/api/secrets", { scope: "team/app", name: "X", value }],
      ["DELETE", "/api/secrets?scope=team/app&name=TOKEN", undefined],
    ] as const) {
      expect((await harness.call(method, path, { headers, ...(body && { body }) })).status).toBe(401);
      expect((await harness.agentCall(method, path, body && { body })).status).toBe(401);
    }
  });

  test.for<[string, object, number, RegExp]>([
    ["a name with a slash", { name: "a/b" }, 400, /cannot be called "a\/b"/],
    ["a name of newlines", { name: "a\nb" }, 400, /cannot be called/],
    ["a name that begins with a dash", { name: "-a" }, 400, /cannot be called/],
    ["one character", { value: "x" }, 400, /"T" has 1 character; below 6/],
    ["nothing", { value: "" }, 400, /has 0 characters/],
    ["600 KiB", { value: "x".repeat(600 * 1024) }, 400, /has 600 KiB; at most 512 KiB/],
    ["1 MiB", { value: "x".repeat(2 ** 20) }, 413, /more than 1048576 bytes/],
    ["no repository", { scope: "team/ap" }, 404, /no repository "team\/ap"; did you mean "team\/app"\?$/],
    ["no pattern", { scope: "team/[" }, 400, /pattern "team\/\[" cannot be used/],
    ["no event", { events: ["pulls"] }, 400, /events/],
    ["a rule that there is not", { protected: true }, 400, /protected/],
    ["two values", { valueBase64: "YWJjZGVm" }, 400, /"value" or "valueBase64"/],
  ])("is refused with %s", async ([, change, status, problem]) => {
    const answer = await set({ scope: "team/app", name: "T", value, ...change });
    expect(answer).toMatchObject({ status, json: { error: expect.stringMatching(problem) } });
    expect(answer.text).not.toContain("nobody may read");
  });

  test("may have newlines and any bytes", async () => {
    const bytes = Buffer.concat([Buffer.from("line\nline\r\n\0"), randomBytes(2000)]);
    await set({ scope: "team/app", name: "BYTES", valueBase64: bytes.toString("base64") });
    const { secrets } = await claim(pipeline("{ f: { secret: BYTES, file: true } }"));
    expect(Buffer.from(secrets?.["BYTES"] ?? "", "base64")).toEqual(bytes);
  });
});

describe("a job", () => {
  test("is told what is missing and how to mend it, and then gets nothing", async () => {
    const claimed = await claim(pipeline("[TOKEN, TOKE, FAR_AWAY]"));
    expect(claimed.secretProblems).toEqual([
      'step "deploy" wants the secret "TOKE", which is not set for team/app (did you mean "TOKEN"?); set it: slipway secret set team/app TOKE',
      'step "deploy" wants the secret "FAR_AWAY", which is not set for team/app; set it: slipway secret set team/app FAR_AWAY',
    ]);
    expect(claimed).not.toHaveProperty("secrets");
  });

  test.for<[string, object, RegExp]>([
    ["events", { events: ["tag", "manual"] }, /is for tags and builds by hand, and this is pushes/],
    [
      "branches",
      { branches: ["release/*", "next"] },
      /is for the branches "release\/\*" and "next", and this is the branch "main"/,
    ],
    ["tags", { tags: ["v*"] }, /is for the tags "v\*", and this is the branch "main"/],
    ["images", { images: ["team/*"] }, /is for what runs in images "team\/\*", and it runs in "host"/],
    ["a registry", { registry: "registry.example" }, /is for the registry "registry.example" and nothing else/],
  ])("does not get what is for other %s", async ([, rules, problem]) => {
    await set({ scope: "team/app", name: "RULED", value, ...rules });
    const claimed = await claim(pipeline("[RULED]"));
    expect(claimed.secretProblems?.[0]).toMatch(problem);
    expect(JSON.stringify(claimed)).not.toContain(Buffer.from(value).toString("base64"));
  });

  test("gets what is for it", async () => {
    for (const rules of [{ branches: ["ma*"] }, { branches: ["x"], events: ["push"], tags: ["y"] }]) {
      await set({ scope: "team/app", name: "RULED", value, ...rules });
      const isFor = "branches" in rules && rules.branches.includes("ma*");
      expect(Object.keys(opened(await claim(pipeline("[RULED]"))))).toEqual(isFor ? ["RULED"] : []);
    }
    await set({ scope: "team/app", name: "RULED", value, registry: "r.example" });
    const login = "registries: { r.example: { username: a, password: { secret: RULED } } }\n";
    const text = `${login}jobs: { j: { image: r.example/x, steps: [x] } }`;
    expect(opened(await claim(text))).toEqual({ RULED: value });
    expect((await claim(text.replaceAll("r.example", "evil.example"))).secretProblems?.[0]).toMatch(
      /r\.example" and nothing else/,
    );
  });

  test("gets what its repository has before what patterns have, the longest of these first", async () => {
    const other = await harness.repository("team/other");
    const stranger = await harness.repository("elsewhere/app");
    await set({ scope: "*", name: "SHARED", value: "of everybody" });
    await set({ scope: "team/*", name: "SHARED", value: "of the team" });
    await set({ scope: "team/app", name: "SHARED", value: "of the app" });
    for (const [of, expected] of [
      [repository, "of the app"],
      [other, "of the team"],
      [stranger, "of everybody"],
    ] as const) {
      expect(opened(await claim(pipeline("[SHARED]"), of))).toEqual({ SHARED: expected });
    }
    const names = async (scope: string) =>
      (await harness.call("GET", `/api/secrets?scope=${encodeURIComponent(scope)}`)).json.secrets.map(
        ({ scope: of }: { scope: string }) => of,
      );
    expect(await names("team/other")).toEqual(["*", "team/*"]);
    // Gone with its repository; nobody inherits them by taking the name.
    await set({ scope: "team/other", name: "OWN", value });
    await harness.call("DELETE", `/api/repositories/${other.id}`);
    const heir = await harness.repository("team/other");
    expect((await claim(pipeline("[OWN]"), heir)).secretProblems?.[0]).toContain("is not set for team/other");
  });

  test("of a stranger's pull request gets none, and may ask registries as nobody", async () => {
    await set({ scope: "*", name: "TOKEN", value, events: ["pull_request"] });
    await set({ scope: "team/app", name: "TOKEN", value });
    const login = "registries: { docker.io: { username: a, password: { secret: TOKEN } } }\n";
    for (const [text, problems] of [
      [pipeline("[TOKEN]"), ["which commits of strangers do not get"]],
      [`${login}jobs: { j: { image: node:24, steps: [x] } }`, []],
    ] as const) {
      await pullRequest("github-pull-request-fork", text);
      const claimed = await finishClaim();
      expect(claimed).not.toHaveProperty("secrets");
      expect(claimed.secretProblems ?? []).toEqual(problems.map((problem) => expect.stringContaining(problem)));
    }
    await pullRequest("github-pull-request-branch", pipeline("[TOKEN]"));
    expect(opened(await finishClaim())).toEqual({ TOKEN: value });
    // What a pull request wants to get into says nothing of where it comes from.
    await set({ scope: "team/app", name: "TOKEN", value, branches: ["**"] });
    await pullRequest("github-pull-request-branch", pipeline("[TOKEN]"));
    expect((await finishClaim()).secretProblems?.[0]).toMatch(/and this is a pull request/);
  });

  test("of a commit that somebody names by hand gets none, unless it was pushed", async () => {
    await set({ scope: "team/app", name: "TOKEN", value });
    const build = (body: object) =>
      harness.call("POST", "/api/builds", { body: { repositoryId: repository.id, ...body } });
    const pushed = await repository.push(pipeline("[TOKEN]"));
    await finishClaim();
    await build({ ref: "main", commit: pushed.event.commit });
    expect(opened(await finishClaim())).toEqual({ TOKEN: value });
    await build({ ref: "main" });
    expect(opened(await finishClaim())).toEqual({ TOKEN: value });
    // A stranger's, which the forge shows in the same repository.
    const theirs = repository.commit({ ".slipway.yml": `${pipeline("[TOKEN]")}\n# theirs` }, { branch: "theirs" });
    git(repository.bare, "update-ref", "refs/pull/9/head", theirs);
    git(repository.bare, "update-ref", "-d", "refs/heads/theirs");
    git(repository.bare, "config", "uploadpack.allowAnySHA1InWant", "true");
    const answer = await build({ ref: "main", commit: theirs });
    expect(answer.status).toBe(201);
    const refused = await finishClaim();
    expect(refused.secretProblems?.[0]).toMatch(/named by hand does not get unless a push of it is known/);
    await harness.call("POST", `/api/builds/${answer.json.id}/rerun`, { body: {} });
    expect((await finishClaim()).secretProblems).toHaveLength(1);
  });
});

/** Commits a pipeline and sends what a forge tells of a pull request. */
async function pullRequest(fixture: string, text: string): Promise<void> {
  const commit = repository.commit({ ".slipway.yml": text });
  git(repository.work, "push", "-q", "-f", repository.bare, "HEAD:refs/pull/7/head");
  const body = readFileSync(new URL(`fixtures/${fixture}.json`, import.meta.url), "utf8").replaceAll(
    "{commit}",
    commit,
  );
  const answer = await repository.hook(body, { event: "pull_request" });
  expect(answer.status).toBe(202);
  await harness.builds(repository.id);
}

describe("the key", () => {
  test("can be exchanged, lost and found; what the database's writer changes is not opened", async () => {
    await using own = await Harness.start();
    const app = await own.repository("team/app");
    const put = (name: string) => own.call("POST", "/api/secrets", { body: { scope: "team/app", name, value } });
    await put("A");
    await put("B");
    const ask = async (uses: string) => {
      await app.push(pipeline(uses));
      const attempt = await own.claim();
      await attempt.finish({ status: "failure" });
      return attempt.claimed;
    };
    const path = join(own.dataDir, "secrets-key");
    const old = readFileSync(path, "utf8");
    await own.stopServer();
    // A new one in front: everything is sealed with it at the next start, and the old one can go.
    const fresh = `# new\n${randomBytes(32).toString("hex")}\n`;
    writeFileSync(path, fresh + old);
    await own.startServer();
    await own.stopServer();
    writeFileSync(path, fresh);
    await own.startServer();
    expect(opened(await ask("[A, B]"))).toEqual({ A: value, B: value });
    await own.stopServer();
    rmSync(path);
    await own.startServer();
    expect((await ask("[A]")).secretProblems?.[0]).toMatch(
      /cannot be read: it is sealed with the key \w{12}, which the server does not have; set it again/,
    );
    await own.stopServer();
    writeFileSync(path, fresh);
    {
      // Whoever can write the database would like B's value as A, for strangers' branches, for another repository.
      using database = new DatabaseSync(join(own.dataDir, "slipway.sqlite"));
      database.exec("UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'B') WHERE name = 'A'");
      database.exec(`UPDATE secrets SET rules = '{"events":["push"]}' WHERE name = 'B'`);
    }
    await own.startServer();
    for (const name of ["A", "B"])
      expect((await ask(`[${name}]`)).secretProblems?.[0]).toMatch(/damaged, or was changed or moved/);
  });
});
