/** What the kernel makes of the limits of a container and of all containers together. */
import { readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findDisk, findIoSupport } from "../../runtime/block-device.ts";
import { type Container, runContainer } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";

const MiB = 1024 ** 2;

/** Reads a file of a process's cgroup: the first of those names that its version has. */
function cgroupFile(pid: number, names: { readonly 1: string; readonly 2: string }, version: 1 | 2): string {
  const name = names[version];
  const controller = version === 1 ? name.slice(0, name.indexOf(".")) : "";
  const line = readFileSync(`/proc/${pid}/cgroup`, "utf8")
    .split("\n")
    .find((text) => text.split(":")[1]?.split(",").includes(controller));
  const path = line?.split(":").slice(2).join(":") ?? "";
  const mount = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((text) => text.split(" - "))
    .find(([, right = ""]) =>
      version === 2
        ? right.startsWith("cgroup2 ")
        : right.startsWith("cgroup ") && right.split(/[ ,]/).includes(controller),
    );
  return readFileSync(`${mount?.[0]?.split(" ")[4]}${path}/${name}`, "utf8").trim();
}

describe("a container's cgroup", () => {
  let host: TestHost;
  beforeAll(async () => {
    host = await TestHost.open();
  });
  afterAll(async () => host[Symbol.asyncDispose]());

  test("limits memory, swap, cpu and processes", async () => {
    const resources = { memoryBytes: 64 * MiB, cpu: 0.5, pids: 20 };
    await using container = await runContainer(host.host, host.script("sleep 1000", { resources }));
    const version = host.host.cgroups?.version ?? 1;
    const file = (v1: string, v2: string) => cgroupFile(container.pid, { 1: v1, 2: v2 }, version);
    expect(file("memory.limit_in_bytes", "memory.max")).toBe(`${64 * MiB}`);
    expect(file("cpu.cfs_quota_us", "cpu.max").split(" ")[0]).toBe("50000");
    expect(file("pids.max", "pids.max")).toBe("20");
    const countsSwap = version === 2 || host.host.limits.facts?.countsSwap;
    const swap = () => (version === 2 ? file("", "memory.swap.max") : file("memory.memsw.limit_in_bytes", ""));
    expect(countsSwap ? Number(swap()) % (64 * MiB) : 0).toBe(0);
    expect(version === 2 ? file("", "memory.oom.group") : "1").toBe("1");
  });

  test("limits the I/O of the disk under the state directory, or refuses to", async () => {
    const { facts } = host.host.limits;
    const io = { writeBytesPerSecond: 3 * MiB, readOperationsPerSecond: 77 };
    const resources = { memoryBytes: 64 * MiB, cpu: 1, pids: 20, io };
    const limits = async (): Promise<string> => {
      await using container = await runContainer(host.host, host.script("sleep 1000", { resources }));
      const file = (name: string) =>
        cgroupFile(container.pid, { 1: `blkio.throttle.${name}_device`, 2: "io.max" }, facts?.version ?? 1);
      return facts?.version === 2 ? file("") : `${file("write_bps")} ${file("read_iops")}`;
    };
    const found = await limits().catch((error: unknown) => (error as Error).message);
    const disk = findDisk(host.directory);
    const name = "problem" in disk ? "" : `${disk.major}:${disk.minor}`;
    expect([
      `${name} rbps=max wbps=${3 * MiB} riops=77 wiops=max`,
      `${name} ${3 * MiB} ${name} 77`,
      `Cannot limit a step's I/O: ${facts !== undefined && "problem" in facts.io ? facts.io.problem : ""}`,
    ]).toContain(found);
  });

  test("slows direct writes down to their limit", async (context) => {
    const { facts } = host.host.limits;
    if (facts === undefined || "problem" in facts.io) return context.skip("this host cannot limit I/O");
    const resources = { memoryBytes: 64 * MiB, cpu: 1, pids: 20, io: { writeBytesPerSecond: 4 * MiB } };
    const result = await host.run("dd if=/dev/zero of=/file bs=1M count=8 oflag=direct", { resources });
    expect(result).toMatchObject({ exitCode: 0 });
    // However slow the machine is, more than the first slices of a tenth of a second cannot have passed at once.
    expect(result.finishedAtMs - result.startedAtMs).toBeGreaterThan(1000);
    expect(result.usage.ioWriteBytes).toBeGreaterThanOrEqual(8 * MiB);
  });

  test("counts what was used", async () => {
    // So little that it is throttled also where others leave it a small share.
    const resources = { memoryBytes: 64 * MiB, cpu: 0.03, pids: 20 };
    const script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; (sleep 0.01 & sleep 0.01 & wait)";
    const { usage } = await host.run(script, { resources });
    expect(usage.cpuTimeMs).toBeGreaterThan(1);
    expect(usage.cpuThrottledMs).toBeGreaterThan(0);
    expect(usage.cpuThrottledPeriods).toBeGreaterThan(0);
  });
});

