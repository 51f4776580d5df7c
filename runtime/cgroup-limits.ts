/** Writes `linux.resources` of an OCI configuration into cgroups, in the terms of v1 and of v2. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { isRootless } from "./file-owners.ts";
import type { OciResources } from "./oci-config.ts";
import { OciConfigError } from "./oci-parser.ts";

/** A directory of one hierarchy. */
export interface CgroupDirectory {
  readonly path: string;
  readonly version: 1 | 2;
  /** v1: those of the hierarchy, or `name=systemd`; v2: those that can be used in it. */
  readonly controllers: readonly string[];
}

/**
 * Sets limits, in an order in which the kernel takes them whatever the limits were before.
 *
 * @param directories One cgroup's, of all hierarchies. Hybrid hosts have both versions; there the limits are v1's.
 * @throws {OciConfigError} Naming the field that this host cannot set, and why.
 */
export function setLimits(directories: readonly CgroupDirectory[], resources: OciResources): void {
  const unified = directories.every(({ version }) => version === 2);
  if (unified) new LimitsV2(directories, 2).apply(resources);
  else new LimitsV1(directories, 1).apply(resources);
  for (const [file, value] of resources.unified ?? []) {
    if (!unified) throw new OciConfigError("linux.resources.unified is not supported: this host has cgroup v1");
    if (file.includes("/") || !file.includes(".")) {
      throw new OciConfigError(`linux.resources.unified ${JSON.stringify(file)} is not the name of a file`);
    }
    const controller = file.split(".")[0] ?? "";
    const field = `linux.resources.unified["${file}"]`;
    for (const line of value.split("\n")) writeLimit(directories, { controller, file, value: line, field });
  }
}

