import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Harness, sendHook, sign, type TestRepository, twoJobs, until } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;
let commit: string;

beforeAll(async () => {
  harness = await Harness.start({ webhookSecret: "server-wide secret" });
  repository = await harness.repository();
  commit = repository.commit({ ".slipway.yml": twoJobs });
});
afterAll(() => harness[Symbol.asyncDispose]());

const countDeliveries = async () =>
  (await harness.call("GET", `/api/deliveries?repository=${repository.id}&limit=200`)).json.deliveries.length;

describe("POST /hooks/:repositoryId", () => {
  test("answers a signed push with 202 and builds the commit", async () => {
    const answer = await repository.hook(repository.payload(commit));
    expect(answer.status).toBe(202);
    expect(answer.json).toMatchObject({ status: "pending", builds: [] });
    const [build] = await harness.builds(repository.id);
    expect(build).toMatchObject({
      number: 1,
      status: "queued",
      title: "a commit",
      author: "Ada",
      event: { kind: "push", ref: "refs/heads/main", branch: "main", commit },
    });
  });

  test("answers a repeated delivery with the same builds and makes no second one", async () => {
    const delivery = randomUUID();
    await repository.hook(repository.payload(commit), { delivery });
    const builds = await harness.builds(repository.id);
    const repeat = await repository.hook(repository.payload(commit), { delivery });
    expect(repeat.status).toBe(200);
    expect(repeat.json).toMatchObject({ repeat: true, status: "built", builds: [builds[0]?.id] });
    expect(await harness.builds(repository.id)).toHaveLength(builds.length);
  });

  test.each([
    ["missing", undefined],
    ["of another secret", sign("{}", "wrong")],
    ["too short", "sha256=00"],
    ["too long", `sha256=${"0".repeat(128)}`],
    ["not hexadecimal", `sha256=${"g".repeat(64)}`],
    ["without its digits", "sha256="],
    ["of sha1", "sha1=0000000000000000000000000000000000000000"],
  ])("refuses a signature that is %s and stores nothing", async (_what, signature) => {
    const before = await countDeliveries();
    const answer = await repository.hook(repository.payload(commit), { headers: { "x-hub-signature-256": signature } });
    expect(answer.status).toBe(401);
    expect(answer.json.error).toMatch(/signature|signed/);
    expect(await countDeliveries()).toBe(before);
  });

  test("verifies the bytes as they came, whatever their spacing", async () => {
    const body = `  ${JSON.stringify(repository.payload(commit), undefined, 3)}\n`;
    expect((await repository.hook(body)).status).toBe(202);
    const changed = await repository.hook(`${body} `, {
      headers: { "x-hub-signature-256": sign(body, repository.secret) },
    });
    expect(changed.status).toBe(401);
  });

  test("reads GitHub's own test vector's algorithm", () => {
    expect(sign("Hello, World!", "It's a Secret to Everybody")).toBe(
      "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
    );
  });

  test("reads a form whose bytes are signed", async () => {
    const body = new URLSearchParams({ payload: JSON.stringify(repository.payload(commit)) }).toString();
    const answer = await repository.hook(body, { headers: { "content-type": "application/x-www-form-urlencoded" } });
    expect(answer.status).toBe(202);
  });

  test("reads Gitea's form, where the JSON inside is signed without a prefix", async () => {
    const json = JSON.stringify(repository.payload(commit));
    const answer = await repository.hook(new URLSearchParams({ payload: json }).toString(), {
      headers: {
        "content-type": "application/x-www-form-urlencoded",
        "x-gitea-event": "push",
        "x-gitea-delivery": randomUUID(),
        "x-gitea-signature": sign(json, repository.secret).replace("sha256=", ""),
        "x-hub-signature-256": undefined,
      },
    });
    expect(answer.status).toBe(202);
  });

  test.each(["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])(
    "refuses content type %j and says which to set",
    async (type) => {
      const answer = await repository.hook(repository.payload(commit), { headers: { "content-type": type } });
      expect(answer.status).toBe(415);
      expect(answer.json.error).toContain("application/json");
    },
  );

  test("refuses what is signed but is not JSON", async () => {
    const answer = await repository.hook('{"ref": "refs/heads/ma');
    expect(answer.status).toBe(400);
    expect(answer.json.error).toMatch(/not JSON/);
  });

  test("refuses a push without its fields and names the field", async () => {
    const answer = await repository.hook({ ref: "refs/heads/main", after: "--upload-pack=touch /tmp/x" });
    expect(answer.status).toBe(400);
    expect(answer.json.error).toContain('"after"');
  });

  test("refuses a body of more than 25 MiB", async () => {
    const answer = await repository.hook(" ".repeat((25 << 20) + 1));
    expect(answer).toMatchObject({ status: 413, json: { error: "The body has more than 26214400 bytes" } });
  });

  test("answers an address that cannot be decoded like everything else", async () => {
    const coded = await harness.call("POST", "/hooks/%ff");
    const long = await harness.call("POST", `/hooks/${"x".repeat(400)}`);
    expect(coded).toMatchObject({ status: 400, json: { error: expect.stringContaining("percent-encoding") } });
    expect(long).toMatchObject({ status: 414, json: { error: expect.stringContaining("too long") } });
    for (const { json } of [coded, long]) expect(Object.keys(json)).toEqual(["error"]);
  });

  test("takes a body of 24 MiB", async () => {
    const answer = await repository.hook({ ...repository.payload(commit), filler: "x".repeat(24 << 20) });
    expect(answer.status).toBe(202);
  });

  test("answers 404 for a repository that does not exist", async () => {
    const answer = await repository.hook(repository.payload(commit), { path: "/hooks/r0000" });
    expect(answer.status).toBe(404);
  });

  test("answers 400 for a request that is no webhook", async () => {
    const answer = await repository.hook({}, { headers: { "x-github-event": undefined } });
    expect(answer.status).toBe(400);
  });

  test.each([
    ["a deleted branch", "push", () => ({ ...repository.payload("0".repeat(40)), deleted: true }), /was deleted/],
    ["a note", "push", () => repository.payload(commit, "refs/notes/x"), /neither a branch nor a tag/],
    ["ping", "ping", () => ({ zen: "Keep it logically awesome." }), /ping/],
    ["an event of another kind", "star", () => ({ action: "created" }), /"star" starts no builds/],
    ["a closed pull request", "pull_request", () => pullRequest("closed"), /closed/],
    ["a labeled pull request", "pull_request", () => pullRequest("labeled"), /"labeled" starts no builds/],
  ])("ignores %s and says why", async (_what, event, payload, reason) => {
    const before = (await harness.builds(repository.id)).length;
    const answer = await repository.hook(payload(), { event });
    expect(answer.status).toBe(202);
    expect(answer.json).toMatchObject({ status: "ignored", reason: expect.stringMatching(reason) });
    expect(await harness.builds(repository.id)).toHaveLength(before);
  });

  test("builds a tag", async () => {
    const tagged = repository.commit({
      ".slipway.yml": "on: { tag: {} }\njobs: { a: { steps: [ { run: 'true' } ] } }",
    });
    await repository.hook(repository.payload(tagged, "refs/tags/v1.0.0"));
    const [build] = await harness.builds(repository.id);
    expect(build?.event).toEqual({ kind: "tag", tag: "v1.0.0", ref: "refs/tags/v1.0.0", commit: tagged });
  });

  test.each(["opened", "synchronize", "synchronized", "reopened"])(
    "builds a pull request that is %s",
    async (action) => {
      commit = repository.commit({
        ".slipway.yml": "on: { push: {}, pull_request: {} }\njobs: { a: { steps: [ { run: 'true' } ] } }",
      });
      await repository.hook(pullRequest(action), { event: "pull_request" });
      const [build] = await harness.builds(repository.id);
      expect(build).toMatchObject({
        title: "Better",
        author: "ada",
        event: { kind: "pull_request", commit, branch: "main", pullRequest: { number: 7, fromFork: true } },
      });
    },
  );

  test.each([
    "refs/heads/../../x",
    "refs/heads/a b",
    "refs/heads/a:refs/heads/b",
    "refs/heads/*",
    "refs/heads/x.lock",
    "refs/heads/a\u0000b",
  ])("refuses the ref %j, which git would not allow", async (ref) => {
    const answer = await repository.hook(repository.payload(commit, ref));
    expect(answer.status).toBe(400);
  });

  function pullRequest(action: string): unknown {
    return {
      action,
      number: 7,
      pull_request: {
        title: "Better",
        user: { login: "ada" },
        head: { ref: "topic", sha: commit, repo: { full_name: "stranger/fork" } },
        base: { ref: "main", sha: commit, repo: { full_name: repository.name } },
      },
    };
  }
});

describe("hostile connections", () => {
  test("headers of 100 KB are refused with 431", async () => {
    const answer = await raw(`POST /hooks/${repository.id} HTTP/1.1\r\nhost: x\r\nx-a: ${"a".repeat(100_000)}\r\n\r\n`);
    expect(answer).toMatch(/^HTTP\/1.1 431/);
  });

  test("a body that ends early stores nothing and leaves the server working", async () => {
    const before = await countDeliveries();
    await raw(`${slowHead(1000)}{"ref":`, { close: true });
    expect((await harness.call("GET", "/healthz")).status).toBe(200);
    expect(await countDeliveries()).toBe(before);
  });

  test("a body that never ends is cut off while others are served", async () => {
    await using hasty = await Harness.start({ requestTimeoutMs: 2_000 });
    const { id } = await hasty.repository();
    const slow = raw(`${slowHead(1000, id)}{"ref":`, { to: hasty });
    expect((await hasty.call("GET", "/healthz")).status).toBe(200);
    expect(await slow).toMatch(/^HTTP\/1.1 408/);
  });

  test("an address that is no repository's is refused before its body", async () => {
    expect(await raw(slowHead(20 << 20, "r000000000000000000"))).toMatch(/^HTTP\/1.1 404/);
  });

  function slowHead(length: number, id = repository.id): string {
    const headers = [
      `POST /hooks/${id} HTTP/1.1`,
      "host: 127.0.0.1",
      "content-type: application/json",
      "x-github-event: push",
      `x-hub-signature-256: ${sign("", "x")}`,
      `content-length: ${length}`,
    ];
    return `${headers.join("\r\n")}\r\n\r\n`;
  }

  async function raw(text: string, options: { readonly close?: boolean; readonly to?: Harness } = {}): Promise<string> {
    const { hostname, port } = new URL((options.to ?? harness).server.address);
    const socket = connect(Number(port), hostname);
    let answer = "";
    socket.on("data", (data) => (answer += String(data)));
    socket.on("error", () => {});
    socket.write(text, () => options.close && socket.destroy());
    await until(() => socket.destroyed || answer.includes("\r\n\r\n"));
    socket.destroy();
    return answer;
  }
});

describe("POST /hooks", () => {
  const secret = "server-wide secret";

  test("registers the repository of the first signed delivery and builds it", async () => {
    const name = `forge/${randomUUID()}`;
    const payload = { ...repository.payload(commit), repository: { full_name: name, clone_url: repository.bare } };
    expect((await sendHook(harness, payload, { secret })).status).toBe(202);
    expect((await sendHook(harness, payload, { secret })).status).toBe(202);
    const { repositories } = (await harness.call("GET", "/api/repositories")).json;
    const registered = repositories.filter((each: { name: string }) => each.name === name);
    expect(registered).toHaveLength(1);
    expect(await harness.builds(registered[0].id)).toHaveLength(2);
  });

  test("refuses another secret", async () => {
    expect((await sendHook(harness, repository.payload(commit), { secret: repository.secret })).status).toBe(401);
  });

  test.each([
    "ext::sh -c 'touch /tmp/pwned'",
    "--upload-pack=touch",
    "fd::17",
    "ftp://example.com/x.git",
    "a/relative/path",
  ])("refuses to register the clone URL %j", async (clone_url) => {
    const payload = { ...repository.payload(commit), repository: { full_name: randomUUID(), clone_url } };
    const answer = await sendHook(harness, payload, { secret });
    expect(answer.status).toBe(400);
    expect(answer.json.error).toMatch(/clone URL/);
  });

  test("acknowledges an organisation's ping, which names no repository", async () => {
    const answer = await sendHook(harness, { zen: "" }, { secret, event: "ping" });
    expect(answer).toMatchObject({ status: 202, json: { status: "ignored" } });
  });
});
