/** `slipway oci` pause, resume, ps, update, events, as callers of runc use them. */
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findCgroupMounts } from "../../runtime/oci-cgroup.ts";
import { needRight } from "./host-rights.ts";
import { type Change, OciWorld } from "./oci-bundle.ts";

let world: OciWorld;

beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

/** A container that counts up in /count, a hundred times a second. */
function startCounter(change: Change = {}): { readonly id: string; readonly count: () => number } {
  const id = world.id();
  const script = "i=0; while :; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; sleep 0.01; done";
  const { path, rootfs } = world.bundle(script, change);
  expect(world.run("run", "--detach", "--bundle", path, id)).toMatchObject({ code: 0 });
  const count = () => (existsSync(`${rootfs}/count`) ? Number(readFileSync(`${rootfs}/count`, "utf8")) : 0);
  return { id, count };
}

async function rises(count: () => number): Promise<void> {
  for (const before = count(); count() <= before; ) await new Promise((done) => setTimeout(done, 10));
}

describe("oci pause", () => {
  test("stops all processes until they are resumed", async (context) => {
    needRight("freezers", context);
    const { id, count } = startCounter();
    await rises(count);
    expect(world.run("pause", id)).toMatchObject({ code: 0 });
    expect(world.state(id).status).toBe("paused");
    const stopped = count();
    await new Promise((done) => setTimeout(done, 200));
    expect(count()).toBe(stopped);
    expect(world.run("pause", id).stderr).toContain("it is paused, not created or running");
    expect(world.run("exec", id, "true").stderr).toContain("it is paused");
    expect(world.run("resume", id)).toMatchObject({ code: 0 });
    expect(world.state(id).status).toBe("running");
    await rises(count);
    expect(world.run("resume", id).stderr).toContain("it is running, not paused");
    world.run("delete", "--force", id);
  });

  test("keeps no container from being killed", async () => {
    const { id } = startCounter();
    world.run("pause", id);
    expect(world.run("kill", id, "KILL")).toMatchObject({ code: 0 });
    await world.reaches(id, "stopped");
    expect(world.run("delete", id)).toMatchObject({ code: 0 });
    const other = startCounter().id;
    world.run("pause", other);
    expect(world.run("delete", "--force", other)).toMatchObject({ code: 0 });
    expect(world.run("state", other).stderr).toContain("does not exist");
  });
});

describe("oci ps", () => {
  test("lists the container's processes, as numbers or as ps prints them", () => {
    const { id } = startCounter();
    const { pid } = world.state(id);
    expect(JSON.parse(world.run("ps", "--format", "json", id).stdout)).toContain(pid);
    const lines = world.run("ps", id, "-o", "pid,comm").stdout.trim().split("\n");
    expect(lines[0]).toMatch(/^\s*PID COMMAND$/);
    expect(lines.slice(1).join()).toMatch(new RegExp(`${pid} sh`));
    expect(lines.join()).not.toContain("systemd");
    expect(world.run("ps", id, "-o", "comm").stderr).toContain("no column PID");
    world.run("delete", "--force", id);
  });
});

describe("oci update", () => {
  const limitIn = (id: string) => {
    const [v1, v2] = [
      `/sys/fs/cgroup/memory/slipway-oci/${id}/memory.limit_in_bytes`,
      `/sys/fs/cgroup/slipway-oci/${id}/memory.max`,
    ];
    return readFileSync(existsSync(v1) ? v1 : v2, "utf8").trim();
  };

  test("changes what is named and leaves the rest, by options or from a file", () => {
    const { id } = startCounter({ linux: { resources: { memory: { limit: 128 << 20 }, pids: { limit: 50 } } } });
    expect(world.run("update", "--memory", "64m", id)).toMatchObject({ code: 0 });
    expect(limitIn(id)).toBe(`${64 << 20}`);
    const resources = JSON.stringify({ memory: { limit: 96 << 20 } });
    expect(world.runWith(`<<< '${resources}'`, "update", "--resources", "-", id)).toMatchObject({ code: 0 });
    expect(limitIn(id)).toBe(`${96 << 20}`);
    const statistics = JSON.parse(world.run("events", "--stats", id).stdout);
    expect(statistics).toMatchObject({ type: "stats", id, data: { pids: { limit: 50 } } });
    world.run("delete", "--force", id);
  });

  test("refuses what is no number, no field or no container", () => {
    const { id } = startCounter();
    expect(world.run("update", "--memory", "much", id).stderr).toContain('--memory must be bytes as 512m, not "much"');
    const fields = (text: string) => world.runWith(`<<< '${text}'`, "update", "--resources", "-", id).stderr;
    expect(fields('{"memory":{"limit":"1"}}')).toContain("linux.resources.memory.limit must be a whole number");
    expect(fields('{"memory":')).toContain("resources is no JSON");
    expect(world.run("update", "--pids-limit", "-1", id)).toMatchObject({ code: 0, stderr: "" });
    expect(world.run("update", "--memory", "64m", "nobody").stderr).toContain('"nobody" does not exist');
    world.run("delete", "--force", id);
  });
});

