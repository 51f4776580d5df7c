import { describe, expect, test, vi } from "vitest";
import { run, slipway, TemporaryDirectory, root } from "./command.ts";
import { Traces } from "./traces.ts";

describe("slipway demo", () => {
  test("shows a build from push to end, exits with its code and leaves nothing", async () => {
    await using directory = await TemporaryDirectory.create();
    const traces = new Traces(directory.path);
    const { code, stdout, stderr } = await slipway(["demo"], { env: traces.environment, watch: () => traces.look() });
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/✓ Redis, server and agent are up/);
    expect(stdout).toMatch(/✓ git push; the post-receive hook has sent a signed webhook/);
    expect(stdout).toMatch(/dashboard {2}http:\/\/127\.0\.0\.1:\d+\/builds\/b\w+/);
    expect(stdout).toMatch(
      /^test {4}▶ unit tests\n(.*\n)*?test {4}│ 9 tests, 0 failed\n(.*\n)*?test {4}✓ unit tests /m,
    );
    expect(stdout).toMatch(/^lint {4}✗ style .*exit code 1 \(allowed to fail\)$/m);
    // The job that needs both comes after both.
    expect(stdout.indexOf("package ▶ build")).toBeGreaterThan(stdout.indexOf("test    ✓ sort"));
    expect(stdout.indexOf("package ▶ build")).toBeGreaterThan(stdout.indexOf("lint    ✗ style"));
    expect(stdout).toMatch(
      /^✓ test +success .*\n✓ lint +success .*\n✓ package +success .*\nhello-slipway#1: success in /m,
    );
    expect(traces.hasSeenCgroups).toBe(true);
    expect(traces.left()).toEqual({});
  });

  test("Ctrl-C in the middle of it leaves nothing either", async () => {
    await using directory = await TemporaryDirectory.create();
    const traces = new Traces(directory.path);
    let isSent = false;
    const { code, stderr } = await slipway(["demo"], {
      env: traces.environment,
      watch: (child, stdout) => {
        traces.look();
        if (isSent || !stdout.includes("▶")) return;
        isSent = true;
        child.kill("SIGINT");
      },
    });
    expect(code).toBe(1);
    expect(stderr).toBe("slipway: Demo ended early: received SIGINT\n");
    expect(traces.left()).toEqual({});
  });

  test("Ctrl-C while it starts leaves nothing either", async () => {
    await using directory = await TemporaryDirectory.create();
    const traces = new Traces(directory.path);
    let isSent = false;
    const { code } = await slipway(["demo"], {
      env: traces.environment,
      watch: (child, stdout) => {
        if (isSent || !stdout.includes("Slipway demo")) return;
        isSent = true;
        child.kill("SIGINT");
      },
    });
    expect(code).toBe(1);
    expect(traces.left()).toEqual({});
  });

  test("its processes end by themselves if it is killed", async () => {
    await using directory = await TemporaryDirectory.create();
    const traces = new Traces(directory.path);
    const { signal } = await slipway(["demo"], {
      env: traces.environment,
      watch: (child, stdout) => {
        traces.look();
        if (stdout.includes("▶")) child.kill("SIGKILL");
      },
    });
    expect(signal).toBe("SIGKILL");
    await vi.waitFor(() => expect(traces.processes()).toEqual([]), { timeout: 30_000 });
    await vi.waitFor(() => expect(traces.removeCgroups()).toEqual([]));
  });

  test("npm run demo is it", async () => {
    await using directory = await TemporaryDirectory.create();
    const traces = new Traces(directory.path);
    // npm keeps a compile cache of its own in TMPDIR.
    const env = { ...traces.environment, NODE_DISABLE_COMPILE_CACHE: "1" };
    const { code, stdout } = await run("npm", ["run", "--silent", "demo"], { cwd: root, env });
    expect(code).toBe(0);
    expect(stdout).toContain("hello-slipway#1: success");
    expect(traces.left()).toEqual({});
  });
});
