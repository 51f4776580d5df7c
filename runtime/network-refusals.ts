/** What the rules have written down about a job: whom it tried to reach and was not let. */
import type { Netlink } from "./netlink.ts";
import { addressBytes, addressText, isIPv6 } from "./network-address.ts";
import { listedRefusals } from "./network-rules.ts";
import { commit, deleteElements, listElements, type Table } from "./nftables.ts";

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

export interface Refusals {
  /** The most frequent first; those of a job that come after the first hundred are not listed. */
  readonly destinations: readonly Refused[];
  /** Packets to destinations that are not listed. */
  readonly unlistedCount: number;
}

/** Sets that rules add to, by the job's address. */
export const writtenByRules = ["refused", "listing", "unlisted", "connections"] as const;

/** An element of a set that is written about one job. */
interface OwnElement {
  readonly set: string;
  readonly key: Buffer;
  readonly packets: number;
  /** Registers that an address takes. */
  readonly words: number;
}

const protocolNames = new Map([
  [1, "icmp"],
  [6, "tcp"],
  [17, "udp"],
  [58, "icmp"],
]);

/** The elements of one kind of set that are about these addresses of a job. */
export function elementsOf(
  filter: Netlink,
  table: Table,
  kind: (typeof writtenByRules)[number],
  sources: readonly string[],
): OwnElement[] {
  return sources.flatMap((source) => {
    const bytes = addressBytes(source);
    const set = `${kind}${isIPv6(source) ? 6 : 4}`;
    return listElements(filter, table, set)
      .filter(({ key }) => key.subarray(0, bytes.length).equals(bytes))
      .map((element) => ({ ...element, set, words: bytes.length / 4 }));
  });
}

/** What a job with these addresses was refused since the last time. */
export function takeRefusals(filter: Netlink, table: Table, sources: readonly string[]): Refusals {
  // Whatever was refused has an element here.
  const listing = elementsOf(filter, table, "listing", sources);
  if (listing.length === 0) return { destinations: [], unlistedCount: 0 };
  const refused = elementsOf(filter, table, "refused", sources);
  const unlisted = elementsOf(filter, table, "unlisted", sources);
  commit(
    filter,
    [...refused, ...unlisted, ...listing].flatMap(({ set, key }) => deleteElements(table, set, [{ key }])),
  );
  const destinations = refused
    .map(({ key, words, packets }) => ({
      address: addressText(key.subarray(4 * words, 8 * words)),
      protocol: protocolNames.get(key[8 * words] ?? 0) ?? `${key[8 * words]}`,
      port: key.readUInt16BE(8 * words + 4),
      count: packets,
    }))
    .sort((a, b) => b.count - a.count);
  // The kernel's limit is for each family.
  const rest = [
    ...destinations.slice(listedRefusals).map(({ count }) => count),
    ...unlisted.map(({ packets }) => packets),
  ];
  return {
    destinations: destinations.slice(0, listedRefusals),
    unlistedCount: rest.reduce((sum, count) => sum + count, 0),
  };
}
