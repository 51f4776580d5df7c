import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { follow, Harness, type ServerEvent, type TestRepository, twoJobs, until } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository();
});
afterAll(() => harness[Symbol.asyncDispose]());

const path = (id: string, query = "") => `/api/builds/${id}/events${query}`;
const logText = (events: readonly ServerEvent[]) =>
  events.filter(({ event }) => event === "log").reduce((text, { data }) => text + data.text, "");

/** Follows until `enough` says so or the stream ends. */
async function collect(
  source: AsyncGenerator<ServerEvent>,
  enough: (events: readonly ServerEvent[]) => boolean = () => false,
): Promise<ServerEvent[]> {
  const events: ServerEvent[] = [];
  for await (const event of source) {
    events.push(event);
    if (enough(events)) break;
  }
  return events;
}

describe("GET /api/builds/:id/events", () => {
  test("sends a snapshot, every change, the log as it comes, and ends with the build", async () => {
    const build = await repository.push(twoJobs);
    const events: ServerEvent[] = [];
    const following = (async () => {
      for await (const event of follow(harness, path(build.id))) events.push(event);
    })();
    const seen = (what: string) => until(() => events.some((event) => JSON.stringify(event).includes(what)));
    await seen('"snapshot"');
    const first = await harness.claim();
    await first.step(0, { status: "running" });
    await first.log(0, 0, { stream: 1, text: "hello " }, { stream: 2, text: "wörld\n", timeMs: 5 });
    await seen("wörld");
    await first.step(0, { status: "success", exitCode: 0 });
    await first.finish({ status: "success" });
    await (await harness.claim()).succeed();
    await following;
    expect(events[0]).toMatchObject({
      event: "snapshot",
      data: { id: build.id, jobs: [{ name: "first" }, { name: "second" }] },
    });
    expect(events.find(({ event }) => event === "log")?.data).toEqual({
      job: 0,
      step: 0,
      attempt: 1,
      offset: 0,
      bytes: 13,
      records: [
        [6, 1, 1_700_000_000_000],
        [6, 2, 5],
      ],
      text: "hello wörld\n",
    });
    expect(events.at(-1)).toMatchObject({ event: "end", data: { status: "success" } });
    const lastFirst = events.findLast(({ event, data }) => event === "job" && data.position === 0);
    expect(lastFirst?.data).toMatchObject({
      status: "success",
      attempts: [{ steps: [{ status: "success", exitCode: 0 }] }],
    });
    expect(events.findLast(({ event }) => event === "build")?.data).toMatchObject({ status: "success" });
  });

  test("resumes after every single event without loss or repetition", async () => {
    const build = await repository.push(twoJobs);
    const first = await harness.claim();
    let offset = 0;
    let sent = "";
    for (let i = 0; i < 20; i++) {
      const text = `line ${i} – ${"ü".repeat(i)}\n`;
      sent += text;
      offset = (await first.log(0, offset, { stream: i % 2 === 0 ? 1 : 2, text })).json.offset;
      if (i === 10) await first.step(0, { status: "running" });
    }
    await first.succeed();
    const second = await harness.claim();
    await second.log(0, 0, { stream: 1, text: "bye\n" });
    await second.succeed();
    const whole = await collect(follow(harness, path(build.id)));
    expect(logText(whole)).toBe(`${sent}bye\n`);
    for (const [i, { id }] of whole.slice(0, -1).entries()) {
      const rest = await collect(follow(harness, path(build.id), id));
      expect(logText(whole.slice(0, i + 1)) + logText(rest)).toBe(`${sent}bye\n`);
      expect(rest.at(-1)?.event).toBe("end");
    }
  });

  test("resumes with another server process", async () => {
    const build = await repository.push(twoJobs);
    const first = await harness.claim();
    await first.log(0, 0, { stream: 1, text: "before " });
    const before = await collect(follow(harness, path(build.id)), (events) => logText(events) === "before ");
    await harness.stopServer();
    await harness.startServer();
    await first.log(0, 7, { stream: 1, text: "after" });
    const after = await collect(
      follow(harness, path(build.id), before.at(-1)?.id),
      (events) => logText(events) === "after",
    );
    expect(after.some(({ event }) => event === "snapshot")).toBe(false);
    await first.finish({ status: "failure" });
  });

  test("answers 204 to who has everything, so that a browser stays away", async () => {
    const build = await repository.push(twoJobs);
    await (await harness.claim()).finish({ status: "failure" });
    const { id } = (await collect(follow(harness, path(build.id)))).at(-1) as ServerEvent;
    expect((await harness.call("GET", path(build.id), { headers: { "last-event-id": id } })).status).toBe(204);
  });

  test.each(["garbage", "~~", "zz~~~", "1~0-zzzzzz~0:0:zzzzzzzzzzzzz", "-1~~", "1~~0:0:-5"])(
    "begins from the start or harmlessly for the forged id %j",
    async (id) => {
      const build = await repository.push(twoJobs);
      await (await harness.claim()).finish({ status: "failure" });
      const events = await collect(follow(harness, path(build.id), id));
      expect(events.at(-1)?.event).toBe("end");
    },
  );

  test("puts a character together that two chunks cut in half", async () => {
    const build = await repository.push(twoJobs);
    const first = await harness.claim();
    const euro = Buffer.from("€");
    await first.log(0, 0, { stream: 1, text: Buffer.concat([Buffer.from("a"), euro.subarray(0, 1)]) });
    const source = follow(harness, path(build.id));
    const head = await collect(source, (events) => logText(events) === "a");
    expect(head.at(-1)?.data.bytes).toBe(1);
    await first.log(0, 2, { stream: 1, text: euro.subarray(1) });
    await first.log(0, 4, { stream: 1, text: Buffer.from([0xe2]) });
    await first.finish({ status: "failure" });
    const rest = await collect(follow(harness, path(build.id), head.at(-1)?.id));
    expect(logText(rest)).toBe("€\ufffd");
  });

  test("sends the logs of one job, of none, and the tail of a long one", async () => {
    const build = await repository.push(twoJobs);
    const first = await harness.claim();
    await first.log(0, 0, { stream: 1, text: "x".repeat(1000) }, { stream: 1, text: "end of first" });
    await first.succeed();
    const second = await harness.claim();
    await second.log(0, 0, { stream: 1, text: "second" });
    await second.succeed();
    const text = async (query: string) => logText(await collect(follow(harness, path(build.id, query))));
    expect(await text("?job=1")).toBe("second");
    expect(await text("?job=none")).toBe("");
    expect(await text("?job=0&tail=12")).toBe("end of first");
    const [log] = (await collect(follow(harness, path(build.id, "?job=0&tail=12")))).filter(
      ({ event }) => event === "log",
    );
    expect(log?.data.offset).toBe(1000);
    const { id } = (await collect(follow(harness, path(build.id, "?job=0&tail=12")))).at(-1) as ServerEvent;
    expect(
      (await harness.call("GET", path(build.id, "?job=0&tail=12"), { headers: { "last-event-id": id } })).status,
    ).toBe(204);
  });

  test("does not buffer for a reader that does not read", async () => {
    const build = await repository.push(twoJobs);
    const first = await harness.claim();
    const { hostname, port } = new URL(harness.server.address);
    const socket = connect(Number(port), hostname);
    socket.pause();
    socket.write(`GET ${path(build.id)} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n`);
    const chunk = { stream: 1, text: Buffer.alloc(4 << 20, "0123456789abcde\n") } as const;
    const before = process.memoryUsage();
    for (let i = 0; i < 50; i++) await first.log(0, i * chunk.text.length, chunk);
    globalThis.gc?.();
    const after = process.memoryUsage();
    const grown = after.arrayBuffers + after.heapUsed - before.arrayBuffers - before.heapUsed;
    expect(grown).toBeLessThan(100 << 20); // Of 200 MiB that were written.
    const response = await fetch(`${harness.server.address}/api/builds/${build.id}/log?job=first&step=0`);
    expect((await response.arrayBuffer()).byteLength).toBe(50 * chunk.text.length);
    socket.destroy();
    await first.finish({ status: "failure" });
  });

  test("of a build that does not exist is answered 404", async () => {
    expect((await harness.call("GET", path("b0"))).status).toBe(404);
  });

  test("does not keep the server from stopping", async () => {
    const build = await repository.push(twoJobs);
    const source = follow(harness, path(build.id));
    await source.next();
    await harness.stopServer();
    await harness.startServer();
    await expect(collect(source)).rejects.toThrow(/terminated|aborted|closed/);
  });
});
