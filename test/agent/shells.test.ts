import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Agent, AgentOptions } from "../../agent/index.ts";
import { type ShellMessage, shellData } from "../../queue/index.ts";
import type { Host } from "../../runtime/index.ts";
import type { BuildView, StepView } from "../../server/index.ts";
import { git, Harness, type TestRepository, until } from "../server/harness.ts";
import { End } from "../server/shell-end.ts";
import { accessOf, TestAgents } from "./test-agents.ts";

let harness: Harness;
let repository: TestRepository;
let host: Host;
let agents: TestAgents;

beforeAll(async () => {
  harness = await Harness.start({ leaseMs: 3_000 });
  repository = await harness.repository("owner/kept");
  agents = await TestAgents.open(join(harness.dir, "agent"));
  ({ host } = agents);
});
afterEach(async () => {
  await agents.stop();
  // Whatever a test has kept, the disk is clean when its agent has stopped.
  const remains = ["attempts", "kept", "containers"].flatMap((name) => left(name).map((entry) => `${name}/${entry}`));
  if (remains.length > 0) throw new Error(`left behind: ${remains.join(", ")}`);
});
afterAll(async () => {
  await agents[Symbol.asyncDispose]();
  await harness[Symbol.asyncDispose]();
});

function left(name: string): string[] {
  const path = join(host.stateDir, name);
  return existsSync(path) ? readdirSync(path) : [];
}

const startAgent = (options: Partial<AgentOptions> = {}): Promise<Agent> => agents.start(accessOf(harness), options);

/** A build whose only step fails and asks to be kept. */
async function failed(script = "echo made > /made", more = ""): Promise<BuildView> {
  const build = await repository.push(`
keep_on_failure: 1h
jobs:
  job:
    steps:
      - name: step
        run: ${script}; exit 3
${more}`);
  return await harness.finished(build.id);
}

async function step({ id }: Pick<BuildView, "id">): Promise<StepView | undefined> {
  return (await harness.build(id)).jobs[0]?.attempts.at(-1)?.steps[0];
}

const kept = async (build: BuildView) => (await step(build))?.kept;

/** Opens a shell and waits until it runs. */
async function enter(build: BuildView, args?: string[]): Promise<End> {
  const person = await End.person(harness, build, "job=0&step=0");
  person.channel.send({ type: "open", by: "ada", ...(args !== undefined && { args }) });
  await until(() => person.closed ?? person.messages.some(({ type }) => type === "opened"));
  return person;
}

/** Runs a command in a step and answers how it ended. */
async function ask(build: BuildView, script: string): Promise<{ text: string; last: ShellMessage | undefined }> {
  const person = await enter(build, ["/bin/sh", "-c", script]);
  await until(() => person.closed);
  return { text: person.text(), last: person.messages.at(-1) };
}

