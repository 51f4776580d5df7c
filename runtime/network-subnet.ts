/** Subnets: every agent of a host has one that no other agent has and no route of the host leads to. */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync } from "node:fs";
import { EAGAIN, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from "./linux.ts";
import { type AddressRange, addressText, numberBytes, overlap, parseRange } from "./network-address.ts";
import { close, open, SyscallError, trySyscall } from "./syscall.ts";

/** Addresses of one agent's jobs. Held until disposed. */
export interface Subnet extends Disposable {
  /** `10.231.0.0/24` */
  readonly ipv4: string;
  /** `fd5a:….::/64`, where it was asked for. */
  readonly ipv6?: string;
  /** Addresses of the `slot`-th job; 1 is the agent's own end. */
  address4(slot: number): string;
  address6(slot: number): string;
}

/** Slot 1 is the bridge's, 255 would be the broadcast address. */
export const firstSlot = 2;
export const lastSlot = 254;

/** Private ranges by how seldom they are used elsewhere; the last is meant for tests of networks and routed by nobody. */
const blocks = ["10.231.0.0/16", "172.29.0.0/16", "192.168.128.0/17", "10.89.0.0/16", "198.18.0.0/15"].map(parseRange);
const subnetSize = 256n;

/**
 * Takes a free subnet.
 *
 * @param options.lockDir The same for all agents of this network namespace.
 * @param options.routes What the host has routes to; ranges of everything (default routes) left out.
 * @param options.ipv6For Names the agent, if jobs are to have IPv6 too.
 * @throws {Error} If there is none.
 */
export function claimSubnet(options: {
  readonly lockDir: string;
  readonly routes: readonly AddressRange[];
  readonly ipv6For?: string;
}): Subnet {
  mkdirSync(options.lockDir, { recursive: true, mode: 0o755 });
  const isFree = (range: AddressRange) => !options.routes.some((route) => overlap(route, range));
  let index = 0;
  for (const block of blocks) {
    for (let first = block.first; first < block.last; first += subnetSize, index++) {
      const range: AddressRange = { family: 4, first, last: first + subnetSize - 1n, prefixLength: 24 };
      if (!isFree(range)) continue;
      const lock = lockIndex(options.lockDir, index);
      if (lock === undefined) continue;
      const ipv6 = options.ipv6For === undefined ? undefined : uniqueLocal(options.ipv6For, isFree);
      return {
        ipv4: `${addressText(numberBytes(first, 4))}/24`,
        ...(ipv6 === undefined ? {} : { ipv6: `${addressText(numberBytes(ipv6.first, 6))}/64` }),
        address4: (slot) => addressText(numberBytes(first + BigInt(slot), 4)),
        address6: (slot) => addressText(numberBytes((ipv6?.first ?? 0n) + BigInt(slot), 6)),
        [Symbol.dispose]: () => close(lock),
      };
    }
  }
  throw new Error(
    `Cannot choose a subnet for jobs: the host has routes to all of ${index} candidates, or other agents use them`,
  );
}

/** A unique local prefix (RFC 4193), always the same for the same agent as long as the host has no route to it. */
function uniqueLocal(agent: string, isFree: (range: AddressRange) => boolean): AddressRange {
  for (let attempt = 0; ; attempt++) {
    const hash = createHash("sha256").update(`${agent} ${attempt}`).digest("hex").slice(0, 10);
    const range = parseRange(`fd${hash.slice(0, 2)}:${hash.slice(2, 6)}:${hash.slice(6, 10)}::/64`);
    // Amazon has its instance services in a unique local prefix of its own.
    if (isFree(range) && !hash.startsWith("000ec2")) return range;
  }
}

function lockIndex(lockDir: string, index: number): number | undefined {
  const fd = open(`${lockDir}/${index}`, O_RDWR | O_CREAT, 0o600);
  const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
  if (result === 0) return fd;
  close(fd);
  if (result === -EAGAIN) return undefined;
  throw new SyscallError("flock", -result, `lock subnet ${index} in "${lockDir}"`);
}

/** Whether another agent holds a subnet. */
export function subnetsInUse(lockDir: string): boolean {
  return readdirSync(lockDir)
    .filter((name) => /^\d+$/.test(name))
    .some((name) => {
      const lock = lockIndex(lockDir, Number(name));
      if (lock !== undefined) close(lock);
      return lock === undefined;
    });
}
