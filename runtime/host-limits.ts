/** How this host limits containers: each by what its step asks for, all of them by a ceiling. */
import { findIoSupport } from "./block-device.ts";
import { defaultCeiling, lowerToCeiling } from "./ceiling.ts";
import { Cgroups } from "./cgroup.ts";
import { type CgroupHost, findCgroups } from "./cgroup-host.ts";
import type { OciResources } from "./oci-config.ts";
import {
  type Ceiling,
  ceilingResources,
  type ResourceFacts,
  type StepResources,
  stepResources,
  weightProblem,
} from "./step-resources.ts";

export class HostLimits {
  /** Absent only where its absence was allowed explicitly. */
  readonly cgroups: Cgroups | undefined;
  /** The ceiling that holds: what was asked for, and no more than the machine can bear. */
  readonly ceiling: Ceiling;
  readonly facts: ResourceFacts | undefined;

  private constructor(ceiling: Ceiling, made?: { readonly cgroups: Cgroups; readonly facts: ResourceFacts }) {
    this.ceiling = ceiling;
    this.cgroups = made?.cgroups;
    this.facts = made?.facts;
  }

  /**
   * Makes the agent's cgroup and sets the ceiling.
   *
   * @param options.name The cgroup's.
   * @param options.without No cgroups: only disk is limited.
   * @throws {Error} If a ceiling cannot be set, naming what the host lacks.
   */
  static open(
    stateDir: string,
    options: { readonly name: string; readonly without: boolean; readonly ceiling: Ceiling },
  ): HostLimits {
    const host = options.without ? undefined : findCgroups({ cpuset: options.ceiling.cpuset !== undefined });
    if (host === undefined) return new HostLimits(options.ceiling);
    const ceiling = strictest(options.ceiling, defaultCeiling(host));
    const cgroups = Cgroups.open(host, options.name);
    try {
      const facts = findFacts(stateDir, host, cgroups);
      cgroups.limit(ceilingResources(ceiling, facts));
      return new HostLimits(ceiling, { cgroups, facts });
    } catch (error) {
      cgroups.close();
      throw new Error(`Cannot limit this agent's containers: ${(error as Error).message}`, { cause: error });
    }
  }

  /** What a container gets of what it asks for. */
  granted(asked: StepResources): StepResources {
    return lowerToCeiling(asked, this.ceiling);
  }

  /** Why the kernel may refuse a new process (EAGAIN) to a container that is being started, and what mends it. */
  explainRefusedFork(asked?: StepResources): string {
    const own = asked === undefined ? Infinity : this.granted(asked).pids;
    // Init and the program, and a moment long stage 0.
    if (own < 3) return `its limit of ${own} processes is too small to start in`;
    const all =
      this.ceiling.pids === undefined
        ? ""
        : `all steps of this agent have ${this.ceiling.pids} processes together, or `;
    return `the machine has as many processes as it may: ${all}the kernel's limit is reached; run fewer jobs at a time, or raise --pids`;
  }

  /** Why a wish for a share of the disk has no effect; undefined if it has, or there is none. */
  weightProblem(asked: StepResources): string | undefined {
    return weightProblem(asked, this.facts ?? noFacts);
  }

  /** The same as a configuration says it. @throws {Error} If it asks for a limit that this host cannot set. */
  resources(asked: StepResources): OciResources {
    const { io: _, ...withoutIo } = asked;
    const granted = this.granted(this.facts === undefined ? withoutIo : asked);
    return stepResources(granted, this.facts ?? noFacts);
  }
}

function strictest(given: Ceiling, bearable: Ceiling): Ceiling {
  const least = (a: number | undefined, b: number | undefined) => Math.min(a ?? Infinity, b ?? Infinity);
  const cpu = least(given.cpu, bearable.cpu);
  return {
    ...given,
    memoryBytes: least(given.memoryBytes, bearable.memoryBytes),
    pids: least(given.pids, bearable.pids),
    ...(cpu < Infinity && { cpu }),
  };
}

function findFacts(stateDir: string, { version }: CgroupHost, cgroups: Cgroups): ResourceFacts {
  return {
    version,
    limitsCpu: cgroups.has("cpu", version === 2 ? "cpu.max" : "cpu.cfs_quota_us"),
    countsSwap: cgroups.has("memory", "memory.memsw.limit_in_bytes"),
    countsTcp: cgroups.has("memory", "memory.kmem.tcp.limit_in_bytes"),
    killsTogether: cgroups.has("memory", "memory.oom.group"),
    io: findIoSupport(stateDir, cgroups),
  };
}

/** Of a host on which nothing is limited. */
const noFacts: ResourceFacts = {
  version: 2,
  limitsCpu: true,
  countsSwap: false,
  countsTcp: false,
  killsTogether: false,
  io: { problem: "there are no cgroups" },
};