describe("the ceiling of all containers", () => {
  test("holds for them together, and shows in what each is granted", async () => {
    await using host = await TestHost.open({ ceiling: { memoryBytes: 128 * MiB, cpu: 1, pids: 40, cpuset: "0" } });
    const version = host.host.cgroups?.version ?? 1;
    await using one = await runContainer(host.host, host.script("sleep 1000"));
    const own = (v1: string, v2: string) => cgroupFile(one.pid, { 1: v1, 2: v2 }, version);
    const parent = (v1: string, v2: string) => cgroupFile(one.pid, { 1: v1, 2: v2 }, version);
    expect(own("memory.limit_in_bytes", "memory.max")).toBe(`${128 * MiB}`);
    expect(parent("cpuset.effective_cpus", "cpuset.cpus.effective")).toBe("0");
    // Each has 40 at most, and both together, too.
    const forks = "n=0; while [ $n -lt 30 ]; do sleep 1000 & n=$((n+1)); done; echo all; wait";
    const both = await Promise.allSettled(
      [1, 2].map(() => host.run(`( ${forks} )`, { timeoutMs: 1000, graceMs: 100 })),
    );
    // If the first is quick, the second cannot even begin.
    expect(both.map((one) => one.status === "fulfilled" && one.value.stdout.includes("all"))).toContain(false);
  });

  test("by default leaves the machine something", async () => {
    await using host = await TestHost.open();
    const { memoryBytes = Infinity, pids = Infinity } = host.host.limits.ceiling;
    const total = Number(/MemTotal:\s+(\d+)/.exec(readFileSync("/proc/meminfo", "utf8"))?.[1]) * 1024;
    expect(memoryBytes).toBeLessThanOrEqual(total - Math.min(128 * MiB, total / 4));
    expect(pids).toBeLessThan(Number(readFileSync("/proc/sys/kernel/pid_max", "utf8")));
  });

  test("of processes refuses a container that has no room left, and says so; the others go on, and one fits again", async () => {
    await using host = await TestHost.open({ ceiling: { pids: 16 } });
    const running: Container[] = [];
    const fill = async () => {
      for (;;) running.push(await runContainer(host.host, host.script("exec sleep 1000")));
    };
    await expect(fill()).rejects.toThrow(
      /clone .*: EAGAIN: the machine has as many processes as it may: all steps of this agent have 16 processes together, .* raise --pids$/,
    );
    expect(running.length).toBeGreaterThan(2);
    for (const { pid } of running) expect(readdirSync(`/proc/${pid}`)).not.toEqual([]);
    await Promise.all(running.map((container) => container[Symbol.asyncDispose]()));
    expect(await host.run("true")).toMatchObject({ exitCode: 0 });
    const resources = { memoryBytes: 64 * MiB, cpu: 1, pids: 1 };
    await expect(host.run("true", { resources })).rejects.toThrow("its limit of 1 processes is too small to start in");
  });

  test("that the host cannot set is refused", async () => {
    await expect(TestHost.open({ ceiling: { cpuset: "4000" } })).rejects.toThrow(
      /Cannot limit this agent's containers: .*cpu\.cpus/,
    );
  });
});

test("findDisk finds the disk, not the partition, and says why there is none", () => {
  const disk = findDisk(tmpdir());
  const found =
    "problem" in disk
      ? disk.problem.includes(`"${tmpdir()}"`)
      : readFileSync(`/sys/block/${disk.name}/dev`, "utf8").trim() === `${disk.major}:${disk.minor}`;
  expect(found).toBe(true);
  expect(findDisk("/proc")).toEqual({ problem: expect.stringContaining('no block device is under "/proc"') as string });
});

test("findIoSupport names the controller that is missing", () => {
  const none = { has: () => false };
  expect(findIoSupport("/", { version: 1, ...none })).toEqual({
    problem: expect.stringContaining('no cgroup controller "blkio" with blkio.throttle.read_bps_device') as string,
  });
  expect(findIoSupport("/", { version: 2, ...none })).toEqual({
    problem: expect.stringContaining('no cgroup controller "io" with io.max') as string,
  });
});
