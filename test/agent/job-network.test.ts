/** Jobs in their networks, in a world of network namespaces: what steps reach, and what their results say. */
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hostAddress, outsideAddress, peerPort, privateAddress, World } from "../runtime/network-world.ts";
import type { NetworkJob, NetworkJobResult } from "./network-job.ts";

let world: World;
beforeAll(async () => {
  world = await World.make({ nameServer: true });
});
afterAll(async () => world[Symbol.asyncDispose]());

async function run(job: string, options: Omit<NetworkJob, "pipeline" | "stateDir"> = {}): Promise<NetworkJobResult> {
  const pipeline = `
env:
  OUTSIDE: ${outsideAddress[4]}
jobs:
  job:
${job.replaceAll(/^/gm, "    ")}`;
  return world.run<NetworkJobResult>("../agent/network-job.ts", {
    pipeline,
    stateDir: join(world.directory, "state"),
    ...options,
  });
}

/** A command that asks a host: prints its answer, or that it was refused. */
const ask = (host: string, port: number = peerPort) =>
  `(bash -c 'exec 3<>/dev/tcp/${host}/${port} && cat <&3' 2>&1 || true) | grep -oE 'refused$|^[0-9.]+$' | tail -n 1`;

describe("steps", () => {
  test("share one network by default, unless they want none", async () => {
    const { logs, status, steps } = await run(`
steps:
  - cat /sys/class/net/eth0/address > address; ${ask("$OUTSIDE")}
  - cmp address /sys/class/net/eth0/address && echo same
  - { run: ls /sys/class/net, network: none }
`);
    expect(status).toBe("success");
    expect(logs).toEqual([`${hostAddress[4]}\n`, "same\n", "lo\n"]);
    expect(steps.some((step) => step.refused !== undefined)).toBe(false);
  });

  test("are refused each what it tried, however soon one follows another", async () => {
    const { steps } = await run(`
steps:
  - "true"
  - ${ask("169.254.169.254", 80)}
  - "true"
  - ${ask("169.254.169.254", 81)}; ${ask("169.254.169.254", 82)}
`);
    expect(steps.map(({ refused }) => refused?.destinations.map(({ port }) => port).sort())).toEqual([
      undefined,
      [80],
      undefined,
      [81, 82],
    ]);
  });

  test("with an allow list reach what is on it, and their result lists the rest", async () => {
    const { logs, steps } = await run(`
steps:
  - run: ${ask("both.example.org")}; ${ask("$OUTSIDE")}; ${ask("$OUTSIDE", 9)}; getent hosts other.example.org || echo unknown
    network: { allow: ["both.example.org:${peerPort}"] }
  - ${ask("$OUTSIDE")}; ${ask("169.254.169.254", 80)}
  - run: ${ask("$OUTSIDE")}
    network: { allow: [] }
  - run: ${ask("127.0.0.1", 1)}
    network: none
  - ${ask("$OUTSIDE")}
`);
    const answer = `${hostAddress[4]}\n`;
    expect(logs[0]).toMatch(new RegExp(`^${answer}${answer}refused\nunknown\nnetwork: refused `));
    expect(steps[0]?.refused?.destinations).toContainEqual({
      address: outsideAddress[4],
      protocol: "tcp",
      port: 9,
      count: 1,
    });
    expect(steps[0]?.refused?.destinations).toContainEqual(
      expect.objectContaining({ address: outsideAddress[4], protocol: "udp", port: 53 }),
    );
    expect(logs[1]).toBe(`${answer}refused\nnetwork: refused 169.254.169.254:80/tcp (1 packet)\n`);
    expect(steps[1]?.refused).toEqual({
      destinations: [{ address: "169.254.169.254", protocol: "tcp", port: 80, count: 1 }],
      unlistedCount: 0,
    });
    expect(logs[2]).toMatch(/^refused\n/);
    expect(steps[3]).not.toHaveProperty("refused");
    expect(logs[4]).toBe(answer);
  });

  test("whose allow list names nobody fail, and none of their program runs", async () => {
    const { steps, logs } = await run(`
steps:
  - run: echo ran
    network: { allow: ["missing.example.org:443"] }
`);
    const reason = 'Cannot allow "missing.example.org": the name is not known (ENOTFOUND)';
    expect(steps[0]).toMatchObject({ status: "failure", reason });
    expect(logs[0]).toBe(`${reason}\n`);
  });

  test("are kept from private networks where the agent is told to", async () => {
    const { logs } = await run(`steps: ["${ask(privateAddress)}"]`, { networks: { blockPrivateRanges: true } });
    expect(logs[0]).toMatch(/^refused\nnetwork: refused 10\.99\.0\.1/);
  });
});

