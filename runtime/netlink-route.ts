/** rtnetlink: links, addresses, routes and neighbors. @see rtnetlink(7) */
import { AF_INET, EEXIST, ENODEV, ENOENT, IFF_UP } from "./linux.ts";
import {
  attribute,
  nested,
  type Netlink,
  type NetlinkMessage,
  NLM_F_CREATE,
  NLM_F_EXCL,
  parseAttributes,
  text,
  textOf,
  u32,
  u8,
} from "./netlink.ts";
import { addressBytes, type AddressRange, addressText, isIPv6, parsePrefix } from "./network-address.ts";

const AF_BRIDGE = 7;
const AF_INET6 = 10;

const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
const RTM_NEWROUTE = 24;
const RTM_GETROUTE = 26;
const RTM_NEWNEIGH = 28;
const RTM_DELNEIGH = 29;

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_MASTER = 10;
const IFLA_LINKINFO = 18;
const IFLA_AF_SPEC = 26;
const IFLA_NET_NS_FD = 28;
const IFLA_NUM_TX_QUEUES = 31;
const IFLA_NUM_RX_QUEUES = 32;
const IFLA_INFO_KIND = 1;
const IFLA_INFO_DATA = 2;
const IFLA_INFO_SLAVE_KIND = 4;
const IFLA_INFO_SLAVE_DATA = 5;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const IFLA_BR_FORWARD_DELAY = 1;
const IFLA_BR_STP_STATE = 5;
const IFLA_BR_MCAST_SNOOPING = 23;
const IFLA_BRPORT_LEARNING = 8;
const IFLA_BRPORT_UNICAST_FLOOD = 9;
const IFLA_BRPORT_MCAST_FLOOD = 27;
const IFLA_BRPORT_BCAST_FLOOD = 30;
const IFLA_BRPORT_ISOLATED = 33;
const VETH_INFO_PEER = 1;

const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const IFA_FLAGS = 8;
const IFA_F_NODAD = 2;

const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PRIORITY = 6;
const RTA_MULTIPATH = 9;
const RTA_TABLE = 15;
const RT_TABLE_MAIN = 254;
const RTPROT_STATIC = 4;
const RTN_UNICAST = 1;
const RT_SCOPE_UNIVERSE = 0;
const RTNH_F_ONLINK = 4;

const NDA_DST = 1;
const NDA_LLADDR = 2;
const NUD_PERMANENT = 0x80;
const NUD_NOARP = 0x40;
const NTF_MASTER = 0x04;

export interface Link {
  readonly index: number;
  readonly name: string;
  readonly mtu: number;
  readonly up: boolean;
}

export interface Route {
  readonly range: AddressRange;
  /** Empty for routes that lead nowhere. */
  readonly links: readonly number[];
  readonly table: number;
  readonly metric: number;
  readonly unicast: boolean;
}

/** `0a:51:0a:e7:00:01` */
export type MacAddress = string;

/** struct ifinfomsg: family, type, index, flags, change. Links go by their names here. */
function linkHeader(options: { readonly up?: boolean } = {}): Buffer {
  const header = Buffer.alloc(16);
  if (options.up) {
    header.writeUInt32LE(IFF_UP, 8);
    header.writeUInt32LE(IFF_UP, 12);
  }
  return header;
}

export function macBytes(address: MacAddress): Buffer {
  return Buffer.from(address.replaceAll(":", ""), "hex");
}

/** No IPv6 link-local address by itself: nobody asks neighbors for anything here, so nobody needs one. */
const noLinkLocal = nested(
  IFLA_AF_SPEC,
  nested(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, u8(IN6_ADDR_GEN_MODE_NONE))),
);

/** Makes a bridge that neither runs the spanning tree protocol nor listens to multicast; it is down. */
export function makeBridge(options: {
  readonly name: string;
  readonly address: MacAddress;
  readonly mtu: number;
}): NetlinkMessage[] {
  const { name } = options;
  return [
    {
      action: `make bridge "${name}"`,
      type: RTM_NEWLINK,
      flags: NLM_F_CREATE | NLM_F_EXCL,
      payload: Buffer.concat([
        linkHeader(),
        attribute(IFLA_IFNAME, text(name)),
        attribute(IFLA_ADDRESS, macBytes(options.address)),
        attribute(IFLA_MTU, u32(options.mtu)),
        nested(
          IFLA_LINKINFO,
          attribute(IFLA_INFO_KIND, text("bridge")),
          nested(
            IFLA_INFO_DATA,
            attribute(IFLA_BR_FORWARD_DELAY, u32(0)),
            attribute(IFLA_BR_STP_STATE, u32(0)),
            attribute(IFLA_BR_MCAST_SNOOPING, u8(0)),
          ),
        ),
      ]),
    },
    withoutLinkLocal(name),
  ];
}

