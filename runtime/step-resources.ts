/** What a step may use, and how that is said in an OCI configuration. */
import type { OciResources } from "./oci-config.ts";

export interface StepResources {
  /** All of it: processes, tmpfs, the cache of files, the kernel's own for the step. */
  readonly memoryBytes: number;
  /** CPU cores. */
  readonly cpu: number;
  /** Processes and threads at once. */
  readonly pids: number;
  /** What the container may add to its root file system and its workspace together. @default no limit */
  readonly diskBytes?: number;
  /** The same in files. @default one for every 16 KiB of `diskBytes`, and 250 000 at least */
  readonly diskFiles?: number;
  readonly io?: StepIo;
}

/** How fast a step may use the disk that holds the state directory; a key that is absent limits nothing. */
export interface StepIo {
  /** 1 to 1000; who asks for nothing has 100. */
  readonly weight?: number;
  readonly readBytesPerSecond?: number;
  readonly writeBytesPerSecond?: number;
  readonly readOperationsPerSecond?: number;
  readonly writeOperationsPerSecond?: number;
}

/** The most that all containers of a host use together. */
export interface Ceiling {
  readonly memoryBytes?: number;
  /** CPU cores. */
  readonly cpu?: number;
  /** The CPUs they run on, as cpuset(7) lists them: `0-3,8`. */
  readonly cpuset?: string;
  readonly pids?: number;
  readonly diskBytes?: number;
}

/** What this host's cgroups can do beyond memory, cpu and pids. */
export interface ResourceFacts {
  readonly version: 1 | 2;
  /** Not where an ordinary user has been given memory and pids only: then steps have the CPU time that there is. */
  readonly limitsCpu: boolean;
  /** v1: swap is counted, so that it can be limited. */
  readonly countsSwap: boolean;
  /** v1: buffers of TCP sockets are counted; v2 always does, as memory. */
  readonly countsTcp: boolean;
  /** v2: a cgroup can be killed as a whole when its memory is at its end (Linux 4.19). */
  readonly killsTogether: boolean;
  /** The disk and how it can be limited, or why it cannot. */
  readonly io:
    | { readonly device: BlockDevice; readonly weight: "io.weight" | "bfq" | { readonly problem: string } }
    | { readonly problem: string };
}

export interface BlockDevice {
  readonly major: number;
  readonly minor: number;
  /** `vda` */
  readonly name: string;
}

export const cpuPeriodUs = 100_000;

/**
 * Writes a step's limits as `linux.resources`.
 *
 * @throws {Error} If it asks for a limit of I/O that this host cannot set. A weight is a wish: see `weightProblem`.
 */
export function stepResources(step: StepResources, facts: ResourceFacts): OciResources {
  const memoryBytes = BigInt(step.memoryBytes);
  const swapless = facts.version === 2 || facts.countsSwap;
  const { blockIO, unified } = ioResources(step.io ?? {}, facts);
  if (facts.version === 2 && facts.killsTogether) unified.push(["memory.oom.group", "1"]);
  return {
    memory: {
      limit: memoryBytes,
      // v1 and OCI count memory and swap together: none of it is swap.
      ...(swapless && { swap: memoryBytes }),
      ...(facts.version === 1 && facts.countsTcp && { kernelTCP: memoryBytes }),
    },
    ...(facts.limitsCpu && { cpu: { quota: cpuQuotaUs(step.cpu), period: BigInt(cpuPeriodUs) } }),
    pids: { limit: BigInt(step.pids) },
    ...(blockIO !== undefined && { blockIO }),
    ...(unified.length > 0 && { unified: new Map(unified) }),
  };
}

/** The limits of the cgroup in which all containers' cgroups are; what is not given is set to no limit. */
export function ceilingResources(ceiling: Ceiling, facts: ResourceFacts): OciResources {
  const memoryBytes = BigInt(ceiling.memoryBytes ?? -1);
  const time = { quota: ceiling.cpu === undefined ? -1n : cpuQuotaUs(ceiling.cpu), period: BigInt(cpuPeriodUs) };
  return {
    memory: { limit: memoryBytes, ...(facts.version === 1 && facts.countsSwap && { swap: memoryBytes }) },
    cpu: {
      // What was asked for is refused where it cannot be had.
      ...((facts.limitsCpu || ceiling.cpu !== undefined) && time),
      ...(ceiling.cpuset !== undefined && { cpus: ceiling.cpuset }),
    },
    pids: { limit: BigInt(ceiling.pids ?? -1) },
  };
}

/** Why a step's wish for a share of the disk has no effect; undefined if it has, or wishes for none. */
export function weightProblem(step: StepResources, { io }: ResourceFacts): string | undefined {
  if (step.io?.weight === undefined) return undefined;
  if ("problem" in io) return io.problem;
  return typeof io.weight === "object" ? io.weight.problem : undefined;
}

/** The kernel takes no less than a millisecond. */
function cpuQuotaUs(cpu: number): bigint {
  return BigInt(Math.max(1000, Math.round(cpu * cpuPeriodUs)));
}

function ioResources(
  io: StepIo,
  facts: ResourceFacts,
): { readonly blockIO: OciResources["blockIO"]; readonly unified: [string, string][] } {
  const { weight, ...rates } = io;
  const isLimited = Object.values(rates).some((rate) => rate !== undefined);
  if ("problem" in facts.io) {
    if (isLimited) throw new Error(`Cannot limit a step's I/O: ${facts.io.problem}`);
    return { blockIO: undefined, unified: [] };
  }
  const { device } = facts.io;
  const hasWeight = weight !== undefined && typeof facts.io.weight === "string";
  const unified: [string, string][] = [];
  if (hasWeight && facts.version === 2) {
    unified.push([facts.io.weight === "bfq" ? "io.bfq.weight" : "io.weight", `${weight}`]);
  }
  const throttle = (rate: number | undefined) =>
    rate === undefined ? undefined : [{ major: device.major, minor: device.minor, rate: BigInt(rate) }];
  const [rbps, wbps] = [throttle(rates.readBytesPerSecond), throttle(rates.writeBytesPerSecond)];
  const [riops, wiops] = [throttle(rates.readOperationsPerSecond), throttle(rates.writeOperationsPerSecond)];
  const blockIO = {
    ...(hasWeight && facts.version === 1 && { weight }),
    ...(rbps && { throttleReadBpsDevice: rbps }),
    ...(wbps && { throttleWriteBpsDevice: wbps }),
    ...(riops && { throttleReadIOPSDevice: riops }),
    ...(wiops && { throttleWriteIOPSDevice: wiops }),
  };
  return { blockIO: Object.keys(blockIO).length > 0 ? blockIO : undefined, unified };
}
