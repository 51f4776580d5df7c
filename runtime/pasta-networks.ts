/** Networks of an agent without rights in the host's network: pasta leads out of each, rules inside say where to. */
import { mkdirSync, rmSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { ETIMEDOUT, MNT_DETACH, MS_BIND } from "./linux.ts";
import { Netlink, NETLINK_ROUTE } from "./netlink.ts";
import { bringUp, defaultRoute, deleteAddress, listAddresses, listLinks, listRoutes } from "./netlink-route.ts";
import {
  addressesOf,
  disjoint,
  type Destination,
  type KernelNetwork,
  publicElements,
  replaceWithheld,
  resolverElements,
  restrictionElements,
  type Slot,
  withheldElements,
} from "./network-elements.ts";
import type { NetworkMaker, NetworksConfig, Refusals } from "./network-kernel.ts";
import { takeRefusals } from "./network-refusals.ts";
import { blockedElements, inetSets, ownNamespaceChains, privateElements } from "./network-rules.ts";
import { makeNamespaceWithSockets, type NamespaceSockets } from "./network-socket.ts";
import {
  addElements,
  commit,
  deleteElements,
  newChain,
  newRules,
  newSet,
  newTable,
  NFPROTO_INET,
  type Table,
} from "./nftables.ts";
import { makeMountPoint, Pasta, pastaLink } from "./pasta.ts";
import { jobResolvConf } from "./resolv-conf.ts";
import { runDirectory } from "./run-directory.ts";
import { close, cString, SyscallError, syscall, trySyscall } from "./syscall.ts";

interface PastaNetwork extends Slot {
  readonly network: KernelNetwork;
  readonly sockets: NamespaceSockets;
  readonly filter: Netlink;
  readonly pasta: Pasta | undefined;
  readonly mountPoint: string;
}

const readyWithinMs = 10_000;

/** Blocks while the kernel and pasta work: for a worker thread. */
export class PastaNetworks implements NetworkMaker {
  readonly probe = undefined;
  readonly #host = new Netlink(NETLINK_ROUTE);
  readonly #config: NetworksConfig;
  readonly #program: string;
  readonly #directory: string;
  readonly #table: Table;
  readonly #slots = new Map<number, PastaNetwork>();
  #withheld: readonly Destination[] = [];
  #sequence = 0;

  /** @param program pasta. */
  constructor(config: NetworksConfig, program: string) {
    this.#config = config;
    this.#program = program;
    this.#directory = `${config.runDir ?? `${runDirectory()}/networks`}/${config.agent}`;
    this.#table = { family: NFPROTO_INET, name: config.agent };
    // What a killed agent left: mounts went with its mount namespace.
    rmSync(this.#directory, { recursive: true, force: true });
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
  }

  /** @throws {Error} If pasta does not start, with what it said; and for an owner, who could remove the rules inside. */
  create(owner?: number): KernelNetwork {
    if (owner !== undefined) {
      throw new Error(
        "the rules of an agent without root are inside a job's network, where a nested step could remove them: write network: none on nested steps, or run the agent as root",
      );
    }
    const slot = ++this.#sequence;
    const mountPoint = `${this.#directory}/${slot}`;
    const sockets = makeNamespaceWithSockets();
    const route = new Netlink({ fd: sockets.routeFd });
    let pasta: Pasta | undefined;
    try {
      route.request(bringUp("lo"));
      // Without a way out of the host there is none for a job, and pasta would not start.
      if (this.#hostHasRoute()) {
        makeMountPoint(mountPoint);
        const source = cString(`/proc/thread-self/fd/${sockets.namespaceFd}`);
        syscall("mount", source, cString(mountPoint), 0, MS_BIND, 0);
        pasta = Pasta.start(this.#program, mountPoint);
        awaitLink(route, pasta);
      }
      const network: KernelNetwork = {
        slot,
        namespaceFd: sockets.namespaceFd,
        probeFd: sockets.probeFd,
        ...settleAddresses(route),
      };
      const filter = new Netlink({ fd: sockets.filterFd });
      this.#makeTable(filter, network);
      const made: PastaNetwork = {
        network,
        port: "",
        allowed: undefined,
        publicOnly: false,
        sockets,
        filter,
        pasta,
        mountPoint,
      };
      this.#slots.set(slot, made);
      return network;
    } catch (error) {
      dismantle({ pasta, sockets, mountPoint });
      throw error;
    }
  }

  #hostHasRoute(): boolean {
    return ([4, 6] as const).some((family) => defaultRoute(listRoutes(this.#host, family)) !== undefined);
  }

  #makeTable(filter: Netlink, network: KernelNetwork): void {
    const table = this.#table;
    const chains = ownNamespaceChains(addressesOf(network));
    const privateRanges = this.#config.blockPrivateRanges ?? false;
    // pasta opens its sockets on the host: whatever is the host's own would answer.
    const subnets = Object.values(networkInterfaces()).flatMap((links) =>
      (links ?? []).map(({ address }) => address.split("%")[0] ?? address),
    );
    const resolvers = jobResolvConf({ ipv6: network.ipv6 !== undefined }).nameservers;
    commit(filter, [
      newTable(table),
      ...inetSets.map((set, i) => newSet(table, set, i + 1)),
      ...chains.map((chain) => newChain(table, chain)),
      ...chains.flatMap((chain) => newRules(table, chain)),
      ...([4, 6] as const).flatMap((family) => [
        ...addElements(table, `blocked${family}`, blockedElements(family, { privateRanges, subnets })),
        ...addElements(table, `private${family}`, privateElements(family)),
      ]),
      ...resolverElements(table, resolvers),
      ...withheldElements(table, this.#withheld),
    ]);
  }

  withhold(destinations: readonly Destination[]): void {
    this.#withheld = disjoint(destinations);
    for (const { filter } of this.#slots.values()) commit(filter, replaceWithheld(this.#table, this.#withheld));
  }

  restrict(slot: number, allowed: readonly Destination[] | undefined): void {
    const known = this.#known(slot);
    const next = { ...known, allowed: allowed && disjoint(allowed) };
    commit(known.filter, [
      ...restrictionElements(deleteElements, this.#table, known),
      ...restrictionElements(addElements, this.#table, next),
    ]);
    known.allowed = next.allowed;
  }

  keepPublic(slot: number): void {
    const known = this.#known(slot);
    if (known.publicOnly) return;
    commit(known.filter, publicElements(addElements, this.#table, { ...known, publicOnly: true }));
    known.publicOnly = true;
  }

  #known(slot: number): PastaNetwork {
    const known = this.#slots.get(slot);
    if (known === undefined) throw new Error(`Cannot restrict network ${slot}: it has been released`);
    const why = known.pasta?.ended;
    if (why !== undefined) throw new Error(`Cannot use network ${slot}: pasta has ended: ${why}`);
    return known;
  }

  takeRefused(slot: number): Refusals {
    const known = this.#slots.get(slot);
    if (known === undefined) return { destinations: [], unlistedCount: 0 };
    return takeRefusals(known.filter, this.#table, addressesOf(known.network));
  }

  release(slot: number): void {
    const known = this.#slots.get(slot);
    this.#slots.delete(slot);
    if (known !== undefined) dismantle(known);
  }

  [Symbol.dispose](): void {
    for (const slot of this.#slots.keys()) this.release(slot);
    this.#host[Symbol.dispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

function dismantle({ pasta, sockets, mountPoint }: Pick<PastaNetwork, "pasta" | "sockets" | "mountPoint">): void {
  pasta?.[Symbol.dispose]();
  trySyscall("umount2", cString(mountPoint), MNT_DETACH);
  rmSync(mountPoint, { force: true });
  for (const fd of Object.values(sockets)) close(fd as number);
}

/** Waits until the device has its addresses and a way out. */
function awaitLink(route: Netlink, pasta: Pasta): void {
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  const deadline = Date.now() + readyWithinMs;
  for (;;) {
    const isUp = listLinks(route).some(({ name, up }) => name === pastaLink && up);
    if (isUp && ([4, 6] as const).some((family) => defaultRoute(listRoutes(route, family)) !== undefined)) return;
    const why = pasta.ended;
    if (why !== undefined) throw new PastaError(`pasta has ended: ${why}`);
    if (Date.now() > deadline) throw new SyscallError("pasta", ETIMEDOUT, "connect a job's network by pasta");
    Atomics.wait(sleeper, 0, 0, 1);
  }
}

/** Says what mends it itself. */
class PastaError extends Error {
  constructor(message: string) {
    const mend = /tun/i.test(message)
      ? "; make /dev/net/tun usable for this user: modprobe tun, chmod 0666 /dev/net/tun (in a container, add the device)"
      : "";
    super(`${message}${mend}`);
  }
}

/** The job's addresses, one of each family: rules know a job by them. Others that pasta has copied from the host go. */
function settleAddresses(route: Netlink): Pick<KernelNetwork, "ipv4" | "ipv6"> {
  const index = listLinks(route).find(({ name }) => name === pastaLink)?.index;
  const keep = (family: 4 | 6) => {
    const all = listAddresses(route, family).filter(({ link, isGlobal }) => link === index && isGlobal);
    const [first, ...others] = all;
    for (const other of others) route.request(deleteAddress(other));
    return first?.address;
  };
  const [ipv4, ipv6] = [keep(4), keep(6)];
  // Without a way out there is localhost, as there is where networks lead nowhere.
  return { ipv4: ipv4 ?? "127.0.0.1", ...(ipv6 === undefined ? {} : { ipv6 }) };
}
