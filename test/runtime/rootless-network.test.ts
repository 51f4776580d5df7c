/** What jobs of a rootless agent reach, by way of pasta: a host with an uplink and an outside that has every address. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { metadataAddresses, outsideAddress, peerPort, privateAddress, hostAddress, World } from "./network-world.ts";
import type { AgentAnswer, AskedStep } from "./rootless-agent.ts";
import { RootlessUser } from "./rootless-user.ts";

/** Another address of the host than that of its uplink: pasta would lead there. */
const furtherAddress = "10.98.0.1";

let world: World;
let user: RootlessUser;
beforeAll(async () => {
  world = await World.make();
  world.host.sh(`ip address add ${furtherAddress}/32 dev lo`);
  user = new RootlessUser({ network: world.host.enter, resolvConf: join(world.directory, "resolv.conf") });
});
afterAll(async () => {
  user[Symbol.dispose]();
  await world[Symbol.asyncDispose]();
});

async function runSteps(...asked: readonly AskedStep[]): Promise<AgentAnswer["steps"]> {
  const script = user.script("test/runtime/rootless-agent.ts");
  const environment = { SLIPWAY_TEST_ALLOW: "no-cgroups" };
  const { code, stdout, stderr } = await user.run([...script, JSON.stringify(asked)], { environment });
  if (code !== 0) throw new Error(`The rootless agent ended with ${code}: ${stderr}${stdout}`);
  return (JSON.parse(stdout) as AgentAnswer).steps;
}

/** Prints what a server at each address says, or why there is none. */
const connect = (...addresses: readonly string[]) => `python3 - <<'PY'
import socket
for address in ${JSON.stringify(addresses)}:
    try:
        s = socket.create_connection((address, ${peerPort}), 5)
        print(address, s.recv(100).decode().strip())
    except OSError as error: print(address, error.strerror or error)
PY`;

describe("a job of a rootless agent", () => {
  test("reaches the outside with the host's address, and not the host, by any of its addresses", async () => {
    const targets = [outsideAddress[4], outsideAddress[6], privateAddress, hostAddress[4], furtherAddress, "127.0.0.1"];
    const [step] = await runSteps({ script: connect(...targets), network: {} });
    expect(step?.stdout.trim().split("\n")).toEqual([
      `${outsideAddress[4]} ${hostAddress[4]}`,
      `${outsideAddress[6]} ${hostAddress[6]}`,
      `${privateAddress} ${hostAddress[4]}`,
      `${hostAddress[4]} Connection refused`,
      `${furtherAddress} Connection refused`,
      "127.0.0.1 Connection refused",
    ]);
    expect(step?.refused?.destinations).toEqual([
      { address: furtherAddress, protocol: "tcp", port: peerPort, count: expect.any(Number) },
    ]);
  });

  test("does not reach metadata services", async () => {
    const [step] = await runSteps({ script: connect(...metadataAddresses), network: {} });
    expect(step?.stdout.trim().split("\n")).toEqual(
      metadataAddresses.map((address) => `${address} Connection refused`),
    );
    expect(step?.refused?.destinations.map(({ address }) => address).toSorted()).toEqual(metadataAddresses.toSorted());
  });

  test("asks the host's name servers, and is not reached from outside or by another job", async () => {
    const server = "python3 -c 'import socket, time; s = socket.create_server((\"\", 9000)); time.sleep(3)'";
    const script = `cat /etc/resolv.conf; python3 - <<'PY'
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(b"?", ("${outsideAddress[4]}", 53)); print(s.recv(100).decode())
for _ in range(20):
    for address in ("${hostAddress[4]}", "${furtherAddress}", "127.0.0.1"):
        s = socket.socket(); s.settimeout(2)
        if s.connect_ex((address, 9000)) == 0: print("reached", address)
    time.sleep(0.1)
PY`;
    const [step] = await runSteps({ script, network: {}, beside: server });
    expect(step?.stdout).toBe(`nameserver ${outsideAddress[4]}\nsearch example.org\n${hostAddress[4]}\n`);
  });

  test("reaches what its list allows, and nothing else", async () => {
    const allowed = [{ address: outsideAddress[4], firstPort: peerPort, lastPort: peerPort }];
    const dns = `python3 -c 'import socket; print(socket.socket().connect_ex(("${outsideAddress[4]}", 53)))'`;
    const script = `${connect(outsideAddress[4], outsideAddress[6], privateAddress)}\n${dns}`;
    const steps = await runSteps(
      { script, network: { allowed } },
      { script: connect(outsideAddress[4], privateAddress), network: { publicOnly: true } },
    );
    expect(steps[0]?.stdout.trim().split("\n")).toEqual([
      `${outsideAddress[4]} ${hostAddress[4]}`,
      `${outsideAddress[6]} Connection refused`,
      `${privateAddress} Connection refused`,
      "111",
    ]);
    expect(steps[1]?.stdout.trim().split("\n")).toEqual([
      `${outsideAddress[4]} ${hostAddress[4]}`,
      `${privateAddress} Connection refused`,
    ]);
  });

  test("cannot change its network, and may listen on any port", async () => {
    const script = `
      ip address add 192.0.2.9/24 dev eth0 2>/dev/null && echo address; ip link set eth0 down 2>/dev/null && echo link
      ip route add 192.0.2.0/24 via ${outsideAddress[4]} 2>/dev/null && echo route; nft flush ruleset 2>/dev/null && echo rules
      python3 -c 'import socket
try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print("raw")
except OSError: pass
socket.create_server(("", 80)); print("listens")'`;
    const [step] = await runSteps({ script, network: {} });
    expect(step).toMatchObject({ stdout: "listens\n" });
  });

  test("leaves no pasta and no file", async () => {
    await runSteps({ script: "true", network: {} });
    const names = () =>
      readdirSync("/proc").flatMap((pid) => {
        try {
          return /^\d+$/.test(pid) ? [readFileSync(`/proc/${pid}/cmdline`, "utf8")] : [];
        } catch {
          return [];
        }
      });
    const pastas = () => names().filter((name) => name.includes("pasta") && name.includes(`slipway-${user.uid}`));
    await expect.poll(pastas).toEqual([]);
    expect(readdirSync(`/tmp/slipway-${user.uid}/networks`)).toEqual([]);
  });
});

test("without /dev/net/tun the agent says what mends it", async () => {
  using without = new RootlessUser({ network: world.host.enter, tun: false });
  const script = without.script("test/runtime/rootless-agent.ts");
  const environment = { SLIPWAY_TEST_ALLOW: "no-cgroups" };
  const asked = JSON.stringify([{ script: "true", network: {} }] satisfies AskedStep[]);
  const { stdout } = await without.run([...script, asked], { environment });
  const [step] = (JSON.parse(stdout) as AgentAnswer).steps;
  expect(step?.error).toMatch(/pasta has ended: .*tun.*chmod 0666 \/dev\/net\/tun/);
});
