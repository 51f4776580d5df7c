/**
 * Subnets: every agent of a host has one that no other agent has and no route of the host leads to.
 *
 * A subnet is a locked file with its agent's name in it. The lock ends with the agent; the name stays, and says whose network is
 * left when it was killed.
 */
import { createHash } from "node:crypto";
import { ftruncateSync, mkdirSync, readdirSync, readFileSync, writeSync } from "node:fs";
import { EAGAIN, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from "./linux.ts";
import { type AddressRange, addressText, numberBytes, overlap, parseRange } from "./network-address.ts";
import { close, open, SyscallError, syscall, trySyscall } from "./syscall.ts";

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

/** @returns The name of an agent; undefined for what is none. */
function readName(path: string): string | undefined {
  const name = readFileSync(path, "latin1").slice(0, 100);
  return /^[A-Za-z0-9-]{1,64}$/.test(name) ? name : undefined;
}

/**
 * Lets `sweep` remove what is left of agents that do not run any more, and forgets them. One agent at a time does this, and none
 * takes a subnet meanwhile.
 */
export function forgetDeadAgents(lockDir: string, sweep: (agent: string) => void): void {
  mkdirSync(lockDir, { recursive: true, mode: 0o755 });
  locked(lockDir, () => {
    const dead: { readonly name: string; readonly lock: number }[] = [];
    const alive = new Set<string>();
    for (const file of readdirSync(lockDir).filter((name) => /^\d+$/.test(name))) {
      const name = readName(`${lockDir}/${file}`);
      const lock = lockIndex(lockDir, Number(file));
      if (lock === undefined) alive.add(name ?? "");
      else if (name === undefined) close(lock);
      else dead.push({ name, lock });
    }
    for (const { name, lock } of dead) {
      try {
        // It may have been started again, with another subnet.
        if (!alive.has(name)) sweep(name);
        ftruncateSync(lock);
      } finally {
        close(lock);
      }
    }
  });
}

/** While it holds the lock that all agents of the network namespace share. */
export function locked<T>(lockDir: string, action: () => T): T {
  const lock = open(`${lockDir}/lock`, O_RDWR | O_CREAT, 0o600);
  try {
    syscall("flock", lock, LOCK_EX);
    return action();
  } finally {
    close(lock);
  }
}

/**
 * Takes a free subnet.
 *
 * @param options.agent Whose it is from now on.
 * @param options.lockDir The same for all agents of this network namespace.
 * @param options.routes What the host has routes to; ranges of everything (default routes) left out.
 * @param options.ipv6 Jobs are to have IPv6 too.
 * @throws {Error} If there is none.
 */
export function claimSubnet(options: {
  readonly agent: string;
  readonly lockDir: string;
  readonly routes: readonly AddressRange[];
  readonly ipv6: boolean;
}): Subnet {
  mkdirSync(options.lockDir, { recursive: true, mode: 0o755 });
  return locked(options.lockDir, () => chooseSubnet(options));
}

function chooseSubnet(options: Parameters<typeof claimSubnet>[0]): Subnet {
  const isFree = (range: AddressRange) => !options.routes.some((route) => overlap(route, range));
  let index = 0;
  for (const block of blocks) {
    for (let first = block.first; first < block.last; first += subnetSize, index++) {
      const range: AddressRange = { family: 4, first, last: first + subnetSize - 1n, prefixLength: 24 };
      if (!isFree(range)) continue;
      const lock = lockIndex(options.lockDir, index);
      if (lock === undefined) continue;
      ftruncateSync(lock);
      writeSync(lock, options.agent, 0);
      const ipv6 = options.ipv6 ? uniqueLocal(options.agent, isFree) : undefined;
      return {
        ipv4: `${addressText(numberBytes(first, 4))}/24`,
        ...(ipv6 === undefined ? {} : { ipv6: `${addressText(numberBytes(ipv6.first, 6))}/64` }),
        address4: (slot) => addressText(numberBytes(first + BigInt(slot), 4)),
        address6: (slot) => addressText(numberBytes((ipv6?.first ?? 0n) + BigInt(slot), 6)),
        [Symbol.dispose]: () => {
          ftruncateSync(lock); // nothing is left to be swept
          close(lock);
        },
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