describe("a kept step", () => {
  test("is there when its build is over, with the size it takes", async () => {
    await startAgent();
    const build = await failed("head -c 3000000 /dev/urandom > /big; head -c 2000000 /dev/urandom > big");
    expect(build).toMatchObject({ status: "failure" });
    expect(await kept(build)).toMatchObject({ untilMs: expect.any(Number) });
    const { bytes = 0 } = await until(async () => {
      const now = await kept(build);
      return now?.bytes !== undefined && now;
    });
    expect(bytes).toBeGreaterThan(5_000_000);
    expect(await ask(build, "stat -c %s /big big; echo oops >&2; exit 9")).toMatchObject({
      text: "3000000\n2000000\noops\n",
      last: { type: "exit", exitCode: 9 },
    });
  });

  test("shows no secret of its step on a terminal, has its files, and gives pipes what is there", async () => {
    await startAgent();
    const value = "a secret of the company";
    const body = { scope: "owner/kept", name: "TOKEN", value };
    expect((await harness.call("POST", "/api/secrets", { body })).status).toBe(201);
    const secrets = "        secrets: { TOKEN: TOKEN, file: { secret: TOKEN, file: true } }\n";
    const build = await failed("cat /run/secrets/file", secrets);
    const script = 'echo "is $TOKEN."; cat /run/secrets/file; printf "a sec"; sleep 0.3; echo "ond"';
    const person = await End.person(harness, build, "job=0&step=0");
    const terminal = { columns: 80, rows: 24, term: "dumb" };
    person.channel.send({ type: "open", by: "ada", args: ["/bin/sh", "-c", script], terminal });
    await until(() => person.closed);
    // A beginning that is none is not kept from whoever waits for it.
    expect(person.text()).toBe("is ***.\r\n***a second\r\n");
    expect(person.messages.at(-1)).toMatchObject({ type: "exit", exitCode: 0 });
    expect((await ask(build, "cat /run/secrets/file")).text).toBe(value);
    expect(left("kept").length).toBeGreaterThan(0);
  });

  test("goes when its time is over, and takes the shell along", async () => {
    await startAgent({ keep: { timeMs: 6_000 } });
    const build = await failed();
    const person = await enter(build, ["/bin/sleep", "1000"]);
    await until(() => person.closed);
    expect(person.messages.at(-1)).toMatchObject({ type: "exit", reason: "its time is over" });
    await until(async () => (await kept(build)) === undefined);
    await until(() => left("kept").length === 0 && left("attempts").length === 0);
  });

  test("gives way to a newer one, unless somebody is in it: then the newer one is not kept", async () => {
    await startAgent({ keep: { steps: 1 } });
    const first = await failed();
    const second = await failed();
    await until(async () => (await kept(first)) === undefined);
    const person = await enter(second, ["/bin/cat"]);
    const third = await failed();
    expect(await kept(third)).toBeUndefined();
    expect(await kept(second)).toBeDefined();
    person.channel.send({ type: "end" });
    await until(() => person.closed);
    const fourth = await failed();
    expect(await kept(fourth)).toBeDefined();
    await until(async () => (await kept(second)) === undefined);
  });

  test("that is too large goes, and a smaller one stays", async () => {
    await startAgent({ keep: { bytes: 8 << 20 } });
    const small = await failed();
    const large = await failed("head -c 20000000 /dev/urandom > /big");
    await until(async () => (await kept(large)) === undefined);
    // The oldest goes first, and then the large one itself.
    expect(await kept(small)).toBeUndefined();
    expect(await kept(await failed())).toBeDefined();
  });

  test("is not kept at all by an agent that keeps none", async () => {
    await startAgent({ keep: { steps: 0 } });
    expect(await kept(await failed())).toBeUndefined();
    expect(left("kept")).toEqual([]);
  });

  test("keeps its disk limit: who writes more in there is out, with the reason", async () => {
    await startAgent();
    const build = await failed("echo made > /made", "        resources: { disk: 20MiB }\n");
    const { last } = await ask(build, "head -c 200000000 /dev/zero > /full; sleep 1000");
    expect(last).toMatchObject({
      type: "exit",
      exitCode: 137,
      reason: expect.stringMatching(/wrote .* of 20 MiB disk/),
    });
  });

  test("has a network of its own where the step had the job's", async () => {
    await startAgent();
    const build = await failed("ls /sys/class/net > /net", "        network: job\n");
    const { text } = await ask(build, "cat /net; ls /sys/class/net; grep -c . /etc/resolv.conf");
    expect(text).toMatch(/^eth0\nlo\neth0\nlo\n[1-9]/);
  });

  test("goes with its build", async () => {
    await startAgent();
    const own = await harness.repository("owner/short");
    const build = await own.push("keep_on_failure: 1h\njobs:\n  job:\n    steps:\n      - exit 3\n");
    await harness.finished(build.id);
    expect(left("kept").length).toBe(1);
    await harness.call("DELETE", `/api/repositories/${own.id}`);
    await until(() => left("kept").length === 0);
  });

  test("goes when the agent drains, unless somebody is in it", async () => {
    const agent = await startAgent();
    const [empty, used] = [await failed(), await failed()];
    const person = await enter(used, ["/bin/cat"]);
    await agent.drain();
    expect(await kept(empty)).toBeUndefined();
    expect(await kept(used)).toBeDefined();
    person.channel.write(shellData.stdin, Buffer.from("still here\n"));
    await until(() => person.text() === "still here\n");
    await agent.stop();
    await until(() => person.closed);
    expect(person.messages.at(-1)).toMatchObject({ type: "exit", reason: "the agent was stopped" });
    expect(await kept(used)).toBeUndefined();
  });

  test("leaves no descriptors behind", async () => {
    const agent = await startAgent({ keep: { steps: 1 } });
    // Those of kept things; what the host keeps of a uid range for the next job comes and goes with the ranges in use.
    const open = () =>
      readdirSync("/proc/self/fd").flatMap((fd) => {
        try {
          const target = readlinkSync(`/proc/self/fd/${fd}`);
          return /ptmx|pidfd|\/kept\/|\/attempts\/|memfd:slipway-(?:exec|process)/.test(target) ? [target] : [];
        } catch {
          return [];
        }
      });
    const before = readdirSync("/proc/self/fd").length;
    for (let i = 0; i < 6; i++) await ask(await failed(), "true");
    await until(() => agent.running.length === 0 && left("kept").length === 1 && open().length === 0);
    expect(readdirSync("/proc/self/fd").length - before).toBeLessThan(40);
  });
});

