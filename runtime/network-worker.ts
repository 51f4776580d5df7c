/** The worker thread behind `Networks`: it may block, and visit other network namespaces, without the agent noticing. */
import { parentPort, workerData } from "node:worker_threads";
import { CLONE_NEWNET } from "./linux.ts";
import type { Destination } from "./network-elements.ts";
import { KernelNetworks, type NetworkMaker, type NetworksConfig } from "./network-kernel.ts";
import { LoopbackNetworks } from "./network-loopback.ts";
import { canVisitNamespaces } from "./network-namespace.ts";
import { PastaNetworks } from "./pasta-networks.ts";
import { findProgram } from "./programs.ts";
import { syscall } from "./syscall.ts";

/** What the thread can be asked for, one at a time. */
export type NetworkTask =
  | { readonly kind: "create"; readonly owner?: number | undefined }
  | { readonly kind: "restrict"; readonly slot: number; readonly allowed: readonly Destination[] | undefined }
  | { readonly kind: "withhold"; readonly destinations: readonly Destination[] }
  | { readonly kind: "keep-public"; readonly slot: number }
  | { readonly kind: "take-refused"; readonly slot: number }
  | { readonly kind: "release"; readonly slot: number }
  | { readonly kind: "close" };

/** The first answer. */
export interface NetworksOpened {
  readonly probe: { readonly fd: number } | undefined;
}

export interface NetworkReply {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: { readonly message: string; readonly code?: string };
}

if (parentPort === null) throw new Error("network-worker.ts is the entry of a worker thread");
const port = parentPort;

function run(networks: NetworkMaker, task: NetworkTask): unknown {
  switch (task.kind) {
    case "create":
      return networks.create(task.owner);
    case "restrict":
      networks.restrict(task.slot, task.allowed);
      break;
    case "withhold":
      networks.withhold(task.destinations);
      break;
    case "keep-public":
      networks.keepPublic(task.slot);
      break;
    case "take-refused":
      return networks.takeRefused(task.slot);
    case "release":
      networks.release(task.slot);
      break;
    case "close":
      networks[Symbol.dispose]();
      port.close();
  }
  return undefined;
}

/** Errors cross threads as data: a class would arrive without its fields. */
function reply(id: number, action: () => unknown): boolean {
  try {
    port.postMessage({ id, result: action() } satisfies NetworkReply);
    return true;
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    port.postMessage({ id, error: { message, ...(code === undefined ? {} : { code }) } } satisfies NetworkReply);
    return false;
  }
}

/** By a bridge where the network is the agent's to arrange, else by pasta. */
function makeNetworks(config: NetworksConfig): NetworkMaker {
  if (config.loopbackOnly) return new LoopbackNetworks();
  if (!canVisitNamespaces()) {
    const pasta = findProgram("pasta", undefined);
    if (pasta === undefined)
      throw new Error("pasta is not installed: apt-get install passt (Fedora: dnf install passt)");
    return new PastaNetworks(config, pasta);
  }
  if (config.scratch) syscall("unshare", CLONE_NEWNET);
  return new KernelNetworks(config);
}

let networks: NetworkMaker | undefined;
reply(0, (): NetworksOpened => {
  networks = makeNetworks(workerData as NetworksConfig);
  return { probe: networks.probe };
});
if (networks === undefined) port.close();
port.on("message", ({ id, task }: { id: number; task: NetworkTask }) => {
  reply(id, () => networks && run(networks, task));
});
