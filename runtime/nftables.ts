/**
 * nf_tables by netlink: tables, chains, sets and rules; what rules are made of is in nftables-expression.ts.
 *
 * Source: include/uapi/linux/netfilter/nf_tables.h of the kernel.
 */
import { ENOENT } from "./linux.ts";
import type { Expression } from "./nftables-expression.ts";
import {
  attribute,
  attributesIn,
  be32,
  nested,
  type Netlink,
  type NetlinkMessage,
  NLM_F_CREATE,
  parseAttributes,
  text,
  textOf,
} from "./netlink.ts";

/** Which packets a table sees: IPv4 and IPv6, or frames on bridges. */
export const NFPROTO_INET = 1;
export const NFPROTO_IPV4 = 2;
export const NFPROTO_BRIDGE = 7;
export const NFPROTO_IPV6 = 10;

const NFNL_SUBSYS_NFTABLES = 10;
const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
const message = {
  NEWTABLE: 0,
  GETTABLE: 1,
  DELTABLE: 2,
  NEWCHAIN: 3,
  GETCHAIN: 4,
  NEWRULE: 6,
  NEWSET: 9,
  NEWSETELEM: 12,
  GETSETELEM: 13,
  DELSETELEM: 14,
} as const;

export interface Table {
  readonly family: number;
  readonly name: string;
}

/** Hooks of the inet and bridge families. */
export const hooks = { prerouting: 0, input: 1, forward: 2, output: 3, postrouting: 4 } as const;

export const NF_DROP = 0;
export const NF_ACCEPT = 1;

export interface Chain {
  readonly name: string;
  /** Chains without a hook are reached from others only. */
  readonly hook?: { readonly type: "filter" | "nat"; readonly at: keyof typeof hooks; readonly priority: number };
  readonly rules: readonly (readonly Expression[])[];
}

/** Types of set keys, their length and the bytes that each takes in a key; the numbers are nft's own, for its listings. */
const keyTypes = {
  ipv4_addr: { number: 7, length: 4, bytes: 4 },
  ipv6_addr: { number: 8, length: 16, bytes: 16 },
  ether_addr: { number: 9, length: 6, bytes: 8 },
  inet_proto: { number: 12, length: 1, bytes: 4 },
  inet_service: { number: 13, length: 2, bytes: 4 },
  ifname: { number: 41, length: 16, bytes: 16 },
} as const;
export type KeyType = keyof typeof keyTypes;

export interface NamedSet {
  readonly name: string;
  readonly key: readonly KeyType[];
  /** Elements are ranges: pairs of a first key and of the first key behind it. */
  readonly intervals?: boolean;
  /** Elements have a first and a last value for every field of the key (`SetElement.lastKey`); no two may overlap. */
  readonly fieldRanges?: boolean;
  /** Rules add to it, up to this many elements. */
  readonly dynamicSize?: number;
}

export interface SetElement {
  readonly key: Uint8Array;
  /** Of a set with `fieldRanges`: the last value of every field. */
  readonly lastKey?: Uint8Array;
  /** Behind the end of an interval. */
  readonly intervalEnd?: boolean;
}

const NFT_SET_INTERVAL = 0x4;
const NFT_SET_EVAL = 0x20;
const NFT_SET_CONCAT = 0x80;
const NFT_SET_ELEM_INTERVAL_END = 1;

function payload(family: number, ...attributes: readonly Uint8Array[]): Buffer {
  return Buffer.concat([Buffer.from([family, 0, 0, 0]), ...attributes]); // struct nfgenmsg
}

function type(kind: keyof typeof message): number {
  return (NFNL_SUBSYS_NFTABLES << 8) | message[kind];
}

/**
 * Changes tables: all of the messages take effect together or none does.
 *
 * @throws {SyscallError} Of the first that the kernel refuses.
 */
export function commit(netlink: Netlink, messages: readonly NetlinkMessage[]): void {
  if (messages.length === 0) return;
  const begin = Buffer.from([0, 0, 0, NFNL_SUBSYS_NFTABLES]); // res_id, big-endian
  netlink.send(
    [
      { action: "begin a change of nf_tables", type: NFNL_MSG_BATCH_BEGIN, payload: begin },
      ...messages,
      { action: "end a change of nf_tables", type: NFNL_MSG_BATCH_END, payload: begin },
    ],
    { acknowledged: messages.slice(-1) },
  );
}