/** Keeps a link from taking an IPv6 link-local address. */
export function withoutLinkLocal(name: string): NetlinkMessage {
  return {
    action: `keep "${name}" from taking a link-local address`,
    type: RTM_NEWLINK,
    payload: Buffer.concat([linkHeader(), attribute(IFLA_IFNAME, text(name)), noLinkLocal]),
    // Without IPv6 in the kernel there is none to be taken.
    tolerate: [97, 95],
  };
}

/**
 * Makes a pair of links: `name` here, a port of a bridge, and `peer` in another network namespace. Both are down.
 *
 * One queue each: the default is one for every processor, which costs time and memory for a job's trickle.
 */
export function makeVeth(options: {
  readonly name: string;
  readonly bridge: number;
  readonly mtu: number;
  readonly peer: { readonly name: string; readonly address: MacAddress };
  readonly namespaceFd: number;
}): NetlinkMessage[] {
  const { name, peer } = options;
  const shared = [
    attribute(IFLA_MTU, u32(options.mtu)),
    attribute(IFLA_NUM_TX_QUEUES, u32(1)),
    attribute(IFLA_NUM_RX_QUEUES, u32(1)),
  ];
  return [
    {
      action: `make link "${name}"`,
      type: RTM_NEWLINK,
      flags: NLM_F_CREATE | NLM_F_EXCL,
      payload: Buffer.concat([
        linkHeader(),
        attribute(IFLA_IFNAME, text(name)),
        ...shared,
        attribute(IFLA_MASTER, u32(options.bridge)),
        nested(
          IFLA_LINKINFO,
          attribute(IFLA_INFO_KIND, text("veth")),
          nested(
            IFLA_INFO_DATA,
            nested(
              VETH_INFO_PEER,
              linkHeader(),
              attribute(IFLA_IFNAME, text(peer.name)),
              attribute(IFLA_ADDRESS, macBytes(peer.address)),
              attribute(IFLA_NET_NS_FD, u32(options.namespaceFd)),
              ...shared,
            ),
          ),
        ),
      ]),
    },
    withoutLinkLocal(name),
  ];
}

/**
 * Makes a port of a bridge reach nothing but the bridge itself, and the bridge believe nothing that the port says: it is
 * isolated from other isolated ports, its addresses are not learned and nothing is flooded to it.
 */
export function isolatePort(name: string): NetlinkMessage {
  return {
    action: `isolate bridge port "${name}"`,
    type: RTM_NEWLINK,
    payload: Buffer.concat([
      linkHeader(),
      attribute(IFLA_IFNAME, text(name)),
      nested(
        IFLA_LINKINFO,
        attribute(IFLA_INFO_SLAVE_KIND, text("bridge")),
        nested(
          IFLA_INFO_SLAVE_DATA,
          attribute(IFLA_BRPORT_ISOLATED, u8(1)),
          attribute(IFLA_BRPORT_LEARNING, u8(0)),
          attribute(IFLA_BRPORT_UNICAST_FLOOD, u8(0)),
          attribute(IFLA_BRPORT_MCAST_FLOOD, u8(0)),
          attribute(IFLA_BRPORT_BCAST_FLOOD, u8(0)),
        ),
      ),
    ]),
  };
}

export function bringUp(name: string): NetlinkMessage {
  return {
    action: `bring link "${name}" up`,
    type: RTM_NEWLINK,
    payload: Buffer.concat([linkHeader({ up: true }), attribute(IFLA_IFNAME, text(name))]),
  };
}

/** Deletes a link and its peer; one that does not exist is as good as deleted. */
export function deleteLink(name: string): NetlinkMessage {
  return {
    action: `delete link "${name}"`,
    type: RTM_DELLINK,
    payload: Buffer.concat([linkHeader(), attribute(IFLA_IFNAME, text(name))]),
    tolerate: [ENODEV],
  };
}

