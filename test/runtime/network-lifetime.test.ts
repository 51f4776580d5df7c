/** What networks leave behind: nothing; and what several agents do to each other: nothing. */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { hostAddress, outsideAddress, World } from "./network-world.ts";

let world: World;
beforeEach(async () => {
  world = await World.make();
});
afterEach(async () => world[Symbol.asyncDispose]());

test("an agent that closes leaves the host as it was", async () => {
  const before = world.traces();
  const agent = await world.agent();
  const job = await agent.claim();
  expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
  expect(world.traces()).not.toEqual(before);
  await agent.close();
  expect(world.traces()).toEqual(before);
});

test("IPv6 forwarding as on kernels before 6.17 leaves the host as it was, too", async () => {
  world.host.sh("echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra");
  const before = world.traces();
  const agent = await world.agent({ globalIPv6Forwarding: true });
  expect(world.host.sh("cat /proc/sys/net/ipv6/conf/{all/forwarding,up0/accept_ra}").split("\n")).toEqual([
    "1",
    "2",
    "",
  ]);
  const job = await agent.claim();
  expect(job.connect(outsideAddress[6])).toBe(hostAddress[6]);
  await agent.close();
  expect(world.traces()).toEqual(before);
});

test("100 networks leave no link, neighbor, rule, element, namespace or descriptor", async () => {
  const agent = await world.agent();
  const cycle = async () => {
    const jobs = await Promise.all([agent.claim(), agent.claim()]);
    for (const job of jobs) {
      await agent.ask({
        kind: "restrict",
        job: job.claimed.job,
        allowed: [{ host: outsideAddress[4], firstPort: 1, lastPort: 1 }],
      });
    }
    expect(jobs[0]?.connect(outsideAddress[4], 2)).toBe("Connection refused");
    for (const job of jobs) await job.dispose();
  };
  /** The one that is kept ready has another address every time. */
  const normal = (text: string) =>
    text
      .replace(/slp-\w+-\d+@?(if\d+)?/g, "port")
      .replace(/10\.231\.0\.\d+/g, "address")
      .replace(/0a:51:0a:e7:00:\w\w/g, "hardware")
      .replace(/fd[0-9a-f:]+::\w+/g, "address6");
  const traces = async () => {
    await agent.ask({ kind: "settle" });
    return {
      ...(JSON.parse(normal(JSON.stringify(world.traces()))) as object),
      descriptors: await agent.ask<number>({ kind: "descriptors" }),
    };
  };
  const namespaces = () => world.host.sh("ip netns list-id").trim().split("\n").length;
  /** The kernel takes namespaces and their links down when it finds the time. */
  const gone = (count: number) => expect.poll(namespaces).toBe(count);
  await agent.ask({ kind: "settle" });
  const namespacesBefore = namespaces();
  await cycle();
  await gone(namespacesBefore);
  const before = await traces();
  for (let i = 0; i < 50; i++) await cycle();
  await gone(namespacesBefore);
  expect(await traces()).toEqual(before);
});

test("the leftovers of a killed agent are swept by the next one", async () => {
  const before = world.traces();
  const killed = await world.agent();
  await killed.claim();
  await killed.kill();
  const left = world.traces();
  expect(left.rules).toContain("slipway-test-1");
  expect(left.links.join()).toContain("slw-");
  const next = await world.agent();
  const job = await next.claim();
  expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
  expect(world.host.sh("ip -o link show type bridge").trim().split("\n")).toHaveLength(1);
  await next.close();
  expect(world.traces()).toEqual(before);
});

test("the leftovers of a killed agent that never comes back are swept by any other, those of living ones are not", async () => {
  const before = world.traces();
  const [killed, alive] = [await world.agent(), await world.agent({ agent: "slipway-test-2" })];
  const job = await alive.claim();
  await killed.claim();
  await killed.kill();
  const next = await world.agent({ agent: "slipway-test-3" });
  const rules = world.host.sh("nft list tables");
  expect(rules).not.toContain("slipway-test-1");
  expect(rules).toContain("slipway-test-2");
  expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
  // Started again with another subnet, for its own is taken: what it has now is not what it left.
  await alive.kill();
  const taker = await world.agent({ agent: "slipway-test-4" });
  const again = await world.agent({ agent: "slipway-test-2" });
  const [other, fresh] = [await world.agent({ agent: "slipway-test-5" }), await again.claim()];
  expect(fresh.connect(outsideAddress[4])).toBe(hostAddress[4]);
  for (const agent of [next, taker, again, other]) await agent.close();
  expect(world.traces()).toEqual(before);
});

describe("two agents", () => {
  test("have their own subnets and do not reach each other's jobs", async () => {
    const [first, second] = [await world.agent(), await world.agent({ agent: "slipway-test-2" })];
    const [one, other] = [await first.claim(), await second.claim()];
    expect(one.address(4).split(".").slice(0, 3)).not.toEqual(other.address(4).split(".").slice(0, 3));
    for (const [from, to] of [
      [one, other],
      [other, one],
    ] as const) {
      for (const family of [4, 6] as const) expect(from.connect(to.address(family))).toBe("Connection refused");
      expect(from.connect(outsideAddress[4])).toBe(hostAddress[4]);
      expect(from.connect(outsideAddress[6])).toBe(hostAddress[6]);
    }
  });

  test("leave the other at work when they close or are killed", async () => {
    const before = world.traces();
    const [first, second] = [await world.agent(), await world.agent({ agent: "slipway-test-2" })];
    const third = await world.agent({ agent: "slipway-test-3" });
    const job = await second.claim();
    await first.close();
    await third.kill();
    expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
    expect(job.connect(outsideAddress[6])).toBe(hostAddress[6]);
    await (await world.agent({ agent: "slipway-test-3" })).close();
    expect(job.connect(outsideAddress[6])).toBe(hostAddress[6]);
    await second.close();
    expect(world.traces()).toEqual(before);
  });
});

test("a subnet that the host has a route to is not used", async () => {
  world.host.sh(
    `ip route add 10.231.0.0/17 via ${outsideAddress[4]}; ip route add 10.231.128.0/24 via ${outsideAddress[4]}`,
  );
  const job = await (await world.agent()).claim();
  expect(job.address(4)).toMatch(/^10\.231\.129\./);
  expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
});

test("a host without IPv6 gives jobs none", async () => {
  await using plain = await World.make({ ipv6: false });
  const job = await (await plain.agent()).claim();
  expect(job.claimed.addresses).toHaveLength(1);
  expect(job.sh("ip -6 route").trim()).toBe("");
  expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
});

test("networks go away with their agent even if nobody sweeps", async () => {
  const count = () => world.host.sh("ip -o link show type veth").trim().split("\n").length;
  const before = count();
  const agent = await world.agent();
  await agent.claim();
  await agent.ask({ kind: "settle" });
  expect(count()).toBe(before + 2);
  await agent.kill();
  // The kernel takes namespaces down when it finds the time.
  await expect.poll(count).toBe(before);
});
