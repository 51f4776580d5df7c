/**
 * The rules of one agent: what its jobs may send, and to whom. Plain data; they never change while the agent runs, what
 * changes are the elements of their sets.
 *
 * Two tables. *bridge* sees the frames as jobs send them and lets through only what carries the addresses that the job was
 * given. *inet* sees the packets and decides where they may go.
 */
import { be32, u32 } from "./netlink.ts";
import { numberBytes, parseRange } from "./network-address.ts";
import {
  accept,
  backToCaller,
  counter,
  countIn,
  destinationKind,
  drop,
  equals,
  type Expression,
  firstPackets,
  goto,
  inSet,
  inState,
  jump,
  load,
  masquerade,
  meta,
  moreConnectionsThan,
  notRedirected,
  packetBytes,
  reject,
  reset,
} from "./nftables-expression.ts";
import { type Chain, type NamedSet, nameBytes, NFPROTO_IPV4, NFPROTO_IPV6, type SetElement } from "./nftables.ts";

/** Every bridge of every agent on the host begins so. */
export const bridgePrefix = "slw-";

const IPPROTO_TCP = 6;
const IPPROTO_UDP = 17;

const ETH_P_IP = Buffer.from([0x08, 0x00]);
const ETH_P_IPV6 = Buffer.from([0x86, 0xdd]);

/** Destinations that jobs of nobody need, with the attacks that they are good for. */
const neverReached = [
  "0.0.0.0/8", // this host, on Linux
  "127.0.0.0/8",
  "169.254.0.0/16", // link-local: the metadata services of most clouds
  "100.100.100.200", // Alibaba's metadata service
  "168.63.129.16", // Azure's wire server
  "192.0.0.192", // Oracle's metadata service, older images
  "224.0.0.0/3", // multicast, reserved, broadcast
  "::/96", // unspecified, loopback, IPv4-compatible
  "::ffff:0:0/96",
  "64:ff9b::a9fe:0/112", // link-local IPv4 by way of NAT64
  "64:ff9b::7f00:0/104",
  "fe80::/10",
  "fec0::/10",
  "fd00:ec2::/32", // Amazon's metadata and other instance services
  "fd20:ce::254", // Google's metadata service
  "ff00::/8",
];

/** Networks of the host's owner rather than of the public Internet. */
const privateRanges = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"];

const families: readonly KeyFields[] = [
  { family: 4, version: NFPROTO_IPV4, source: [12, 4], destination: [16, 4], words: 1 },
  { family: 6, version: NFPROTO_IPV6, source: [8, 16], destination: [24, 16], words: 4 },
];

/** Where the addresses stand in a packet of one family, and how much room they take in registers. */
interface KeyFields {
  readonly family: 4 | 6;
  readonly version: number;
  /** Offset and length in the IP header. */
  readonly source: readonly [number, number];
  readonly destination: readonly [number, number];
  /** Registers that an address takes. */
  readonly words: number;
}

/** Destinations that a job was refused are listed up to this many, so that none can fill the list of all. */
export const listedRefusals = 100;
/** A subnet has no more addresses for jobs. */
const maxJobs = 256;

/** The sets of the inet table, by what the agent calls them; those of an address exist for both families. */
export const inetSets: readonly NamedSet[] = ([4, 6] as const).flatMap((family): NamedSet[] => {
  const address = family === 4 ? "ipv4_addr" : "ipv6_addr";
  const destination = [address, "inet_proto", "inet_service"] as const;
  return [
    { name: `blocked${family}`, key: [address], intervals: true },
    { name: `private${family}`, key: [address], intervals: true },
    { name: `public-only${family}`, key: [address] },
    { name: `resolvers${family}`, key: destination },
    { name: `withheld${family}`, key: destination },
    { name: `restricted${family}`, key: [address] },
    { name: `allowed${family}`, key: [address, ...destination], fieldRanges: true },
    { name: `refused${family}`, key: [address, ...destination], dynamicSize: maxJobs * listedRefusals },
    { name: `listing${family}`, key: [address], dynamicSize: 1024 },
    { name: `unlisted${family}`, key: [address], dynamicSize: 1024 },
    { name: `connections${family}`, key: [address], dynamicSize: 1024 },
    { name: `guarded${family}`, key: ["ifname"] },
  ];
});

