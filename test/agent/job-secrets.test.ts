/** Secrets of a pipeline in steps, services, builds, and before registries. */
import { spawnSync } from "node:child_process";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { defaultUntrustedPolicy, type GivenSecrets } from "../../agent/index.ts";
import { explainJob } from "../../agent/explain.ts";
import { hostPlatform } from "../../build/index.ts";
import { RegistryClient } from "../../runtime/index.ts";
import { busyboxLayer } from "../build/build-fixture.ts";
import { DebianRegistry, password, ScriptedRegistry } from "../runtime/registry-fixture.ts";
import { BuildStepFixture, type JobRun } from "./build-fixture.ts";

const untrusted = defaultUntrustedPolicy;
const token = "t0k.en*[with](regex)+$^|characters?";
let fixture: BuildStepFixture;

beforeAll(async () => {
  fixture = await BuildStepFixture.open();
});
afterAll(async () => {
  await fixture[Symbol.asyncDispose]();
});
afterEach(() => fixture.expectClean());

function given(values: Readonly<Record<string, string | Uint8Array>>, problems: readonly string[] = []): GivenSecrets {
  const entries = Object.entries(values).map(([name, value]) => [name, Buffer.from(value as string)] as const);
  return { values: new Map(entries), problems, help: (name) => `set ${name}` };
}

async function run(pipeline: string, secrets: GivenSecrets, options: Parameters<BuildStepFixture["runJob"]>[2] = {}) {
  const [job] = fixture.jobs(pipeline);
  return await fixture.runJob(
    job as NonNullable<typeof job>,
    {},
    {
      secrets,
      ...options,
    },
  );
}

/** Files below the agent's state, its image store among them, that hold a text. */
function filesWith(text: string): string {
  return spawnSync("grep", ["-rlaF", "-e", text, fixture.host.stateDir], { encoding: "utf8" }).stdout;
}

const shell = (script: string) => JSON.stringify(script);

