/** The cgroup of an OCI container: where `linux.cgroupsPath` says, with what `linux.resources` says, on v1, hybrid and v2. */
import {
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { posix } from "node:path";
import type { OciResources } from "./oci-config.ts";
import { type DeviceRule, deviceLine } from "./oci-device-filter.ts";
import { OciConfigError } from "./oci-parser.ts";

/** Where containers go whose configuration names no absolute cgroup. */
const defaultParent = "slipway-oci";

/** One mounted hierarchy. */
export interface CgroupMount {
  readonly mountPoint: string;
  readonly version: 1 | 2;
  /** v1: its controllers, or `name=systemd`; v2: those it has. */
  readonly controllers: readonly string[];
}

/** A container's directory in one hierarchy. */
export interface CgroupDirectory {
  readonly path: string;
  readonly version: 1 | 2;
  readonly controllers: readonly string[];
}

/** A container's place in all hierarchies; plain data, kept in its state. */
export interface OciCgroup {
  readonly directories: readonly CgroupDirectory[];
  /** Those that did not exist before: the container's to remove, deepest first. */
  readonly made: readonly string[];
}

/** The hierarchies of this host, of a mount namespace's many mounts the first of each. */
export function findCgroupMounts(): readonly CgroupMount[] {
  const found = new Map<string, CgroupMount>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [left, right] = line.split(" - ");
    const mountPoint = left?.split(" ")[4];
    const [type, , options] = right?.split(" ") ?? [];
    if (mountPoint === undefined || (type !== "cgroup" && type !== "cgroup2")) continue;
    const controllers =
      type === "cgroup2"
        ? readWords(`${mountPoint}/cgroup.controllers`)
        : (options ?? "")
            .split(",")
            .filter((option) => !/^(?:rw|ro|xattr|noprefix|clone_children|release_agent=.*)$/.test(option));
    const key = type === "cgroup2" ? "cgroup2" : controllers.join(",");
    if (!found.has(key)) found.set(key, { mountPoint, version: type === "cgroup2" ? 2 : 1, controllers });
  }
  return [...found.values()];
}

/** The path below each mount point, beginning with a slash. @throws {OciConfigError} */
export function cgroupPath(id: string, cgroupsPath: string | undefined, systemd: boolean): string {
  if (!cgroupsPath) return `/${defaultParent}/${id}`;
  if (systemd && !cgroupsPath.startsWith("/")) return systemdPath(cgroupsPath);
  if (cgroupsPath.split("/").includes("..")) {
    throw new OciConfigError(`linux.cgroupsPath ${JSON.stringify(cgroupsPath)} must not lead upwards`);
  }
  const path = posix
    .normalize(`/${cgroupsPath.startsWith("/") ? "" : `${defaultParent}/`}${cgroupsPath}`)
    .replace(/\/+$/, "");
  if (path === "") throw new OciConfigError('linux.cgroupsPath "/" is not supported: it is the cgroup of everybody');
  return path;
}

/** `slice:prefix:name` as systemd would place it; the directories are made here, systemd is not asked. */
function systemdPath(cgroupsPath: string): string {
  const [slice = "", prefix = "", name = ""] = cgroupsPath.split(":");
  if (name === "" || /[/]/.test(cgroupsPath)) {
    throw new OciConfigError(`linux.cgroupsPath ${JSON.stringify(cgroupsPath)} must be SLICE:PREFIX:NAME with systemd`);
  }
  const words = (slice || "system.slice").replace(/\.slice$/, "").split("-");
  const slices = words.map((_, i) => `${words.slice(0, i + 1).join("-")}.slice`);
  const unit = name.endsWith(".slice") ? name : `${prefix === "" ? "" : `${prefix}-`}${name}.scope`;
  return `/${[...slices, unit].join("/")}`;
}

/** Makes the container's directories and the controllers usable in them. @throws {Error} */
export function makeCgroup(path: string, mounts: readonly CgroupMount[]): OciCgroup {
  const made: string[] = [];
  const directories: CgroupDirectory[] = [];
  try {
    for (const { mountPoint, version, controllers } of mounts) {
      let at = mountPoint;
      for (const part of path.split("/").filter(Boolean)) {
        if (version === 2) enableControllers(at, controllers);
        at = `${at}/${part}`;
        if (existsSync(at)) continue;
        mkdirSync(at, { mode: 0o755 });
        made.unshift(at);
        if (version === 1 && controllers.includes("cpuset")) copyCpuset(at);
      }
      directories.push({ path: at, version, controllers });
    }
    return { directories, made };
  } catch (error) {
    removeCgroup({ directories, made });
    throw new Error(`Cannot make cgroup "${path}": ${(error as Error).message}`, { cause: error });
  }
}

