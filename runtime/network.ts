/** Networks: one namespace for every job, connected to the outside by way of a bridge that only the agent has a say in. */
import type { Worker } from "node:worker_threads";
import type { AllowList } from "./network-allow.ts";
import type { KernelNetwork } from "./network-elements.ts";
import type { NetworksConfig, Refusals } from "./network-kernel.ts";
import { RefusalProbe } from "./network-probe.ts";
import { WithheldAddresses } from "./network-withheld.ts";
import type { NetworkReply, NetworksOpened, NetworkTask } from "./network-worker.ts";
import { jobResolvConf } from "./resolv-conf.ts";
import { startThread } from "./thread.ts";

export type { NetworksConfig, Refusals, Refused } from "./network-kernel.ts";

/** A server by name or address, and its port. */
export interface Withheld {
  readonly host: string;
  readonly port: number;
}

export interface NetworksOptions extends NetworksConfig {
  /** Networks that are kept ready, so that a job does not wait for one. @default 2 */
  readonly poolSize?: number;
  /** Servers that no job reaches, wherever their names lead: the agent's own. */
  readonly withheld?: readonly Withheld[];
  /** Hears of what could not be removed, which the next start sweeps. */
  readonly onError?: (error: Error) => void;
}

/** What a container needs to be in a network. */
export interface ContainerNetwork {
  /**
   * The namespace; open until disposed. What is to be in it joins it with setns(2); it belongs to the agent's user
   * namespace, so no capability that a step has in its own counts there, or to `owner`.
   */
  readonly namespaceFd: number;
  /** The user namespace for which it was claimed. */
  readonly owner?: number;
  /** What /etc/resolv.conf has to say. */
  readonly resolvConf: string;
  /** What /etc/hosts has to say. */
  hosts(hostname: string): string;
}

/** The network of one job: its steps and services share it and meet on localhost. Disposing it removes it. */
export interface JobNetwork extends ContainerNetwork, Disposable {
  /** IPv4, and IPv6 where the host has it. */
  readonly addresses: readonly string[];
  /**
   * The network for one container, with names in its /etc/hosts.
   *
   * @param options.services Names of services, which are on localhost.
   * @param options.allowed Whose names lead to what they were when they were looked up.
   */
  view(options: { readonly services: readonly string[]; readonly allowed?: AllowList | undefined }): ContainerNetwork;
  /**
   * Lets the job reach only these destinations from now on, or with `undefined` everything that jobs may reach. What no job
   * may reach stays out of reach. No name server is reachable meanwhile, and connections that are not allowed are cut.
   */
  restrict(allowed: AllowList | undefined): Promise<void>;
  /** Keeps the job from private networks for good. */
  keepPublic(): Promise<void>;
  /** Whether `takeRefused` would have something to tell; blocks for some microseconds. */
  hasRefused(): boolean;
  /** What the job was refused since the last call. */
  takeRefused(): Promise<Refusals>;
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
  readonly #agent: string;
  readonly #poolSize: number;
  readonly #loopbackOnly: boolean;
  readonly #withheld: WithheldAddresses;
  readonly #onError: ((error: Error) => void) | undefined;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #releases = new Set<Promise<unknown>>();
  #pool: Promise<KernelNetwork>[] = [];
  #probe: RefusalProbe | undefined;
  #sequence = 0;
  #failure: Error | undefined;
  #closed = false;

  private constructor(options: NetworksOptions) {
    const { poolSize = defaultPoolSize, withheld = [], onError, ...config } = options;
    this.#agent = config.agent;
    this.#withheld = new WithheldAddresses(withheld);
    this.#poolSize = poolSize;
    this.#loopbackOnly = config.loopbackOnly ?? false;
    this.#onError = onError;
    this.#worker = startThread(new URL("./network-worker.ts", import.meta.url), {
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
    const { probe } = (await networks.#expect(0)) as NetworksOpened;
    if (probe !== undefined) networks.#probe = new RefusalProbe(probe, options.agent);
    networks.#replenish();
    networks.#refreshWithheld().catch(() => {}); // whoever claims asks anew
    return networks;
  }

  /**
   * Takes a network; from the pool, if one is ready. The caller disposes it.
   *
   * @param options.owner A user namespace that owns its inside, for steps with containers of their own; open until this
   *   resolves. What the agent decides about the network it decides outside of it.
   * @throws {Error} If none can be made.
   */
  async claim({ owner }: { readonly owner?: number | undefined } = {}): Promise<JobNetwork> {
    const network = this.#jobNetwork(await this.#take(owner), owner);
    try {
      await this.#refreshWithheld();
      return network;
    } catch (error) {
      network[Symbol.dispose]();
      throw error;
    }
  }

  /** Out of the pool, unless it is to be somebody's. */
  #take(owner: number | undefined): Promise<KernelNetwork> {
    if (owner !== undefined) return this.#ask<KernelNetwork>({ kind: "create", owner });
    const prepared = this.#pool.shift() ?? this.#ask<KernelNetwork>({ kind: "create" });
    this.#replenish();
    return prepared;
  }

  #refreshWithheld(): Promise<void> {
    return this.#withheld.refresh((destinations) => this.#ask<void>({ kind: "withhold", destinations }));
  }

  #jobNetwork(network: KernelNetwork, owner?: number): JobNetwork {
    const { slot, namespaceFd, ipv4, ipv6 } = network;
    const resolvConf = this.#loopbackOnly ? "" : jobResolvConf({ ipv6: ipv6 !== undefined }).text;
    const probe = network.probeFd === undefined ? this.#probe : new RefusalProbe({ fd: network.probeFd }, this.#agent);
    const hasRefused = probe?.of(network);
    let disposed = false;
    const owned = owner === undefined ? {} : { owner };
    return {
      namespaceFd,
      ...owned,
      addresses: [ipv4, ...(ipv6 === undefined ? [] : [ipv6])],
      resolvConf,
      hosts: (hostname) => hostsFile({ names: [hostname], pinned: [] }),
      view: ({ services, allowed }) => ({
        namespaceFd,
        ...owned,
        resolvConf,
        hosts: (hostname) => hostsFile({ names: [hostname, ...services], pinned: allowed?.names ?? [] }),
      }),
      restrict: (allowed) => this.#ask<void>({ kind: "restrict", slot, allowed: allowed?.destinations }),
      keepPublic: () => this.#ask<void>({ kind: "keep-public", slot }),
      hasRefused: () => !disposed && this.#failure === undefined && hasRefused?.() === true,
      takeRefused: () => this.#ask<Refusals>({ kind: "take-refused", slot }),
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
    this.#probe = undefined;
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#probe = undefined;
    await this.#ask({ kind: "close" }).catch(() => undefined);
    await this.#worker.terminate();
  }
}

/** @param given.names Of this network itself. */
function hostsFile(given: { readonly names: readonly string[]; readonly pinned: AllowList["names"] }): string {
  return [
    `127.0.0.1\tlocalhost ${given.names.join(" ")}`,
    "::1\tlocalhost ip6-localhost ip6-loopback",
    ...given.pinned.map(({ address, name }) => `${address}\t${name}`),
    "",
  ].join("\n");
}