/** Writes one file of a controller. @param limit.field What asks for it. @throws {OciConfigError} */
export function writeLimit(
  directories: readonly CgroupDirectory[],
  limit: {
    readonly controller: string;
    readonly file: string;
    readonly value: bigint | number | string;
    readonly field: string;
  },
): void {
  const { controller, file, value, field } = limit;
  const path = findDirectory(directories, controller);
  if (path === undefined) {
    const why = isRootless()
      ? `there is no cgroup of the user's with controller "${controller}"`
      : `this host has no cgroup controller "${controller}"`;
    throw new OciConfigError(`${field} is not supported: ${why}`);
  }
  try {
    writeFileSync(`${path}/${file}`, `${value}`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // A directory of cgroups answers EACCES to the making of files.
    const why =
      code === "ENOENT" || !existsSync(`${path}/${file}`) ? `this kernel has no ${file}` : `${code} from ${file}`;
    throw new OciConfigError(`${field} cannot be set to ${value}: ${why}`, { cause: error });
  }
}

function findDirectory(directories: readonly CgroupDirectory[], controller: string): string | undefined {
  // Files like cgroup.freeze belong to every cgroup of v2.
  const has = ({ version, controllers }: CgroupDirectory) =>
    (version === 2 && controller === "cgroup") || controllers.includes(controller);
  return directories.find(has)?.path;
}

class Limits {
  readonly #directories: readonly CgroupDirectory[];

  constructor(directories: readonly CgroupDirectory[], version: 1 | 2) {
    this.#directories = directories.filter((directory) => directory.version === version);
  }

  path(controller: string): string | undefined {
    return findDirectory(this.#directories, controller);
  }

  has(controller: string, file: string): boolean {
    const path = this.path(controller);
    return path !== undefined && existsSync(`${path}/${file}`);
  }

  write(controller: string, file: string, value: bigint | number | string, field: string): void {
    writeLimit(this.#directories, { controller, file, value, field });
  }
}

/** A cgroup that may have no process has the one that is there: systemd and runc say 1, too. */
function pidsMax(limit: bigint): bigint | "max" {
  return limit < 0n ? "max" : limit === 0n ? 1n : limit;
}

/** Zero says nothing: callers fill in what nobody has set, Docker's update all of it. */
function orUnset(value: bigint | undefined): bigint | undefined {
  return value === 0n ? undefined : value;
}

/**
 * Values that the kernel holds against one another: which it takes first depends on those that are set already. Those that
 * are refused are tried again once others are in place.
 */
function inSomeOrder(writes: readonly (() => void)[]): void {
  let left = writes;
  while (left.length > 0) {
    let reason: unknown;
    const refused = left.filter((write) => {
      try {
        write();
        return false;
      } catch (error) {
        reason ??= error;
        return true;
      }
    });
    if (refused.length === left.length) throw reason;
    left = refused;
  }
}

const where = (name: string) => `linux.resources.${name}`;

class LimitsV1 extends Limits {
  apply(resources: OciResources): void {
    const { memory, cpu, pids, blockIO, hugepageLimits, network, rdma } = resources;
    if (memory !== undefined) this.#memory(memory);
    if (cpu !== undefined) this.#cpu(cpu);
    if (pids?.limit !== undefined) {
      this.write("pids", "pids.max", pidsMax(pids.limit), where("pids.limit"));
    }
    if (blockIO !== undefined) this.#blockIo(blockIO);
    for (const { pageSize, limit } of hugepageLimits ?? []) {
      const reserved = `hugetlb.${pageSize}.rsvd.limit_in_bytes`;
      if (this.has("hugetlb", reserved)) this.write("hugetlb", reserved, limit, where("hugepageLimits"));
      this.write("hugetlb", `hugetlb.${pageSize}.limit_in_bytes`, limit, where("hugepageLimits"));
    }
    if (network?.classID !== undefined) {
      this.write("net_cls", "net_cls.classid", network.classID, where("network.classID"));
    }
    for (const { name, priority } of network?.priorities ?? []) {
      this.write("net_prio", "net_prio.ifpriomap", `${name} ${priority}`, where("network.priorities"));
    }
    writeRdma(this, rdma);
  }

  #memory(memory: NonNullable<OciResources["memory"]>): void {
    const set = (file: string, value: bigint | number | undefined, field: string) => {
      if (value !== undefined) this.write("memory", file, value, where(`memory.${field}`));
    };
    const { kernel } = memory;
    const [limit, reservation, kernelTCP] = [memory.limit, memory.reservation, memory.kernelTCP].map(orUnset);
    const swapFile = "memory.memsw.limit_in_bytes";
    const path = this.path("memory");
    // No limit of memory can be none of both together; who takes the first away means the second, too.
    const noLimit = limit === -1n && this.has("memory", swapFile) ? limit : undefined;
    const swap = orUnset(memory.swap) ?? noLimit;
    // Memory and swap together may never be less than memory: which comes first depends on where they come from.
    const swapNow = path === undefined ? "" : (readText(`${path}/${swapFile}`) ?? "");
    const raisesSwap = swap === -1n || (swap !== undefined && swapNow !== "" && swap > BigInt(swapNow));
    if (raisesSwap) set(swapFile, swap, "swap");
    set("memory.limit_in_bytes", limit, "limit");
    if (!raisesSwap) set(swapFile, swap, "swap");
    set("memory.soft_limit_in_bytes", reservation, "reservation");
    if (kernel !== undefined && kernel > 0n) {
      set("memory.kmem.limit_in_bytes", kernel, "kernel");
      // Newer kernels take it and forget it.
      if (BigInt(readText(`${path}/memory.kmem.limit_in_bytes`) ?? 0) > kernel) {
        throw new OciConfigError(`${where("memory.kernel")} is not supported: this kernel does not limit it apart`);
      }
    }
    set("memory.kmem.tcp.limit_in_bytes", kernelTCP, "kernelTCP");
    set("memory.swappiness", memory.swappiness, "swappiness");
    if (memory.disableOOMKiller) set("memory.oom_control", 1, "disableOOMKiller");
  }

  #cpu(cpu: NonNullable<OciResources["cpu"]>): void {
    const set = (controller: string, file: string, value: bigint | number | string | undefined, field: string) => {
      if (value !== undefined && value !== "") this.write(controller, file, value, where(`cpu.${field}`));
    };
    const setCpu = (file: string, value: bigint | undefined, field: string) => () => set("cpu", file, value, field);
    set("cpu", "cpu.shares", orUnset(cpu.shares), "shares");
    inSomeOrder([
      setCpu("cpu.cfs_period_us", orUnset(cpu.period), "period"),
      setCpu("cpu.cfs_burst_us", cpu.burst, "burst"),
      setCpu("cpu.cfs_quota_us", orUnset(cpu.quota), "quota"),
    ]);
    inSomeOrder([
      setCpu("cpu.rt_period_us", orUnset(cpu.realtimePeriod), "realtimePeriod"),
      setCpu("cpu.rt_runtime_us", orUnset(cpu.realtimeRuntime), "realtimeRuntime"),
    ]);
    set("cpu", "cpu.idle", cpu.idle, "idle");
    set("cpuset", "cpuset.cpus", cpu.cpus, "cpus");
    set("cpuset", "cpuset.mems", cpu.mems, "mems");
  }

  #blockIo(blockIO: NonNullable<OciResources["blockIO"]>): void {
    const set = (file: string, value: string | number | undefined, field: string) => {
      if (value !== undefined && value !== 0) this.write("blkio", file, value, where(`blockIO.${field}`));
    };
    const bfq = this.has("blkio", "blkio.bfq.weight") ? "blkio.bfq.weight" : "blkio.weight";
    set(bfq, blockIO.weight, "weight");
    set("blkio.leaf_weight", blockIO.leafWeight, "leafWeight");
    for (const { major, minor, weight, leafWeight } of blockIO.weightDevice ?? []) {
      if (weight !== undefined) set(`${bfq}_device`, `${major}:${minor} ${weight}`, "weightDevice");
      if (leafWeight !== undefined) set("blkio.leaf_weight_device", `${major}:${minor} ${leafWeight}`, "weightDevice");
    }
    const throttles = {
      throttleReadBpsDevice: "read_bps",
      throttleWriteBpsDevice: "write_bps",
      throttleReadIOPSDevice: "read_iops",
      throttleWriteIOPSDevice: "write_iops",
    } as const;
    for (const [field, file] of Object.entries(throttles)) {
      for (const { major, minor, rate } of blockIO[field as keyof typeof throttles] ?? []) {
        set(`blkio.throttle.${file}_device`, `${major}:${minor} ${rate}`, field);
      }
    }
  }
}

