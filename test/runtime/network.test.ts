/** Networks of jobs on the real kernel, in a world of network namespaces. */
import { release } from "node:os";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { AllowedDestination } from "../../runtime/network-allow.ts";
import type { Refusals } from "../../runtime/network.ts";
import {
  type Job,
  hostAddress,
  metadataAddresses,
  outsideAddress,
  peerPort,
  privateAddress,
  type TestAgent,
  uplinkMtu,
  World,
} from "./network-world.ts";

const reset = "Connection refused";
const nothing: Refusals = { destinations: [], unlistedCount: 0 };

let world: World;
let agent: TestAgent;
let job: Job;
let neighbor: Job;
beforeAll(async () => {
  world = await World.make();
  agent = await world.agent();
  job = await agent.claim();
  neighbor = await agent.claim();
});
afterAll(async () => world[Symbol.asyncDispose]());

describe("a job", () => {
  test("reaches the outside with the host's address, by IPv4 and IPv6", () => {
    expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
    expect(job.connect(outsideAddress[6])).toBe(hostAddress[6]);
  });

  test("reaches private networks, unless they are blocked", () => {
    expect(job.connect(privateAddress)).toBe(hostAddress[4]);
  });

  test("has the uplink's MTU", () => {
    expect(job.sh("ip -o link show eth0")).toContain(`mtu ${uplinkMtu}`);
    expect(world.host.sh("ip -o link show type bridge")).toContain(`mtu ${uplinkMtu}`);
  });

  test("is told the host's name server, and may ask it", () => {
    expect(job.claimed.resolvConf).toBe(`nameserver ${outsideAddress[4]}\nsearch example.org\n`);
    expect(job.connect(outsideAddress[4], 53)).toBe(hostAddress[4]);
  });

  test("finds its services on localhost, on any port", async () => {
    const hosts = await agent.ask<string>({ kind: "hosts", job: job.claimed.job, names: ["db", "cache"] });
    expect(hosts.split("\n")[0]).toBe("127.0.0.1\tlocalhost slipway db cache");
    expect(job.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").trim()).toBe("0");
  });

  test("has neighbors that are written down, and no address that it made up", () => {
    expect(job.sh("ip neighbor").match(/PERMANENT/g)).toHaveLength(2);
    expect(job.sh("ip -6 address show dev eth0")).not.toContain("fe80");
  });
});

describe("a job does not reach", () => {
  test.for(metadataAddresses)("the metadata address %s, although the host does", (address) => {
    expect(world.host.sh(`exec 3<>/dev/tcp/${address}/${peerPort}; cat <&3`).trim()).not.toBe("");
    expect(job.connect(address)).toBe(reset);
  });

  test("the host's own addresses and services", () => {
    expect(world.host.sh(`exec 3<>/dev/tcp/127.0.0.1/${peerPort}; cat <&3`).trim()).toBe("127.0.0.1");
    for (const address of [hostAddress[4], hostAddress[6]]) expect(job.connect(address)).toBe(reset);
    const gateways = job.sh("ip route; ip -6 route").match(/(?<=via )\S+/g) ?? [];
    expect(gateways).toHaveLength(2);
    for (const gateway of gateways) expect(job.connect(gateway)).toBe(reset);
  });

  test("a port of the host that leads to a container of its own", () => {
    world.host.sh(`
      nft 'table ip published { chain pre { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to ${outsideAddress[4]}:${peerPort}; }; }'
    `);
    try {
      expect(job.connect(hostAddress[4], 8080)).toBe(reset);
    } finally {
      world.host.sh("nft delete table ip published");
    }
  });

  test("another job", () => {
    for (const family of [4, 6] as const) expect(job.connect(neighbor.address(family))).toBe(reset);
  });

  test("link-local, multicast and broadcast addresses", async () => {
    const fresh = await agent.claim();
    const addresses = ["169.254.1.1", "224.0.0.251", "240.0.0.1"];
    for (const address of addresses) fresh.sh(`echo x > /dev/udp/${address}/53`);
    expect((await fresh.takeRefused()).destinations.map(({ address }) => address).sort()).toEqual(addresses);
    await fresh.dispose();
  });

  test("another job by its hardware address", async () => {
    const fresh = await agent.claim();
    const address = neighbor.address(4);
    // Past the gateway: what the bridge itself would have to pass on.
    fresh.sh(`ip neighbor add ${address} lladdr ${neighbor.hardware} dev eth0; ip route add ${address} dev eth0`);
    const before = received(neighbor);
    fresh.sh(`for i in {1..50}; do echo x > /dev/udp/${address}/9; done`);
    // The bridge itself says a thing or two of its own accord.
    expect(received(neighbor) - before).toBeLessThan(25);
    await fresh.dispose();
  });
});

describe("refused", () => {
  test("lists what a job tried, with counts, and nothing of other jobs", async () => {
    const fresh = await agent.claim();
    for (let i = 0; i < 3; i++) fresh.connect("169.254.169.254", 80);
    fresh.connect(hostAddress[6], 22);
    fresh.sh("echo x > /dev/udp/100.100.100.200/53");
    const { destinations, unlistedCount } = await fresh.takeRefused();
    expect({ unlistedCount, first: destinations[0] }).toEqual({
      unlistedCount: 0,
      first: { address: "169.254.169.254", protocol: "tcp", port: 80, count: 3 },
    });
    expect(destinations.slice(1).toSorted((a, b) => a.port - b.port)).toEqual([
      { address: hostAddress[6], protocol: "tcp", port: 22, count: 1 },
      { address: "100.100.100.200", protocol: "udp", port: 53, count: 1 },
    ]);
    expect(await fresh.takeRefused()).toEqual<Refusals>(nothing);
    await fresh.dispose();
    const next = await agent.claim();
    expect(await next.takeRefused()).toEqual<Refusals>(nothing);
    await next.dispose();
  });

  test("of a thousand destinations lists the first hundred and counts the rest, and leaves room for other jobs", async () => {
    const [flood, calm] = [await agent.claim(), await agent.claim()];
    flood.sh("for i in {1..1000}; do echo x > /dev/udp/169.254.1.1/$i; done; echo x > /dev/udp/169.254.1.1/7");
    calm.connect("169.254.169.254", 80);
    const { destinations, unlistedCount } = await flood.takeRefused();
    expect(destinations[0]).toEqual({ address: "169.254.1.1", protocol: "udp", port: 7, count: 2 });
    expect(destinations.map(({ port }) => port).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 100 }, (_, i) => i + 1),
    );
    expect(unlistedCount).toBe(900);
    expect((await calm.takeRefused()).destinations).toHaveLength(1);
    // The next step's list is its own.
    flood.sh("echo x > /dev/udp/169.254.1.1/2000");
    expect((await flood.takeRefused()).destinations).toEqual([
      { address: "169.254.1.1", protocol: "udp", port: 2000, count: 1 },
    ]);
    await flood.dispose();
    await calm.dispose();
    const sets = world.host.sh("nft list sets table inet slipway-test-1");
    for (const one of [flood, calm]) expect(sets).not.toContain(`${one.address(4)} `);
  });
});

