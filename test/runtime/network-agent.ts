/** A process for network.test.ts: an agent's networks, in the network namespace in which it was started. */
import { readdirSync } from "node:fs";
import { type AllowedDestination, type AllowList, lookUpAllowed } from "../../runtime/network-allow.ts";
import { type JobNetwork, Networks, type NetworksOptions } from "../../runtime/network.ts";

export interface Claimed {
  readonly job: number;
  readonly namespaceFd: number;
  readonly addresses: readonly string[];
  readonly resolvConf: string;
}

/** What a test asks for; the answer has the same id. */
export type AgentRequest =
  | { readonly kind: "claim" }
  | { readonly kind: "hosts"; readonly job: number; readonly names: readonly string[] }
  | { readonly kind: "restrict"; readonly job: number; readonly allowed?: readonly AllowedDestination[] }
  | { readonly kind: "keep-public"; readonly job: number }
  | { readonly kind: "refused"; readonly job: number }
  | { readonly kind: "dispose"; readonly job: number }
  | { readonly kind: "settle" }
  | { readonly kind: "descriptors" }
  | { readonly kind: "close" };

const [options = "{}"] = process.argv.slice(2);
const networks = await Networks.open({
  ...(JSON.parse(options) as NetworksOptions),
  onError: (error) => {
    throw error;
  },
});
const jobs = new Map<number, JobNetwork>();
const lists = new Map<number, AllowList | undefined>();
let sequence = 0;

function find(job: number): JobNetwork {
  const found = jobs.get(job);
  if (found === undefined) throw new Error(`There is no job ${job}`);
  return found;
}

async function answer(request: AgentRequest): Promise<unknown> {
  switch (request.kind) {
    case "claim": {
      const network = await networks.claim();
      jobs.set(++sequence, network);
      const { namespaceFd, addresses, resolvConf } = network;
      return { job: sequence, namespaceFd, addresses, resolvConf } satisfies Claimed;
    }
    case "hosts":
      return find(request.job)
        .view({ services: request.names, allowed: lists.get(request.job) })
        .hosts("slipway");
    case "restrict": {
      const network = find(request.job);
      const ipv6 = network.addresses.length > 1;
      const list = request.allowed === undefined ? undefined : await lookUpAllowed(request.allowed, { ipv6 });
      lists.set(request.job, list);
      return network.restrict(list);
    }
    case "keep-public":
      return find(request.job).keepPublic();
    case "refused":
      return find(request.job).takeRefused();
    case "dispose":
      find(request.job)[Symbol.dispose]();
      jobs.delete(request.job);
      break;
    case "settle":
      return networks.settled();
    case "descriptors":
      return readdirSync("/proc/self/fd").length;
    case "close":
      await networks[Symbol.asyncDispose]();
      process.disconnect?.();
      break;
  }
  return undefined;
}

process.on("message", ({ id, request }: { id: number; request: AgentRequest }) => {
  const send = (message: object) => {
    if (process.connected) process.send?.({ id, ...message });
  };
  answer(request).then(
    (result) => send({ result }),
    (error: Error) => send({ error: error.message }),
  );
});
process.send?.({ id: 0 });