/** Gives a link an address; it is used at once, without asking whether somebody else has it. */
export function addAddress(link: number, address: string, prefixLength: number): NetlinkMessage {
  const bytes = addressBytes(address);
  const header = Buffer.alloc(8); // struct ifaddrmsg: family, prefixlen, flags, scope, index
  header[0] = isIPv6(address) ? AF_INET6 : AF_INET;
  header[1] = prefixLength;
  header.writeUInt32LE(link, 4);
  return {
    action: `add address ${address}/${prefixLength}`,
    type: RTM_NEWADDR,
    flags: NLM_F_CREATE | NLM_F_EXCL,
    payload: Buffer.concat([
      header,
      attribute(IFA_LOCAL, bytes),
      attribute(IFA_ADDRESS, bytes),
      attribute(IFA_FLAGS, u32(IFA_F_NODAD)),
    ]),
  };
}

/** Sends everything by way of a gateway, which need not be on a network that the link knows. */
/** An address of a link. */
export interface LinkAddress {
  /** Its index. */
  readonly link: number;
  readonly address: string;
  readonly prefixLength: number;
  /** Not of this link or this machine only. */
  readonly isGlobal: boolean;
}

export function listAddresses(netlink: Netlink, family: 4 | 6): LinkAddress[] {
  const header = Buffer.alloc(8); // struct ifaddrmsg
  header[0] = family === 6 ? AF_INET6 : AF_INET;
  const replies = netlink.dump({
    action: `list IPv${family} addresses`,
    type: RTM_GETADDR,
    payload: header,
    tolerate: [97, 95],
  });
  return replies
    .filter(({ type, payload }) => type === RTM_NEWADDR && payload[0] === header[0])
    .map(({ payload }) => {
      const attributes = parseAttributes(payload.subarray(8));
      const bytes = attributes.get(IFA_LOCAL) ?? attributes.get(IFA_ADDRESS) ?? Buffer.alloc(family === 6 ? 16 : 4);
      return {
        link: payload.readUInt32LE(4),
        address: addressText(bytes),
        prefixLength: payload[1] ?? 0,
        isGlobal: payload[3] === RT_SCOPE_UNIVERSE,
      };
    });
}

export function deleteAddress({ link, address, prefixLength }: LinkAddress): NetlinkMessage {
  const bytes = addressBytes(address);
  const header = Buffer.alloc(8);
  header[0] = isIPv6(address) ? AF_INET6 : AF_INET;
  header[1] = prefixLength;
  header.writeUInt32LE(link, 4);
  return {
    action: `delete address ${address}`,
    type: RTM_DELADDR,
    payload: Buffer.concat([header, attribute(IFA_LOCAL, bytes), attribute(IFA_ADDRESS, bytes)]),
  };
}

export function addDefaultRoute(link: number, gateway: string): NetlinkMessage {
  const header = Buffer.alloc(12); // struct rtmsg
  header[0] = isIPv6(gateway) ? AF_INET6 : AF_INET;
  header[4] = RT_TABLE_MAIN;
  header[5] = RTPROT_STATIC;
  header[7] = RTN_UNICAST;
  header.writeUInt32LE(RTNH_F_ONLINK, 8);
  return {
    action: `add a default route by way of ${gateway}`,
    type: RTM_NEWROUTE,
    flags: NLM_F_CREATE | NLM_F_EXCL,
    payload: Buffer.concat([header, attribute(RTA_GATEWAY, addressBytes(gateway)), attribute(RTA_OIF, u32(link))]),
  };
}

function neighborHeader(family: number, link: number, state: number, flags = 0): Buffer {
  const header = Buffer.alloc(12); // struct ndmsg: family, ifindex, state, flags, type
  header[0] = family;
  header.writeInt32LE(link, 4);
  header.writeUInt16LE(state, 8);
  header[10] = flags;
  return header;
}

/** Says once and for all which hardware address a neighbor has, so that nobody asks and nobody can lie. */
export function addNeighbor(link: number, address: string, hardware: MacAddress): NetlinkMessage {
  return {
    action: `add neighbor ${address}`,
    type: RTM_NEWNEIGH,
    flags: NLM_F_CREATE,
    payload: Buffer.concat([
      neighborHeader(isIPv6(address) ? AF_INET6 : AF_INET, link, NUD_PERMANENT),
      attribute(NDA_DST, addressBytes(address)),
      attribute(NDA_LLADDR, macBytes(hardware)),
    ]),
  };
}