describe("the outside", () => {
  test("does not reach a job, nor the host another network by way of the host", async () => {
    await using other = await World.make();
    const inside = await (await other.agent()).claim();
    inside.sh("true");
    other.outside.sh(`ip route add 10.231.0.0/16 via ${hostAddress[4]}`);
    const listener = `timeout 3 bash -c 'exec 3<>/dev/tcp/${inside.address(4)}/80' 2>&1`;
    expect(() => other.outside.sh(listener)).toThrow("Command failed");
    // On a slow machine the shell above may have been ended before it began.
    other.outside.sh(`echo x > /dev/udp/${inside.address(4)}/80`);
    expect(other.host.sh("nft list chain inet slipway-test-1 arriving")).toMatch(
      /counter packets [1-9]\d* bytes \d+ drop/,
    );
    // The host has a second network, and did not forward to it before the agent came.
    other.host.sh("ip link add second type bridge; ip address add 203.0.113.1/24 dev second; ip link set second up");
    other.outside.sh(`ip route add 203.0.113.0/24 via ${hostAddress[4]}; echo x > /dev/udp/203.0.113.7/9`);
    expect(other.host.sh("nft list chain inet slipway-test-1 forward")).toMatch(/guarded4.*counter packets [1-9]/);
  });
});

describe("spoofing", () => {
  const dropped = () =>
    Number(/counter packets (\d+)/.exec(world.host.sh("nft list chain bridge slipway-test-1 from-jobs"))?.[1]);

  test.for(["another job's", "the host's"])("a packet with %s address gets nowhere", async (whose) => {
    const fresh = await agent.claim();
    const address = whose === "the host's" ? hostAddress[4] : neighbor.address(4);
    world.outside.output.length = 0;
    fresh.sh(`
      ip address add ${address}/32 dev eth0
      ip route add ${outsideAddress[4]} via ${fresh.gateway} dev eth0 onlink src ${address}
    `);
    const before = dropped();
    fresh.sh(`echo x > /dev/udp/${outsideAddress[4]}/${peerPort}`);
    await expect.poll(dropped).toBeGreaterThan(before);
    // What comes behind it arrives.
    neighbor.sh(`echo x > /dev/udp/${outsideAddress[4]}/${peerPort}`);
    await expect.poll(() => world.outside.output.join("")).toBe(`udp ${peerPort} ${hostAddress[4]}\n`);
    await fresh.dispose();
  });

  test("a frame with another job's hardware address gets nowhere and moves nothing", async () => {
    const fresh = await agent.claim();
    const gateway = /(?<=lladdr )\S+/.exec(fresh.sh("ip -4 neighbor"))?.[0] ?? "";
    fresh.sh(`
      ip link set eth0 address ${neighbor.hardware}
      ip neighbor replace ${fresh.gateway} lladdr ${gateway} dev eth0
    `);
    const before = dropped();
    fresh.sh(`echo x > /dev/udp/${outsideAddress[4]}/${peerPort}`);
    await expect.poll(dropped).toBeGreaterThan(before);
    expect(world.host.sh("bridge fdb show")).toContain(`${neighbor.hardware} dev ${portOf(neighbor)}`);
    expect(neighbor.connect(outsideAddress[4])).toBe(hostAddress[4]);
    await fresh.dispose();
  });

  test("a question about neighbors is not answered, a lie about them not believed", async () => {
    const fresh = await agent.claim();
    const address = neighbor.address(4);
    const before = dropped();
    fresh.sh(`ip route add ${address} dev eth0; echo x > /dev/udp/${address}/9`); // asks who has the address
    await expect.poll(dropped).toBeGreaterThan(before);
    expect(world.host.sh(`ip neighbor show ${address}`)).toContain(`${neighbor.hardware} PERMANENT`);
    await fresh.dispose();
  });
});

