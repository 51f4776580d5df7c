/** What the sets of an agent's rules hold about its jobs, as messages to the kernel; plain functions of plain data. */
import { macBytes } from "./netlink-route.ts";
import type { NetlinkMessage } from "./netlink.ts";
import { addressBytes, addressText, isIPv6 } from "./network-address.ts";
import type { Guarded } from "./network-forwarding.ts";
import { addElements, flushSet, nameBytes, type SetElement, type Table } from "./nftables.ts";

/** A job's network; plain data, so that it can be told to another thread. */
export interface KernelNetwork {
  readonly slot: number;
  /** Open in the whole process. */
  readonly namespaceFd: number;
  readonly ipv4: string;
  readonly ipv6?: string;
  /** Where the rules are in the namespace itself: a netlink socket for `RefusalProbe`. */
  readonly probeFd?: number;
}

/** An address and some of its ports, by TCP and UDP. */
export interface Destination {
  readonly address: string;
  readonly firstPort: number;
  readonly lastPort: number;
}

/** One job's place on the bridge, and what holds for it alone. */
export interface Slot {
  readonly network: KernelNetwork;
  readonly port: string;
  allowed: readonly Destination[] | undefined;
  /** Kept from private networks, too. */
  publicOnly: boolean;
}

/** `addElements` or `deleteElements`. */
type Change = (table: Table, set: string, elements: readonly SetElement[]) => NetlinkMessage[];

export function addressesOf({ ipv4, ipv6 }: KernelNetwork): string[] {
  return ipv6 === undefined ? [ipv4] : [ipv4, ipv6];
}

/** Locally administered, and as unique as the address. */
export function hardwareAddress(ipv4: string): string {
  return [0x0a, 0x51, ...addressBytes(ipv4)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** What the job's frames must carry. */
export function sourceElements(
  change: Change,
  bridgeTable: Table,
  slot: Pick<Slot, "network" | "port">,
): NetlinkMessage[] {
  const { network, port } = slot;
  const hardware = Buffer.concat([macBytes(hardwareAddress(network.ipv4)), Buffer.alloc(2)]);
  return addressesOf(network).flatMap((address) =>
    change(bridgeTable, `sources${familyOf(address)}`, [
      { key: Buffer.concat([nameBytes(port), hardware, addressBytes(address)]) },
    ]),
  );
}

/** What the job may reach, if that is a list. */
export function restrictionElements(change: Change, table: Table, { network, allowed }: Slot): NetlinkMessage[] {
  if (allowed === undefined) return [];
  return addressesOf(network).flatMap((source) => {
    const family = familyOf(source);
    const destinations = allowed.filter(({ address }) => familyOf(address) === family);
    return [
      ...change(table, `restricted${family}`, [{ key: addressBytes(source) }]),
      ...change(
        table,
        `allowed${family}`,
        destinations.flatMap((one) => destinationElements(addressBytes(source), one)),
      ),
    ];
  });
}

export function publicElements(change: Change, table: Table, { network, publicOnly }: Slot): NetlinkMessage[] {
  if (!publicOnly) return [];
  return addressesOf(network).flatMap((source) =>
    change(table, `public-only${familyOf(source)}`, [{ key: addressBytes(source) }]),
  );
}

export function guardElements(table: Table, guarded: Guarded): NetlinkMessage[] {
  const keys = (names: readonly string[]): SetElement[] => names.map((name) => ({ key: nameBytes(name) }));
  return [...addElements(table, "guarded4", keys(guarded.ipv4)), ...addElements(table, "guarded6", keys(guarded.ipv6))];
}

/** Replaces what no job reaches, by address and port. */
export function replaceWithheld(table: Table, withheld: readonly Destination[]): NetlinkMessage[] {
  return [...[4, 6].map((family) => flushSet(table, `withheld${family}`)), ...withheldElements(table, withheld)];
}

/** The same for sets that are empty. */
export function withheldElements(table: Table, withheld: readonly Destination[]): NetlinkMessage[] {
  return withheld.flatMap(({ address, firstPort }) =>
    addElements(
      table,
      `withheld${familyOf(address)}`,
      protocols.map((protocol) => ({ key: destinationKey(address, protocol, firstPort) })),
    ),
  );
}

export function resolverElements(table: Table, resolvers: readonly string[]): NetlinkMessage[] {
  return resolvers.flatMap((address) =>
    addElements(
      table,
      `resolvers${familyOf(address)}`,
      protocols.map((protocol) => ({ key: destinationKey(address, protocol, 53) })),
    ),
  );
}

/** The same destinations without overlaps, which the kernel would refuse. */
export function disjoint(destinations: readonly Destination[]): Destination[] {
  const byAddress = Map.groupBy(destinations, ({ address }) => addressText(addressBytes(address)));
  return [...byAddress].flatMap(([address, ranges]) => {
    const merged: { address: string; firstPort: number; lastPort: number }[] = [];
    for (const { firstPort, lastPort } of ranges.toSorted((a, b) => a.firstPort - b.firstPort)) {
      const previous = merged.at(-1);
      if (previous !== undefined && firstPort <= previous.lastPort + 1) {
        previous.lastPort = Math.max(previous.lastPort, lastPort);
      } else merged.push({ address, firstPort, lastPort });
    }
    return merged;
  });
}

/** TCP and UDP, which have ports. */
const protocols = [6, 17] as const;

function destinationKey(address: string, protocol: (typeof protocols)[number], port: number): Buffer {
  const rest = Buffer.alloc(8);
  rest[0] = protocol;
  rest.writeUInt16BE(port, 4);
  return Buffer.concat([addressBytes(address), rest]);
}

function destinationElements(source: Buffer, { address, firstPort, lastPort }: Destination): SetElement[] {
  return protocols.map((protocol) => ({
    key: Buffer.concat([source, destinationKey(address, protocol, firstPort)]),
    lastKey: Buffer.concat([source, destinationKey(address, protocol, lastPort)]),
  }));
}

function familyOf(address: string): 4 | 6 {
  return isIPv6(address) ? 6 : 4;
}
