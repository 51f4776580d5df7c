import { randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { once } from "node:events";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  attemptTokenHeader,
  CancelChannel,
  connectRedis,
  type KeptResponse,
  type RenewResponse,
  shellData,
} from "../../queue/index.ts";
import type { BuildView } from "../../server/index.ts";
import { Harness, type TestAttempt, type TestRepository, twoJobs, until } from "./harness.ts";
import { End } from "./shell-end.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository("owner/shells");
});
afterAll(() => harness[Symbol.asyncDispose]());

const open = { type: "open", by: "ada@laptop", terminal: { rows: 24, columns: 80, term: "xterm" } } as const;

/** A build whose first step runs. */
async function running(): Promise<{ readonly build: BuildView; readonly attempt: TestAttempt }> {
  const build = await repository.push(twoJobs);
  const attempt = await harness.claim();
  await attempt.step(0, { status: "running" });
  return { build, attempt };
}

async function waitingSession(attempt: TestAttempt): Promise<string> {
  return await until(async () => ((await attempt.call("POST", "/renew", {})).json as RenewResponse).shells?.[0]);
}

async function paired() {
  const { build, attempt } = await running();
  const person = await End.person(harness, build);
  person.channel.send(open);
  const agent = await End.agent(harness, await waitingSession(attempt), attempt);
  await until(() => agent.messages.length > 0);
  return { build, attempt, person, agent };
}

describe("a shell in a running step", () => {
  test("is paired with the agent, who is told what for and by whom; messages and bytes pass both ways", async () => {
    const { attempt, person, agent } = await paired();
    expect(person.messages).toEqual([{ type: "waiting", agent: "test-agent" }]);
    const { attemptId } = attempt.claimed;
    expect(agent.messages).toEqual([{ ...open, by: "ada@laptop (127.0.0.1)", attemptId, step: 0 }]);
    agent.channel.send({ type: "opened", text: "first/greet" });
    await until(() => person.messages.length > 1);
    person.channel.send({ type: "resize", rows: 50, columns: 132 });
    const bytes = randomBytes(100_000);
    person.channel.write(shellData.stdin, bytes);
    agent.channel.write(shellData.stderr, Buffer.from([0, 255, 10, 13, 3]));
    await until(() => Buffer.concat(agent.bytes).length >= bytes.length && person.bytes.length > 0);
    expect(agent.messages.at(-1)).toEqual({ type: "resize", rows: 50, columns: 132 });
    expect(Buffer.concat(agent.bytes.map((piece) => piece.subarray(1))).equals(bytes)).toBe(true);
    expect(person.bytes).toEqual([Buffer.from([shellData.stderr, 0, 255, 10, 13, 3])]);
    agent.channel.send({ type: "exit", exitCode: 7 });
    agent.channel.close();
    await until(() => person.closed);
    expect(person.closed).toEqual({ reason: undefined });
    expect(person.messages.at(-1)).toEqual({ type: "exit", exitCode: 7 });
    await attempt.finish({ status: "failure" });
  });

  test("wakes the agent through Redis, with the attempt's id alone", async () => {
    const { build, attempt } = await running();
    const redis = connectRedis(harness.redis.url);
    const woken: string[] = [];
    const subscription = new CancelChannel(redis).subscribe(
      () => {},
      (attemptId) => void woken.push(attemptId),
    );
    await subscription.ready;
    const person = await End.person(harness, build);
    person.channel.send(open);
    await until(() => woken.length > 0);
    expect(woken).toEqual([attempt.claimed.attemptId]);
    person.channel.close();
    await subscription[Symbol.asyncDispose]();
    await redis.close();
    await attempt.finish({ status: "failure" });
  });

  test("holds back a sender whose bytes nobody takes, and lets it go on when they are", async () => {
    const { attempt, person, agent } = await paired();
    person.holds = true;
    let sent = 0;
    while (agent.channel.write(shellData.stdout, Buffer.alloc(1000))) sent++;
    expect(sent).toBeLessThan(300);
    await until(() => person.bytes.length === sent + 1);
    expect(agent.drains).toBe(0);
    for (const taken of person.untaken.splice(0)) taken();
    await until(() => agent.drains === 1);
    // Single bytes cost more than themselves: they would else cost the server more than it counts.
    person.holds = true;
    sent = 0;
    while (agent.channel.write(shellData.stdout, Buffer.alloc(1))) sent++;
    expect(sent).toBeLessThan(10_000);
    person.channel.close();
    await attempt.finish({ status: "failure" });
  });

  test("cuts off an end that sends more than it was allowed to", async () => {
    const { attempt, person, agent } = await paired();
    person.holds = true;
    for (let i = 0; i < 2000 && agent.closed === undefined; i++)
      agent.channel.write(shellData.stdout, Buffer.alloc(4096));
    await until(() => person.closed && agent.closed);
    expect(person.closed?.reason).toBe("it sends more than was asked for");
    await attempt.finish({ status: "failure" });
  });

  test("tells the agent when the person is gone, and the person when the agent is", async () => {
    const one = await paired();
    one.person.channel.terminate("killed");
    await until(() => one.agent.closed);
    expect(one.agent.closed?.reason).toBe("the other end is gone");
    await one.attempt.finish({ status: "failure" });
    const other = await paired();
    other.agent.channel.terminate("killed");
    await until(() => other.person.closed);
    expect(other.person.messages.at(-1)).toEqual({ type: "error", message: "the connection to the agent broke" });
    await other.attempt.finish({ status: "failure" });
  });

  test("is open once in a step; the next person is told who has it", async () => {
    const { build, attempt, person } = await paired();
    await expect(End.person(harness, build)).rejects.toThrow(
      "Somebody has a shell in this step already: ada@laptop (127.0.0.1)",
    );
    person.channel.close();
    const again = await until(() => End.person(harness, build).catch(() => undefined));
    again.channel.close();
    await attempt.finish({ status: "failure" });
  });
});