class LimitsV2 extends Limits {
  apply(resources: OciResources): void {
    const { memory, cpu, pids, blockIO, hugepageLimits, network, rdma } = resources;
    if (memory !== undefined) this.#memory(memory);
    if (cpu !== undefined) this.#cpu(cpu);
    if (pids?.limit !== undefined) {
      this.write("pids", "pids.max", pidsMax(pids.limit), where("pids.limit"));
    }
    if (blockIO !== undefined) this.#io(blockIO);
    for (const { pageSize, limit } of hugepageLimits ?? []) {
      const reserved = `hugetlb.${pageSize}.rsvd.max`;
      if (this.has("hugetlb", reserved)) this.write("hugetlb", reserved, limit, where("hugepageLimits"));
      this.write("hugetlb", `hugetlb.${pageSize}.max`, limit, where("hugepageLimits"));
    }
    if (network?.classID || network?.priorities?.length) {
      throw new OciConfigError(`${where("network")} is not supported: cgroup v2 has no net_cls and net_prio`);
    }
    writeRdma(this, rdma);
  }

  #memory(memory: NonNullable<OciResources["memory"]>): void {
    const { swap, reservation } = memory;
    const orMax = (value: bigint) => (value < 0n ? "max" : value);
    const limitNow = this.#now("memory", "memory.max");
    // An update need not say the one that stays.
    const limit =
      orUnset(memory.limit) ?? (limitNow === undefined || limitNow === "max" ? undefined : BigInt(limitNow));
    if (swap !== undefined && swap !== 0n) {
      if (swap > 0n && (limit === undefined || limit <= 0n || swap < limit)) {
        throw new OciConfigError(
          `${where("memory.swap")} must be at least ${where("memory.limit")}: it is both together`,
        );
      }
      // v2 counts swap alone.
      const alone = swap < 0n ? "max" : swap - (limit ?? 0n);
      if (alone !== 0n || this.has("memory", "memory.swap.max")) {
        this.write("memory", "memory.swap.max", alone, where("memory.swap"));
      }
    }
    if (memory.limit) this.write("memory", "memory.max", orMax(memory.limit), where("memory.limit"));
    if (reservation !== undefined && reservation !== 0n) {
      this.write("memory", "memory.low", orMax(reservation), where("memory.reservation"));
    }
    if (memory.kernelTCP !== undefined && memory.kernelTCP > 0n) {
      throw new OciConfigError(`${where("memory.kernelTCP")} is not supported on cgroup v2`);
    }
    if (memory.disableOOMKiller) {
      throw new OciConfigError(`${where("memory.disableOOMKiller")} is not supported on cgroup v2`);
    }
    if (memory.swappiness !== undefined) {
      throw new OciConfigError(`${where("memory.swappiness")} is not supported on cgroup v2`);
    }
  }

  #cpu(cpu: NonNullable<OciResources["cpu"]>): void {
    const { shares, quota, period, burst } = cpu;
    if (shares) this.write("cpu", "cpu.weight", cpuWeight(shares), where("cpu.shares"));
    if (cpu.idle !== undefined) this.write("cpu", "cpu.idle", cpu.idle, where("cpu.idle"));
    inSomeOrder([
      () => this.#cpuMax(quota, period),
      () => burst !== undefined && this.write("cpu", "cpu.max.burst", burst, where("cpu.burst")),
    ]);
    if (cpu.realtimeRuntime || cpu.realtimePeriod) {
      throw new OciConfigError(`${where("cpu.realtimeRuntime")} is not supported on cgroup v2`);
    }
    if (cpu.cpus) this.write("cpuset", "cpuset.cpus", cpu.cpus, where("cpu.cpus"));
    if (cpu.mems) this.write("cpuset", "cpuset.mems", cpu.mems, where("cpu.mems"));
  }

  /** A quota that is not named stays; so does a period, by the kernel's own rule. */
  #cpuMax(quota: bigint | undefined, period: bigint | undefined): void {
    if (!quota && !period) return;
    const most = quota ? (quota > 0n ? quota : "max") : (this.#now("cpu", "cpu.max")?.split(" ")[0] ?? "max");
    this.write("cpu", "cpu.max", period ? `${most} ${period}` : `${most}`, where("cpu.quota"));
  }

  #now(controller: string, file: string): string | undefined {
    const path = this.path(controller);
    return path === undefined ? undefined : readText(`${path}/${file}`);
  }

  #io(blockIO: NonNullable<OciResources["blockIO"]>): void {
    const bfq = this.has("io", "io.bfq.weight");
    const weightFile = bfq ? "io.bfq.weight" : "io.weight";
    const scale = (weight: number) => (bfq ? weight : Math.trunc(1 + ((weight - 10) * 9999) / 990));
    if (blockIO.weight) this.write("io", weightFile, scale(blockIO.weight), where("blockIO.weight"));
    for (const { major, minor, weight } of blockIO.weightDevice ?? []) {
      if (weight) this.write("io", weightFile, `${major}:${minor} ${scale(weight)}`, where("blockIO.weightDevice"));
    }
    if (blockIO.leafWeight || blockIO.weightDevice?.some(({ leafWeight }) => leafWeight)) {
      throw new OciConfigError(`${where("blockIO.leafWeight")} is not supported on cgroup v2`);
    }
    const throttles = {
      throttleReadBpsDevice: "rbps",
      throttleWriteBpsDevice: "wbps",
      throttleReadIOPSDevice: "riops",
      throttleWriteIOPSDevice: "wiops",
    } as const;
    for (const [field, key] of Object.entries(throttles)) {
      for (const { major, minor, rate } of blockIO[field as keyof typeof throttles] ?? []) {
        this.write("io", "io.max", `${major}:${minor} ${key}=${rate === 0n ? "max" : rate}`, where(`blockIO.${field}`));
      }
    }
  }
}

function writeRdma(limits: Limits, rdma: OciResources["rdma"]): void {
  for (const [device, { hcaHandles, hcaObjects }] of rdma ?? []) {
    const parts = [
      hcaHandles === undefined ? "" : ` hca_handle=${hcaHandles}`,
      hcaObjects === undefined ? "" : ` hca_object=${hcaObjects}`,
    ];
    limits.write("rdma", "rdma.max", device + parts.join(""), where("rdma"));
  }
}

/** cpu.shares, 2 to 262144, as cpu.weight, 1 to 10000, so that the defaults meet: 1024 is 100. As runc and crun since 2025. */
export function cpuWeight(shares: bigint): number {
  if (shares <= 2n) return 1;
  if (shares >= 262_144n) return 10_000;
  const log = Math.log2(Number(shares));
  return Math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34));
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}
