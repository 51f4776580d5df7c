/** What a job's /etc/resolv.conf says: the host's resolvers, where they can be reached from another network namespace. */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { isIPv6, isLoopback, overlap, parseRange } from "./network-address.ts";

export interface ResolvConf {
  /** The file. */
  readonly text: string;
  /** The addresses in it. */
  readonly nameservers: readonly string[];
  /** Why no name can be resolved, and how to mend that. */
  readonly problem?: string;
}

/** Where a resolver on this host's loopback interface writes down whom it asks. */
const upstreamFiles = [
  "/run/systemd/resolve/resolv.conf",
  "/run/NetworkManager/no-stub-resolv.conf",
  "/run/dnsmasq/resolv.conf",
  "/run/resolvconf/resolv.conf",
];

/** resolv.conf(5) uses three, the rest is ignored. */
const maxNameservers = 3;

/**
 * Translates the host's resolv.conf for a job.
 *
 * A resolver on the host's loopback interface (127.0.0.53 of systemd-resolved, 127.0.0.1 of dnsmasq) is not the job's; those
 * that it asks itself take its place.
 *
 * @param options.ipv6 Whether the job has IPv6.
 * @param options.root Where the files are. @default "/"
 */
export function jobResolvConf(options: { readonly ipv6: boolean; readonly root?: string }): ResolvConf {
  const root = options.root ?? "";
  const host = parse(read(`${root}/etc/resolv.conf`) ?? "");
  const usable = (address: string) =>
    isIP(address) !== 0 && !isLoopback(address) && !isLinkLocal6(address) && (options.ipv6 || !isIPv6(address));
  let found = { ...host, nameservers: host.nameservers.filter(usable) };
  // Some hosts list the stub and its upstreams side by side; only without any other resolver it is asked whom it asks.
  if (found.nameservers.length === 0) {
    for (const file of upstreamFiles) {
      const upstream = parse(read(`${root}${file}`) ?? "");
      const nameservers = upstream.nameservers.filter(usable);
      if (nameservers.length === 0) continue;
      // `options` of a stub (trust-ad, edns0) say what it can do, not what its upstreams can.
      found = { nameservers, search: host.search.length > 0 ? host.search : upstream.search, options: [] };
      break;
    }
  }
  const nameservers = found.nameservers.slice(0, maxNameservers);
  const lines = [
    ...nameservers.map((address) => `nameserver ${address}`),
    ...(found.search.length > 0 ? [`search ${found.search.join(" ")}`] : []),
    ...(found.options.length > 0 ? [`options ${found.options.join(" ")}`] : []),
  ];
  return {
    text: lines.map((line) => `${line}\n`).join(""),
    nameservers,
    ...(nameservers.length > 0 ? {} : { problem: explain(host.nameservers) }),
  };
}

function explain(nameservers: readonly string[]): string {
  return nameservers.length === 0
    ? "/etc/resolv.conf names no name server; jobs resolve no names; add a nameserver line"
    : `/etc/resolv.conf names only ${nameservers.join(", ")}, which jobs do not reach; make it name a resolver of the network`;
}

/** What counts: of several `search` or `domain` lines the last, of `options` all. @see resolv.conf(5) */
function parse(source: string): { nameservers: string[]; search: string[]; options: string[] } {
  const nameservers: string[] = [];
  let search: string[] = [];
  const options: string[] = [];
  for (const line of source.split("\n")) {
    const [keyword, ...values] = line
      .replace(/[#;].*$/, "")
      .trim()
      .split(/\s+/);
    if (keyword === "nameserver" && values[0] !== undefined) nameservers.push(values[0]);
    // "." alone is systemd's way to say that there is no search domain.
    if (keyword === "search" || keyword === "domain") search = values.filter((domain) => domain !== ".");
    if (keyword === "options") options.push(...values);
  }
  return { nameservers: [...new Set(nameservers)], search, options };
}

const linkLocal = parseRange("fe80::/10");

/** With or without the name of a link behind it: a job has no such link. */
function isLinkLocal6(address: string): boolean {
  return address.includes("%") || (isIPv6(address) && overlap(linkLocal, parseRange(address)));
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
