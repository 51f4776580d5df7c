import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createRepository, type DemoRepository, git, installHook } from "../../cli/demo-repository.ts";
import { bin, environment, type Outcome, slipway, TemporaryDirectory } from "./command.ts";
import type { BuildView } from "../../server/index.ts";
import { Traces } from "./traces.ts";

let directory: TemporaryDirectory;
let traces: Traces;
let up: ChildProcess;
let log = "";
let url = "";
let repository: DemoRepository;
const dataDir = () => join(directory.path, "data");

/** A verb that talks to the server under test, which it finds by the data directory. */
function talk(...args: readonly string[]): Promise<Outcome> {
  return slipway([...args, "--data-dir", dataDir()], { env: { SLIPWAY_SERVER: "", SLIPWAY_TOKEN: "" } });
}

/** Starts `slipway up` and waits until it says where it is. */
async function start(): Promise<void> {
  let stdout = "";
  up = spawn(process.execPath, [bin, "up", "--port", "0", "--jobs", "2", "--data-dir", dataDir()], {
    env: environment(traces.environment),
    stdio: ["ignore", "pipe", "pipe"],
  });
  up.stderr?.setEncoding("utf8").on("data", (text: string) => (log += text));
  up.stdout?.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  await vi.waitFor(() => expect(stdout, log).toMatch(/Slipway is up: (\S+)\n/), { timeout: 30_000 });
  url = /Slipway is up: (\S+)\n/.exec(stdout)?.[1] ?? "";
  traces.look();
}

/** Commits a pipeline and pushes it; the hook tells the server. */
async function push(pipeline: string): Promise<void> {
  await writeFile(join(repository.clone, ".slipway.yml"), pipeline);
  await git(
    repository.clone,
    environment(),
    "commit",
    "--quiet",
    "--all",
    "--message=Change the pipeline\n\nwith care",
  );
  await git(repository.clone, environment(), "push", "--quiet", "origin", "main");
}

/** Waits for the build of this number and returns how following it ended. */
async function follow(number: number): Promise<Outcome> {
  await vi.waitFor(async () => expect((await talk("build", "show", `team/app#${number}`)).code).toBe(0), {
    timeout: 20_000,
    interval: 200,
  });
  return await talk("build", "log", "--follow", `team/app#${number}`);
}

const oneStep = (run: string) => `jobs:\n  a:\n    steps:\n      - name: only\n        run: |\n          ${run}\n`;

beforeAll(async () => {
  directory = await TemporaryDirectory.create();
  traces = new Traces(directory.path);
  await start();
  repository = await createRepository(join(directory.path, "git"), environment());
});

afterAll(async () => {
  if (up.exitCode === null && up.signalCode === null) {
    up.kill("SIGTERM");
    up.kill("SIGINT");
    await once(up, "exit");
  }
  await directory[Symbol.asyncDispose]();
});