describe("restrict", () => {
  test("leaves only what is allowed, and lists the rest", async () => {
    const fresh = await agent.claim();
    const restrict = (allowed?: AllowedDestination[]) =>
      agent.ask({ kind: "restrict", job: fresh.claimed.job, ...(allowed === undefined ? {} : { allowed }) });
    await restrict([{ host: outsideAddress[4], firstPort: peerPort, lastPort: peerPort }]);
    expect(fresh.connect(outsideAddress[4])).toBe(hostAddress[4]);
    expect(fresh.connect(outsideAddress[4], 53)).toBe(reset);
    expect(fresh.connect(outsideAddress[6])).toBe(reset);
    expect((await fresh.takeRefused()).destinations.map(({ address, port }) => `${address} ${port}`).sort()).toEqual([
      `${outsideAddress[4]} 53`,
      `${outsideAddress[6]} ${peerPort}`,
    ]);
    await restrict([]);
    expect(fresh.connect(outsideAddress[4])).toBe(reset);
    await restrict();
    expect(fresh.connect(outsideAddress[6])).toBe(hostAddress[6]);
    await fresh.dispose();
  });

  test("allows no metadata address either", async () => {
    const fresh = await agent.claim();
    const allowed = [{ host: "169.254.169.254", firstPort: peerPort, lastPort: peerPort }];
    await agent.ask({ kind: "restrict", job: fresh.claimed.job, allowed });
    expect(fresh.connect("169.254.169.254")).toBe(reset);
    await fresh.dispose();
  });
});

describe("keepPublic", () => {
  test("keeps one job from private networks, but not from the name server, and no other job", async () => {
    const fresh = await agent.claim();
    await fresh.keepPublic();
    await fresh.keepPublic();
    expect(fresh.connect(privateAddress)).toBe(reset);
    expect(fresh.connect(outsideAddress[4], 53)).toBe(hostAddress[4]);
    expect((await fresh.takeRefused()).destinations).toMatchObject([{ address: privateAddress, port: peerPort }]);
    expect(job.connect(privateAddress)).toBe(hostAddress[4]);
    // An allow list opens nothing that was closed.
    const allowed = [{ host: privateAddress, firstPort: peerPort, lastPort: peerPort }];
    await agent.ask({ kind: "restrict", job: fresh.claimed.job, allowed });
    expect(fresh.connect(privateAddress)).toBe(reset);
    await fresh.dispose();
    expect(world.host.sh("nft list set inet slipway-test-1 public-only4")).not.toContain("elements");
  });
});

describe("blockPrivateRanges", () => {
  test("keeps jobs from private networks, but not from the name server", async () => {
    await using other = await World.make();
    const strict = await other.agent({ blockPrivateRanges: true });
    const inside = await strict.claim();
    expect(inside.connect(privateAddress)).toBe(reset);
    expect(inside.connect(outsideAddress[4])).toBe(hostAddress[4]);
  });
});

describe("the rules", () => {
  test("survive a reload of the host's firewall", (context) => {
    const [major = 0, minor = 0] = release().split(".").map(Number);
    if (major < 6 || (major === 6 && minor < 9)) context.skip("owned tables need Linux 6.9");
    world.host.sh("nft flush ruleset");
    expect(job.connect("169.254.169.254")).toBe(reset);
    expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
  });
});

/** The bridge port of a job. */
function portOf(one: Job): string {
  const index = /eth0@if(\d+)/.exec(one.sh("ip -o link show eth0"))?.[1] ?? "";
  return new RegExp(`^${index}: ([^@]+)@`, "m").exec(world.host.sh("ip -o link"))?.[1] ?? "";
}

/** Packets that came to a job. */
function received(one: Job): number {
  const statistics = JSON.parse(one.sh("ip -j -s link show eth0")) as [{ stats64: { rx: { packets: number } } }];
  return statistics[0].stats64.rx.packets;
}
