/**
 * The expressions that rules of nf_tables are made of: some load a value into registers, some compare, the last one acts.
 *
 * `register` counts words of four bytes from 0 to 15; what is looked up in a set stands in consecutive ones, each field
 * padded to whole words. Source: include/uapi/linux/netfilter/nf_tables.h of the kernel.
 */
import { attribute, be32, be64, nested, text, u32, u8 } from "./netlink.ts";
import { NF_ACCEPT, NF_DROP } from "./nftables.ts";

/** One expression of a rule, as the kernel reads it. */
export type Expression = Buffer;

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

/**
 * Goes on only for the first packets with the key.
 *
 * The kernel has no expression that counts and stops: this is its rate limit with all of its tokens at the beginning, to
 * which one is added in a day.
 *
 * @param set Dynamic: one count for every key.
 */
export function firstPackets(count: number, set: string, register = 0): Expression {
  const NFT_DYNSET_OP_UPDATE = 1;
  const dayS = 86_400n;
  return expression(
    "dynset",
    attribute(1, text(set)),
    attribute(3, be32(NFT_DYNSET_OP_UPDATE)),
    attribute(4, be32(firstWord + register)),
    nested(
      7,
      expression(
        "limit",
        attribute(1, be64(1n)),
        attribute(2, be64(dayS)),
        attribute(3, be32(count)),
        attribute(4, be32(0)),
      ),
    ),
  );
}