/**
 * @param flags NFT_TABLE_F_OWNER (2): nobody but this socket may change the table, so that flushing the rule set of the host
 *   does not open it; NFT_TABLE_F_PERSIST (4): and yet it outlives the socket (Linux 6.9).
 */
export function newTable({ family, name }: Table, flags = 0): NetlinkMessage {
  return {
    action: `make table "${name}"`,
    type: type("NEWTABLE"),
    flags: NLM_F_CREATE,
    payload: payload(family, attribute(1, text(name)), attribute(2, be32(flags))),
  };
}

export const NFT_TABLE_F_OWNER = 2;
export const NFT_TABLE_F_PERSIST = 4;

/** Deletes a table with all that is in it. */
export function deleteTable({ family, name }: Table): NetlinkMessage {
  return {
    action: `delete table "${name}"`,
    type: type("DELTABLE"),
    payload: payload(family, attribute(1, text(name))),
  };
}

export function hasTable(netlink: Netlink, table: Table): boolean {
  try {
    netlink.get({
      action: `find table "${table.name}"`,
      type: type("GETTABLE"),
      payload: payload(table.family, attribute(1, text(table.name))),
    });
    return true;
  } catch (error) {
    if ((error as { errno?: number }).errno === ENOENT) return false;
    throw error;
  }
}

/** Makes the chain; its rules come later, when all the chains that they lead to are there. */
export function newChain(table: Table, { name, hook }: Chain): NetlinkMessage {
  const base =
    hook === undefined
      ? []
      : [
          nested(4, attribute(1, be32(hooks[hook.at])), attribute(2, be32(hook.priority))),
          attribute(5, be32(NF_ACCEPT)),
          attribute(7, text(hook.type)),
        ];
  return {
    action: `make chain "${name}"`,
    type: type("NEWCHAIN"),
    flags: NLM_F_CREATE,
    payload: payload(table.family, attribute(1, text(table.name)), attribute(3, text(name)), ...base),
  };
}

export function newRules(table: Table, chain: Chain): NetlinkMessage[] {
  return chain.rules.map((expressions, index) => ({
    action: `add rule ${index + 1} of chain "${chain.name}"`,
    type: type("NEWRULE"),
    flags: NLM_F_CREATE | 0x800, // NLM_F_APPEND
    payload: payload(
      table.family,
      attribute(1, text(table.name)),
      attribute(2, text(chain.name)),
      nested(4, ...expressions.map((one) => attribute(1 | 0x8000, one))),
    ),
  }));
}

/** @param id Unlike that of every other set in the batch. */
export function newSet(table: Table, set: NamedSet, id: number): NetlinkMessage {
  const keyType = set.key.reduce((number, one) => (number << 6) | keyTypes[one].number, 0);
  const flags =
    (set.intervals ? NFT_SET_INTERVAL : 0) |
    (set.fieldRanges ? NFT_SET_INTERVAL | NFT_SET_CONCAT : 0) |
    (set.dynamicSize === undefined ? 0 : NFT_SET_EVAL);
  const fields = set.key.map((one) => nested(1, attribute(1, be32(keyTypes[one].length))));
  const description = [
    ...(set.dynamicSize === undefined ? [] : [attribute(1, be32(set.dynamicSize))]),
    ...(set.fieldRanges ? [nested(2, ...fields)] : []),
  ];
  return {
    action: `make set "${set.name}"`,
    type: type("NEWSET"),
    flags: NLM_F_CREATE,
    payload: payload(
      table.family,
      attribute(1, text(table.name)),
      attribute(2, text(set.name)),
      attribute(3, be32(flags)),
      attribute(4, be32(keyType)),
      attribute(5, be32(keyBytes(set))),
      ...(description.length === 0 ? [] : [nested(9, ...description)]),
      attribute(10, be32(id)),
      // For nft's listings: the name of a link is a number in the machine's byte order to it, if it stands alone.
      ...(keyType === keyTypes.ifname.number ? [attribute(13, Buffer.from([0, 4, 1, 0, 0, 0]))] : []),
    ),
  };
}

function keyBytes(set: NamedSet): number {
  if (set.key.length === 1 && set.key[0] === "ether_addr") return 6;
  return set.key.reduce((bytes, one) => bytes + keyTypes[one].bytes, 0);
}

