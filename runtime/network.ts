/** Networks: one namespace for every job, connected to the outside by way of a bridge that only the agent has a say in. */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { Worker } from "node:worker_threads";
import type { Destination, KernelNetwork, NetworksConfig, Refused } from "./network-kernel.ts";
import type { NetworkReply, NetworkTask } from "./network-worker.ts";
import { jobResolvConf } from "./resolv-conf.ts";

export type { NetworksConfig, Refused } from "./network-kernel.ts";

export interface NetworksOptions extends NetworksConfig {
  /** Networks that are kept ready, so that a job does not wait for one. @default 2 */
  readonly poolSize?: number;
  /** Hears of what could not be removed, which the next start sweeps. */
  readonly onError?: (error: Error) => void;
}

/** A host that a step may reach, by name or address, and the port. */
export interface AllowedDestination {
  readonly host: string;
  readonly port: number;
  /** @default "tcp" */
  readonly protocol?: "tcp" | "udp";
}

/** The network of one job: its steps and services share it and meet on localhost. Disposing it removes it. */
export interface JobNetwork extends Disposable {
  /**
   * The namespace; open until disposed. What is to be in it joins it with setns(2); it belongs to the agent's user
   * namespace, so no capability that a step has in its own counts there.
   */
  readonly namespaceFd: number;
  /** IPv4, and IPv6 where the host has it. */
  readonly addresses: readonly string[];
  /** What /etc/resolv.conf has to say. */
  readonly resolvConf: string;
  /**
   * What /etc/hosts has to say.
   *
   * @param names Of services, which are on localhost.
   */
  hosts(hostname: string, names?: readonly string[]): string;
  /**
   * Lets the job reach only these destinations from now on, or with `undefined` everything that jobs may reach. Names are
   * looked up once and written to `hosts`; no name server is reachable meanwhile.
   *
   * @throws {Error} If a name cannot be found.
   */
  restrict(allowed: readonly AllowedDestination[] | undefined): Promise<void>;
  /** What the job was refused so far, the most frequent first. */
  refused(): Promise<readonly Refused[]>;
}

const defaultPoolSize = 2;

/**
 * One agent's networks. Disposing it removes all of them, the bridge and the rules; a killed agent's are swept when the
 * next one of the same name opens.
 *
 * All work with the kernel is done by a thread of its own: making and above all removing links takes milliseconds in which
 * the kernel waits for grace periods.
 */
export class Networks implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #poolSize: number;
  readonly #onError: ((error: Error) => void) | undefined;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #releases = new Set<Promise<unknown>>();
  #pool: Promise<KernelNetwork>[] = [];
  #sequence = 0;
  #failure: Error | undefined;
  #closed = false;

  private constructor(options: NetworksOptions) {
    const { poolSize = defaultPoolSize, onError, ...config } = options;
    this.#poolSize = poolSize;
    this.#onError = onError;
    this.#worker = new Worker(new URL("./network-worker.ts", import.meta.url), {
      workerData: config,
      name: "slipway-network",
      resourceLimits: { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 64, stackSizeMb: 2 },
    });
    this.#worker.on("message", (reply: NetworkReply) => this.#receive(reply));
    this.#worker.on("error", (error) => this.#fail(error as Error));
    this.#worker.on("exit", () => this.#fail(new Error("Cannot use networks: they are closed")));
  }

  /**
   * Sets up bridge and rules and starts filling the pool.
   *
   * @throws {Error} If the kernel or the privileges do not allow it: `checkNetworks` says what is missing.
   */
  static async open(options: NetworksOptions): Promise<Networks> {
    if (!/^[A-Za-z0-9-]{1,64}$/.test(options.agent)) {
      throw new Error(`Cannot name networks after ${JSON.stringify(options.agent)}: not a plain name`);
    }
    const networks = new Networks(options);
    await networks.#expect(0);
    networks.#replenish();
    return networks;
  }

  /** Takes a network; from the pool, if one is ready. The caller disposes it. @throws {Error} If none can be made. */
  async claim(): Promise<JobNetwork> {
    const prepared = this.#pool.shift() ?? this.#ask<KernelNetwork>({ kind: "create" });
    this.#replenish();
    return this.#jobNetwork(await prepared);
  }

  #jobNetwork(network: KernelNetwork): JobNetwork {
    const { slot, namespaceFd, ipv4, ipv6 } = network;
    const resolvConf = jobResolvConf({ ipv6: ipv6 !== undefined }).text;
    let pinned: readonly string[] = [];
    let disposed = false;
    return {
      namespaceFd,
      addresses: [ipv4, ...(ipv6 === undefined ? [] : [ipv6])],
      resolvConf,
      hosts: (hostname, names = []) =>
        [
          `127.0.0.1\tlocalhost ${[hostname, ...names].join(" ")}`,
          "::1\tlocalhost ip6-localhost ip6-loopback",
          ...pinned,
          "",
        ].join("\n"),
      restrict: async (allowed) => {
        const found = allowed === undefined ? undefined : await Promise.all(allowed.map(lookUp));
        await this.#ask({ kind: "restrict", slot, allowed: found?.flat() });
        pinned = (found ?? []).flatMap((destinations, i) => {
          const host = allowed?.[i]?.host ?? "";
          return isIP(host) === 0 ? destinations.map(({ address }) => `${address}\t${host}`) : [];
        });
        pinned = [...new Set(pinned)];
      },
      refused: () => this.#ask<Refused[]>({ kind: "refused", slot }),
      [Symbol.dispose]: () => {
        if (disposed) return;
        disposed = true;
        const release = this.#ask({ kind: "release", slot }).catch((error) => this.#onError?.(error as Error));
        this.#releases.add(release);
        void release.finally(() => this.#releases.delete(release));
      },
    };
  }

  /** Resolves when the pool is full and everything that was disposed is gone. */
  async settled(): Promise<void> {
    await Promise.all([...this.#releases, ...this.#pool.map((network) => network.catch(() => undefined))]);
  }

  #replenish(): void {
    while (!this.#closed && this.#failure === undefined && this.#pool.length < this.#poolSize) {
      const network = this.#ask<KernelNetwork>({ kind: "create" });
      this.#pool.push(network);
      // Whoever claims next asks anew and gets the error.
      network.catch(() => {
        this.#pool = this.#pool.filter((one) => one !== network);
      });
    }
  }

  #ask<Result>(task: NetworkTask): Promise<Result> {
    const id = ++this.#sequence;
    const answer = this.#expect(id);
    if (this.#failure === undefined) this.#worker.postMessage({ id, task });
    return answer as Promise<Result>;
  }

  #expect(id: number): Promise<unknown> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.set(id, waiting);
    this.#worker.ref(); // it keeps the agent alive as long as it owes an answer
    return waiting.promise;
  }

  #receive({ id, result, error }: NetworkReply): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (this.#waiting.size === 0) this.#worker.unref();
    if (error === undefined) waiting?.resolve(result);
    else waiting?.reject(Object.assign(new Error(error.message), error.code === undefined ? {} : { code: error.code }));
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#ask({ kind: "close" }).catch(() => undefined);
    await this.#worker.terminate();
  }
}

async function lookUp({ host, port, protocol = "tcp" }: AllowedDestination): Promise<Destination[]> {
  if (isIP(host) !== 0) return [{ address: host, protocol, port }];
  try {
    const found = await lookup(host, { all: true });
    return found.map(({ address }) => ({ address, protocol, port }));
  } catch (error) {
    throw new Error(
      `Cannot allow "${host}:${port}": its name is not known (${(error as NodeJS.ErrnoException).code})`,
      {
        cause: error,
      },
    );
  }
}