describe("a shell is refused", () => {
  test("without the admin token, although reading is free here", async () => {
    const { build, attempt } = await running();
    const { agentToken } = harness.server;
    for (const authorization of ["", `Bearer ${agentToken}`, "Bearer wrong"]) {
      await expect(End.person(harness, build, undefined, { authorization })).rejects.toMatchObject({ status: 401 });
    }
    await attempt.finish({ status: "failure" });
  });

  test("to a page of another origin that uses somebody's session", async () => {
    const { build, attempt } = await running();
    const login = await harness.call("POST", "/login", { body: { token: harness.server.adminToken } });
    const cookie = (login.headers.get("set-cookie") ?? "").split(";")[0] ?? "";
    const from = (origin: string) => End.person(harness, build, undefined, { authorization: "", cookie, origin });
    await expect(from("https://evil.example")).rejects.toMatchObject({ status: 403 });
    const own = await from(harness.server.address);
    own.channel.close();
    await attempt.finish({ status: "failure" });
  });

  test("in a step that does not run, with what can be entered instead", async () => {
    const { build, attempt } = await running();
    await expect(End.person(harness, build, "job=second&step=0")).rejects.toThrow(
      "The job has not begun: no agent has it yet",
    );
    await expect(End.person(harness, build, "job=none&step=0")).rejects.toThrow('has no job "none"');
    await attempt.step(0, { status: "success", exitCode: 0 });
    await expect(End.person(harness, build)).rejects.toThrow('Step 0 of job "first" is over (success) and not kept');
    await attempt.finish({ status: "success" });
    const second = await harness.claim();
    await second.step(0, { status: "running" });
    await expect(End.person(harness, build)).rejects.toThrow("; a shell can be opened in second/part (running)");
    await second.finish({ status: "failure" });
  });

  test("to an agent that does not have the attempt", async () => {
    const { build, attempt } = await running();
    const person = await End.person(harness, build);
    person.channel.send(open);
    const session = await waitingSession(attempt);
    await expect(End.agent(harness, session, attempt, "wrong")).rejects.toMatchObject({ status: 409 });
    await expect(End.agent(harness, "nonsense", attempt)).rejects.toMatchObject({ status: 404 });
    const agent = await End.agent(harness, session, attempt);
    await expect(End.agent(harness, session, attempt)).rejects.toMatchObject({ status: 404 });
    agent.channel.close();
    person.channel.close();
    await attempt.finish({ status: "failure" });
  });

  test("if it does not begin with what is wanted", async () => {
    const { build, attempt } = await running();
    const ask = async (say: (person: End) => void) => {
      const person = await until(() => End.person(harness, build).catch(() => undefined));
      say(person);
      await until(() => person.closed);
      return person.messages.at(-1);
    };
    expect(await ask((person) => person.channel.write(shellData.stdin, Buffer.from("ls")))).toMatchObject({
      message: /it sent bytes before it said what for/,
    });
    expect(await ask((person) => person.channel.send({ type: "end" }))).toMatchObject({ message: /began with "end"/ });
    expect(
      await ask((person) => person.channel.send({ ...open, terminal: { ...open.terminal, term: "x;rm" } })),
    ).toMatchObject({ message: /terminal\.term/ });
    expect(
      await ask((person) => {
        person.channel.send(open);
        person.channel.write(shellData.stdin, Buffer.from("ls"));
      }),
    ).toMatchObject({ message: /before it was opened/ });
    await attempt.finish({ status: "failure" });
  });
});

