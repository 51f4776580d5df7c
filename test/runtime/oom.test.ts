/** Containers whose memory comes to its end, on the real kernel. */
import { readdirSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type HostOptions, runContainer } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";

const MiB = 1024 ** 2;
const resources = { memoryBytes: 48 * MiB, cpu: 2, pids: 64 };
/** Takes memory under a name of its own. */
const hog = (name: string, mebibytes = 400) =>
  `exec python3 -c 'import ctypes
ctypes.CDLL(None).prctl(15, ${JSON.stringify(name)}.encode(), 0, 0, 0)
x = bytearray(${mebibytes} << 20)'`;

let host: TestHost;
/** The kernel's log can be read. */
let knows: boolean;
beforeAll(async () => {
  host = await TestHost.open();
  knows = host.host.oomReports !== undefined;
});
afterAll(async () => host[Symbol.asyncDispose]());

const open = (options: Partial<HostOptions> = {}) => TestHost.open(options);

describe("a container whose memory is at its end", () => {
  test("says who was the largest, among how many", async () => {
    const result = await host.run(`sleep 100 & sleep 100 & ${hog("the hog")}`, { resources });
    expect(result).toMatchObject({ reason: "oom", oomKilled: true, exitCode: 137, signal: "SIGKILL" });
    const exact = /^killed: used 48 MiB of 48 MiB \(3 processes, largest: the hog \d+(\.\d)? MiB\)$/;
    expect(result.message).toMatch(knows ? exact : /^killed: used 4[78].* of 48 MiB/);
    expect(result.usage.memoryPeakBytes).toBeGreaterThan(40 * MiB);
  });

  test("ends although its script would go on", async () => {
    const result = await host.run(`(${hog("child")}) || true; sleep 1000`, { resources });
    expect(result).toMatchObject({ reason: "oom", exitCode: 137 });
    const quick = await host.run(`(${hog("child")}) || true`, { resources });
    expect(quick).toMatchObject({ reason: "oom", exitCode: 137 });
  });

  test("shows control characters of a name as text", async () => {
    const result = await host.run(hog("\u001b[31mred\n)"), { resources });
    expect(result.reason).toBe("oom");
    expect(result.message).toMatch(/^[\x20-\x7e]+$/);
    expect(result.message).toContain(knows ? "largest: \\x1b[31mred\\x0a) " : "killed: ");
  });

  test("is told from its neighbours that end at the same moment", async () => {
    const names = ["first", "second", "third"];
    const results = await Promise.all(names.map((name) => host.run(hog(name), { resources })));
    expect(results.map(({ reason }) => reason)).toEqual(["oom", "oom", "oom"]);
    for (const [i, { message }] of results.entries()) {
      expect(message).toContain(knows ? `largest: ${names[i]} ` : "killed: ");
    }
  });

  test("by tmpfs and memory files, too", async () => {
    const shm = await host.run("dd if=/dev/zero of=/dev/shm/file bs=1M count=60; sleep 1000", { resources });
    expect(shm).toMatchObject({ reason: "oom", exitCode: 137 });
    expect(shm.message).toMatch(/^killed: used 4[78]/);
    const memfd = await host.run(
      `exec python3 -c 'import os
f = os.memfd_create("x")
while True: os.write(f, bytes(1 << 20))'`,
      { resources },
    );
    expect(memfd).toMatchObject({ reason: "oom", exitCode: 137 });
  });

  test("by memory of the kernel's: pipes and sockets", async () => {
    const fill = (make: string) => `exec python3 -c 'import os, socket, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
keep = []
while True:
    ${make}'`;
    const pipes = await host.run(
      fill(`r, w = os.pipe(); os.set_blocking(w, False); keep.append((r, w)); os.write(w, bytes(65536))`),
      { resources },
    );
    expect(pipes).toMatchObject({ reason: "oom", stderr: "" });
    const sockets = await host.run(
      fill(`a, b = socket.socketpair(); a.setblocking(False); keep.append((a, b)); a.send(bytes(100000))`),
      { resources },
    );
    expect(sockets).toMatchObject({ reason: "oom", stderr: "" });
  });

  test("does not end by the cache of files", async () => {
    const result = await host.run("dd if=/dev/zero of=/file bs=1M count=200 && cat /file > /dev/null", { resources });
    expect(result).toMatchObject({ exitCode: 0, oomKilled: false });
    expect(result.usage.ioWriteBytes).toBeGreaterThanOrEqual(200 * MiB);
  });
});

test("a machine without memory would lose a step before the agent", async () => {
  const own = Number(readFileSync("/proc/self/oom_score_adj", "utf8"));
  const { stdout } = await host.run("cat /proc/self/oom_score_adj");
  expect(Number(stdout)).toBe(Math.max(500, own));
});

test("neighbours of a container whose memory is at its end go on", async () => {
  await using neighbour = await runContainer(host.host, host.script("sleep 1000; true"));
  await host.run(hog("hog"), { resources });
  expect(readdirSync(`/proc/${neighbour.pid}`)).not.toEqual([]);
});

test("the agent's ceiling ends a container below its own limit, and says so", async () => {
  await using small = await open({ ceiling: { memoryBytes: 96 * MiB } });
  const half = { memoryBytes: 90 * MiB, cpu: 2, pids: 64 };
  const slow = `exec python3 -c 'import time
x = bytearray(60 << 20)
time.sleep(1000)'`;
  const started = await Promise.all(
    [1, 2].map(() => runContainer(small.host, small.script(slow, { resources: half, timeoutMs: 30_000, graceMs: 0 }))),
  );
  const first = await Promise.race(started.map(({ result }) => result));
  expect(first).toMatchObject({ reason: "oom", exitCode: 137 });
  expect(first.message).toMatch(/^killed: all steps of this agent together used /);
  for (const container of started) await container[Symbol.asyncDispose]();
});

test("without the kernel's log a sample says who was large shortly before", async () => {
  await using blind = await open();
  blind.host.oomReports?.close();
  Object.defineProperty(blind.host, "oomReports", { value: undefined });
  const slow = `exec python3 -c 'import time
x = [bytearray(30 << 20)]
for i in range(100):
    x.append(bytearray(1 << 20))
    time.sleep(0.2)'`;
  const result = await blind.run(slow, { resources });
  expect(result).toMatchObject({ reason: "oom" });
  expect(result.message).toMatch(
    /^killed: used 4[78](\.\d)? MiB of 48 MiB \(\d process(es)? shortly before, largest: python3 \d+(\.\d)? MiB\)$/,
  );
});