export function deleteNeighbor(link: number, address: string): NetlinkMessage {
  return {
    action: `delete neighbor ${address}`,
    type: RTM_DELNEIGH,
    payload: Buffer.concat([
      neighborHeader(isIPv6(address) ? AF_INET6 : AF_INET, link, NUD_PERMANENT),
      attribute(NDA_DST, addressBytes(address)),
    ]),
    tolerate: [ENOENT, ENODEV],
  };
}

/** Tells a bridge behind which port a hardware address is. */
export function addForwardingEntry(port: number, hardware: MacAddress): NetlinkMessage {
  return {
    action: `tell the bridge where ${hardware} is`,
    type: RTM_NEWNEIGH,
    flags: NLM_F_CREATE,
    payload: Buffer.concat([
      neighborHeader(AF_BRIDGE, port, NUD_NOARP, NTF_MASTER),
      attribute(NDA_LLADDR, macBytes(hardware)),
    ]),
    tolerate: [EEXIST],
  };
}

/** @throws {SyscallError} `ENODEV` if there is no such link. */
export function findLink(netlink: Netlink, name: string): Link {
  const reply = netlink.get({
    action: `find link "${name}"`,
    type: RTM_GETLINK,
    payload: Buffer.concat([linkHeader(), attribute(IFLA_IFNAME, text(name))]),
  });
  return parseLink(reply.payload);
}

export function listLinks(netlink: Netlink): Link[] {
  const replies = netlink.dump({ action: "list links", type: RTM_GETLINK, payload: linkHeader() });
  return replies.filter(({ type }) => type === RTM_NEWLINK).map(({ payload }) => parseLink(payload));
}

function parseLink(payload: Buffer): Link {
  const attributes = parseAttributes(payload.subarray(16));
  return {
    index: payload.readInt32LE(4),
    name: textOf(attributes.get(IFLA_IFNAME)),
    mtu: attributes.get(IFLA_MTU)?.readUInt32LE(0) ?? 0,
    up: (payload.readUInt32LE(8) & IFF_UP) !== 0,
  };
}

/** The routes of one family in all tables, the local ones included. */
export function listRoutes(netlink: Netlink, family: 4 | 6): Route[] {
  const header = Buffer.alloc(12);
  header[0] = family === 6 ? AF_INET6 : AF_INET;
  const replies = netlink.dump({
    action: `list IPv${family} routes`,
    type: RTM_GETROUTE,
    payload: header,
    tolerate: [97, 95],
  });
  return replies
    .filter(({ type, payload }) => type === RTM_NEWROUTE && payload[0] === header[0])
    .map(({ payload }) => {
      const attributes = parseAttributes(payload.subarray(12));
      const link = attributes.get(RTA_OIF)?.readUInt32LE(0);
      return {
        range: parsePrefix(attributes.get(RTA_DST) ?? Buffer.alloc(family === 6 ? 16 : 4), payload[1] ?? 0),
        links: [...(link === undefined ? [] : [link]), ...multipathLinks(attributes.get(RTA_MULTIPATH))],
        table: attributes.get(RTA_TABLE)?.readUInt32LE(0) ?? payload[4] ?? 0,
        metric: attributes.get(RTA_PRIORITY)?.readUInt32LE(0) ?? 0,
        unicast: payload[7] === RTN_UNICAST,
      };
    });
}

/** struct rtnexthop: length, flags, hops, interface index, then attributes. */
function multipathLinks(nextHops: Buffer = Buffer.alloc(0)): number[] {
  const links: number[] = [];
  for (let at = 0; at + 8 <= nextHops.length; ) {
    links.push(nextHops.readInt32LE(at + 4));
    at += Math.max(8, (nextHops.readUInt16LE(at) + 3) & ~3);
  }
  return links;
}

/** The route of the main table that takes what no other takes, the preferred one first. */
export function defaultRoute(routes: readonly Route[]): Route | undefined {
  return routes
    .filter(
      ({ range, table, unicast, links }) =>
        range.prefixLength === 0 && table === RT_TABLE_MAIN && unicast && links.length > 0,
    )
    .sort((a, b) => a.metric - b.metric)[0];
}
