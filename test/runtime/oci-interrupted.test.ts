/** `slipway oci` killed, raced with itself, or out of room: nothing stays that `delete --force` does not remove. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTime } from "../../runtime/oci-state.ts";
import { OciWorld } from "./oci-bundle.ts";

let world: OciWorld;
beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

const cgroupsOf = (id: string) =>
  ["", ...readdirSync("/sys/fs/cgroup")].filter((name) => existsSync(`/sys/fs/cgroup/${name}/slipway-oci/${id}`));

function expectNothingOf(id: string): void {
  expect(existsSync(join(world.root, id))).toBe(false);
  expect(cgroupsOf(id)).toEqual([]);
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(world.directory);
}

const recordOf = (id: string) => {
  try {
    return JSON.parse(readFileSync(join(world.root, id, "state.json"), "utf8")) as { pid: number; pidStart: string };
  } catch {
    return undefined;
  }
};

describe("oci create that is killed", () => {
  const moments: Readonly<Record<string, (id: string) => boolean>> = {
    "once its directory is there": (id) => existsSync(join(world.root, id)),
    "once its state is": (id) => recordOf(id) !== undefined,
    "once it has cgroups": (id) => cgroupsOf(id).length > 0,
    "once its FIFOs are there": (id) => existsSync(join(world.root, id, "answer")),
    "once it has a process": (id) => (recordOf(id)?.pid ?? 0) !== 0,
  };

  test.for(Object.entries(moments))("%s leaves nothing that delete --force does not remove", async ([, hasCome]) => {
    const id = world.id();
    // A terminal's other end, sockets or pipes would only be the caller's to close.
    const { child, ended } = world.start("create", "--bundle", world.bundle("exec sleep 100").path, id);
    while (!hasCome(id) && child.exitCode === null) await new Promise((done) => setTimeout(done, 1));
    child.kill("SIGKILL");
    const record = recordOf(id);
    const deleted = world.run("delete", "--force", id);
    expect(deleted).toMatchObject({ code: 0, stderr: "" });
    await ended;
    expectNothingOf(id);
    // What was on its way ends by itself: nobody answers it.
    for (const pid of [record?.pid ?? 0]) {
      while (pid !== 0 && startTime(pid) === record?.pidStart) await new Promise((done) => setTimeout(done, 5));
    }
    const again = world.run("run", "--bundle", world.bundle("echo again").path, id);
    expect(again).toMatchObject({ code: 0, stdout: "again\n" });
    expectNothingOf(id);
  });
});

describe("one id in many hands", () => {
  test("is created once, and deleted whoever is first", async () => {
    const id = world.id();
    const bundle = world.bundle("exec sleep 100").path;
    const all = (...words: string[]) => Promise.all([1, 2, 3, 4].map(() => world.runAside([...words, id])));
    const created = await all("create", "--bundle", bundle);
    expect(created.filter(({ code }) => code === 0).length).toBe(1);
    const refusals = created.filter(({ code }) => code !== 0).map(({ stderr }) => stderr);
    expect(refusals.filter((text) => !text.includes("there is one with this id"))).toEqual([]);
    const started = await all("start");
    expect(started.filter(({ code }) => code === 0).length).toBe(1);
    const ends = await Promise.all(
      [
        ["delete", "--force", id],
        ["kill", "--all", id, "KILL"],
        ["delete", "--force", id],
      ].map((words) => world.runAside(words)),
    );
    for (const { stderr } of ends) expect(stderr).not.toMatch(/    at |TypeError|ENOTEMPTY/);
    expect(world.run("delete", "--force", id)).toMatchObject({ code: 0 });
    expectNothingOf(id);
  });
});

describe("a place for state", () => {
  test("that is full is an error, and nothing is left", () => {
    const root = join(world.directory, "full");
    mkdirSync(root);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=4k", "full", root]);
    try {
      const id = world.id();
      const { code, stderr } = world.run("--root", root, "run", "--bundle", world.bundle("true").path, id);
      expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("ENOSPC") });
      expect(readdirSync(root)).toEqual([]);
      expect(cgroupsOf(id)).toEqual([]);
    } finally {
      execFileSync("umount", [root]);
    }
  });

  test("that is no directory is an error", () => {
    const { code, stderr } = world.run(
      "--root",
      "/dev/null/x",
      "run",
      "--bundle",
      world.bundle("true").path,
      world.id(),
    );
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining("ENOTDIR") });
  });
});

describe("what goes while a container runs", () => {
  test("the bundle: it is stopped and deleted all the same", () => {
    const id = world.id();
    const { path } = world.bundle("exec sleep 100");
    expect(world.run("run", "--detach", "--bundle", path, id)).toMatchObject({ code: 0 });
    rmSync(join(path, "config.json"));
    expect(world.state(id).status).toBe("running");
    expect(world.run("exec", id, "echo", "in")).toMatchObject({ stdout: "in\n" });
    expect(world.run("delete", "--force", id)).toMatchObject({ code: 0, stderr: "" });
    expectNothingOf(id);
  });
});

test("a log that is a FIFO without a reader is not waited for", () => {
  const log = join(world.directory, "log-fifo");
  execFileSync("mkfifo", [log]);
  const { code, stderr } = world.run("--log", log, "--log-format", "json", "state", "nobody");
  expect({ code, stderr }).toMatchObject({
    code: 1,
    stderr: expect.stringContaining(`Cannot write the log "${log}": ENXIO`),
  });
});