/** A v1 cpuset without CPUs and memory nodes takes no process. */
function copyCpuset(path: string): void {
  for (const file of ["cpuset.cpus", "cpuset.mems"]) {
    if (readText(`${path}/${file}`) !== "") continue;
    const parent = readText(`${posix.dirname(path)}/${file}`);
    if (parent) writeFileSync(`${path}/${file}`, parent);
  }
}

function enableControllers(path: string, controllers: readonly string[]): void {
  const enabled = new Set(readWords(`${path}/cgroup.subtree_control`));
  for (const name of controllers) {
    if (enabled.has(name)) continue;
    try {
      writeFileSync(`${path}/cgroup.subtree_control`, `+${name}`);
    } catch {
      // Without it, whoever needs it gets the error of its file.
    }
  }
}

/** Removes what was made, as far as nobody else uses it. */
export function removeCgroup({ directories, made }: OciCgroup): void {
  for (const path of made.toSorted((a, b) => b.length - a.length)) {
    removeTree(path);
  }
  // Our own parent was made for whichever container came first; the one that goes last removes it.
  for (const { path } of directories) {
    const parent = posix.dirname(path);
    if (posix.basename(parent) === defaultParent) removeEmpty(parent);
  }
}

function removeEmpty(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    // Gone, or still another container's parent.
  }
}

function removeTree(path: string): void {
  try {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      if (entry.isDirectory()) removeTree(`${path}/${entry.name}`);
    }
    rmdirSync(path);
  } catch {
    // Gone, or in use: another container's below a parent that was made for this one.
  }
}

/** The processes in it and below it. */
export function cgroupProcesses({ directories }: OciCgroup): number[] {
  const pids = new Set<number>();
  const visit = (path: string) => {
    for (const word of readWords(`${path}/cgroup.procs`)) pids.add(Number(word));
    try {
      for (const entry of readdirSync(path, { withFileTypes: true })) {
        if (entry.isDirectory()) visit(`${path}/${entry.name}`);
      }
    } catch {
      // gone
    }
  };
  // One hierarchy knows them all: the one with processes of this container only.
  const [first] = directories.filter(({ controllers, version }) => version === 2 || controllers.includes("pids"));
  const chosen = first ?? directories[0];
  if (chosen !== undefined) visit(chosen.path);
  pids.delete(0); // of a pid namespace that is not ours
  return [...pids];
}

/** Sets what the configuration asks for. @throws {OciConfigError} If this host cannot. */
export function limitCgroup(
  cgroup: OciCgroup,
  resources: OciResources | undefined,
  devices: readonly DeviceRule[] | undefined,
): void {
  const v1 = new LimitsV1(cgroup, 1);
  const v2 = new LimitsV2(cgroup, 2);
  const unified = cgroup.directories.every(({ version }) => version === 2);
  if (!unified) {
    for (const rule of devices ?? []) {
      const { file, line } = deviceLine(rule);
      v1.write("devices", file, line, "linux.resources.devices");
    }
  }
  if (resources === undefined) return;
  if (unified) v2.apply(resources);
  else v1.apply(resources);
  for (const [file, value] of resources.unified ?? []) {
    if (!unified) throw new OciConfigError("linux.resources.unified is not supported: this host has cgroup v1");
    if (file.includes("/") || !file.includes(".")) {
      throw new OciConfigError(`linux.resources.unified ${JSON.stringify(file)} is not the name of a file`);
    }
    for (const line of value.split("\n"))
      v2.write(file.split(".")[0] ?? "", file, line, `linux.resources.unified["${file}"]`);
  }
}

class Limits {
  readonly #directories: readonly CgroupDirectory[];

  /** Hybrid hosts have both; each is written to in its own terms. */
  constructor(cgroup: OciCgroup, version: 1 | 2) {
    this.#directories = cgroup.directories.filter((directory) => directory.version === version);
  }

  path(controller: string): string | undefined {
    // Files like cgroup.freeze belong to every cgroup of v2.
    return this.#directories.find(({ controllers }) => controller === "cgroup" || controllers.includes(controller))
      ?.path;
  }

  has(controller: string, file: string): boolean {
    const path = this.path(controller);
    return path !== undefined && existsSync(`${path}/${file}`);
  }

