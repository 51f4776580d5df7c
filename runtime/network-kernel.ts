/** One agent's networks as the kernel has them: a bridge, two nftables tables, and for every job a namespace on a port. */
import { createHash } from "node:crypto";
import { readlinkSync, writeFileSync } from "node:fs";
import { EINVAL, ENOENT, EOPNOTSUPP } from "./linux.ts";
import { attribute, nested, Netlink, NETLINK_NETFILTER, NETLINK_ROUTE, u32 } from "./netlink.ts";
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
  macBytes,
} from "./netlink-route.ts";
import { addressBytes, addressText, isIPv6 } from "./network-address.ts";
import { Forwarding, type Guarded } from "./network-forwarding.ts";
import { configureNamespace, makeNamespace, openCurrentNamespace } from "./network-namespace.ts";
import { blockedElements, bridgeChains, bridgePrefix, bridgeSets, inetChains, inetSets } from "./network-rules.ts";
import { claimSubnet, firstSlot, lastSlot, type Subnet } from "./network-subnet.ts";
import {
  addElements,
  commit,
  deleteElements,
  deleteTable,
  flushSet,
  hasTable,
  listElements,
  nameBytes,
  newChain,
  newRules,
  newSet,
  newTable,
  NFPROTO_BRIDGE,
  NFPROTO_INET,
  NFPROTO_IPV4,
  NFPROTO_IPV6,
  NFT_TABLE_F_OWNER,
  NFT_TABLE_F_PERSIST,
  type SetElement,
  type Table,
} from "./nftables.ts";
import { jobResolvConf } from "./resolv-conf.ts";
import { close, SyscallError } from "./syscall.ts";

export interface NetworksConfig {
  /** Names the agent, on this host and for good: leftovers are found by it. [A-Za-z0-9-] */
  readonly agent: string;
  /** Where the agents of a host agree on subnets. @default "/run/slipway/networks" */
  readonly runDir?: string;
  /** Keep jobs from private networks too, not only from what no job needs. @default false */
  readonly blockPrivateRanges?: boolean;
  /** Switch IPv6 forwarding on as kernels before 6.17 want it. @default false */
  readonly globalIPv6Forwarding?: boolean;
  /** Do it all in a network namespace of its own that leads nowhere, to see whether it can be done. @default false */
  readonly scratch?: boolean;
}

/** A job's network; plain data, so that it can be told to another thread. */
export interface KernelNetwork {
  readonly slot: number;
  /** Open in the whole process. */
  readonly namespaceFd: number;
  readonly ipv4: string;
  readonly ipv6?: string;
}

export interface Destination {
  readonly address: string;
  readonly protocol: "tcp" | "udp";
  readonly port: number;
}

/** What a job tried to reach and was not let. */
export interface Refused {
  readonly address: string;
  /** `tcp`, `udp`, `icmp`, or a number. */
  readonly protocol: string;
  /** 0 where the protocol has none. */
  readonly port: number;
  /** Packets: connection attempts, as a rule. */
  readonly count: number;
}

const gatewaySlot = 1;
const defaultMtu = 1500;
/** IPv6 asks for this much of every link. */
const minMtu = 1280;
const loopbackIndex = 1;
const jobLinkName = "eth0";

interface Slot {
  readonly network: KernelNetwork;
  readonly port: string;
  allowed: readonly Destination[] | undefined;
}

/** Blocks while the kernel works and visits other namespaces with its thread: for a worker thread. */
export class KernelNetworks implements Disposable {
  readonly #home = openCurrentNamespace();
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