describe("kept steps", () => {
  const kept = async (attempt: TestAttempt, steps: object[]) =>
    (await attempt.call("POST", "/kept", { steps })).json as KeptResponse;

  /** A build that failed in its first step, which its agent keeps. */
  async function failed() {
    const { build, attempt } = await running();
    await attempt.step(0, { status: "failure", exitCode: 1 });
    const untilMs = Date.now() + 60_000;
    expect(await kept(attempt, [{ step: 0, untilMs, bytes: 4096 }])).toEqual({
      leaseMs: 30_000,
      shells: [],
      discard: [],
    });
    await attempt.finish({ status: "failure" });
    return { build, attempt, untilMs };
  }

  test("are shown while the agent says so, and can be entered; the log tells who did", async () => {
    const { build, attempt, untilMs } = await failed();
    const step = async () => (await harness.build(build.id)).jobs[0]?.attempts[0]?.steps[0];
    expect((await step())?.kept).toEqual({ untilMs, bytes: 4096 });
    const person = await End.person(harness, build, "job=0&step=0");
    person.channel.send(open);
    const { shells } = await until(async () => {
      const answer = await kept(attempt, [{ step: 0, untilMs }]);
      return answer.shells.length > 0 && answer;
    });
    const agent = await End.agent(harness, shells[0] as string, attempt);
    await until(() => agent.messages.length > 0);
    person.channel.close();
    await until(() => agent.closed);
    const log = async () => (await harness.call("GET", `/api/builds/${build.id}/log?job=0&step=0`)).text;
    await until(async () => (await log()).includes("closed"));
    expect(await log()).toMatch(
      /^shell opened by ada@laptop \(127\.0\.0\.1\)\nshell closed after \d+ s by ada@laptop \(127\.0\.0\.1\)\n$/,
    );
    await kept(attempt, []);
    expect((await step())?.kept).toBeUndefined();
    await expect(End.person(harness, build)).rejects.toThrow("is over (failure) and not kept");
  });

  test("are discarded by hand: shown no more, and the agent is told", async () => {
    const { build, attempt, untilMs } = await failed();
    const discard = (body: object) => harness.call("POST", `/api/builds/${build.id}/discard`, { body });
    expect(await discard({ job: "first" })).toMatchObject({ status: 400 });
    expect(await discard({ job: "second", step: "0" })).toMatchObject({ status: 409 });
    const answer = await discard({ job: "first", step: "greet" });
    expect(answer.status).toBe(200);
    expect((answer.json as BuildView).jobs[0]?.attempts[0]?.steps[0]?.kept).toBeUndefined();
    expect((await kept(attempt, [{ step: 0, untilMs }])).discard).toEqual([0]);
    expect((await kept(attempt, [])).discard).toEqual([]);
    expect(await discard({})).toMatchObject({ status: 409, json: { error: "Nothing is kept of this build" } });
  });

  test("are not another agent's to report", async () => {
    const { attempt } = await failed();
    const headers = { [attemptTokenHeader]: "wrong" };
    expect(await attempt.call("POST", "/kept", { steps: [] }, headers)).toMatchObject({ status: 409 });
  });
});

describe("the server", () => {
  /** Sends a request by hand and returns the socket. */
  function send(lines: readonly string[]): Socket {
    const { hostname, port } = new URL(harness.server.address);
    const socket = connect(Number(port), hostname);
    socket.write(`${lines.join("\r\n")}\r\nHost: 127.0.0.1\r\n\r\n`);
    return socket;
  }

  async function answer(lines: readonly string[]): Promise<string> {
    let text = "";
    const socket = send(lines);
    socket.setEncoding("utf8").on("data", (part: string) => {
      text += part;
      // The answer to what did not become a WebSocket may keep its connection.
      if (/\r\n\r\n[^]/.test(text)) socket.end();
    });
    await once(socket, "close");
    return text;
  }

  test("answers other requests for an upgrade as if they had not asked for it", async () => {
    const h2c = ["GET /healthz HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"];
    expect(await answer(h2c)).toMatch(/^HTTP\/1\.1 200 OK[^]*\{"status":"ok"\}/);
    const webSocket = [
      "Connection: Upgrade",
      "Upgrade: websocket",
      "Sec-WebSocket-Version: 13",
      "Sec-WebSocket-Key: AA==",
    ];
    expect(await answer(["GET /healthz HTTP/1.1", ...webSocket])).toMatch(/^HTTP\/1\.1 200 OK[^]*\{"status":"ok"\}/);
    expect(await answer(["GET /nothing HTTP/1.1", ...webSocket])).toMatch(/^HTTP\/1\.1 404 /);
  });

  test("tells who asks for a shell without a WebSocket, and survives a wrong handshake", async () => {
    const { build, attempt } = await running();
    const path = `/api/builds/${build.id}/shell?job=first&step=0`;
    const plain = await harness.call("GET", path);
    expect(plain).toMatchObject({ status: 426, json: { error: expect.stringContaining("WebSockets only") } });
    expect(plain.headers.get("upgrade")).toBe("websocket");
    const authorization = `Authorization: Bearer ${harness.server.adminToken}`;
    const wrong = await answer([`GET ${path} HTTP/1.1`, authorization, "Connection: Upgrade", "Upgrade: websocket"]);
    expect(wrong).toMatch(/^HTTP\/1\.1 400 /);
    // The step is free again.
    const person = await until(() => End.person(harness, build).catch(() => undefined));
    person.channel.close();
    await attempt.finish({ status: "failure" });
  });

  test("ends sessions when it stops, saying so", async () => {
    const { person, agent } = await paired();
    await harness.stopServer();
    await until(() => person.closed && agent.closed);
    expect(person.messages.at(-1)).toEqual({ type: "error", message: "the server is stopping" });
    await harness.startServer();
  });
});