export const bridgeSets: readonly NamedSet[] = [
  { name: "sources4", key: ["ifname", "ether_addr", "ipv4_addr"] },
  { name: "sources6", key: ["ifname", "ether_addr", "ipv6_addr"] },
];

/** A connection costs the host memory that all its jobs share; nobody needs this many. */
const maxConnectionsOfJob = 8192;

const fromFamily = ({ version }: KeyFields): Expression[] => [meta("nfproto"), equals(Buffer.from([version]))];
const isProtocol = (protocol: number): Expression[] => [meta("l4proto"), equals(Buffer.from([protocol]))];
const destinationPort = (register: number) => packetBytes("transport", 2, 2, register);
const replies: readonly Expression[] = [...inState("established", "related"), accept];

/** Address, protocol, port of the destination in consecutive registers. */
function destinationFields(fields: KeyFields, register: number): Expression[] {
  return [
    packetBytes("network", ...fields.destination, register),
    meta("l4proto", register + fields.words),
    destinationPort(register + fields.words + 1),
  ];
}

function toResolver(fields: KeyFields): Expression[] {
  return [...fromFamily(fields), ...destinationFields(fields, 0), inSet(`resolvers${fields.family}`)];
}

/** What the routing tables call this host itself, and what is not one host. */
const unwantedKinds = { local: 2, broadcast: 3, anycast: 4, multicast: 5 } as const;

/** @param bridge The agent's own. */
export function inetChains(bridge: string, subnets: readonly string[]): Chain[] {
  const fromJobs = [meta("iifname"), equals(nameBytes(bridge))];
  const toJobs = [meta("oifname"), equals(nameBytes(bridge))];
  const toAnyAgentsJobs = [meta("oifname"), equals(Buffer.from(bridgePrefix))];
  return [
    {
      name: "prerouting",
      // Behind connection tracking (-200), before other rules of the host send packets elsewhere (-100): a port of the
      // host that leads to a container of its own is the host's service too.
      hook: { type: "filter", at: "prerouting", priority: -150 },
      rules: [[...fromJobs, jump("from-jobs")]],
    },
    {
      name: "from-jobs",
      rules: [
        [...inState("invalid"), counter(), drop],
        [...replies],
        ...families.map((fields) => [
          ...fromFamily(fields),
          packetBytes("network", ...fields.source),
          moreConnectionsThan(maxConnectionsOfJob, `connections${fields.family}`),
          goto("refuse"),
        ]),
        ...refuseWithheld(),
        ...families.map((fields) => [
          ...fromFamily(fields),
          packetBytes("network", ...fields.source),
          inSet(`restricted${fields.family}`),
          jump("restricted"),
        ]),
        ...families.map((fields) => [...toResolver(fields), accept]),
        ...Object.values(unwantedKinds).map((kind) => [destinationKind(), equals(u32(kind)), goto("refuse")]),
        ...refuseBlocked(),
      ],
    },
    {
      name: "restricted",
      rules: [
        ...families.map((fields) => [
          ...fromFamily(fields),
          packetBytes("network", ...fields.source),
          ...destinationFields(fields, fields.words),
          inSet(`allowed${fields.family}`),
          backToCaller,
        ]),
        [goto("refuse")],
      ],
    },
    {
      name: "refuse",
      rules: [
        [...isProtocol(IPPROTO_TCP), goto("refuse-port")],
        [...isProtocol(IPPROTO_UDP), goto("refuse-port")],
        ...families.flatMap((fields) => listRefused(fields, (register) => load(be32(0), register))),
        [goto("answer")],
      ],
    },
    {
      name: "refuse-port",
      rules: [...families.flatMap((fields) => listRefused(fields, destinationPort)), [goto("answer")]],
    },
    {
      name: "answer",
      rules: [
        // A program that is connecting hears of a reset at once; of the other answer, only when it tries again.
        [...isProtocol(IPPROTO_TCP), counter(), reset()],
        [counter(), reject()],
      ],
    },
    {
      name: "input",
      hook: { type: "filter", at: "input", priority: 0 },
      rules: [[...fromJobs, jump("to-host")]],
    },
    {
      name: "to-host",
      rules: [[...replies], ...families.map((fields) => [...toResolver(fields), accept]), [counter(), drop]],
    },
    {
      name: "forward",
      hook: { type: "filter", at: "forward", priority: 0 },
      rules: [
        [...fromJobs, jump("leaving")],
        // Where forwarding is on for the jobs' sake only, it is there for nobody else.
        ...families.map((fields) => [
          ...fromFamily(fields),
          meta("iifname"),
          inSet(`guarded${fields.family}`),
          meta("oifname"),
          equals(Buffer.from(bridgePrefix), { not: true }),
          ...inState("new"),
          ...notRedirected(),
          counter(),
          drop,
        ]),
      ],
    },
    {
      name: "leaving",
      rules: [[...replies], [...toAnyAgentsJobs, goto("refuse")], ...refuseWithheld(), ...refuseBlocked()],
    },
    {
      name: "arriving",
      // Behind the chain above of every agent: one's job that asks another's gets an answer from its own agent's rules.
      hook: { type: "filter", at: "forward", priority: 10 },
      rules: [
        [...toJobs, ...inState("established", "related"), accept],
        [...toJobs, counter(), drop],
      ],
    },
    {
      name: "postrouting",
      hook: { type: "nat", at: "postrouting", priority: 100 },
      rules: subnets.map((subnet) => [...comesFrom(subnet), ...notTo(bridge), masquerade()]),
    },
  ];
}

