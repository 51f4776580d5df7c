/** Recognises steps that ask for what a step before them has asked for, so that nothing is worked out or written out twice. */
import type { PreparedConfig } from "./container-config.ts";
import type { LaunchPlan } from "./launch-plan.ts";
import type { OciConfig } from "./oci-config.ts";

/** Keeps the configurations used last. */
export class KnownSteps {
  readonly #steps = new Map<string, OciConfig>();
  readonly #programKeys = new WeakMap<OciConfig, Map<string, string>>();

  /**
   * The configuration of a step: the same object for all that ask for the same. It does not say what runs.
   *
   * @param describe Makes it, from what `config` asks for but its name and its callbacks.
   */
  get(config: PreparedConfig, describe: () => OciConfig): OciConfig {
    const { image, uidRange, network, id: _, output: __, onExit: ___, signal: ____, ...rest } = config;
    const networkKey = typeof network === "object" ? network.namespaceFd : network;
    const key = JSON.stringify([image.binds, uidRange.mappings, networkKey, rest]);
    const step = this.#steps.get(key) ?? describe();
    this.#steps.delete(key);
    this.#steps.set(key, step); // at the end: used last
    for (const oldest of this.#steps.keys()) {
      if (this.#steps.size <= maxSteps) break;
      this.#steps.delete(oldest);
    }
    return step;
  }

  /**
   * Everything that a plan's program depends on. It is long, so that of a configuration that has been seen is found by what
   * else there is: descriptors, and what was found out about the files that are mounted.
   *
   * @param step What the plan was made of.
   */
  programKey(step: OciConfig, plan: LaunchPlan): string {
    const { config: _, seccomp: __, mounts, ...rest } = plan;
    const trees = mounts.map((mount) => (mount.kind === "tree" ? [mount.fd, mount.isDirectory] : mount.kind));
    const known = this.#programKeys.get(step) ?? new Map<string, string>();
    this.#programKeys.set(step, known);
    return known.getOrInsertComputed(JSON.stringify([rest, trees]), () => JSON.stringify(plan, replacer));
  }
}

const maxSteps = 64;

function replacer(name: string, value: unknown): unknown {
  // By far the largest part, and the same object for all steps of a profile.
  if (name === "seccomp" && typeof value === "object" && value !== null) return identity(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("latin1");
  if (value instanceof Map) return [...(value as ReadonlyMap<string, unknown>)];
  return typeof value === "bigint" ? `${value}` : value;
}

const identities = new WeakMap<object, number>();
let lastIdentity = 0;

function identity(object: object): number {
  const known = identities.get(object) ?? ++lastIdentity;
  identities.set(object, known);
  return known;
}
