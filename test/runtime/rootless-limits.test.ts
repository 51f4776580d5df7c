/** Limits of a rootless agent's steps, where cgroups are delegated to its user, and what happens where they are not. */
import { readdirSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findMountedCgroups } from "../../runtime/cgroup-host.ts";
import type { AgentAnswer, AskedStep } from "./rootless-agent.ts";
import { RootlessUser } from "./rootless-user.ts";

async function runSteps(user: RootlessUser, asked: readonly AskedStep[]): Promise<AgentAnswer["steps"]> {
  const script = user.script("test/runtime/rootless-agent.ts");
  const { code, stdout, stderr } = await user.run([...script, JSON.stringify(asked)]);
  if (code !== 0) throw new Error(`The rootless agent ended with ${code}: ${stderr}${stdout}`);
  return (JSON.parse(stdout) as AgentAnswer).steps;
}

describe("with delegated cgroups", () => {
  let user: RootlessUser;
  beforeAll(() => {
    user = new RootlessUser({ delegated: true });
  });
  afterAll(() => user[Symbol.dispose]());

  test("memory and processes are limited, and the reason is told", async () => {
    const hog = "python3 -c 'b = bytearray(200 << 20)'";
    const fork = `python3 -c 'import os, time
n = 0
try:
    while n < 100:
        if os.fork() == 0: time.sleep(30); os._exit(0)
        n += 1
except OSError: pass
print(n, flush=True); os._exit(0)'`;
    const steps = await runSteps(user, [
      { script: hog, memoryBytes: 64 << 20 },
      { script: fork, pids: 20 },
      { script: "echo fine" },
    ]);
    expect(steps[0]).toMatchObject({ reason: "oom" });
    const forked = Number(steps[1]?.stdout);
    expect(forked).toBeGreaterThan(5);
    expect(forked).toBeLessThan(20);
    expect(steps[2]).toMatchObject({ stdout: "fine\n", exitCode: 0 });
  });

  test("no step can change its own limits, and nothing is left", async () => {
    const files = ["memory.max", "pids.max", "memory/memory.limit_in_bytes", "pids/pids.max", "cgroup.procs"];
    const [step] = await runSteps(user, [
      {
        script: files
          .map((file) => `(echo 1 > /sys/fs/cgroup/${file}) 2>/dev/null && echo wrote ${file}; true`)
          .join("\n"),
      },
    ]);
    expect(step).toMatchObject({ stdout: "", exitCode: 0 });
    for (const { mountPoint } of findMountedCgroups()?.hierarchies ?? []) {
      const below = readdirSync(`${mountPoint}/slipway-rootless-${user.uid}`, { withFileTypes: true });
      const directories = below.filter((entry) => entry.isDirectory()).map(({ name }) => name);
      expect(directories.filter((name) => name !== "slipway-agent")).toEqual([]);
    }
  });

  test("the whole of it runs: a push, server, agent, Redis", async () => {
    const { code, stdout, stderr } = await user.slipway(["demo"]);
    expect({ code, stdout, stderr }).toMatchObject({ code: 0, stdout: expect.stringMatching(/success/) });
  });

  test("the doctor finds nothing missing", async () => {
    const { stdout } = await user.slipway(["doctor", "--json"]);
    const checks = JSON.parse(stdout) as { name: string; ok: boolean; required: boolean; found: string }[];
    expect(checks.filter(({ ok, required }) => required && !ok)).toEqual([]);
    expect(checks.find(({ name }) => name === "cgroups")?.found).toMatch(/with memory, cpu, pids$/);
    expect(checks.find(({ name }) => name === "a whole container")?.ok).toBe(true);
  });
});

// On v2 a cgroup has the controllers of the one above, which is not the test's.
test.skipIf(findMountedCgroups()?.version === 2)(
  "without the cpu controller alone the agent runs, and says that CPU time is not limited",
  async () => {
    using user = new RootlessUser({ delegated: "without cpu" });
    const hog = "python3 -c 'b = bytearray(200 << 20)'";
    const steps = await runSteps(user, [{ script: hog, memoryBytes: 64 << 20 }, { script: "echo fine" }]);
    expect(steps).toMatchObject([{ reason: "oom" }, { stdout: "fine\n", exitCode: 0 }]);
    const { code, stdout } = await user.slipway(["doctor", "--json"]);
    const checks = JSON.parse(stdout) as { name: string; ok: boolean; found: string }[];
    expect(code).toBe(0);
    expect(checks.filter(({ name }) => name === "cgroups" || name === "CPU time of steps")).toMatchObject([
      { ok: true, found: expect.stringMatching(/with memory, pids$/) },
      { ok: false, found: "not limited: the cpu controller is not delegated to this user" },
    ]);
  },
);

test("without them the agent does not start, and says what would mend that", async () => {
  using user = new RootlessUser();
  const { code, stderr } = await user.slipway(["agent", "--token-file", "/dev/null"]);
  expect(code).toBe(125);
  expect(stderr).not.toContain("at ");
  const run = await user.run([...user.script("test/runtime/rootless-agent.ts"), "[]"]);
  expect(run.stderr).toMatch(/cgroups: cgroup v[12] without the controllers memory, cpu, pids for this user; \S+/);
});