const IPPROTO_ICMPV6 = 58;
/** Router solicitation, neighbor solicitation and advertisement: the kernel's own, no job can send them. */
const neighborDiscovery = [133, 135, 136];

/**
 * The rules of a network whose only job is inside, at its own way out, where nothing is forwarded: no bridge, no connection
 * tracking, for nothing comes in that was not asked for.
 *
 * @param sources The job's addresses: what has another does not leave.
 */
export function ownNamespaceChains(sources: readonly string[]): Chain[] {
  const shared = new Set(["restricted", "refuse", "refuse-port", "answer"]);
  return [
    {
      name: "output",
      hook: { type: "filter", at: "output", priority: 0 },
      rules: [
        [meta("oifname"), equals(nameBytes("lo")), accept],
        ...neighborDiscovery.map((type) => [
          ...isProtocol(IPPROTO_ICMPV6),
          packetBytes("transport", 0, 1),
          equals(Buffer.from([type])),
          accept,
        ]),
        ...sources.map((address) => [
          ...comesFrom(`${address}/${address.includes(":") ? 128 : 32}`),
          jump("from-jobs"),
        ]),
        [counter(), drop],
      ],
    },
    {
      name: "from-jobs",
      rules: [
        ...refuseWithheld(),
        ...families.map((fields) => [
          ...fromFamily(fields),
          packetBytes("network", ...fields.source),
          inSet(`restricted${fields.family}`),
          jump("restricted"),
        ]),
        ...families.map((fields) => [...toResolver(fields), accept]),
        ...refuseBlocked(),
        [accept],
      ],
    },
    ...inetChains("", []).filter(({ name }) => shared.has(name)),
  ];
}

function notTo(bridge: string): Expression[] {
  return [meta("oifname"), equals(nameBytes(bridge), { not: true })];
}

/** By whole bytes of the prefix. */
function comesFrom(subnet: string): Expression[] {
  const { family, first, prefixLength } = parseRange(subnet);
  const fields = families.find((one) => one.family === family) as KeyFields;
  const bytes = prefixLength / 8;
  return [
    ...fromFamily(fields),
    packetBytes("network", fields.source[0], bytes),
    equals(numberBytes(first, family).subarray(0, bytes)),
  ];
}

