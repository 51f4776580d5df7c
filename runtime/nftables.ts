/**
 * nf_tables by netlink: tables, chains, sets, rules and the expressions that rules are made of.
 *
 * A rule is a list of expressions: some load a value into registers, some compare, the last one acts. Registers are
 * numbered in words of four bytes; what is looked up in a set stands in consecutive ones, each field padded to whole words.
 * Source: include/uapi/linux/netfilter/nf_tables.h of the kernel.
 */
import { ENOENT } from "./linux.ts";
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
  u32,
  u8,
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

/** One expression of a rule, as the kernel reads it. */
export type Expression = Buffer;

export interface Chain {
  readonly name: string;
  /** Chains without a hook are reached from others only. */
  readonly hook?: { readonly type: "filter" | "nat"; readonly at: keyof typeof hooks; readonly priority: number };
  readonly rules: readonly (readonly Expression[])[];
}

/** Types of set keys and the bytes that each takes in a key; the numbers are nft's own, for its listings. */
const keyTypes = {
  ipv4_addr: { number: 7, bytes: 4 },
  ipv6_addr: { number: 8, bytes: 16 },
  ether_addr: { number: 9, bytes: 8 },
  inet_proto: { number: 12, bytes: 4 },
  inet_service: { number: 13, bytes: 4 },
  ifname: { number: 41, bytes: 16 },
} as const;
export type KeyType = keyof typeof keyTypes;

export interface NamedSet {
  readonly name: string;
  readonly key: readonly KeyType[];
  /** Elements are ranges: pairs of a first key and of the first key behind it. */
  readonly intervals?: boolean;
  /** Rules add to it, up to this many elements. */
  readonly dynamicSize?: number;
}

export interface SetElement {
  readonly key: Uint8Array;
  /** Behind the end of an interval. */
  readonly intervalEnd?: boolean;
}

const NFT_SET_INTERVAL = 0x4;
const NFT_SET_EVAL = 0x20;
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
  const flags = (set.intervals ? NFT_SET_INTERVAL : 0) | (set.dynamicSize === undefined ? 0 : NFT_SET_EVAL);
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
      ...(set.dynamicSize === undefined ? [] : [nested(9, attribute(1, be32(set.dynamicSize)))]),
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

