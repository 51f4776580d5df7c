/**
 * Forwarding: the kernel passes packets on only between links on which that is allowed.
 *
 * What the agent allows is written down first, in a file that outlives it; the last agent of the network namespace takes
 * it back.
 */
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { locked, subnetsInUse } from "./network-subnet.ts";

/** Links on which the agents have allowed forwarding that the host had not. */
export interface Guarded {
  readonly ipv4: readonly string[];
  readonly ipv6: readonly string[];
}

interface Change {
  readonly path: string;
  readonly before: string;
  readonly after: string;
}

/** @param directory That of the subnets' locks. */
export class Forwarding {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /**
   * Allows forwarding between the agent's bridge and the links that packets leave by.
   *
   * IPv4 is a matter of each link. IPv6 is one since Linux 6.17 (`force_forwarding`); before, it is the host's as a whole,
   * and a host that forwards stops listening to router advertisements unless it is told to go on (`accept_ra` 2), which
   * would take its own default route away.
   *
   * @param options.globalIPv6 As on kernels before 6.17.
   */
  allow(options: {
    readonly bridge: string;
    readonly uplinks: readonly string[];
    readonly ipv6: boolean;
    readonly globalIPv6?: boolean;
  }): Guarded {
    return locked(this.#directory, () => {
      const changes = this.#read();
      const { bridge, uplinks, ipv6 } = options;
      const set = (path: string, after: string) => {
        const before = sysctl(path);
        if (before === undefined || before === after) return;
        // The bridge goes away with its settings.
        if (!path.includes(`/${bridge}/`) && !changes.some((change) => change.path === path)) {
          changes.push({ path, before, after });
          this.#write(changes);
        }
        writeFileSync(file(path), after);
      };
      for (const link of [bridge, ...uplinks]) set(`ipv4/conf/${link}/forwarding`, "1");
      if (ipv6 && sysctl("ipv6/conf/all/forwarding") === "0") {
        if (!options.globalIPv6 && sysctl(`ipv6/conf/${bridge}/force_forwarding`) !== undefined) {
          for (const link of [bridge, ...uplinks]) set(`ipv6/conf/${link}/force_forwarding`, "1");
        } else {
          for (const link of uplinks)
            if (sysctl(`ipv6/conf/${link}/accept_ra`) === "1") set(`ipv6/conf/${link}/accept_ra`, "2");
          set("ipv6/conf/all/forwarding", "1");
        }
      }
      const changed = (pattern: RegExp) => changes.flatMap(({ path }) => pattern.exec(path)?.[1] ?? []);
      return {
        ipv4: changed(/^ipv4\/conf\/(.+)\/forwarding$/),
        ipv6: changes.some(({ path }) => path === "ipv6/conf/all/forwarding")
          ? [...uplinks]
          : changed(/^ipv6\/conf\/(.+)\/force_forwarding$/),
      };
    });
  }

  /** Takes back what the agents allowed, if no other agent is left; what somebody else has changed since stays. */
  restore(): void {
    locked(this.#directory, () => {
      if (subnetsInUse(this.#directory)) return;
      for (const { path, before, after } of this.#read().toReversed()) {
        if (sysctl(path) === after) writeFileSync(file(path), before);
      }
      rmSync(this.#file, { force: true });
    });
  }

  get #file(): string {
    return `${this.#directory}/forwarding.json`;
  }

  #read(): Change[] {
    if (!existsSync(this.#file)) return [];
    const changes = JSON.parse(readFileSync(this.#file, "utf8")) as Change[];
    // A link that has gone and come back, or a setting that somebody else has changed, is not ours any more.
    return changes.filter(({ path, after }) => sysctl(path) === after);
  }

  /** Whole or not at all: it must be readable after a crash. */
  #write(changes: readonly Change[]): void {
    writeFileSync(`${this.#file}.new`, JSON.stringify(changes), { mode: 0o600 });
    renameSync(`${this.#file}.new`, this.#file);
  }
}

function file(path: string): string {
  return `/proc/sys/net/${path}`;
}

/** The setting of the namespace that this thread is in; undefined where there is no such setting. */
function sysctl(path: string): string | undefined {
  try {
    return readFileSync(file(path), "utf8").trim();
  } catch {
    return undefined;
  }
}