function refuseWithheld(): Expression[][] {
  return families.map((fields) => [
    ...fromFamily(fields),
    ...destinationFields(fields, 0),
    inSet(`withheld${fields.family}`),
    goto("refuse"),
  ]);
}

function refuseBlocked(): Expression[][] {
  return families.flatMap((fields) => [
    [
      ...fromFamily(fields),
      packetBytes("network", ...fields.destination),
      inSet(`blocked${fields.family}`),
      goto("refuse"),
    ],
    [
      ...fromFamily(fields),
      packetBytes("network", ...fields.source),
      inSet(`public-only${fields.family}`),
      packetBytes("network", ...fields.destination),
      inSet(`private${fields.family}`),
      goto("refuse"),
    ],
  ]);
}

/** Counts the packet with its destination, if that is listed or may yet be, else with its source only; then answers it. */
function listRefused(fields: KeyFields, port: (register: number) => Expression): Expression[][] {
  const { family, words } = fields;
  const source = packetBytes("network", ...fields.source);
  const key = [
    source,
    packetBytes("network", ...fields.destination, words),
    meta("l4proto", 2 * words),
    port(2 * words + 1),
  ];
  const done = goto("answer");
  return [
    // A lookup counts what it finds.
    [...fromFamily(fields), ...key, inSet(`refused${family}`), done],
    [
      ...fromFamily(fields),
      source,
      firstPackets(listedRefusals, `listing${family}`),
      ...key,
      countIn(`refused${family}`),
      done,
    ],
    [...fromFamily(fields), source, countIn(`unlisted${family}`), done],
  ];
}

/** @param portPrefix What the names of the agent's bridge ports begin with. */
export function bridgeChains(portPrefix: string): Chain[] {
  const nameWords = 4;
  const sender = (protocol: Buffer, offset: number, length: number, set: string): Expression[] => [
    meta("protocol"),
    equals(protocol),
    meta("iifname", 0),
    packetBytes("link", 6, 6, nameWords),
    packetBytes("network", offset, length, nameWords + 2),
    inSet(set),
    accept,
  ];
  return [
    {
      name: "prerouting",
      hook: { type: "filter", at: "prerouting", priority: -300 },
      rules: [[meta("iifname"), equals(Buffer.from(portPrefix)), jump("from-jobs")]],
    },
    {
      name: "from-jobs",
      // Neither ARP nor neighbor discovery: who is whose neighbor is written down on both sides.
      rules: [sender(ETH_P_IP, 12, 4, "sources4"), sender(ETH_P_IPV6, 8, 16, "sources6"), [counter(), drop]],
    },
  ];
}

/** The ranges that no job reaches, the jobs' own among them, as elements of the interval sets. */
export function blockedElements(
  family: 4 | 6,
  options: { readonly privateRanges: boolean; readonly subnets: readonly string[] },
): SetElement[] {
  return intervals(family, [...neverReached, ...options.subnets, ...(options.privateRanges ? privateRanges : [])]);
}

/** The ranges that jobs which may reach the public Internet only do not reach either. */
export function privateElements(family: 4 | 6): SetElement[] {
  return intervals(family, privateRanges);
}

function intervals(family: 4 | 6, cidrs: readonly string[]): SetElement[] {
  const ranges = cidrs
    .map(parseRange)
    .filter((range) => range.family === family)
    .sort((a, b) => (a.first < b.first ? -1 : 1));
  const merged: { first: bigint; last: bigint }[] = [];
  for (const { first, last } of ranges) {
    const previous = merged.at(-1);
    if (previous !== undefined && first <= previous.last + 1n)
      previous.last = last > previous.last ? last : previous.last;
    else merged.push({ first, last });
  }
  const end = 1n << (family === 4 ? 32n : 128n);
  return merged.flatMap(({ first, last }) => [
    { key: numberBytes(first, family) },
    ...(last + 1n === end ? [] : [{ key: numberBytes(last + 1n, family), intervalEnd: true }]),
  ]);
}