test("a service can be entered, too, while it runs; its log tells", async () => {
  await startAgent();
  const build = await repository.push(`
jobs:
  job:
    services:
      database: { run: "echo secret > /service; exec sleep 1000", image: host }
    steps:
      - while [ ! -e go ]; do sleep 0.05; done
`);
  const running = async () => (await harness.build(build.id)).jobs[0]?.attempts[0]?.services[0]?.status === "running";
  await until(running);
  const person = await End.person(harness, build, "job=job&step=database");
  const args = ["/bin/sh", "-c", "cat /service; touch /workspace/go; sleep 1000"];
  person.channel.send({ type: "open", by: "ada", args });
  await until(() => person.closed);
  expect(person.text()).toBe("secret\n");
  expect(person.messages.at(-1)).toMatchObject({ type: "exit", reason: "the step has ended" });
  await harness.finished(build.id);
  const log = async () => (await harness.call("GET", `/api/builds/${build.id}/log?job=job&step=database`)).text;
  expect(await log()).toMatch(/shell opened by ada.*\nshell closed after \d+ s: the step has ended\n/);
});

test("a stranger's failed step is not kept, unless the operator says so", async () => {
  const pull = async () => {
    const pipeline = "keep_on_failure: 1h\njobs:\n  job:\n    steps:\n      - exit 3\n";
    const commit = repository.commit({ ".slipway.yml": pipeline });
    git(repository.work, "push", "-q", "-f", repository.bare, "HEAD:refs/pull/7/head");
    const fixture = readFileSync(new URL("../server/fixtures/github-pull-request-fork.json", import.meta.url), "utf8");
    await repository.hook(fixture.replaceAll("{commit}", commit), { event: "pull_request", delivery: commit });
    const [build] = await harness.builds(repository.id);
    return await harness.finished((build as BuildView).id);
  };
  const agent = await startAgent();
  const build = await pull();
  expect(build).toMatchObject({ status: "failure", event: { pullRequest: { fromFork: true } } });
  expect(await kept(build)).toBeUndefined();
  await agent.stop();
  const { defaultUntrustedPolicy } = await import("../../agent/untrusted.ts");
  await startAgent({ untrusted: { ...defaultUntrustedPolicy, keepsFailed: true } });
  expect(await kept(await pull())).toBeDefined();
});

test("a shell is found although Redis is away: by the next renewal of the lease", async () => {
  await using alone = await Harness.start({ leaseMs: 2_000 });
  const own = await alone.repository();
  await startAgent({ serverUrl: alone.server.address, token: alone.server.agentToken, redisUrl: alone.redis.url });
  const build = await own.push("jobs:\n  job:\n    steps:\n      - while [ ! -e go ]; do sleep 0.05; done\n");
  await until(async () => (await alone.build(build.id)).jobs[0]?.attempts[0]?.steps[0]?.status === "running");
  await alone.redis[Symbol.asyncDispose]();
  const person = await End.person(alone, build, "job=0&step=0");
  person.channel.send({ type: "open", by: "ada", args: ["/bin/sh", "-c", "echo in; touch /workspace/go; sleep 1000"] });
  await until(() => person.closed);
  expect(person.text()).toBe("in\n");
  expect(person.messages.at(-1)).toEqual({ type: "exit", exitCode: 137, reason: "the step has ended" });
  await alone.finished(build.id);
  const log = readFileSync(join(alone.dataDir, "logs", build.id, "0/1/0.log"), "utf8");
  expect(log).toMatch(/^shell opened by ada \(127\.0\.0\.1\)\nshell closed after \d+ s: the step has ended\n$/);
});
