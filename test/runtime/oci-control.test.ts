/** `slipway oci` pause, resume, ps, update, events, as callers of runc use them. */
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
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