describe("a secret of a step", () => {
  test("is a variable of the steps that name it, masked in every spelling, and in no other one", async () => {
    const result = await run(
      `
network: none
jobs:
  j:
    steps:
      - run: ${shell(`test "$TOKEN" = '${token}'; echo "is $TOKEN"; printf %s "user:$TOKEN" | base64 -w0`)}
        secrets: [TOKEN]
      - run: ${shell('echo "${TOKEN-none} $OTHER"; test "$OTHER" = "$(cat /proc/self/environ | tr "\\\\0" "\\\\n" | sed -n s/^OTHER=//p)"')}
        secrets: { OTHER: TOKEN }
      - 'env; ! grep -aq "t0k.en" /proc/*/environ; test ! -e /run/secrets'
`,
      given({ TOKEN: token }),
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    const [first, second, third] = result.logs;
    expect(first).toMatch(/^is \*\*\*\n/);
    expect(first).not.toContain(Buffer.from(token).toString("base64").slice(4, 20));
    expect(second).toBe("none ***\n");
    expect(third).not.toMatch(/^(?:TOKEN|OTHER)|regex/m);
  });

  test("is a file of the step's user in memory, whatever bytes it has, on no disk", async () => {
    const key = `-----BEGIN KEY-----\n${"line of a key ".repeat(5)}\nsecond line 123456\n-----END KEY-----\n`;
    const binary = Buffer.from([0, 1, 2, 255, 254, 0, 7, 8, 9]);
    const result = await run(
      `
network: none
jobs:
  j:
    steps:
      - run: |
          set -e
          stat -c '%a %u %F' /run/secrets/key.pem /run/secrets/binary
          stat -f -c %T /run/secrets
          cat /run/secrets/key.pem
          wc -c < /run/secrets/binary
          if { echo x > /run/secrets/new || echo x > /run/secrets/binary; } 2> /dev/null; then exit 1; fi
        secrets: { key.pem: { secret: key, file: true }, binary: { file: true } }
      - test ! -e /run/secrets/key.pem
`,
      given({ key, binary }),
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    expect(result.logs[0]).toBe("400 0 regular file\n400 0 regular file\ntmpfs\n***\n9\n");
    expect(filesWith("second line 123456")).toBe("");
  });

  test("of another user than root is that user's, in the image and in a nested step", async () => {
    await using registry = await DebianRegistry.start();
    registry.push("t:1", [gzipLayer(busyboxLayer([{ name: "etc/passwd", content: "ada:x:1234:1235::/:/bin/sh\n" }]))], {
      config: { config: { User: "ada" } },
    });
    const result = await run(
      `
network: none
image: ${registry.host}/t:1
jobs:
  j:
    steps:
      - { run: "stat -c '%a %u %g' /run/secrets/TOKEN; cat /run/secrets/TOKEN", secrets: { TOKEN: { file: true } } }
      - { run: "stat -c '%a %u' /run/secrets/TOKEN; cat /run/secrets/TOKEN", secrets: { TOKEN: { file: true } }, image: host, nested: true }
`,
      given({ TOKEN: token }),
    );
    expect(result).toMatchObject({ status: "success" });
    expect(result.logs[0]).toMatch(/400 1234 1235\n\*\*\*$/);
    expect(result.logs[1]).toBe("400 0\n***");
  });

  test("is a service's, too, and not seen by the steps beside it; a reason shows no value", async () => {
    const result = await run(
      `
jobs:
  j:
    services:
      db: { run: 'echo "my $TOKEN"; cat /run/secrets/t; touch up; sleep 100', secrets: { TOKEN: TOKEN, t: { secret: TOKEN, file: true } } }
    steps:
      - until test -e up; do sleep 0.1; done; ! grep -aq t0k.en /proc/*/environ; test -z "$TOKEN"
`,
      given({ TOKEN: token }),
    );
    expect(result).toMatchObject({ status: "success", services: [{ status: "success" }] });
    const failing = await run(
      `
jobs:
  j:
    services: { db: { run: 'echo "cannot use $TOKEN" >&2; exit 3', secrets: [TOKEN] } }
    steps: [sleep 5]
`,
      given({ TOKEN: token }),
    );
    expect(failing.status).toBe("failure");
    expect(failing.reason).toContain("cannot use ***");
  });

  test("is not in the steps' configurations as they are explained", async () => {
    const [job] = fixture.jobs(
      "jobs: { j: { network: none, steps: [{ run: x, secrets: { A: t, f: { secret: t, file: true } } }] } }",
    );
    const [explained] = await explainJob(job as NonNullable<typeof job>, {
      host: fixture.host,
      id: "explain-secrets",
      workspace: { dir: fixture.workspace({}) },
      variables: {},
      secrets: given({ t: token }),
      signal: new AbortController().signal,
    });
    expect(JSON.stringify(explained)).not.toContain("t0k.en");
    expect(JSON.stringify(explained)).toMatch(/A=\*{6}.*slipway-files/);
  });

  const steps = (secrets: string) =>
    `jobs: { j: { network: none, steps: [{ run: touch ran, name: deploy, secrets: ${secrets} }] } }`;

  test.for<[string, GivenSecrets, RegExp, string?]>([
    ["that is not there", given({}), /^step "deploy" wants the secret "A", which is not there; set A$/],
    ["that the server refuses", given({}, ["no, for a reason"]), /^no, for a reason$/],
    ["of one character", given({ A: "x" }), /"A", which has 1 character; below 6 it cannot be masked/],
    ["of spaces", given({ A: "a         \n" }), /has 1 character/],
    [
      "with a NUL as a variable",
      given({ A: "abc\0defghi" }),
      /as a variable, but it holds a NUL; let the step have it as a file/,
    ],
    ["that is no text as a variable", given({ A: Buffer.from([255, 254, 1, 2, 3, 4, 5]) }), /it is not text/],
    [
      "of 200 KiB as a variable",
      given({ A: "x".repeat(200 * 1024) }),
      /has 200 KiB, and variables have at most 100 KiB/,
    ],
    ["of 1 MiB", given({ A: "x".repeat(2 ** 20) }), /has 1 MiB; at most 512 KiB are allowed/, "{ A: { file: true } }"],
  ])("%s: nothing of the job is run", async ([, secrets, problem, uses = "[A]"]) => {
    const result = await run(steps(uses), secrets);
    expect(result).toMatchObject({
      status: "failure",
      reason: expect.stringMatching(problem),
      steps: [{ status: "skipped" }],
    });
  });

  test("of 512 KiB is masked, piece by piece, in a time that can be waited for", async () => {
    const large = Array.from({ length: 512 * 1024 }, (_, i) =>
      String.fromCharCode(33 + ((i * 7919 + (i >> 5)) % 90)),
    ).join("");
    const result = await run(
      "jobs: { j: { network: none, steps: [{ run: cat /run/secrets/A, secrets: { A: { file: true } } }] } }",
      given({ A: large }),
    );
    expect(result).toMatchObject({ status: "success" });
    expect(result.logs[0]).toBe("***");
  });

  test("is not a stranger's, whoever has given it", async () => {
    const result = await run(steps("[A]"), given({ A: token }), { untrusted });
    expect(result).toMatchObject({
      status: "failure",
      reason: expect.stringMatching(/^"deploy" wants secrets, which commits of strangers do not get/),
    });
  });

  test("printed backwards is not recognised, which the documentation says", async () => {
    const result = await run(
      "jobs: { j: { network: none, steps: [{ run: 'echo $A | rev', secrets: [A] }] } }",
      given({ A: "abcdefgh" }),
    );
    expect(result.logs[0]).toBe("hgfedcba\n");
  });
});

function gzipLayer(tar: Buffer) {
  return {
    tar,
    blob: gzipSync(tar, { level: 1 }),
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
  };
}

describe("a secret of a build", () => {
  test("is in no layer, history, log, or file of the agent", async () => {
    const secrets = given({ npm: token });
    const result = await fixture.run(
      "      - build: { tags: made, secrets: { token: { secret: npm } }, output: image.tar }\n      - ls image.tar\n",
      {
        Dockerfile:
          'FROM BASE\nRUN --mount=type=secret,id=token cat /run/secrets/token > /dev/stdout; test "$(cat /run/secrets/token | wc -c)" -gt 5\nRUN --mount=type=secret,id=token,env=T echo "is $T"\nRUN test ! -e /run/secrets/token\n',
      },
      { secrets },
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    expect(result.logs[0]).toContain("is ***");
    expect(result.logs[0]).not.toContain("t0k.en");
    expect(filesWith("t0k.en")).toBe("");
    expect(spawnSync("grep", ["-rlaF", "t0k.en", fixture.directory], { encoding: "utf8" }).stdout).toBe("");
  });
});

describe("registries of a pipeline", () => {
  const login = (host: string) =>
    `registries: { "${host}": { username: ali, password: { secret: sesame } } }\nnetwork: none\n`;
  const secrets = given({ sesame: `${password}\n` });
  let closed: DebianRegistry;

  beforeAll(async () => {
    closed = await DebianRegistry.start({ auth: "basic" });
    closed.push("team/base:1", [gzipLayer(busyboxLayer())], { config: hostPlatform() });
  });
  afterAll(() => closed[Symbol.asyncDispose]());

  test("give what steps, services and builds pull and push, and their passwords to nobody else", async () => {
    const result = await run(
      `${login(closed.host)}
jobs:
  j:
    services: { s: { image: "${closed.host}/team/base:1", run: sleep 100, ready: { run: "true" } } }
    steps:
      - { run: "env; cat /proc/*/environ || true", image: "${closed.host}/team/base:1" }
      - run: printf 'FROM ${closed.host}/team/base:1\\nRUN env && echo made > /made\\n' > Dockerfile
        image: host
      - build: { tags: "${closed.host}/team/made:1", push: true }
`.replace("network: none\n", ""),
      secrets,
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    expect(result.logs.join()).not.toContain(password);
    expect(result.logs[2]).toContain(`pushed ${closed.host}/team/made:1`);
    // Without them, nothing.
    const none = await run(
      `network: none\njobs: { j: { image: "${closed.host}/team/base:1", steps: ["true"] } }`,
      given({}),
    );
    expect(none.reason).toMatch(/denies access.*"registries" of the pipeline/);
  });

  test("that are wrong or incomplete fail the job with what to do", async () => {
    const pipeline = `${login(closed.host)}jobs: { j: { image: "${closed.host}/team/base:1", pull: always, steps: ["true"] } }`;
    const missing = await run(pipeline, given({}));
    expect(missing.reason).toBe(`registry "${closed.host}" wants the secret "sesame", which is not there; set sesame`);
    const wrong = await run(pipeline, given({ sesame: "not sesame" }));
    expect(wrong.reason).toMatch(/denies access to "team\/base".*the credentials there are do not give access/);
    expect(wrong.reason).not.toContain("not sesame");
  });

  test("are shown to the host they are for only, and to none by a stranger's commit", async () => {
    await using theirs = await ScriptedRegistry.start();
    theirs.handlers.push((request, response) => {
      if (request.headers.authorization !== undefined) return false;
      response.writeHead(401, { "www-authenticate": 'Basic realm="give me all you have"' }).end();
    });
    const other = `${login(closed.host)}jobs: { j: { image: "${theirs.host}/t:1", steps: [{ build: . }] } }`;
    const image = `${login(closed.host)}jobs: { j: { image: "${theirs.host}/t:1", steps: ["true"] } }`;
    for (const pipeline of [other, image]) expect((await run(pipeline, secrets)).status).toBe("failure");
    const named = `${login(theirs.host)}jobs: { j: { image: "${theirs.host}/t:1", steps: ["true"] } }`;
    expect((await run(named, secrets, { untrusted })).reason).toContain(
      "commits of strangers pull without credentials",
    );
    expect(theirs.headers.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
    // Whose commit may say so is another matter: whoever may push may read it anyway.
    await run(named, secrets);
    expect(theirs.headers.some(({ authorization }) => authorization?.startsWith("Basic"))).toBe(true);
  });

  test("are told to a realm that gives tokens, each job its own", async () => {
    await using registry = await ScriptedRegistry.start();
    const asked: (string | undefined)[] = [];
    registry.add("1", [gzipLayer(busyboxLayer())]);
    registry.handlers.push((request, response) => {
      if (request.url?.startsWith("/token") === true) {
        asked.push(request.headers.authorization);
        const isAli = request.headers.authorization === `Basic ${Buffer.from(`ali:${password}`).toString("base64")}`;
        response.writeHead(isAli ? 200 : 401).end(JSON.stringify({ token: "given-to-ali", expires_in: 300 }));
        return true;
      }
      if (request.headers.authorization === "Bearer given-to-ali") return false;
      response.writeHead(401, { "www-authenticate": `Bearer realm="http://${registry.host}/token",service="t"` }).end();
      return true;
    });
    using client = new RegistryClient({}, { retryBaseMs: 1 });
    const pipeline = (head: string) => `${head}jobs: { j: { image: "${registry.host}/t:1", steps: ["true"] } }`;
    const first = await run(pipeline(login(registry.host)), secrets, { registry: client });
    expect(first).toMatchObject({ status: "success" });
    // The token is that job's: over the same connections nobody else is ali.
    const second: JobRun = await run(pipeline("network: none\n"), given({}), { registry: client });
    expect(second.logs.join()).not.toContain("success");
    expect(asked).toContain(undefined);
    const third = await run(pipeline("network: none\n"), given({}), { registry: client, untrusted });
    expect(third.status).not.toBe("success");
  });
});
