/** Steps with containers of their own in their job's network: what they may do to it, and what not. */
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { hostAddress, metadataAddresses, outsideAddress, peerPort, World } from "../runtime/network-world.ts";
import type { NetworkJob, NetworkJobResult } from "./network-job.ts";

let world: World;
beforeAll(async () => {
  world = await World.make();
});
afterAll(async () => world[Symbol.asyncDispose]());

async function run(job: string): Promise<NetworkJobResult> {
  const pipeline = `
env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" }
jobs:
  job:
${job.replaceAll(/^/gm, "    ")}`;
  const options: NetworkJob = { pipeline, stateDir: join(world.directory, "state") };
  return world.run<NetworkJobResult>("../agent/network-job.ts", options);
}

/** A command that asks a host: prints its answer, or that it was refused, or nothing after so many seconds. */
const ask = (host: string, port: number = peerPort, seconds = 20) =>
  `(timeout ${seconds} bash -c 'exec 3<>/dev/tcp/${host}/${port} && cat <&3' 2>&1 || true) | grep -oE 'refused$|^[0-9.]+$' | tail -n 1`;

test("a nested step has the job's network for itself, and what is outside of it is as for every step", async () => {
  const blockedAddresses = metadataAddresses.filter((address) => !address.includes(":"));
  const blocked = blockedAddresses.map((address) => ask(address));
  /** Whom nobody needs to answer. */
  const unheard = blockedAddresses.map((address) => ask(address, peerPort, 1));
  const { logs, status } = await run(`
steps:
  - nested: true
    run: |
      nft add table ip mine; ip link add mine type bridge; ip link set mine up; echo made
      ${ask(outsideAddress[4])}
      ${[...blocked, ask(hostAddress[4])].join("\n      ")}
      nft flush ruleset; ip route add 169.254.0.0/16 dev eth0; ip neighbor flush all
      ${unheard.join("\n      ")}
  - run: |
      ip link show mine | grep -c mine; ip link add other type bridge 2>/dev/null || echo refused
`);
  expect(status).toBe("success");
  const refused = "refused\n".repeat(blocked.length);
  expect(logs[0]).toMatch(new RegExp(`^made\n${hostAddress[4].replaceAll(".", "\\.")}\n${refused}refused\n`));
  // Whatever it does in there, no answer comes from where none may come from.
  expect(logs[0]?.split("\n").filter((line) => /^[0-9.]+$/.test(line))).toEqual([hostAddress[4]]);
  expect(logs[1]).toBe("1\nrefused\n");
});

test("a nested step can be nobody else on the network", async () => {
  const { logs, status } = await run(`
steps:
  - nested: true
    run: |
      set +e
      ip address show eth0 | grep -oE 'inet [0-9.]+' > own; ip route show default > route; ip link show eth0 | grep -o 'ether [0-9a-f:]*' > mac
      ip address flush dev eth0; ip address add 10.231.0.200/32 dev eth0
      ip route replace default via $(grep -oE 'via [0-9.]+' route | cut -c5-) dev eth0 onlink
      ${ask(outsideAddress[4], peerPort, 1)}
      echo forged
      ip address flush dev eth0; ip address add $(cut -c6- own)/32 dev eth0
      ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up
      ip route replace default via $(grep -oE 'via [0-9.]+' route | cut -c5-) dev eth0 onlink
      ${ask(outsideAddress[4], peerPort, 1)}
      echo forged
      ip link del eth0 && echo gone
  - nested: true
    run: ls /sys/class/net
`);
  expect(logs).toEqual(["forged\nforged\ngone\n", "lo\n"]);
  expect(status).toBe("success");
});

test("steps without a network, and with an allow list, may be nested", async () => {
  const { logs, status } = await run(`
steps:
  - { nested: true, network: none, run: ip link add mine type bridge && ls /sys/class/net }
  - nested: true
    network: { allow: ["${outsideAddress[4]}:${peerPort}"] }
    run: nft flush ruleset; ${ask(outsideAddress[4])}; ${ask(outsideAddress[4], 9)}
  - unshare --user --map-root-user true 2>/dev/null || echo refused
`);
  expect(status).toBe("success");
  expect(logs[0]).toBe("lo\nmine\n");
  expect(logs[1]).toMatch(new RegExp(`^${hostAddress[4].replaceAll(".", "\\.")}\nrefused\n`));
  expect(logs[2]).toBe("refused\n");
});