  write(controller: string, file: string, value: bigint | number | string, field: string): void {
    const path = this.path(controller);
    if (path === undefined) {
      throw new OciConfigError(`${field} is not supported: this host has no cgroup controller "${controller}"`);
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
}

const where = (name: string) => `linux.resources.${name}`;

class LimitsV1 extends Limits {
  apply(resources: OciResources): void {
    const { memory, cpu, pids, blockIO, hugepageLimits, network, rdma } = resources;
    if (memory !== undefined) this.#memory(memory);
    if (cpu !== undefined) this.#cpu(cpu);
    if (pids?.limit !== undefined) {
      this.write("pids", "pids.max", pids.limit < 0n ? "max" : pids.limit, where("pids.limit"));
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
    const { limit, swap } = memory;
    const limitFirst = () => set("memory.limit_in_bytes", limit, "limit");
    const swapFile = "memory.memsw.limit_in_bytes";
    const path = this.path("memory");
    // Memory and swap together may never be less than memory: which comes first depends on where they come from.
    const swapNow = path === undefined ? "" : (readText(`${path}/${swapFile}`) ?? "");
    const raisesSwap = swap === -1n || (swap !== undefined && swapNow !== "" && swap > BigInt(swapNow));
    if (raisesSwap) set(swapFile, swap, "swap");
    limitFirst();
    if (!raisesSwap && swap !== undefined && swap !== 0n) set(swapFile, swap, "swap");
    set("memory.soft_limit_in_bytes", memory.reservation, "reservation");
    if (memory.kernel !== undefined && memory.kernel > 0n) {
      set("memory.kmem.limit_in_bytes", memory.kernel, "kernel");
      // Newer kernels take it and forget it.
      if (BigInt(readText(`${path}/memory.kmem.limit_in_bytes`) ?? 0) > memory.kernel) {
        throw new OciConfigError(`${where("memory.kernel")} is not supported: this kernel does not limit it apart`);
      }
    }
    if (memory.kernelTCP !== undefined) set("memory.kmem.tcp.limit_in_bytes", memory.kernelTCP, "kernelTCP");
    set("memory.swappiness", memory.swappiness, "swappiness");
    if (memory.disableOOMKiller) set("memory.oom_control", 1, "disableOOMKiller");
  }

  #cpu(cpu: NonNullable<OciResources["cpu"]>): void {
    const set = (controller: string, file: string, value: bigint | number | string | undefined, field: string) => {
      if (value !== undefined && value !== "") this.write(controller, file, value, where(`cpu.${field}`));
    };
    if (cpu.shares !== 0n) set("cpu", "cpu.shares", cpu.shares, "shares");
    set("cpu", "cpu.cfs_period_us", cpu.period === 0n ? undefined : cpu.period, "period");
    set("cpu", "cpu.cfs_quota_us", cpu.quota === 0n ? undefined : cpu.quota, "quota");
    set("cpu", "cpu.cfs_burst_us", cpu.burst, "burst");
    set("cpu", "cpu.rt_period_us", cpu.realtimePeriod === 0n ? undefined : cpu.realtimePeriod, "realtimePeriod");
    set("cpu", "cpu.rt_runtime_us", cpu.realtimeRuntime === 0n ? undefined : cpu.realtimeRuntime, "realtimeRuntime");
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
      this.write("pids", "pids.max", pids.limit < 0n ? "max" : pids.limit, where("pids.limit"));
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
    const { limit, swap, reservation } = memory;
    const orMax = (value: bigint) => (value < 0n ? "max" : value);
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
    if (limit !== undefined && limit !== 0n) this.write("memory", "memory.max", orMax(limit), where("memory.limit"));
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
    if (quota || period) {
      const most = quota && quota > 0n ? quota : "max";
      this.write("cpu", "cpu.max", period ? `${most} ${period}` : `${most}`, where("cpu.quota"));
    }
    if (burst !== undefined) this.write("cpu", "cpu.max.burst", burst, where("cpu.burst"));
    if (cpu.realtimeRuntime || cpu.realtimePeriod) {
      throw new OciConfigError(`${where("cpu.realtimeRuntime")} is not supported on cgroup v2`);
    }
    if (cpu.cpus) this.write("cpuset", "cpuset.cpus", cpu.cpus, where("cpu.cpus"));
    if (cpu.mems) this.write("cpuset", "cpuset.mems", cpu.mems, where("cpu.mems"));
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

function readWords(path: string): string[] {
  return readText(path)?.split(/\s+/).filter(Boolean) ?? [];
}

/** v2: gives the container's root the files that may be delegated, if it gets a namespace and a writable mount for them. */
export function delegateCgroup(cgroup: OciCgroup, owner: number): void {
  const listed = readWords("/sys/kernel/cgroup/delegate");
  const files = listed.length > 0 ? listed : ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
  for (const { path, version } of cgroup.directories) {
    if (version !== 2) continue;
    for (const file of ["", ...files]) {
      const at = `${path}/${file}`;
      if (existsSync(at)) chownSync(at, owner, statSync(at).gid);
    }
  }
}