// One after the other: each builds on the builds before it.
describe("slipway up, repo, build", () => {
  test("before there is anything, lists say so", async () => {
    expect(await talk("repo", "list")).toMatchObject({
      code: 0,
      stdout: "",
      stderr: expect.stringContaining("No repositories yet"),
    });
    expect(await talk("build", "list")).toMatchObject({ code: 0, stdout: "", stderr: "No builds yet.\n" });
    expect(await talk("build", "show")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("There are no builds yet"),
    });
  });

  test("repo add prints the webhook's address and secret; list has it without the secret", async () => {
    const { code, stdout } = await talk("repo", "add", "team/app", repository.bare);
    expect(code).toBe(0);
    const webhook = /webhook +(\S+)/.exec(stdout)?.[1] ?? "";
    const secret = /secret +(\S+)/.exec(stdout)?.[1] ?? "";
    expect(webhook).toMatch(new RegExp(`^${url}/hooks/`));
    expect(secret).toMatch(/^\S{20,}$/);
    await installHook(repository.bare, environment(), { url: webhook, secret });
    const list = await talk("repo", "list");
    expect(list.stdout).toBe(`team/app  ${repository.bare}  ${webhook}\n`);
    expect(list.stdout).not.toContain(secret);
    const again = await talk("repo", "add", "team/app", repository.bare);
    expect(again).toMatchObject({ code: 2, stderr: expect.stringContaining("there is one of that name") });
  });

  test("a push is built; log --follow shows it and exits with its code", async () => {
    await push(oneStep("echo hello; exit 3"));
    const { code, stdout } = await follow(1);
    expect(code).toBe(1);
    expect(stdout).toMatch(
      /^a ▶ only\na │ hello\na ✗ only .*exit code 3\n\n✗ a {2}failure .*\nteam\/app#1: failure in .*\n$/,
    );
    await push(oneStep("echo fine"));
    expect(await follow(2)).toMatchObject({ code: 0, stdout: expect.stringContaining("team/app#2: success in ") });
  });

  test("build list, show and log find builds by repository, number and id", async () => {
    const list = (await talk("build", "list", "team/app")).stdout.split("\n");
    expect(list[0]).toMatch(/^team\/app#2 {2}success {2}.*push main {2}[0-9a-f]{10} {2}Change the pipeline {2}b\w+$/);
    expect(list[1]).toMatch(/^team\/app#1 {2}failure /);
    const id = /b\w+$/.exec(list[1] ?? "")?.[0] ?? "";
    expect((await talk("build", "show", id)).stdout).toMatch(
      /^team\/app#1: failure in .*\npush refs\/heads\/main {2}[0-9a-f]{10} {2}Change the pipeline/,
    );
    expect(JSON.parse((await talk("build", "show", "--json", "team/app")).stdout)).toMatchObject({
      number: 2,
      status: "success",
    });
    expect((await talk("build", "log", "team/app#1")).stdout).toMatch(
      /^a ▶ only\na │ hello\na ✗ only .*exit code 3\n$/,
    );
    expect(await talk("build", "list", "taem/app")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("did you mean team/app?"),
    });
  });

  test("a service is used by a step by its name; its log is followed, printed and fetched", async () => {
    await push(`jobs:
  a:
    services:
      cache: { run: exec redis-server --save '' --dir /tmp, ready: { port: 6379 } }
    steps:
      - { name: ask, run: redis-cli -h cache ping }
      - { name: blocked, run: "timeout 2 bash -c '</dev/tcp/169.254.169.254/80' || true" }
`);
    const { code, stdout } = await follow(3);
    expect(code, stdout).toBe(0);
    expect(stdout).toMatch(/^a ▶ service cache\n/m);
    expect(stdout).toMatch(/^a cache │ .*Ready to accept connections/m);
    expect(stdout).toContain("a │ PONG\n");
    expect(stdout).toMatch(/a ✓ service cache /);
    const printed = (await talk("build", "log", "team/app#3")).stdout;
    expect(printed).toMatch(/a ✓ blocked .*\na ▶ service cache\n(a cache │ .*\n)+a ✓ service cache/);
    const shown = (await talk("build", "show", "team/app#3")).stdout;
    expect(shown).toMatch(/✓ a {2}success .* ✓ ask [^,]*, ✓ blocked [^,]*, ✓ service cache/);
    const view = JSON.parse((await talk("build", "show", "--json", "team/app#3")).stdout) as BuildView;
    expect(view.jobs[0]).toMatchObject({
      serviceNames: ["cache"],
      attempts: [{ services: [{ position: 2, name: "cache", status: "success" }] }],
    });
    expect(shown).toContain("blocked: network refused 169.254.169.254:80/tcp");
    const raw = await fetch(`${url}/api/builds/${view.id}/log?job=a&step=cache`);
    expect(await raw.text()).toContain("Ready to accept connections");
  });

  test("a pipeline with mistakes fails with its problems", async () => {
    await push("jobs:\n  a:\n    stepz: []\n");
    const { code, stdout } = await follow(4);
    expect(code).toBe(1);
    expect(stdout).toContain(".slipway.yml:3:5: error:");
  });

  test("build cancel stops a running build, rerun builds it again", async () => {
    await push(oneStep("echo begun; test -e /workspace/README.md && sleep 100"));
    await vi.waitFor(async () => expect((await talk("build", "log", "team/app#5")).stdout).toContain("begun"), {
      timeout: 20_000,
      interval: 200,
    });
    expect(await talk("build", "cancel", "team/app#5", "--reason", "enough")).toMatchObject({ code: 0 });
    expect(await follow(5)).toMatchObject({ code: 1, stdout: expect.stringMatching(/canceled.*enough/) });
    expect(await talk("build", "cancel", "team/app#5")).toMatchObject({
      code: 125,
      stderr: expect.stringContaining("is over"),
    });
    const rerun = await talk("build", "rerun", "team/app#2", "--follow");
    expect(rerun).toMatchObject({ code: 0, stdout: expect.stringContaining("team/app#6: success") });
  });

  test("an image that one job builds is what the next one runs in", async () => {
    await push(`jobs:
  image:
    steps:
      - cp "$(command -v busybox)" sh && printf 'FROM scratch\\nCOPY sh /bin/sh\\nRUN echo built > /made\\n' > Dockerfile
      - { name: make, build: { tags: "app:\${SLIPWAY_COMMIT}" } }
  use:
    needs: [image]
    steps:
      - { name: run in it, run: read made < /made; echo $made, image: "app:\${SLIPWAY_COMMIT}", pull: never }
`);
    const { code, stdout } = await follow(7);
    expect(code, stdout).toBe(0);
    expect(stdout).toContain("use   │ built\n");
    const view = JSON.parse((await talk("build", "show", "--json", "team/app#7")).stdout) as BuildView;
    const digest = view.jobs[0]?.attempts[0]?.steps[1]?.imageDigest;
    expect(stdout).toContain(`image │ built ${digest}\n`);
  });

  test("a server that is killed is started again and builds go on", async () => {
    const server = traces.processes().find((line) => line.includes("slipway.cjs server"));
    process.kill(Number(server?.split(" ")[0]), "SIGKILL");
    await vi.waitFor(async () => expect((await fetch(`${url}/healthz`)).ok).toBe(true), {
      timeout: 20_000,
      interval: 100,
    });
    expect(log).toContain("server ended unexpectedly: starting it again");
    await push(oneStep("echo again"));
    expect(await follow(8)).toMatchObject({ code: 0, stdout: expect.stringContaining("a │ again\n") });
  });

  test("the first SIGTERM drains: what runs finishes; what waits runs after the next start", async () => {
    await push(
      `jobs:\n  a:\n    steps:\n      - run: |\n          echo begun; sleep 2; echo done\n  b:\n    needs: [a]\n    steps:\n      - run: echo later\n`,
    );
    await vi.waitFor(async () => expect((await talk("build", "log", "team/app#9")).stdout).toContain("│ begun"), {
      timeout: 20_000,
      interval: 200,
    });
    up.kill("SIGTERM");
    const [code] = (await once(up, "exit")) as [number | null];
    expect(code, log).toBe(0);
    expect(log).toContain("draining");
    expect(traces.processes()).toEqual([]);
    await start();
    const { code: exit, stdout } = await follow(9);
    expect(exit).toBe(0);
    expect(stdout).toContain("a │ done\n");
    expect(stdout).toContain("b │ later\n");
  });

  test("repo remove forgets a repository with its builds", async () => {
    expect((await talk("repo", "remove", "team/app")).code).toBe(0);
    expect((await talk("build", "list")).stdout).toBe("");
  });

  test("the tokens are in the data directory and in no log", () => {
    for (const name of ["admin-token", "agent-token"]) {
      expect(log).not.toContain(readFileSync(join(dataDir(), name), "utf8").trim());
    }
  });

  test("two signals stop at once; nothing keeps running", async () => {
    up.kill("SIGTERM");
    up.kill("SIGINT");
    await once(up, "exit");
    const { processes, mounts, cgroups } = traces.left();
    expect({ processes, mounts, cgroups }).toEqual({});
  });

  test("without a server every verb says how to get one", async () => {
    const { code, stderr } = await talk("build", "list");
    expect(code).toBe(125);
    expect(stderr).toMatch(
      /^slipway: Cannot reach the server at http:\S+: .*; is it running\? \(slipway up, --server URL\)\n$/,
    );
  });
});