function elements(
  kind: "NEWSETELEM" | "GETSETELEM" | "DELSETELEM",
  table: Table,
  set: string,
  list: readonly SetElement[],
): Buffer {
  return payload(
    table.family,
    attribute(1, text(table.name)),
    attribute(2, text(set)),
    nested(
      3,
      ...list.map(({ key, lastKey, intervalEnd }) =>
        nested(
          1,
          nested(1, attribute(1, key)),
          ...(lastKey === undefined ? [] : [nested(10, attribute(1, lastKey))]),
          ...(intervalEnd && kind === "NEWSETELEM" ? [attribute(3, be32(NFT_SET_ELEM_INTERVAL_END))] : []),
        ),
      ),
    ),
  );
}

const elementsInMessage = 256;

/** Adds elements; as many messages as they need. */
export function addElements(table: Table, set: string, list: readonly SetElement[]): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at < list.length; at += elementsInMessage) {
    messages.push({
      action: `add to set "${set}"`,
      type: type("NEWSETELEM"),
      flags: NLM_F_CREATE,
      payload: elements("NEWSETELEM", table, set, list.slice(at, at + elementsInMessage)),
    });
  }
  return messages;
}

/** Deletes elements; all of them must be there. */
export function deleteElements(table: Table, set: string, list: readonly SetElement[]): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at < list.length; at += elementsInMessage) {
    messages.push({
      action: `delete from set "${set}"`,
      type: type("DELSETELEM"),
      payload: elements("DELSETELEM", table, set, list.slice(at, at + elementsInMessage)),
    });
  }
  return messages;
}

/** Deletes all elements of a set. */
export function flushSet(table: Table, set: string): NetlinkMessage {
  return {
    action: `empty set "${set}"`,
    type: type("DELSETELEM"),
    payload: payload(table.family, attribute(1, text(table.name)), attribute(2, text(set))),
  };
}

/** Asks for an element of a set: ENOENT if there is none, or no such set. */
export function findElement(table: Table, set: string, key: Uint8Array): NetlinkMessage {
  return {
    action: `look into set "${set}"`,
    type: type("GETSETELEM"),
    payload: elements("GETSETELEM", table, set, [{ key }]),
  };
}

/** The elements of a set with their counters; none if there is no such set. */
export function listElements(
  netlink: Netlink,
  table: Table,
  set: string,
): { readonly key: Buffer; readonly packets: number }[] {
  const replies = netlink.dump({
    action: `list set "${set}"`,
    type: type("GETSETELEM"),
    payload: payload(table.family, attribute(1, text(table.name)), attribute(2, text(set))),
    tolerate: [ENOENT],
  });
  return replies.flatMap((reply) => {
    const list = parseAttributes(reply.payload.subarray(4)).get(3) ?? Buffer.alloc(0);
    return attributesIn(list).map(([, element]) => {
      const fields = parseAttributes(element);
      const expression = parseAttributes(fields.get(7) ?? Buffer.alloc(0));
      const isCounter = textOf(expression.get(1)) === "counter";
      const counted = isCounter ? parseAttributes(expression.get(2) ?? Buffer.alloc(0)).get(2) : undefined;
      return {
        key: parseAttributes(fields.get(1) ?? Buffer.alloc(0)).get(1) ?? Buffer.alloc(0),
        packets: counted === undefined ? 0 : Number(counted.readBigUInt64BE(0)),
      };
    });
  });
}

/** The chains of all tables that have a hook. */
export function listBaseChains(netlink: Netlink): {
  readonly family: number;
  readonly table: string;
  readonly name: string;
  readonly hook: number;
  readonly policy: number;
}[] {
  const replies = netlink.dump({ action: "list chains", type: type("GETCHAIN"), payload: payload(0) });
  return replies.flatMap((reply) => {
    const attributes = parseAttributes(reply.payload.subarray(4));
    const hook = attributes.get(4);
    if (hook === undefined) return [];
    return [
      {
        family: reply.payload[0] ?? 0,
        table: textOf(attributes.get(1)),
        name: textOf(attributes.get(3)),
        hook: parseAttributes(hook).get(1)?.readUInt32BE(0) ?? -1,
        policy: attributes.get(5)?.readUInt32BE(0) ?? NF_ACCEPT,
      },
    ];
  });
}

/** The sixteen bytes of a link's name. */
export function nameBytes(name: string): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.write(name);
  return bytes;
}
