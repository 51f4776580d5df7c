/** One agent's networks as the kernel has them: a bridge, two nftables tables, and for every job a namespace on a port. */
import { createHash } from "node:crypto";
import { readlinkSync, writeFileSync } from "node:fs";
import { EINVAL, EOPNOTSUPP } from "./linux.ts";
import { Netlink, NETLINK_NETFILTER, NETLINK_ROUTE } from "./netlink.ts";
import {
  addAddress,
  addDefaultRoute,
  addForwardingEntry,
  addNeighbor,
  bringUp,
  defaultRoute,
  deleteLink,
  deleteNeighbor,
  findLink,
  isolatePort,
  listLinks,
  listRoutes,
  type Link,
  makeBridge,
  makeVeth,
  type Route,
  withoutLinkLocal,
} from "./netlink-route.ts";
import { isIPv6 } from "./network-address.ts";
import { forgetConnections } from "./network-connections.ts";
import {
  addressesOf,
  type Destination,
  disjoint,
  guardElements,
  hardwareAddress,
  type KernelNetwork,
  publicElements,
  resolverElements,
  restrictionElements,
  type Slot,
  sourceElements,
  replaceWithheld,
  withheldElements,
} from "./network-elements.ts";
import { elementsOf, type Refusals, takeRefusals, writtenByRules } from "./network-refusals.ts";
import { Forwarding, type Guarded } from "./network-forwarding.ts";
import { configureNamespace, makeNamespace, openCurrentNamespace } from "./network-namespace.ts";
import {
  blockedElements,
  bridgeChains,
  bridgePrefix,
  bridgeSets,
  inetChains,
  inetSets,
  privateElements,
} from "./network-rules.ts";
import { claimSubnet, firstSlot, forgetDeadAgents, lastSlot, type Subnet } from "./network-subnet.ts";
import {
  addElements,
  commit,
  deleteElements,
  deleteTable,
  flushSet,
  hasTable,
  newChain,
  newRules,
  newSet,
  newTable,
  NFPROTO_BRIDGE,
  NFPROTO_INET,
  NFT_TABLE_F_OWNER,
  NFT_TABLE_F_PERSIST,
  type Table,
} from "./nftables.ts";
import { jobResolvConf } from "./resolv-conf.ts";
import { close, SyscallError } from "./syscall.ts";

export type { Refusals, Refused } from "./network-refusals.ts";

export interface NetworksConfig {
  /** Names the agent, on this host and for good: leftovers are found by it. [A-Za-z0-9-] */
  readonly agent: string;
  /** Where the agents of a host agree on subnets. @default "/run/slipway/networks" */
  readonly runDir?: string;
  /** Keep jobs from private networks too, not only from what no job needs. @default false */
  readonly blockPrivateRanges?: boolean;
  /** Give jobs loopback only: needs no bridge, no rules and no kernel module. @default false */
  readonly loopbackOnly?: boolean;
  /** Switch IPv6 forwarding on as kernels before 6.17 want it. @default false */
  readonly globalIPv6Forwarding?: boolean;
  /** Do it all in a network namespace of its own that leads nowhere, to see whether it can be done. @default false */
  readonly scratch?: boolean;
}

/** What the thread that works with the kernel can be asked for. */
export interface NetworkMaker extends Disposable {
  /** For `RefusalProbe`: a netlink socket in the agent's network namespace that this thread does not use. */
  readonly probe: { readonly fd: number } | undefined;
  /** @param owner A user namespace whose root may do with the job's namespace what it likes. @default the agent's */
  create(owner?: number): KernelNetwork;
  withhold(destinations: readonly Destination[]): void;
  restrict(slot: number, allowed: readonly Destination[] | undefined): void;
  keepPublic(slot: number): void;
  takeRefused(slot: number): Refusals;
  release(slot: number): void;
}

const gatewaySlot = 1;
const defaultMtu = 1500;
/** IPv6 asks for this much of every link. */
const minMtu = 1280;
const loopbackIndex = 1;
const jobLinkName = "eth0";

