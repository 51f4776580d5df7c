/**
 * Which addresses a registry may send us to.
 *
 * A registry names other hosts: the realm that gives tokens, the store that a blob is redirected to. A hostile one would name
 * what only this machine reaches: the cloud's metadata service, a database on localhost, the neighbours in the private
 * network. So nobody may send us further inside than it is itself. Names are checked where they are resolved, so that a name
 * that changes its address between check and use (DNS rebinding) gains nothing.
 */
import { lookup as dnsLookup, type LookupAddress } from "node:dns";
import { BlockList, isIP, type LookupFunction } from "node:net";

/** How far inside an address is; each number reaches those below it too. */
export const reach = { public: 0, private: 1, loopback: 2, linkLocal: 3 } as const;
export type Reach = (typeof reach)[keyof typeof reach];

const classes: readonly (readonly [Reach, readonly (readonly [string, number])[]])[] = [
  // Where clouds have their metadata services, credentials included.
  [
    reach.linkLocal,
    [
      ["169.254.0.0", 16],
      ["fe80::", 10],
      ["fd00:ec2::", 32],
    ],
  ],
  [
    reach.loopback,
    [
      ["127.0.0.0", 8],
      ["0.0.0.0", 8],
      ["::", 127],
    ],
  ],
  [
    reach.private,
    [
      ["10.0.0.0", 8],
      ["172.16.0.0", 12],
      ["192.168.0.0", 16],
      ["100.64.0.0", 10],
      ["198.18.0.0", 15],
      ["224.0.0.0", 3],
      ["fc00::", 7],
      ["fec0::", 10],
      ["ff00::", 8],
      ["64:ff9b::", 96],
      ["2002::", 16],
    ],
  ],
];

const blockLists = classes.map(([value, subnets]) => {
  const list = new BlockList();
  for (const [address, prefix] of subnets) list.addSubnet(address, prefix, address.includes(":") ? "ipv6" : "ipv4");
  return [value, list] as const;
});

/** How far inside an IP address is. IPv4 addresses inside IPv6 ones (`::ffff:127.0.0.1`) count as what they hold. */
export function reachOf(address: string): Reach {
  const plain = address.replace(/^\[|\]$/g, "").replace(/%.*$/, "");
  const family = isIP(plain) === 4 ? "ipv4" : "ipv6";
  for (const [value, list] of blockLists) if (list.check(plain, family)) return value;
  return reach.public;
}

/** A host leads further inside than is allowed. */
export class ForbiddenAddressError extends Error {
  override readonly name = "ForbiddenAddressError";
}

const places: Readonly<Record<Reach, string>> = {
  [reach.public]: "in the public network",
  [reach.private]: "in a private network",
  [reach.loopback]: "this machine itself",
  [reach.linkLocal]: "link-local, where clouds keep credentials",
};

/** @throws {ForbiddenAddressError} If a host is further inside than `most`. */
export function checkReach(host: string, found: Reach, most: Reach): void {
  if (found <= most) return;
  throw new ForbiddenAddressError(
    `"${host}" is ${places[found]}, where an image must not lead; to allow it, list the host in the registries' settings`,
  );
}

/** A name look-up for `node:net` that refuses what is further inside than `most`, and tells what it found. */
export function guardedLookup(most: Reach, found: (reach: Reach) => void): LookupFunction {
  return (hostname, options, callback) => {
    dnsLookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
      if (error !== null) return callback(error, "", 0);
      try {
        for (const { address } of addresses) checkReach(hostname, reachOf(address), most);
      } catch (forbidden) {
        return callback(forbidden as NodeJS.ErrnoException, "", 0);
      }
      const [first] = addresses;
      if (first === undefined)
        return callback(Object.assign(new Error(`no address for ${hostname}`), { code: "ENOTFOUND" }), "", 0);
      found(Math.max(...addresses.map(({ address }) => reachOf(address))) as Reach);
      if (options.all === true) callback(null, addresses);
      else callback(null, first.address, first.family);
    });
  };
}