function elements(kind: "NEWSETELEM" | "DELSETELEM", table: Table, set: string, list: readonly SetElement[]): Buffer {
  return payload(
    table.family,
    attribute(1, text(table.name)),
    attribute(2, text(set)),
    nested(
      3,
      ...list.map(({ key, intervalEnd }) =>
        nested(
          1,
          nested(1, attribute(1, key)),
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

/** The elements of a set with their counters. */
export function listElements(
  netlink: Netlink,
  table: Table,
  set: string,
): { readonly key: Buffer; readonly packets: number }[] {
  const replies = netlink.dump({
    action: `list set "${set}"`,
    type: type("GETSETELEM"),
    payload: payload(table.family, attribute(1, text(table.name)), attribute(2, text(set))),
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

// Expressions. `register` counts words of four bytes from 0 to 15.

const firstWord = 8; // NFT_REG32_00
const verdictRegister = 0;

function expression(name: string, ...attributes: readonly Uint8Array[]): Expression {
  return Buffer.concat([attribute(1, text(name)), nested(2, ...attributes)]);
}

/** What is known about a packet beside its bytes. */
const metaKeys = { protocol: 1, iifname: 6, oifname: 7, nfproto: 15, l4proto: 16 } as const;

export function meta(key: keyof typeof metaKeys, register = 0): Expression {
  return expression("meta", attribute(1, be32(firstWord + register)), attribute(2, be32(metaKeys[key])));
}

const bases = { link: 0, network: 1, transport: 2 } as const;

/** Loads bytes of the packet. */
export function packetBytes(base: keyof typeof bases, offset: number, length: number, register = 0): Expression {
  return expression(
    "payload",
    attribute(1, be32(firstWord + register)),
    attribute(2, be32(bases[base])),
    attribute(3, be32(offset)),
    attribute(4, be32(length)),
  );
}

/** Goes on with the rule only if the register equals the bytes, or with `not`, if it does not. */
export function equals(
  bytes: Uint8Array,
  options: { readonly register?: number; readonly not?: boolean } = {},
): Expression {
  return expression(
    "cmp",
    attribute(1, be32(firstWord + (options.register ?? 0))),
    attribute(2, be32(options.not ? 1 : 0)),
    nested(3, attribute(1, bytes)),
  );
}

/** Goes on with the rule only if what stands in the registers from `register` on is in the set, or with `not`, is not. */
export function inSet(set: string, options: { readonly register?: number; readonly not?: boolean } = {}): Expression {
  return expression(
    "lookup",
    attribute(1, text(set)),
    attribute(2, be32(firstWord + (options.register ?? 0))),
    ...(options.not ? [attribute(5, be32(1))] : []),
  );
}

/** States of a connection, as bits. */
export const ctStates = { invalid: 1, established: 2, related: 4, new: 8 } as const;
const IPS_DST_NAT = 1 << 5;

function ct(key: number, bits: number, not: boolean): Expression[] {
  return [
    expression("ct", attribute(1, be32(firstWord)), attribute(2, be32(key))),
    expression(
      "bitwise",
      attribute(1, be32(firstWord)),
      attribute(2, be32(firstWord)),
      attribute(3, be32(4)),
      nested(4, attribute(1, u32(bits))),
      nested(5, attribute(1, u32(0))),
    ),
    equals(u32(0), { not: !not }),
  ];
}

/** Goes on only if the packet's connection is in one of these states. */
export function inState(...states: readonly (keyof typeof ctStates)[]): Expression[] {
  return ct(
    0,
    states.reduce((bits, state) => bits | ctStates[state], 0),
    false,
  );
}

/** Goes on only if no other rule of the host has given the connection another destination. */
export function notRedirected(): Expression[] {
  return ct(2, IPS_DST_NAT, true);
}

/** Loads the kind of the destination, as the routing tables see it: RTN_LOCAL and so on. */
export function destinationKind(register = 0): Expression {
  const NFT_FIB_RESULT_ADDRTYPE = 3;
  const NFTA_FIB_F_DADDR = 2;
  return expression(
    "fib",
    attribute(1, be32(firstWord + register)),
    attribute(2, be32(NFT_FIB_RESULT_ADDRTYPE)),
    attribute(3, be32(NFTA_FIB_F_DADDR)),
  );
}

/** Writes bytes into registers. */
export function load(bytes: Uint8Array, register = 0): Expression {
  return expression("immediate", attribute(1, be32(firstWord + register)), nested(2, attribute(1, bytes)));
}

function verdict(code: number, chain?: string): Expression {
  return expression(
    "immediate",
    attribute(1, be32(verdictRegister)),
    nested(2, nested(2, attribute(1, be32(code)), ...(chain === undefined ? [] : [attribute(2, text(chain))]))),
  );
}

export const accept = verdict(NF_ACCEPT);
export const drop = verdict(NF_DROP);
/** Goes on behind the rule that led to this chain. */
export const backToCaller = verdict(-5);

/** Goes through another chain and comes back. */
export function jump(chain: string): Expression {
  return verdict(-3, chain);
}

/** Goes on in another chain; its end is the end of this one. */
export function goto(chain: string): Expression {
  return verdict(-4, chain);
}

export function counter(): Expression {
  return expression("counter");
}

/** Gives the connection the address of the link by which it leaves. */
export function masquerade(): Expression {
  return expression("masq");
}

/** Answers that the destination is administratively prohibited. */
export function reject(): Expression {
  const NFT_REJECT_ICMPX_UNREACH = 2;
  const NFT_REJECT_ICMPX_ADMIN_PROHIBITED = 3;
  return expression(
    "reject",
    attribute(1, be32(NFT_REJECT_ICMPX_UNREACH)),
    attribute(2, u8(NFT_REJECT_ICMPX_ADMIN_PROHIBITED)),
  );
}

/** Answers a TCP packet with a reset. */
export function reset(): Expression {
  const NFT_REJECT_TCP_RST = 1;
  return expression("reject", attribute(1, be32(NFT_REJECT_TCP_RST)), attribute(2, u8(0)));
}

/** Adds what stands in the registers to a dynamic set, or counts it there. Where the set is full, the rule ends here. */
export function countIn(set: string, register = 0): Expression {
  const NFT_DYNSET_OP_UPDATE = 1;
  return expression(
    "dynset",
    attribute(1, text(set)),
    attribute(3, be32(NFT_DYNSET_OP_UPDATE)),
    attribute(4, be32(firstWord + register)),
    nested(7, counter()),
  );
}

/**
 * Goes on only if there are more connections with the key than `limit`.
 *
 * @param set Dynamic: one count for every key.
 */
export function moreConnectionsThan(limit: number, set: string, register = 0): Expression {
  const NFT_DYNSET_OP_ADD = 0;
  return expression(
    "dynset",
    attribute(1, text(set)),
    attribute(3, be32(NFT_DYNSET_OP_ADD)),
    attribute(4, be32(firstWord + register)),
    nested(7, expression("connlimit", attribute(1, be32(limit)), attribute(2, be32(1)))),
  );
}

/** The sixteen bytes of a link's name. */
export function nameBytes(name: string): Buffer {
  const bytes = Buffer.alloc(16);
  bytes.write(name);
  return bytes;
}