/** Blocks while the kernel works and visits other namespaces with its thread: for a worker thread. */
export class KernelNetworks implements NetworkMaker {
  readonly #home = openCurrentNamespace();
  readonly #probe = new Netlink(NETLINK_NETFILTER);
  readonly #route = new Netlink(NETLINK_ROUTE);
  readonly #filter = new Netlink(NETLINK_NETFILTER);
  readonly #config: NetworksConfig;
  readonly #inet: Table;
  readonly #bridgeTable: Table;
  readonly #bridge: string;
  readonly #portPrefix: string;
  readonly #forwarding: Forwarding;
  readonly #slots = new Map<number, Slot>();
  #subnet: Subnet | undefined;
  #bridgeIndex = 0;
  #mtu = defaultMtu;
  #nextSlot = firstSlot;
  #guarded: Guarded = { ipv4: [], ipv6: [] };
  #resolvers: readonly string[] = [];
  #withheld: readonly Destination[] = [];

  /** Sweeps what a killed agent of the same name left, and sets everything up that all jobs share. @throws {Error} */
  constructor(config: NetworksConfig) {
    this.#config = config;
    const { bridge, portPrefix } = linkNames(config.agent);
    this.#bridge = bridge;
    this.#portPrefix = portPrefix;
    this.#inet = { family: NFPROTO_INET, name: config.agent };
    this.#bridgeTable = { family: NFPROTO_BRIDGE, name: config.agent };
    const namespace = /\d+/.exec(readlinkSync("/proc/thread-self/ns/net"))?.[0] ?? "0";
    const lockDir = `${config.runDir ?? "/run/slipway/networks"}/${namespace}`;
    this.#forwarding = new Forwarding(lockDir);
    try {
      this.#sweep(config.agent);
      forgetDeadAgents(lockDir, (agent) => this.#sweep(agent));
      const routes = this.#routes();
      this.#subnet = claimSubnet({
        agent: config.agent,
        lockDir,
        routes: [...routes[4], ...routes[6]].filter(({ range }) => range.prefixLength > 0).map(({ range }) => range),
        ipv6: defaultRoute(routes[6]) !== undefined,
      });
      this.#mtu = this.#uplinkMtu(routes, listLinks(this.#route));
      this.#makeTables();
      this.#makeBridge();
      this.#followHost();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  get probe(): { readonly fd: number } {
    return { fd: this.#probe.fd };
  }

  /** Makes a job's network. @throws {Error} If all addresses are taken, or the kernel refuses. */
  create(owner?: number): KernelNetwork {
    const links = this.#followHost();
    const slot = this.#freeSlot(new Set(links.map(({ name }) => name)));
    const subnet = this.#subnet as Subnet;
    const ipv4 = subnet.address4(slot);
    const ipv6 = subnet.ipv6 === undefined ? undefined : subnet.address6(slot);
    const port = `${this.#portPrefix}${slot}`;
    const prepare = () => {
      configureNamespace();
      return new Netlink(NETLINK_ROUTE); // speaks to the new namespace from now on
    };
    const { fd, prepared: inside } = makeNamespace(this.#home, prepare, { owner });
    const network: KernelNetwork = { slot, namespaceFd: fd, ipv4, ...(ipv6 === undefined ? {} : { ipv6 }) };
    this.#slots.set(slot, { network, port, allowed: undefined, publicOnly: false });
    try {
      const hardware = hardwareAddress(ipv4);
      this.#route.request(
        ...makeVeth({
          name: port,
          bridge: this.#bridgeIndex,
          mtu: this.#mtu,
          peer: { name: jobLinkName, address: hardware },
          namespaceFd: fd,
        }),
        isolatePort(port),
      );
      const addresses = ipv6 === undefined ? [ipv4] : [ipv4, ipv6];
      commit(this.#filter, sourceElements(addElements, this.#bridgeTable, { network, port }));
      this.#route.request(
        bringUp(port),
        addForwardingEntry(findLink(this.#route, port).index, hardware),
        ...addresses.map((address) => addNeighbor(this.#bridgeIndex, address, hardware)),
      );
      const gateways = addresses.map((address) =>
        isIPv6(address) ? subnet.address6(gatewaySlot) : subnet.address4(gatewaySlot),
      );
      const link = findLink(inside, jobLinkName).index;
      inside.request(
        bringUp("lo"),
        withoutLinkLocal(jobLinkName),
        bringUp(jobLinkName),
        // A network of one: every other address is beyond the gateway, which says at once what it does not forward.
        ...addresses.map((address) => addAddress(link, address, isIPv6(address) ? 128 : 32)),
        ...gateways.map((gateway) => addNeighbor(link, gateway, this.#hardware)),
        ...gateways.map((gateway) => addDefaultRoute(link, gateway)),
      );
      return network;
    } catch (error) {
      attempt(() => this.release(slot));
      throw error;
    } finally {
      inside[Symbol.dispose]();
    }
  }

  /**
   * Lets a job reach only these destinations, or with `undefined`, everything that jobs may reach. Connections that it has
   * are cut, where they would not be allowed any more.
   */
  restrict(slot: number, allowed: readonly Destination[] | undefined): void {
    const known = this.#slots.get(slot);
    if (known === undefined) throw new Error(`Cannot restrict network ${slot}: it has been released`);
    this.#ensureTables();
    const next = { ...known, allowed: allowed && disjoint(allowed) };
    commit(this.#filter, [
      ...restrictionElements(deleteElements, this.#inet, known),
      ...restrictionElements(addElements, this.#inet, next),
    ]);
    known.allowed = next.allowed;
    this.#forgetConnections(known.network);
  }

  /** Keeps all jobs from these, each with one port; nothing that was withheld before is any more. */
  withhold(destinations: readonly Destination[]): void {
    const withheld = disjoint(destinations);
    if (same(withheld, this.#withheld)) return;
    this.#ensureTables();
    commit(this.#filter, replaceWithheld(this.#inet, withheld));
    this.#withheld = withheld;
  }

  /** Keeps a job from private networks for good. */
  keepPublic(slot: number): void {
    const known = this.#slots.get(slot);
    if (known === undefined) throw new Error(`Cannot restrict network ${slot}: it has been released`);
    if (known.publicOnly) return;
    this.#ensureTables();
    const next = { ...known, publicOnly: true };
    commit(this.#filter, publicElements(addElements, this.#inet, next));
    known.publicOnly = true;
    this.#forgetConnections(known.network);
  }

  /** What the job was refused since the last time. */
  takeRefused(slot: number): Refusals {
    const known = this.#slots.get(slot);
    if (known === undefined) return { destinations: [], unlistedCount: 0 };
    return takeRefusals(this.#filter, this.#inet, addressesOf(known.network));
  }

  /** Removes a job's network and every trace of it; its descriptor is closed. @throws {Error} If something is left. */
  release(slot: number): void {
    const known = this.#slots.get(slot);
    if (known === undefined) return;
    this.#slots.delete(slot);
    const { network } = known;
    const addresses = addressesOf(network);
    doAll([
      // First of all: from here on nothing comes from the job.
      () => {
        if (!hasTable(this.#filter, this.#bridgeTable)) return;
        commit(this.#filter, sourceElements(deleteElements, this.#bridgeTable, known));
      },
      () => {
        if (!hasTable(this.#filter, this.#inet)) return;
        this.#deleteElementsOf(known, addresses);
      },
      // Its addresses will be another job's.
      () => this.#forgetConnections(network),
      () => this.#route.request(...addresses.map((address) => deleteNeighbor(this.#bridgeIndex, address))),
      // Its links go with it when the kernel finds the time, many namespaces at once; deleting them here would be waiting
      // for grace periods, tens of milliseconds for each.
      () => close(network.namespaceFd),
    ]);
  }

  [Symbol.dispose](): void {
    for (const slot of this.#slots.keys()) attempt(() => this.release(slot));
    attempt(() => this.#sweep(this.#config.agent));
    this.#subnet?.[Symbol.dispose]();
    if (this.#subnet !== undefined) attempt(() => this.#forwarding.restore());
    this.#filter[Symbol.dispose]();
    this.#probe[Symbol.dispose]();
    this.#route[Symbol.dispose]();
    close(this.#home);
  }

  /** Removes what bears an agent's name: links, and rules that nobody stands behind any more. */
  #sweep(agent: string): void {
    const { bridge, portPrefix } = linkNames(agent);
    const left = listLinks(this.#route).filter(({ name }) => name === bridge || name.startsWith(portPrefix));
    for (const { name } of left) this.#route.request(deleteLink(name));
    for (const family of [NFPROTO_INET, NFPROTO_BRIDGE]) {
      const table = { family, name: agent };
      if (hasTable(this.#filter, table)) commit(this.#filter, [deleteTable(table)]);
    }
  }

  #routes(): { readonly 4: readonly Route[]; readonly 6: readonly Route[] } {
    return { 4: listRoutes(this.#route, 4), 6: listRoutes(this.#route, 6) };
  }

  #uplinkMtu(routes: { readonly 4: readonly Route[]; readonly 6: readonly Route[] }, links: readonly Link[]): number {
    const uplinks = [defaultRoute(routes[4]), defaultRoute(routes[6])].flatMap((route) => route?.links ?? []);
    const mtus = links.filter(({ index }) => uplinks.includes(index)).map(({ mtu }) => mtu);
    return mtus.length === 0 ? defaultMtu : Math.max(minMtu, Math.min(...mtus, 65_535));
  }

  #makeBridge(): void {
    const subnet = this.#subnet as Subnet;
    const { ipv4, ipv6 } = subnet;
    const name = this.#bridge;
    this.#route.request(...makeBridge({ name, address: this.#hardware, mtu: this.#mtu }));
    // A job must not be this host's router, nor anybody's next hop but its own.
    for (const [path, value] of [
      ["ipv6/conf/*/accept_ra", "0"],
      ["ipv6/conf/*/accept_redirects", "0"],
      ["ipv6/conf/*/disable_ipv6", ipv6 === undefined ? "1" : "0"],
      ["ipv4/conf/*/accept_redirects", "0"],
      ["ipv4/conf/*/send_redirects", "0"],
      ["ipv4/conf/*/arp_ignore", "2"],
    ] as const) {
      attempt(() => writeFileSync(`/proc/sys/net/${path.replace("*", name)}`, value));
    }
    this.#bridgeIndex = findLink(this.#route, name).index;
    this.#route.request(
      addAddress(this.#bridgeIndex, subnet.address4(gatewaySlot), Number(ipv4.split("/")[1])),
      ...(ipv6 === undefined
        ? []
        : [addAddress(this.#bridgeIndex, subnet.address6(gatewaySlot), Number(ipv6.split("/")[1]))]),
      bringUp(name),
    );
  }

  get #hardware(): string {
    return hardwareAddress((this.#subnet as Subnet).address4(gatewaySlot));
  }

  /** The rules, and what they hold at the moment. */
  #makeTables(): void {
    const subnet = this.#subnet as Subnet;
    const subnets = [subnet.ipv4, ...(subnet.ipv6 === undefined ? [] : [subnet.ipv6])];
    const privateRanges = this.#config.blockPrivateRanges ?? false;
    const chains = inetChains(this.#bridge, subnets);
    const frames = bridgeChains(this.#portPrefix);
    const messages = (flags: number) => [
      newTable(this.#inet, flags),
      ...inetSets.map((set, i) => newSet(this.#inet, set, i + 1)),
      ...chains.map((chain) => newChain(this.#inet, chain)),
      ...chains.flatMap((chain) => newRules(this.#inet, chain)),
      ...([4, 6] as const).flatMap((family) =>
        addElements(this.#inet, `blocked${family}`, blockedElements(family, { privateRanges, subnets })),
      ),
      ...([4, 6] as const).flatMap((family) => addElements(this.#inet, `private${family}`, privateElements(family))),
      newTable(this.#bridgeTable, flags),
      ...bridgeSets.map((set, i) => newSet(this.#bridgeTable, set, inetSets.length + i + 1)),
      ...frames.map((chain) => newChain(this.#bridgeTable, chain)),
      ...frames.flatMap((chain) => newRules(this.#bridgeTable, chain)),
      ...guardElements(this.#inet, this.#guarded),
      ...resolverElements(this.#inet, this.#resolvers),
      ...withheldElements(this.#inet, this.#withheld),
      ...[...this.#slots.values()].flatMap((slot) => [
        ...sourceElements(addElements, this.#bridgeTable, slot),
        ...restrictionElements(addElements, this.#inet, slot),
        ...publicElements(addElements, this.#inet, slot),
      ]),
    ];
    try {
      // A table without an owner goes away when somebody reloads the firewall, and the jobs' rules with it.
      commit(this.#filter, messages(NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST));
    } catch (error) {
      if (!(error instanceof SyscallError) || ![EOPNOTSUPP, EINVAL].includes(error.errno)) throw error;
      commit(this.#filter, messages(0)); // before Linux 6.9
    }
  }

  #ensureTables(): void {
    const there = [this.#inet, this.#bridgeTable].map((table) => hasTable(this.#filter, table));
    if (there.every(Boolean)) return;
    const left = [this.#inet, this.#bridgeTable].filter((_, i) => there[i]);
    commit(this.#filter, left.map(deleteTable));
    this.#makeTables();
  }

  /** Hosts change while an agent runs: firewalls are reloaded, laptops move to other networks. */
  #followHost(): readonly Link[] {
    this.#ensureTables();
    const routes = this.#routes();
    const links = listLinks(this.#route);
    this.#mtu = this.#uplinkMtu(routes, links);
    const used = new Set([...routes[4], ...routes[6]].filter(({ unicast }) => unicast).flatMap((route) => route.links));
    const uplinks = links
      .filter(({ index, name }) => used.has(index) && index !== loopbackIndex && !name.startsWith(bridgePrefix))
      .map(({ name }) => name);
    const ipv6 = this.#subnet?.ipv6 !== undefined;
    const guarded = this.#forwarding.allow({
      bridge: this.#bridge,
      uplinks,
      ipv6,
      globalIPv6: this.#config.globalIPv6Forwarding ?? false,
    });
    const resolvers = jobResolvConf({ ipv6 }).nameservers;
    const changes = [
      ...(same(guarded, this.#guarded)
        ? []
        : [...[4, 6].map((family) => flushSet(this.#inet, `guarded${family}`)), ...guardElements(this.#inet, guarded)]),
      ...(same(resolvers, this.#resolvers)
        ? []
        : [
            ...[4, 6].map((family) => flushSet(this.#inet, `resolvers${family}`)),
            ...resolverElements(this.#inet, resolvers),
          ]),
    ];
    commit(this.#filter, changes);
    this.#guarded = guarded;
    this.#resolvers = resolvers;
    return links;
  }

  /** The one that was free for the longest time: what is still under way to its last job has a while to end. */
  #freeSlot(links: ReadonlySet<string>): number {
    const count = lastSlot - firstSlot + 1;
    for (let i = 0; i < count; i++) {
      const slot = firstSlot + ((this.#nextSlot - firstSlot + i) % count);
      // The link of a network that has been released goes away later.
      if (this.#slots.has(slot) || links.has(`${this.#portPrefix}${slot}`)) continue;
      this.#nextSlot = slot + 1;
      return slot;
    }
    throw new Error(`Cannot make a network: all ${count} addresses of this agent's subnet are taken`);
  }

  /**
   * Deletes what sets have about a job, all or nothing. The kernel itself drops an element of "connections" when the last
   * connection has ended, also between the list and its deletion: then it is listed again.
   */
  #deleteElementsOf(known: Parameters<typeof restrictionElements>[2], addresses: readonly string[]): void {
    for (let attempt = 1; ; attempt++) {
      const written = writtenByRules.flatMap((kind) => elementsOf(this.#filter, this.#inet, kind, addresses));
      try {
        commit(this.#filter, [
          ...restrictionElements(deleteElements, this.#inet, known),
          ...publicElements(deleteElements, this.#inet, known),
          ...written.flatMap(({ set, key }) => deleteElements(this.#inet, set, [{ key }])),
        ]);
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOENT" || attempt === mostDeletions) throw error;
      }
    }
  }

  #forgetConnections(network: KernelNetwork): void {
    this.#filter.request(...addressesOf(network).map(forgetConnections));
  }
}

/** What an agent's links are called; they have 15 characters at the most. */
function linkNames(agent: string): { readonly bridge: string; readonly portPrefix: string } {
  const hash = createHash("sha256").update(agent).digest().readUIntBE(0, 6).toString(36).padStart(7, "0").slice(-7);
  return { bridge: `${bridgePrefix}${hash}`, portPrefix: `slp-${hash}-` };
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Does everything, whatever fails, and throws what failed first. */
function doAll(actions: readonly (() => void)[]): void {
  const errors: unknown[] = [];
  for (const action of actions) {
    try {
      action();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}

/** For what is removed at the end: the rest must be removed all the same, and the next start sweeps. */
function attempt(action: () => void): void {
  try {
    action();
  } catch {
    // as said
  }
}

/** A job has an element for each of its addresses; each can vanish once. */
const mostDeletions = 8;
