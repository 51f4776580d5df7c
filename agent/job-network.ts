/** The network of one job, as its steps use it one after the other. */
import type { JobSpec, StepSpec } from "../pipelines/index.ts";
import {
  type AllowList,
  type ContainerNetwork,
  type Host,
  type JobNetwork,
  lookUpAllowed,
  type Refusals,
  type UidRange,
} from "../runtime/index.ts";
import { asError } from "./cause.ts";
import type { JobContext } from "./job.ts";
import { describeRefused, isEmpty } from "./refused.ts";
import type { StepResult } from "./report.ts";
import type { StepLog } from "./step-log.ts";

export interface SharedNetworkOptions {
  /** Names that lead to localhost. */
  readonly services: readonly string[];
  /** Keeps the job from private networks. */
  readonly publicOnly: boolean;
  /** Whose nested containers it is for, if there are any. */
  readonly owner: UidRange | undefined;
  readonly signal: AbortSignal;
}

/** Whether a job's steps or services share a network. */
export function wantsNetwork({ steps, services = [] }: JobSpec): boolean {
  return services.length > 0 || steps.some(({ network }) => network !== "none" && network !== "host");
}

/**
 * The network that the steps and services of a job share; claimed when it is made, so that nobody waits for it later.
 *
 * An allow list holds for the whole network while its step runs, services included: a service that could go anywhere would be
 * the step's way out.
 */
export class SharedNetwork {
  readonly #network: Promise<JobNetwork>;
  readonly #options: SharedNetworkOptions;
  #claimed: JobNetwork | undefined;
  #restriction: AllowList | undefined;

  constructor(host: Host, options: SharedNetworkOptions) {
    this.#options = options;
    this.#network = claim(host, options);
    this.#network.then(
      (network) => {
        this.#claimed = network;
      },
      () => {}, // the step that wants it says so
    );
  }

  /** What a service's container is put into. @throws {Error} If this host can make no networks. */
  async forService(): Promise<ContainerNetwork> {
    return (await this.#network).view({ services: this.#options.services });
  }

  /** @internal */
  async view(allowed: AllowList | undefined): Promise<ContainerNetwork> {
    return (await this.#network).view({ services: this.#options.services, allowed });
  }

  /** @internal */
  async lookUp(step: Pick<StepSpec, "network">): Promise<AllowList | undefined> {
    if (typeof step.network !== "object") return undefined;
    const { addresses } = await this.#network;
    return lookUpAllowed(step.network.allow, { ipv6: addresses.length > 1, signal: this.#options.signal });
  }

  /** @internal Whatever was held before: what runs from now on may reach this. */
  async restrict(allowed: AllowList | undefined): Promise<void> {
    if (allowed === this.#restriction) return;
    await (await this.#network).restrict(allowed);
    this.#restriction = allowed;
  }

  /** Nobody is held to an allow list. */
  get isOpen(): boolean {
    return this.#restriction === undefined;
  }

  /** Whether something was refused since the last call of `takeRefused`; true if that is not known. */
  get hasRefused(): boolean {
    return this.#claimed?.hasRefused() ?? true;
  }

  /** What was refused since the last call; nothing if there is no network. */
  async takeRefused(): Promise<Refusals> {
    return (await this.#network).takeRefused();
  }

  /** Ends the network, if there ever was one. No container may be in it any more. */
  async release(): Promise<void> {
    const network = await this.#network.catch(() => undefined);
    network?.[Symbol.dispose]();
  }
}

/** One step's part in the network of its job: its names first, then its rights, then what it was refused. */
export class StepNetwork {
  readonly #shared: SharedNetwork | undefined;
  readonly #step: Pick<StepSpec, "network">;
  #allowed: Promise<AllowList | undefined> | undefined;
  #isClean = false;

  /** @param shared Absent where no step of the job wants one. */
  constructor(shared: SharedNetwork | undefined, step: Pick<StepSpec, "network">) {
    this.#shared = shared;
    this.#step = step;
  }

  /**
   * What its container is put into; may be asked for while the step before it runs.
   *
   * @throws {UnknownNameError} If a name of its allow list is not known.
   */
  async container(): Promise<"none" | "host" | ContainerNetwork> {
    const { network } = this.#step;
    if (network === "none" || network === "host") return network;
    return this.#use.view(await this.#lookUp());
  }

  /** Whether its program may start as things are: `begin` would change nothing. */
  get isReady(): boolean {
    return typeof this.#step.network !== "object" && (this.#shared?.isOpen ?? true);
  }

  /** Right before its program starts: from now on its rules hold. @throws {Error} If the kernel refuses. */
  async begin(): Promise<void> {
    const { network } = this.#step;
    // Whoever runs beside a step without a network is not held to the list of the one before.
    if (network === "none" || network === "host") await this.#shared?.restrict(undefined);
    else await this.#use.restrict(await this.#lookUp());
  }

  /** When it has ended, instead of `end`: whether it was refused nothing. Takes some microseconds. */
  endsClean(): boolean {
    const { network } = this.#step;
    this.#isClean = network === "none" || network === "host" || !this.#use.hasRefused;
    return this.#isClean;
  }

  /** When it has ended. */
  async end(): Promise<Refusals | undefined> {
    const { network } = this.#step;
    if (this.#isClean || network === "none" || network === "host") return undefined;
    const refused = await this.#use.takeRefused();
    return isEmpty(refused) ? undefined : refused;
  }

  get #use(): SharedNetwork {
    if (this.#shared === undefined) throw new Error("Cannot give the step a network: its job has none");
    return this.#shared;
  }

  /** Once: what a name means does not change while the step lives. After a failure anew. */
  #lookUp(): Promise<AllowList | undefined> {
    this.#allowed ??= this.#use.lookUp(this.#step).catch((error: unknown) => {
      this.#allowed = undefined;
      throw asError(error);
    });
    return this.#allowed;
  }
}

/**
 * What a step that has ended was refused, for its result; and for its log. Empty also where the kernel cannot say it: the
 * step has ended all the same.
 */
export async function takeRefused(
  network: StepNetwork,
  { log, reporter, signal }: Pick<JobContext, "reporter" | "signal"> & { readonly log: StepLog },
): Promise<Pick<StepResult, "refused">> {
  try {
    const refused = await network.end();
    if (refused === undefined) return {};
    for (const line of describeRefused(refused)) log.note(line);
    return { refused };
  } catch (error) {
    // Where a job ends before it has a network, that is no problem of its own.
    if (!signal.aborted) reporter.problem?.(asError(error));
    return {};
  }
}

async function claim(host: Host, { publicOnly, owner }: SharedNetworkOptions): Promise<JobNetwork> {
  const network = await host.claimNetwork({ owner });
  try {
    if (publicOnly) await network.keepPublic();
    return network;
  } catch (error) {
    network[Symbol.dispose]();
    throw error;
  }
}
