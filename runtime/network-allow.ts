/** Allow lists: whom a step may reach, and what their names mean while it runs. */
import { Resolver } from "node:dns/promises";
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { addressBytes, addressText, isIPv6 } from "./network-address.ts";
import type { Destination } from "./network-elements.ts";

/** A host that a step may reach, by name or address, and its ports. */
export interface AllowedDestination {
  readonly host: string;
  readonly firstPort: number;
  readonly lastPort: number;
}

/** What an allow list came to when its names were looked up; it does not change, whatever name servers say later. */
export interface AllowList {
  readonly destinations: readonly Destination[];
  /** For /etc/hosts. */
  readonly names: readonly { readonly address: string; readonly name: string }[];
}

/** A name of an allow list leads nowhere. */
export class UnknownNameError extends Error {
  override readonly name = "UnknownNameError";
}

/** Of one name; more are left out. The sets of the kernel are shared by all jobs. */
const maxAddresses = 32;
/** For the whole list: a name server that does not answer holds up nobody for longer. */
const timeLimitMs = 15_000;
const namesAtOnce = 8;
const maxHostsBytes = 1 << 20;

/**
 * Looks up the names of an allow list, as the host would: in /etc/hosts, then by its name servers.
 *
 * Not by getaddrinfo(3), which would keep one of the few threads that all jobs share as long as a hostile name server likes.
 *
 * @param options.ipv6 Whether the job has IPv6.
 * @throws {UnknownNameError} If a name has no address that the job could use.
 * @throws {Error} If no name server answers.
 */
export async function lookUpAllowed(
  allowed: readonly AllowedDestination[],
  options: { readonly ipv6: boolean; readonly signal?: AbortSignal | undefined },
): Promise<AllowList> {
  const names = [...new Set(allowed.map(({ host }) => host).filter((host) => isIP(host) === 0))];
  const found = names.length === 0 ? new Map<string, readonly string[]>() : await lookUpAll(names, options);
  return {
    destinations: allowed.flatMap(({ host, firstPort, lastPort }) =>
      (found.get(host) ?? [addressText(addressBytes(host))]).map((address) => ({ address, firstPort, lastPort })),
    ),
    names: names.flatMap((name) => (found.get(name) ?? []).map((address) => ({ address, name }))),
  };
}

async function lookUpAll(
  names: readonly string[],
  { ipv6, signal }: { readonly ipv6: boolean; readonly signal?: AbortSignal | undefined },
): Promise<ReadonlyMap<string, readonly string[]>> {
  const resolver = new Resolver({ timeout: 2000, tries: 3 });
  const stop = AbortSignal.any([AbortSignal.timeout(timeLimitMs), ...(signal === undefined ? [] : [signal])]);
  const cancel = () => resolver.cancel();
  stop.addEventListener("abort", cancel, { once: true });
  const known = readHosts();
  const domains = searchDomains();
  const found = new Map<string, readonly string[]>();
  const waiting = names.values();
  const work = async () => {
    for (const name of waiting) {
      stop.throwIfAborted();
      const addresses = known.get(name.toLowerCase()) ?? (await ask(resolver, name, { ipv6, domains }));
      const usable = addresses.filter((address) => ipv6 || !isIPv6(address)).slice(0, maxAddresses);
      if (usable.length === 0) throw new UnknownNameError(`Cannot allow "${name}": it has no IPv4 address`);
      found.set(name, usable);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(namesAtOnce, names.length) }, work));
    return found;
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    stop.removeEventListener("abort", cancel);
    resolver.cancel();
  }
}

/** Of a name without a dot the search domains come first, as with `ndots:1`. @see resolv.conf(5) */
async function ask(
  resolver: Resolver,
  name: string,
  { ipv6, domains }: { readonly ipv6: boolean; readonly domains: readonly string[] },
): Promise<readonly string[]> {
  const candidates = name.includes(".") ? [name] : [...domains.map((domain) => `${name}.${domain}`), name];
  let failure: NodeJS.ErrnoException | undefined;
  for (const candidate of candidates) {
    const answers = await Promise.allSettled([
      resolver.resolve4(candidate),
      ...(ipv6 ? [resolver.resolve6(candidate)] : []),
    ]);
    const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
    // What comes from a name server is written to a file: only what is an address.
    const valid = addresses.filter((address) => isIP(address) !== 0 && !address.includes("%"));
    if (valid.length > 0) return valid;
    for (const answer of answers) {
      if (answer.status === "fulfilled") continue;
      const error = answer.reason as NodeJS.ErrnoException;
      if (failure === undefined || !isAbsence(error)) failure = error;
    }
  }
  if (failure === undefined || isAbsence(failure)) {
    throw new UnknownNameError(`Cannot allow "${name}": the name is not known (${failure?.code ?? "ENODATA"})`);
  }
  throw new Error(`Cannot allow "${name}": no name server answered (${failure.code ?? failure.message})`, {
    cause: failure,
  });
}

function isAbsence({ code }: NodeJS.ErrnoException): boolean {
  return code === "ENOTFOUND" || code === "ENODATA" || code === "EBADNAME";
}

/** @see hosts(5) */
function readHosts(): ReadonlyMap<string, readonly string[]> {
  const known = new Map<string, string[]>();
  for (const line of readText("/etc/hosts").split("\n")) {
    const [address = "", ...names] = line.replace(/#.*$/, "").trim().split(/\s+/);
    if (isIP(address) === 0 || address.includes("%")) continue;
    for (const name of names.map((one) => one.toLowerCase())) {
      known.set(name, [...(known.get(name) ?? []), address]);
    }
  }
  return known;
}

function searchDomains(): readonly string[] {
  const lines = readText("/etc/resolv.conf").split("\n");
  const last = lines.findLast((line) => /^\s*(?:search|domain)\s/.test(line)) ?? "";
  const [, ...domains] = last
    .replace(/[#;].*$/, "")
    .trim()
    .split(/\s+/);
  return domains.filter((domain) => domain !== ".").slice(0, 6);
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8").slice(0, maxHostsBytes);
  } catch {
    return "";
  }
}
