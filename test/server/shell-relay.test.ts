/** The relay alone, with ends that do not keep to the protocol as those of the project do. */
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { WebSocket, WebSocketServer } from "ws";
import { type Session, ShellRelay } from "../../server/shell-relay.ts";
import { until } from "./harness.ts";

const target = { buildId: "b", attemptId: "a", step: 0, agent: "tester" };
let server: WebSocketServer;
let relay: ShellRelay;
let session: Session;
let events: string[];

beforeEach(async () => {
  events = [];
  server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(server, "listening");
  server.on("connection", (socket, request) => {
    socket.on("error", () => {});
    if (request.url === "/person") session.connect(socket, "192.0.2.1");
    else session.join(socket);
  });
});
afterEach(async () => {
  relay[Symbol.dispose]();
  for (const socket of server.clients) socket.terminate();
  server.close();
});

function begin(options: { pingMs?: number; dialMs?: number } = {}): void {
  relay = new ShellRelay({
    wake: () => {},
    dialMs: options.dialMs ?? 10_000,
    onSession: (_, { kind, by }) => void events.push(`${kind} ${by}`),
    logger: pino({ level: "silent" }),
    ...(options.pingMs !== undefined && { pingMs: options.pingMs }),
  });
  session = relay.begin(target);
}

async function dial(path: string): Promise<WebSocket> {
  const { port } = server.address() as AddressInfo;
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`);
  socket.on("error", () => {});
  await once(socket, "open");
  return socket;
}

const open = JSON.stringify({ type: "open", by: "ada" });

test.for(["/person", "/agent"])("ends a session whose %s is silent, and lets the other end know", async (silent) => {
  begin({ pingMs: 500 });
  const person = await dial("/person");
  person.send(open);
  await until(() => session.isWaiting);
  const agent = await dial("/agent");
  await until(() => events.length === 1);
  // Reads no ping from now on, and answers none.
  const [quiet, other] = silent === "/person" ? [person, agent] : [agent, person];
  quiet.pause();
  await once(other, "close");
  quiet.terminate();
  await until(() => events.length === 2);
  expect(events).toEqual(["opened ada (192.0.2.1)", "closed ada (192.0.2.1)"]);
  // The step is free for the next.
  expect(() => relay.begin(target)).not.toThrow();
});

test("waits for an agent no longer than it may take, and says which one has not come", async () => {
  begin({ dialMs: 50 });
  const person = await dial("/person");
  const said: unknown[] = [];
  person.on("message", (data: Buffer) => void said.push(JSON.parse(data.toString())));
  person.send(open);
  await once(person, "close");
  expect(said).toEqual([
    { type: "waiting", agent: "tester" },
    { type: "error", message: 'agent "tester" has not answered for 0 s; it may be gone' },
  ]);
  expect(events).toEqual([]);
});

test("cuts off who floods an end that does not read", async () => {
  begin();
  const person = await dial("/person");
  person.send(open);
  await until(() => session.isWaiting);
  const agent = await dial("/agent");
  const closed = once(agent, "close");
  person.pause();
  const piece = Buffer.alloc(64 << 10);
  // A hundred megabytes, which nobody has asked for.
  for (let i = 0; i < 1600 && agent.readyState === WebSocket.OPEN; i++) {
    agent.send(piece);
    if (i % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await closed;
  expect(process.memoryUsage().external).toBeLessThan(200 << 20);
});

test("has a number of sessions at the most", () => {
  begin();
  for (let step = 1; step < 200; step++) relay.begin({ ...target, step });
  expect(() => relay.begin({ ...target, step: 200 })).toThrow("There are 200 shells open already");
});
