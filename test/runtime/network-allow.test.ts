/** Allow lists whose names come from a name server that nobody needs to trust. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { lookUpAllowed } from "../../runtime/network-allow.ts";
import { disjoint } from "../../runtime/network-elements.ts";
import { type Job, hostAddress, outsideAddress, peerPort, type TestAgent, World } from "./network-world.ts";

const reset = "Connection refused";

let world: World;
let agent: TestAgent;
let job: Job;
beforeAll(async () => {
  world = await World.make({ nameServer: true });
  agent = await world.agent();
  job = await agent.claim();
});
afterAll(async () => world[Symbol.asyncDispose]());

const allow = (host: string, firstPort = peerPort, lastPort = firstPort) => ({ host, firstPort, lastPort });
const restrict = (...allowed: ReturnType<typeof allow>[]) =>
  agent.ask({ kind: "restrict", job: job.claimed.job, allowed });
const hosts = () => agent.ask<string>({ kind: "hosts", job: job.claimed.job, names: [] });

describe("a name", () => {
  test("leads to its addresses of both families, and nowhere else", async () => {
    await restrict(allow("both.example.org"));
    expect((await hosts()).split("\n").slice(2)).toEqual([
      `${outsideAddress[4]}\tboth.example.org`,
      `${outsideAddress[6]}\tboth.example.org`,
      "",
    ]);
    for (const family of [4, 6] as const) expect(job.connect(outsideAddress[family])).toBe(hostAddress[family]);
    expect(job.connect(outsideAddress[4], 53)).toBe(reset);
  });

  test("without a dot is looked up in the search domains", async () => {
    await restrict(allow("short"));
    expect(await hosts()).toContain(`${outsideAddress[4]}\tshort\n`);
  });

  test("in the host's /etc/hosts needs no name server", async () => {
    await restrict(allow("localhost"));
    expect(await hosts()).toMatch(/^127\.0\.0\.1\tlocalhost$/m);
  });

  test("that is answered differently the second time stays what it was", async () => {
    await restrict(allow("changing.example.org"));
    expect(await hosts()).toContain(`${outsideAddress[4]}\tchanging.example.org\n`);
    expect(job.connect("169.254.169.254")).toBe(reset);
    expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
  });

  test("of the metadata service or of the host opens neither", async () => {
    await restrict(allow("metadata.example.org"), allow("host.example.org"));
    for (const address of ["169.254.169.254", "100.100.100.200", hostAddress[4]]) {
      expect(job.connect(address)).toBe(reset);
    }
  });

  test("with very many addresses counts with the first of them", async () => {
    await restrict(allow("many.example.org"));
    expect((await hosts()).match(/many\.example\.org/g)).toHaveLength(32);
  });

  test("that is not known, or has no address, is an error that says so", async () => {
    await expect(restrict(allow("missing.example.org"))).rejects.toThrow(
      'Cannot allow "missing.example.org": the name is not known (ENOTFOUND)',
    );
    await expect(restrict(allow("empty.example.org"))).rejects.toThrow("the name is not known (ENODATA)");
  });

  test("that is not answered ends when the job is canceled", async () => {
    const reason = new Error("canceled by a test");
    await expect(
      lookUpAllowed([allow("192.0.2.1"), allow("silent.example.invalid")], {
        ipv6: false,
        signal: AbortSignal.abort(reason),
      }),
    ).rejects.toThrow(reason);
  });
});

describe("withheld servers", () => {
  test("are reached by no job, neither by their names nor under an allow list; their other ports are", async () => {
    const withheld = [
      { host: "short.example.org", port: peerPort },
      { host: outsideAddress[6], port: peerPort },
    ];
    const strict = await world.agent({ agent: "slipway-test-2", withheld });
    const inside = await strict.claim();
    for (const family of [4, 6] as const) expect(inside.connect(outsideAddress[family])).toBe(reset);
    await strict.ask({ kind: "restrict", job: inside.claimed.job, allowed: [allow("short.example.org", 1, 65_535)] });
    expect(inside.connect(outsideAddress[4])).toBe(reset);
    expect((await inside.takeRefused()).destinations).toContainEqual(
      expect.objectContaining({ address: outsideAddress[4], port: peerPort, protocol: "tcp" }),
    );
    await strict.ask({ kind: "restrict", job: inside.claimed.job });
    inside.sh(`echo x > /dev/udp/${outsideAddress[4]}/${peerPort + 1}`);
    expect((await inside.takeRefused()).destinations).toEqual([]);
    await strict.close();
  });
});

describe("ports", () => {
  test("of a range are reached by TCP and UDP, those beside it are not", async () => {
    await restrict(allow(outsideAddress[4], peerPort - 10, peerPort + 10));
    expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
    world.outside.output.length = 0;
    job.sh(`echo x > /dev/udp/${outsideAddress[4]}/${peerPort}`);
    await expect.poll(() => world.outside.output.join("")).toBe(`udp ${peerPort} ${hostAddress[4]}\n`);
    await restrict(allow(outsideAddress[4], peerPort + 1, 65_535), allow(outsideAddress[4], 1, peerPort - 1));
    expect(job.connect(outsideAddress[4])).toBe(reset);
  });

  test("of overlapping ranges are put together", () => {
    const range = (firstPort: number, lastPort: number, address = "192.0.2.1") => ({ address, firstPort, lastPort });
    const other = range(1, 9, "2001:DB8:0::1");
    expect(disjoint([range(80, 90), range(443, 443), other, range(85, 95), range(96, 96), range(443, 443)])).toEqual([
      range(80, 96),
      range(443, 443),
      { ...other, address: "2001:db8::1" },
    ]);
  });

  test("of a hundred hosts are taken at once and given back", async () => {
    const many = Array.from({ length: 100 }, (_, i) => allow(`192.0.2.${i}`, 1, 65_535));
    for (let i = 0; i < 3; i++) {
      await restrict(...many, allow(outsideAddress[4]));
      expect(job.connect(outsideAddress[4])).toBe(hostAddress[4]);
    }
    await agent.ask({ kind: "restrict", job: job.claimed.job });
    expect(world.host.sh("nft list set inet slipway-test-1 allowed4")).not.toContain("elements");
  });
});
