/** `network:`, whom a step reaches: a word, or a list of what it may reach. */
import { isIP, isIPv6 } from "node:net";
import { list } from "./collection.ts";
import { LIMITS } from "./limits.ts";
import type { AllowedDestination, StepNetwork } from "./pipeline.ts";
import { choice, mapping, mismatch, refuse, type Shape } from "./shape.ts";
import { quote } from "./suggestion.ts";

const words = choice(["job", "none", "host"], { bridge: "job", default: "job", false: "none", true: "job" });

/** `example.org:443`, `192.0.2.1:8000-8100`, `[2001:db8::1]:443`. */
const destination: Shape<AllowedDestination> = {
  expected: "host:port",
  schema: { type: "string", pattern: "^(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9_.-]+):\\d{1,5}(-\\d{1,5})?$" },
  read(node, place) {
    const expected = 'a host and a port like "example.org:443"';
    if (node.kind === "list") {
      return mismatch(node, place, expected, 'put an IPv6 address in quotes: "[2001:db8::1]:443"');
    }
    if (node.kind !== "scalar" || node.value === null) return mismatch(node, place, expected);
    const parsed = parseDestination(node.text);
    return "problem" in parsed ? refuse(node, place, parsed.problem, parsed.suggestion) : parsed;
  },
};

const allowMapping = mapping({
  noun: "a network",
  fields: {
    allow: {
      shape: list({
        expected: "a list of host:port",
        plural: "destinations",
        item: destination,
        single: true,
        max: LIMITS.allowedDestinations,
        suggestion: 'write "allow:" and below it one "- host:port" for each destination',
      }),
      summary:
        "What the step reaches beside localhost and the job's services: names, IPv4 or [IPv6] addresses, each with a port or a range of ports. Names are looked up once, before the step.",
      required: 'write "allow: [host:port]", or "network: none"',
    },
  },
  synonyms: {
    allowed: "allow",
    allowlist: "allow",
    allow_list: "allow",
    egress: "allow",
    only: "allow",
    hosts: "allow",
  },
  hints: { deny: "what is not allowed is refused: write allow", block: "what is not allowed is refused: write allow" },
});

/** What `network` may be. */
export const network: Shape<StepNetwork> = {
  expected: `${words.expected}, or a mapping with "allow"`,
  schema: { anyOf: [words.schema, allowMapping.schema] },
  read(node, place) {
    if (node.kind === "scalar" && node.value !== null) return words.read(node, place);
    const help = node.kind === "list" ? "write the list below allow: network: { allow: [host:port] }" : undefined;
    if (node.kind !== "map") return mismatch(node, place, this.expected, help);
    const read = allowMapping.read(node, place);
    return read?.allow === undefined ? undefined : { allow: read.allow.value.map(({ value }) => value) };
  },
};

type Parsed = AllowedDestination | { readonly problem: string; readonly suggestion?: string };

/** Reads a destination; what is probably meant is suggested. Pure. */
export function parseDestination(text: string): Parsed {
  const url = /^([a-z][a-z0-9+.-]*):\/\/([^/?#]*)/i.exec(text);
  if (url !== null) {
    const [, scheme = "", authority = ""] = url;
    const host = authority.replace(/^.*@/, "");
    const mended = /:\d+$/.test(host) ? host : `${host}:${schemePorts[scheme.toLowerCase()] ?? 443}`;
    return { problem: "it is a URL", ...suggest(mended) };
  }
  const [, address6, name, ports] = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::([^:]*))?$/.exec(text) ?? [];
  const host = address6 ?? name;
  if (host === undefined) {
    return isIPv6(text)
      ? { problem: "an IPv6 address stands in brackets", ...suggest(`[${text}]:443`) }
      : { problem: "it is no host and port" };
  }
  const fault = address6 === undefined ? checkHost(host) : checkIPv6(host);
  if (fault !== undefined) return fault;
  if (ports === undefined) return { problem: "it names no port", ...suggest(`${text}:443`) };
  const [, first, last = first] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(ports) ?? [];
  const [firstPort, lastPort] = [Number(first), Number(last)];
  if (first === undefined) return { problem: `${quote(ports)} is neither a port nor a range like 8000-8100` };
  if (firstPort < 1 || lastPort > 65_535) return { problem: "ports are from 1 to 65535" };
  if (lastPort < firstPort) {
    return {
      problem: "the range ends before it begins",
      ...suggest(`${text.slice(0, -ports.length)}${last}-${first}`),
    };
  }
  return { host: host.toLowerCase(), firstPort, lastPort };
}

const schemePorts: Readonly<Record<string, number>> = { http: 80, https: 443, ssh: 22, git: 9418, redis: 6379 };

function checkIPv6(host: string): { readonly problem: string } | undefined {
  if (isIPv6(host) && !host.includes("%")) return undefined;
  return { problem: host.includes("%") ? "link-local addresses are out of reach" : "it is no IPv6 address" };
}

/** A name as RFC 1123 has it, with the underscores that are in use; a trailing dot would not be found in /etc/hosts. */
function checkHost(host: string): { readonly problem: string; readonly suggestion?: string } | undefined {
  if (isIP(host) === 4) return undefined;
  if (host === "") return { problem: "it names no host" };
  if (host.includes("*")) {
    return {
      problem: "names are looked up before the step, and a pattern has no address",
      suggestion: "write a line for each name",
    };
  }
  if (host.includes("/")) return { problem: "ranges of addresses are not supported: write each address" };
  const lower = host.toLowerCase();
  if (localNames.has(lower))
    return { problem: "the step and its services are reached always", suggestion: "remove it" };
  if (host.endsWith(".")) return { problem: "a name has no dot at its end", ...suggest(`${host.slice(0, -1)}:443`) };
  const labels = lower.split(".");
  if (host.length > 253 || !labels.every((label) => /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label))) {
    return { problem: "it is no name of a host", suggestion: "a name has letters, digits, - and . (others as xn--…)" };
  }
  // What inet_aton(3) takes for an address: 127.1, 0x7f.1, 2130706433.
  if (/^(?:\d+|0x[0-9a-f]*)$/.test(labels.at(-1) ?? "")) return { problem: "it is no IPv4 address" };
  return undefined;
}

/** Names that stand in every container's /etc/hosts. */
export const localNames: ReadonlySet<string> = new Set(["localhost", "slipway", "ip6-localhost", "ip6-loopback"]);

function suggest(destination: string): { readonly suggestion: string } {
  return { suggestion: `write ${quote(destination)}` };
}
