/** Internet addresses as bytes, numbers and ranges. */
import { BlockList, isIP } from "node:net";

/** A range of addresses by its first address and the length of the prefix that they share. */
export interface AddressRange {
  readonly family: 4 | 6;
  readonly first: bigint;
  /** Of the last address. */
  readonly last: bigint;
  readonly prefixLength: number;
}

export function isIPv6(address: string): boolean {
  return address.includes(":");
}

/** The four or sixteen bytes of an address. @throws {Error} If it is none. */
export function addressBytes(address: string): Buffer {
  const family = isIP(address);
  if (family === 4) return Buffer.from(address.split(".").map(Number));
  if (family !== 6 || address.includes("%")) throw new Error(`Not an Internet address: ${JSON.stringify(address)}`);
  // The last 32 bits may be written as an IPv4 address.
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(address);
  const plain = dotted === null ? address : `${dotted[1]}${dottedGroups(dotted[2] ?? "")}`;
  const [head = "", tail] = plain.split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const middle = tail === undefined ? [] : Array<string>(8 - left.length - right.length).fill("0");
  return Buffer.from([...left, ...middle, ...right].map((group) => group.padStart(4, "0")).join(""), "hex");
}

function dottedGroups(address: string): string {
  const hex = addressBytes(address).toString("hex");
  return `${hex.slice(0, 4)}:${hex.slice(4)}`;
}

/** The text of four or sixteen bytes; IPv6 in its canonical form (RFC 5952). */
export function addressText(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join(".");
  const groups = Array.from({ length: 8 }, (_, i) =>
    ((bytes[2 * i] ?? 0) * 256 + (bytes[2 * i + 1] ?? 0)).toString(16),
  );
  let best = { start: -1, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (groups[start + length] === "0") length++;
    if (length > best.length) best = { start, length };
  }
  if (best.start < 0) return groups.join(":");
  return `${groups.slice(0, best.start).join(":")}::${groups.slice(best.start + best.length).join(":")}`;
}

function toNumber(bytes: Uint8Array): bigint {
  return BigInt(`0x${Buffer.from(bytes).toString("hex")}`);
}

/** The bytes of a number as an address. */
export function numberBytes(value: bigint, family: 4 | 6): Buffer {
  return Buffer.from(value.toString(16).padStart(family === 4 ? 8 : 32, "0"), "hex");
}

export function parsePrefix(bytes: Uint8Array, prefixLength: number): AddressRange {
  const family = bytes.length === 4 ? 4 : 6;
  const hostBits = BigInt((family === 4 ? 32 : 128) - prefixLength);
  const first = (toNumber(bytes) >> hostBits) << hostBits;
  return { family, first, last: first + (1n << hostBits) - 1n, prefixLength };
}

/** `10.0.0.0/8`, or one address. @throws {Error} If it is neither. */
export function parseRange(cidr: string): AddressRange {
  const [address = "", length] = cidr.split("/");
  const bytes = addressBytes(address);
  return parsePrefix(bytes, length === undefined ? bytes.length * 8 : Number(length));
}

export function overlap(a: AddressRange, b: AddressRange): boolean {
  return a.family === b.family && a.first <= b.last && b.first <= a.last;
}

/** Whether an address is this machine's own loopback, or none at all. */
export function isLoopback(address: string): boolean {
  return loopback.check(address, isIPv6(address) ? "ipv6" : "ipv4");
}

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addSubnet("0.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");
loopback.addAddress("::", "ipv6");