describe("oci update, of what the kernel holds against one another", () => {
  const cpu = findCgroupMounts().find(({ controllers }) => controllers.includes("cpu"));

  test("leaves what is zero as it is, as Docker's update wants it", () => {
    const { id } = startCounter({ linux: { resources: { memory: { limit: 128 << 20 } } } });
    const unset = { shares: 0, quota: 0, period: 0, realtimeRuntime: 0, realtimePeriod: 0, cpus: "", mems: "" };
    const memory = { limit: 0, reservation: 0, swap: 0, kernel: 0, kernelTCP: 0 };
    const resources = JSON.stringify({ cpu: unset, memory, blockIO: { weight: 0 } });
    const updated = world.runWith(`<<< '${resources}'`, "update", "--resources", "-", id);
    expect(updated).toEqual({ code: 0, stdout: "", stderr: "" });
    const statistics = JSON.parse(world.run("events", "--stats", id).stdout);
    expect(statistics.data.memory.usage.limit).toBe(128 << 20);
    world.run("delete", "--force", id);
  });

  test("sets quota and period whatever they were, and keeps the one that is not named", (context) => {
    needRight("freezers", context);
    if (cpu === undefined) return context.skip("no cpu controller");
    const parent = world.id();
    const at = join(cpu.mountPoint, parent);
    const [quotaFile, periodFile] =
      cpu.version === 2 ? ["cpu.max", "cpu.max"] : ["cpu.cfs_quota_us", "cpu.cfs_period_us"];
    const set = (quota: number, period: number) => (cpu.version === 2 ? `${quota} ${period}` : `${quota}`);
    // A child may not have more than its parent: 25 of 10 ms are, until the quota is a smaller one.
    mkdirSync(at);
    writeFileSync(join(at, quotaFile), set(50_000, 100_000));
    const cgroupsPath = `/${parent}/box`;
    const { id } = startCounter({ linux: { cgroupsPath, resources: { cpu: { quota: 25_000, period: 50_000 } } } });
    const read = (file: string) => readFileSync(join(at, "box", file), "utf8").trim();
    const both = () => (cpu.version === 2 ? read("cpu.max") : `${read(quotaFile)} ${read(periodFile)}`);
    expect(world.run("update", "--cpu-quota", "5000", "--cpu-period", "10000", id)).toMatchObject({
      stderr: "",
      code: 0,
    });
    expect(both()).toBe("5000 10000");
    expect(world.run("update", "--cpu-period", "20000", id)).toMatchObject({ stderr: "", code: 0 });
    expect(both()).toBe("5000 20000");
    // On v2 a child may say more than its parent has.
    const { stderr } = world.run("update", "--cpu-quota", "15000", id);
    expect(stderr).toContain(cpu.version === 2 ? "" : "linux.resources.cpu.quota cannot be set to 15000");
    expect(both()).toBe(cpu.version === 2 ? "15000 20000" : "5000 20000");
    world.run("delete", "--force", id);
    for (const { mountPoint } of findCgroupMounts()) {
      if (existsSync(join(mountPoint, parent))) rmdirSync(join(mountPoint, parent));
    }
  });
});

describe("oci events", () => {
  test("prints the statistics that runc prints, and ends with the container", async () => {
    const { id, count } = startCounter();
    await rises(count);
    const { data } = JSON.parse(world.run("events", "--stats", id).stdout);
    expect(data.cpu.usage.total).toBeGreaterThan(0);
    expect(data.memory.usage.usage).toBeGreaterThan(0);
    expect(data.pids.current).toBeGreaterThan(0);
    const { child, ended } = world.start("events", "--interval", "50ms", id);
    await once(child.stdout, "data");
    world.run("kill", id, "KILL");
    const { code, stdout, stderr } = await ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(
      stdout
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line).type),
    ).toContain("stats");
    world.run("delete", id);
  });
});