describe("a stranger's commit", () => {
  const untrusted = {
    ceiling: {},
    timeoutMs: 60_000,
    privateNetworks: false,
    privateImages: false,
    keepsFailed: false,
  };

  test("reaches the Internet, and no private network, whatever its pipeline allows", async () => {
    const { logs } = await run(
      `
steps:
  - ${ask(privateAddress)}; ${ask("$OUTSIDE")}
  - run: ${ask(privateAddress)}
    network: { allow: ["${privateAddress}:${peerPort}"] }
`,
      { options: { untrusted } },
    );
    expect(logs[0]).toMatch(new RegExp(`^refused\n${hostAddress[4]}\nnetwork: refused ${privateAddress}`));
    expect(logs[1]).toMatch(/^refused\n/);
  });

  test("is not run at all if it wants the host's network", async () => {
    const { status, reason, steps } = await run(`steps: [echo ran, { name: x, run: echo ran, network: host }]`, {
      options: { untrusted },
    });
    expect(status).toBe("failure");
    expect(reason).toMatch(/^"x" wants network: host/);
    expect(steps.map((step) => step.status)).toEqual(["skipped", "skipped"]);
  });
});

describe("services", () => {
  test("are reached under every allow list, and held to it", async () => {
    const { logs, status } = await run(`
services:
  relay:
    run: |
      while :; do
        rm -f asked
        until [ -e ask ]; do sleep 0.02; done
        ${ask("$OUTSIDE")} > answer
        mv ask asked
        until [ ! -e asked ]; do sleep 0.02; done
      done
  cache: { run: "exec redis-server --save '' --dir /tmp", ready: { port: 6379 } }
steps:
  - run: redis-cli -h cache ping; touch ask; until [ -e asked ]; do sleep 0.02; done; cat answer; rm asked
    network: { allow: [] }
  - touch ask; until [ -e asked ]; do sleep 0.02; done; cat answer; rm asked
`);
    expect(status).toBe("success");
    expect(logs[0]).toMatch(/^PONG\nrefused\n/);
    expect(logs[1]).toBe(`${hostAddress[4]}\n`);
  });

  test("that are refused something before the first step are told so", async () => {
    const { logs, services, steps } = await run(`
services:
  nosy: { run: "${ask("169.254.169.254", 80)}; touch asked; exec sleep 60", ready: { run: test -e asked } }
steps: ["true"]
`);
    expect(logs[1]).toBe("refused\nnetwork: refused 169.254.169.254:80/tcp (1 packet)\n");
    expect(services[0]?.refused?.destinations).toHaveLength(1);
    expect(steps[0]).not.toHaveProperty("refused");
  });
});

describe("a host that makes no networks", () => {
  test("says what mends it, and runs steps that want none", async () => {
    const taken = ["10.231.0.0/16", "172.29.0.0/16", "192.168.128.0/17", "10.89.0.0/16", "198.18.0.0/15"];
    for (const range of taken) world.host.sh(`ip route add ${range} dev up0`);
    const { steps, reason } = await run(`steps: [{ run: "true", network: none }, "true"]`);
    for (const range of taken) world.host.sh(`ip route del ${range} dev up0`);
    expect(steps.map(({ status }) => status)).toEqual(["success", "error"]);
    expect(reason).toMatch(/Cannot make networks for jobs on this host: .*; or start with --network none/);
  });

  test("gives steps and services loopback only when told to", async () => {
    const { logs } = await run(
      `
services: { cache: { run: "exec redis-server --save '' --dir /tmp", ready: { port: 6379 } } }
steps:
  - ls /sys/class/net; redis-cli -h cache ping
  - run: redis-cli -h cache ping
    network: { allow: ["${outsideAddress[4]}:1"] }
`,
      { networks: { loopbackOnly: true } },
    );
    expect(logs.slice(0, 2)).toEqual(["lo\nPONG\n", "PONG\n"]);
  });
});
