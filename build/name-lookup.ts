/** Names as the commands of a build find them: by hosts(5) and resolv.conf(5) of their network, not the agent's. */
import { Resolver } from "node:dns/promises";
import { isIP, type LookupFunction } from "node:net";
import { callbackify } from "node:util";

export interface NameFiles {
  readonly hosts: string;
  readonly resolvConf: string;
}

interface Address {
  readonly address: string;
  readonly family: 4 | 6;
}

/** More than any resolver looks at. */
const MAX_SERVERS = 3;
const MAX_SEARCH = 6;

/**
 * Makes what `http.get` looks names up with. Unlike getaddrinfo(3), which other threads do, it asks from the thread that calls it
 * and so in the network of that: what is in there is all that can be asked.
 */
export function lookupIn({ hosts, resolvConf }: NameFiles): LookupFunction {
  const known = readHosts(hosts);
  const settings = readResolvConf(resolvConf);
  const resolver = new Resolver({ timeout: 5000, tries: 2 });
  resolver.setServers(settings.servers);
  const find = async (name: string): Promise<readonly Address[]> => {
    const listed = known.get(name.toLowerCase());
    if (listed !== undefined) return listed;
    const searched = settings.search.map((domain) => `${name}.${domain}`);
    const names = name.endsWith(".") ? [name] : name.includes(".") ? [name, ...searched] : [...searched, name];
    let failure: unknown;
    for (const each of names) {
      const answers = await Promise.allSettled([resolver.resolve4(each), resolver.resolve6(each)]);
      const found = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
      if (found.length > 0) return found.map(describe);
      failure ??= (answers[0] as PromiseRejectedResult).reason;
    }
    const { code = "ENODATA" } = (failure ?? {}) as NodeJS.ErrnoException;
    throw Object.assign(new Error(`the name ${JSON.stringify(name)} is not known in this build's network: ${code}`), {
      code,
    });
  };
  const wanted = callbackify(async (name: string, family: number) => {
    const found = (await find(name)).filter((each) => (family === 4 || family === 6 ? each.family === family : true));
    if (found.length > 0) return found;
    throw Object.assign(new Error(`the name ${JSON.stringify(name)} has no such address`), { code: "ENODATA" });
  });
  return (name, options, callback) => {
    wanted(name, Number(options.family ?? 0), (error, found) => {
      const [first] = found ?? [];
      if (first === undefined) callback(error, "");
      else if (options.all === true) callback(null, [...found]);
      else callback(null, first.address, first.family);
    });
  };
}

function describe(address: string): Address {
  return { address, family: isIP(address) === 6 ? 6 : 4 };
}

function readHosts(text: string): ReadonlyMap<string, readonly Address[]> {
  const known = new Map<string, Address[]>();
  for (const line of text.split("\n")) {
    const [address = "", ...names] = line.replace(/#.*$/, "").trim().split(/\s+/);
    if (isIP(address) === 0) continue;
    for (const name of names.map((each) => each.toLowerCase()))
      known.set(name, [...(known.get(name) ?? []), describe(address)]);
  }
  return known;
}

function readResolvConf(text: string): { readonly servers: readonly string[]; readonly search: readonly string[] } {
  const servers: string[] = [];
  let search: readonly string[] = [];
  for (const line of text.split("\n")) {
    const [key, ...values] = line
      .replace(/[#;].*$/, "")
      .trim()
      .split(/\s+/);
    if (key === "nameserver" && isIP(values[0] ?? "") !== 0) servers.push(values[0] as string);
    if (key === "search" || key === "domain") search = values.filter((domain) => domain !== ".");
  }
  // Without one, the resolver's own of resolv.conf(5).
  return {
    servers: servers.length === 0 ? ["127.0.0.1"] : servers.slice(0, MAX_SERVERS),
    search: search.slice(0, MAX_SEARCH),
  };
}
