import { existsSync, readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { TestHost } from "./host-fixture.ts";

let host: TestHost;
beforeEach(async () => {
  host = await TestHost.open();
});
afterEach(async () => host[Symbol.asyncDispose]());

/** The process that makes launchers, and the launchers: they have the same name. */
function ours(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
        const [, name, state, parent] = /\((.*)\) (.) (\d+)/.exec(stat) ?? [];
        return name === "slipway-launch" && state !== "Z" && Number(parent) === process.pid;
      } catch {
        return false;
      }
    });
}

function cgroups(): string[] {
  return (host.host.cgroups?.directories ?? []).flatMap((path) =>
    readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name),
  );
}

async function until(isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !isSo(); i++) await delay(10);
  expect(isSo()).toBe(true);
}

describe("Launchers", () => {
  test("are the agent's own children, each in a cgroup of its own", async () => {
    await until(() => host.host.launchers.ready === 4);
    expect(ours()).toHaveLength(1 + 4);
    const perDirectory = host.host.cgroups?.directories.length ?? 0;
    expect(cgroups()).toHaveLength(4 * perDirectory);
    expect(new Set(cgroups()).size).toBe(4);
  });

  test("begin with few mounts, not with the host's", async () => {
    if (!host.host.keepsLaunchersApart) return;
    await until(() => host.host.launchers.ready === 4);
    for (const pid of ours()) {
      const mounts = readFileSync(`/proc/${pid}/mountinfo`, "utf8").trimEnd().split("\n");
      expect(mounts.map((line) => line.split(" ")[4])).toEqual(["/", "/proc", "/sys"]);
    }
  });

  test("go on when the process that makes them, and they, are killed", async () => {
    await until(() => host.host.launchers.ready === 4);
    const [first = 0] = ours();
    process.kill(first, "SIGKILL");
    for (let i = 0; i < 6; i++) expect(await host.run("echo ok")).toMatchObject({ exitCode: 0, stdout: "ok\n" });
    const all = ours();
    for (const pid of all) process.kill(pid, "SIGKILL");
    // One whose end the agent has not been told yet cannot be known; it reaps those of whom it has.
    await until(() => !all.some((pid) => existsSync(`/proc/${pid}`)));
    expect(await host.run("echo ok")).toMatchObject({ exitCode: 0, stdout: "ok\n" });
    await host.host.launchers.close();
    await until(() => ours().length === 0);
    await until(() => cgroups().length === 0);
  });

  test("are waited for where none is ready", async () => {
    const all = await Promise.all(Array.from({ length: 24 }, (_, i) => host.run(`echo ${i}`)));
    expect(all.map(({ stdout }) => stdout)).toEqual(all.map((_, i) => `${i}\n`));
  });

  test("that cannot be made say what the kernel said", async () => {
    const { cgroups: made, launchers } = host.host;
    if (made === undefined) return;
    await launchers.close();
    // Whose cgroups are gone.
    Object.defineProperty(made, "directories", { value: ["/sys/fs/cgroup/slipway-there-is-no-such"] });
    const closed = new (launchers.constructor as new (of: unknown) => typeof launchers)(host.host);
    expect(() => closed.take()).toThrow(
      'Cannot make launchers of containers: open cgroup "/sys/fs/cgroup/slipway-there-is-no-such": ENOENT',
    );
    await closed.close();
  });
});
