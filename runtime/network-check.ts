/** Whether this host can give jobs a network, found out by making one. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { HostCheck } from "./check.ts";
import { Netlink, NETLINK_NETFILTER } from "./netlink.ts";
import { mendNetwork } from "./network-mend.ts";
import { canVisitNamespaces } from "./network-namespace.ts";
import { Networks } from "./network.ts";
import { hooks, listBaseChains, NF_DROP, NFPROTO_INET, NFPROTO_IPV4 } from "./nftables.ts";
import { jobResolvConf } from "./resolv-conf.ts";

/** Tries bridge, links and rules in a network namespace that leads nowhere, and looks at what stands in the way here. */
export async function checkNetworks(): Promise<HostCheck[]> {
  const byBridge = canVisitNamespaces();
  // pasta's packets are the user's own: nothing is forwarded.
  return [await checkNetwork(byBridge), ...(byBridge ? [checkForwardPolicy()] : []), checkResolvers()];
}

async function checkNetwork(byBridge: boolean): Promise<HostCheck> {
  const name = "job networks";
  const runDir = mkdtempSync(join(tmpdir(), "slipway-network-"));
  try {
    const networks = await Networks.open({ agent: "slipway-check", runDir, scratch: true, poolSize: 0 });
    try {
      const network = await networks.claim();
      network[Symbol.dispose]();
      return { name, ok: true, required: false, found: `${byBridge ? "bridge, veth" : "pasta"} and nf_tables work` };
    } finally {
      await networks[Symbol.asyncDispose]();
    }
  } catch (error) {
    const { message } = error as Error;
    const { code } = error as { code?: string };
    const mend = mendNetwork(code) ?? "start agents and local runs with --network none until it is";
    return { name, ok: false, required: false, found: message, mend };
  } finally {
    rmSync(runDir, { recursive: true, force: true });
  }
}

/** A rule of ours that accepts a packet does not keep another table from dropping it. */
function checkForwardPolicy(): HostCheck {
  const name = "forwarding";
  try {
    using netlink = new Netlink(NETLINK_NETFILTER);
    const dropping = listBaseChains(netlink)
      .filter(({ family }) => family === NFPROTO_INET || family === NFPROTO_IPV4)
      .filter(({ hook, policy }) => hook === hooks.forward && policy === NF_DROP)
      .map(({ table, name: chain }) => `table "${table}" chain "${chain}"`);
    if (dropping.length === 0) return { name, ok: true, required: false, found: "no firewall drops it by default" };
    return {
      name,
      ok: false,
      required: false,
      found: `dropped by default in ${dropping.join(", ")}, unless a rule there accepts "slw-*" links`,
      mend: "iptables -I FORWARD -i slw-+ -j ACCEPT; iptables -I FORWARD -o slw-+ -j ACCEPT (with Docker: in DOCKER-USER)",
    };
  } catch (error) {
    return { name, ok: true, required: false, found: `not looked at: ${(error as Error).message}` };
  }
}

function checkResolvers(): HostCheck {
  const { nameservers, problem } = jobResolvConf({ ipv6: true });
  const name = "name servers for jobs";
  if (problem === undefined) return { name, ok: true, required: false, found: nameservers.join(", ") };
  return {
    name,
    ok: false,
    required: false,
    found: problem.split(";")[0] ?? problem,
    mend: problem.split("; ").at(-1) ?? problem,
  };
}