  /** Sweeps what a killed agent of the same name left, and sets everything up that all jobs share. @throws {Error} */
  constructor(config: NetworksConfig) {
    this.#config = config;
    // The names of links have 15 characters at the most.
    const hash = createHash("sha256")
      .update(config.agent)
      .digest()
      .readUIntBE(0, 6)
      .toString(36)
      .padStart(7, "0")
      .slice(-7);
    this.#bridge = `${bridgePrefix}${hash}`;
    this.#portPrefix = `slp-${hash}-`;
    this.#inet = { family: NFPROTO_INET, name: config.agent };
    this.#bridgeTable = { family: NFPROTO_BRIDGE, name: config.agent };
    const namespace = /\d+/.exec(readlinkSync("/proc/thread-self/ns/net"))?.[0] ?? "0";
    const lockDir = `${config.runDir ?? "/run/slipway/networks"}/${namespace}`;
    this.#forwarding = new Forwarding(lockDir);
    try {
      this.#sweep();
      const routes = this.#routes();
      this.#subnet = claimSubnet({
        lockDir,
        routes: [...routes[4], ...routes[6]].filter(({ range }) => range.prefixLength > 0).map(({ range }) => range),
        ...(defaultRoute(routes[6]) === undefined ? {} : { ipv6For: config.agent }),
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

  /** Makes a job's network. @throws {Error} If all addresses are taken, or the kernel refuses. */
  create(): KernelNetwork {
    const links = this.#followHost();
    const slot = this.#freeSlot(new Set(links.map(({ name }) => name)));
    const subnet = this.#subnet as Subnet;
    const ipv4 = subnet.address4(slot);
    const ipv6 = subnet.ipv6 === undefined ? undefined : subnet.address6(slot);
    const port = `${this.#portPrefix}${slot}`;
    const { fd, prepared: inside } = makeNamespace(this.#home, () => {
      configureNamespace();
      return new Netlink(NETLINK_ROUTE); // speaks to the new namespace from now on
    });
    const network: KernelNetwork = { slot, namespaceFd: fd, ipv4, ...(ipv6 === undefined ? {} : { ipv6 }) };
    this.#slots.set(slot, { network, port, allowed: undefined });
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
      commit(this.#filter, this.#sourceElements(addElements, network, port));
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
    const before = this.#restrictionElements(deleteElements, known);
    commit(this.#filter, [
      ...before,
      ...this.#restrictionElements(addElements, { ...known, allowed: allowed && unique(allowed) }),
    ]);
    known.allowed = allowed && unique(allowed);
    this.#forgetConnections(known.network);
  }

  /** What the job was refused so far, the most frequent first. */
  refused(slot: number): Refused[] {
    const known = this.#slots.get(slot);
    if (known === undefined) return [];
    return this.#ownElements("refused", known.network)
      .map(({ key, words, packets }) => ({
        address: addressText(key.subarray(4 * words, 8 * words)),
        protocol: protocolNames.get(key[8 * words] ?? 0) ?? `${key[8 * words]}`,
        port: key.readUInt16BE(8 * words + 4),
        count: packets,
      }))
      .sort((a, b) => b.count - a.count);
  }

  /** Removes a job's network and every trace of it; its descriptor is closed. @throws {Error} If something is left. */
  release(slot: number): void {
    const known = this.#slots.get(slot);
    if (known === undefined) return;
    this.#slots.delete(slot);
    const { network, port } = known;
    const addresses = [network.ipv4, ...(network.ipv6 === undefined ? [] : [network.ipv6])];
    doAll([
      // First of all: from here on nothing comes from the job.
      () => {
        if (!hasTable(this.#filter, this.#bridgeTable)) return;
        commit(this.#filter, this.#sourceElements(deleteElements, network, port));
      },
      () => {
        if (!hasTable(this.#filter, this.#inet)) return;
        const written = [...this.#ownElements("refused", network), ...this.#ownElements("connections", network)];
        commit(this.#filter, [
          ...this.#restrictionElements(deleteElements, known),
          ...written.flatMap(({ set, key }) => deleteElements(this.#inet, set, [{ key }])),
        ]);
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
    attempt(() => this.#sweep());
    this.#subnet?.[Symbol.dispose]();
    if (this.#subnet !== undefined) attempt(() => this.#forwarding.restore());
    this.#filter[Symbol.dispose]();
    this.#route[Symbol.dispose]();
    close(this.#home);
  }

  /** Removes what bears the agent's name: links, and rules that nobody stands behind any more. */
  #sweep(): void {
    const left = listLinks(this.#route).filter(
      ({ name }) => name === this.#bridge || name.startsWith(this.#portPrefix),
    );
    for (const { name } of left) this.#route.request(deleteLink(name));
    for (const table of [this.#inet, this.#bridgeTable]) {
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
      newTable(this.#bridgeTable, flags),
      ...bridgeSets.map((set, i) => newSet(this.#bridgeTable, set, inetSets.length + i + 1)),
      ...frames.map((chain) => newChain(this.#bridgeTable, chain)),
      ...frames.flatMap((chain) => newRules(this.#bridgeTable, chain)),
      ...this.#guardElements(this.#guarded),
      ...this.#resolverElements(this.#resolvers),
      ...[...this.#slots.values()].flatMap((slot) => [
        ...this.#sourceElements(addElements, slot.network, slot.port),
        ...this.#restrictionElements(addElements, slot),
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
        : [...[4, 6].map((family) => flushSet(this.#inet, `guarded${family}`)), ...this.#guardElements(guarded)]),
      ...(same(resolvers, this.#resolvers)
        ? []
        : [
            ...[4, 6].map((family) => flushSet(this.#inet, `resolvers${family}`)),
            ...this.#resolverElements(resolvers),
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

  #sourceElements(change: typeof addElements, network: KernelNetwork, port: string) {
    const hardware = Buffer.concat([macBytes(hardwareAddress(network.ipv4)), Buffer.alloc(2)]);
    const key = (address: string) => ({ key: Buffer.concat([nameBytes(port), hardware, addressBytes(address)]) });
    return [
      ...change(this.#bridgeTable, "sources4", [key(network.ipv4)]),
      ...(network.ipv6 === undefined ? [] : change(this.#bridgeTable, "sources6", [key(network.ipv6)])),
    ];
  }

  #restrictionElements(change: typeof addElements, { network, allowed }: Slot) {
    if (allowed === undefined) return [];
    return [network.ipv4, ...(network.ipv6 === undefined ? [] : [network.ipv6])].flatMap((source) => {
      const family = isIPv6(source) ? 6 : 4;
      const destinations = allowed.filter(({ address }) => isIPv6(address) === isIPv6(source));
      return [
        ...change(this.#inet, `restricted${family}`, [{ key: addressBytes(source) }]),
        ...change(
          this.#inet,
          `allowed${family}`,
          destinations.map((one) => ({ key: Buffer.concat([addressBytes(source), destinationKey(one)]) })),
        ),
      ];
    });
  }

  #guardElements(guarded: Guarded) {
    const keys = (names: readonly string[]): SetElement[] => names.map((name) => ({ key: nameBytes(name) }));
    return [
      ...addElements(this.#inet, "guarded4", keys(guarded.ipv4)),
      ...addElements(this.#inet, "guarded6", keys(guarded.ipv6)),
    ];
  }

  #resolverElements(resolvers: readonly string[]) {
    return resolvers.flatMap((address) =>
      addElements(
        this.#inet,
        `resolvers${isIPv6(address) ? 6 : 4}`,
        (["udp", "tcp"] as const).map((protocol) => ({ key: destinationKey({ address, protocol, port: 53 }) })),
      ),
    );
  }

  /** What the rules have written down about a job. */
  #ownElements(kind: "refused" | "connections", { ipv4, ipv6 }: KernelNetwork) {
    return [ipv4, ...(ipv6 === undefined ? [] : [ipv6])].flatMap((source) => {
      const bytes = addressBytes(source);
      const set = `${kind}${isIPv6(source) ? 6 : 4}`;
      return listElements(this.#filter, this.#inet, set)
        .filter(({ key }) => key.subarray(0, bytes.length).equals(bytes))
        .map((element) => ({ ...element, set, words: bytes.length / 4 }));
    });
  }

  /** Lets connection tracking forget what a job's addresses had to do with. */
  #forgetConnections({ ipv4, ipv6 }: KernelNetwork): void {
    const IPCTNL_MSG_CT_DELETE = (1 << 8) | 2;
    const CTA_FILTER_F_CTA_IP_SRC = 1;
    for (const source of [ipv4, ...(ipv6 === undefined ? [] : [ipv6])]) {
      const v6 = isIPv6(source);
      this.#filter.request({
        action: `forget the connections of ${source}`,
        type: IPCTNL_MSG_CT_DELETE,
        payload: Buffer.concat([
          Buffer.from([v6 ? NFPROTO_IPV6 : NFPROTO_IPV4, 0, 0, 0]),
          nested(1, nested(1, attribute(v6 ? 3 : 1, addressBytes(source)))), // CTA_TUPLE_ORIG, CTA_TUPLE_IP, source
          // Without a filter, a kernel would take the message to mean all connections of the host.
          nested(25, attribute(1, u32(CTA_FILTER_F_CTA_IP_SRC)), attribute(2, u32(0))),
        ]),
        tolerate: [ENOENT, EOPNOTSUPP, EINVAL],
      });
    }
  }
}

const protocolNames = new Map([
  [1, "icmp"],
  [6, "tcp"],
  [17, "udp"],
  [58, "icmp"],
]);

function destinationKey({ address, protocol, port }: Destination): Buffer {
  const rest = Buffer.alloc(8);
  rest[0] = protocol === "tcp" ? 6 : 17;
  rest.writeUInt16BE(port, 4);
  return Buffer.concat([addressBytes(address), rest]);
}

/** Locally administered, and as unique as the address. */
function hardwareAddress(ipv4: string): string {
  return [0x0a, 0x51, ...addressBytes(ipv4)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

function unique(destinations: readonly Destination[]): Destination[] {
  return [...new Map(destinations.map((one) => [destinationKey(one).toString("hex"), one])).values()];
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
