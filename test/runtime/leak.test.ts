/** What containers leave behind: nothing. Counted on the whole machine where that is possible. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { lockAgentCgroup, removeCgroupTree, sweepDeadAgents } from "../../runtime/cgroup-sweep.ts";
import { Host, runContainer } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";
import { openDescriptors } from "./open-descriptors.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
});
afterAll(async () => host[Symbol.asyncDispose]());

/** Everything that a container has, as this process or the state directory sees it, without the launchers that wait. */
async function traces() {
  const state = host.host.stateDir;
  const { ready } = host.host.launchers;
  const cgroups = host.host.cgroups?.directories ?? [];
  return {
    mounts: host.mountPoints(),
    cgroups: cgroups.map(
      (directory) =>
        readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory()).length - ready,
    ),
    processes: children().length - ready,
    descriptors: openDescriptors().length - ready,
    containers: readdirSync(`${state}/containers`).length,
    roots: readdirSync(`${state}/roots`).length,
    trash: readdirSync(`${state}/trash`).length,
    workspaces: readdirSync(`${state}/workspaces`).length,
  };
}

/** Processes whose parent is this one. */
function children(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return (
          readFileSync(`/proc/${pid}/stat`, "utf8")
            .replace(/^.*\) /, "")
            .split(" ")[1] === `${process.pid}`
        );
      } catch {
        return false;
      }
    });
}

const kinds = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

/** The inode numbers of all namespaces that a process of this machine is in. */
function inhabitedNamespaces(): Set<string> {
  const found = new Set<string>();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    for (const kind of kinds) {
      try {
        found.add(readlinkSync(`/proc/${pid}/ns/${kind}`));
      } catch {
        // ended meanwhile, or a kernel thread
      }
    }
  }
  return found;
}

/** Waits until the agent has made and removed what it wants to: of processes, launchers and the one that makes them. */
async function settled() {
  let last = "";
  for (let same = 0; same < 5; ) {
    await delay(20);
    const found = await traces();
    const now = JSON.stringify(found);
    same = now === last && found.processes === 1 ? same + 1 : 0;
    last = now;
  }
  return JSON.parse(last) as Awaited<ReturnType<typeof traces>>;
}

test("200 containers leave no mount, cgroup, process, descriptor or directory", async () => {
  const workspace = { dir: host.workspace() };
  const batch = () =>
    Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        const options = { workspace, ...(i === 7 ? { timeoutMs: 50, graceMs: 1 } : {}) };
        const script =
          ["true", "exit 1", "echo x > file", "kill -9 $$", "sleep 100 & true", "mkdir d$$"][i] ?? "sleep 100";
        return host.run(script, i === 6 ? { ...options, args: ["/nothing"] } : options).catch(() => undefined);
      }),
    );
  // The thread that deletes has descriptors of its own, and is started when enough has been deleted.
  for (let i = 0; i < 20; i++) await host.host.removeTree(host.workspace());
  for (let i = 0; i < 5; i++) await batch();
  const before = await settled();
  for (let i = 0; i < 25; i++) await batch();
  expect(await settled()).toEqual(before);
});

test("containers leave no process in their namespaces", async () => {
  const held: { name: string; fd: number }[] = [];
  try {
    for (let i = 0; i < 10; i++) {
      await using container = await runContainer(host.host, host.script("sleep 1000 & exec sleep 1000"));
      for (const kind of kinds) {
        const path = `/proc/${container.pid}/ns/${kind}`;
        // Held open, so that the kernel gives its number to no other namespace meanwhile.
        held.push({ name: readlinkSync(path), fd: openSync(path, "r") });
      }
    }
    const left = inhabitedNamespaces();
    expect(held.filter(({ name }) => left.has(name))).toEqual([]);
  } finally {
    for (const { fd } of held) closeSync(fd);
  }
});

test("a Host that is closed leaves no cgroup, process, descriptor or uid range lock", async () => {
  const directory = mkdtempSync(join(tmpdir(), "slipway-leak-"));
  try {
    await host.run("true");
    await settled();
    const descriptors = readdirSync("/proc/self/fd").length;
    const processes = children().length;
    const other = await Host.open({ stateDir: directory });
    const range = other.claimUidRange();
    const container = await runContainer(other, { ...host.script("sleep 1000"), uidRange: range });
    const cgroups = other.cgroups?.directories ?? [];
    expect(cgroups.every((path) => existsSync(path))).toBe(true);
    await container[Symbol.asyncDispose]();
    range[Symbol.dispose]();
    await other[Symbol.asyncDispose]();
    expect(cgroups.filter((path) => existsSync(path))).toEqual([]);
    expect(readdirSync("/proc/self/fd").length).toBe(descriptors);
    expect(children().length).toBe(processes);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test("an agent that is killed takes its containers along; the next one sweeps the rest", async () => {
  const directory = mkdtempSync(join(tmpdir(), "slipway-leak-"));
  try {
    const agent = spawn(process.execPath, [fileURLToPath(new URL("killed-agent.ts", import.meta.url)), directory], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = (await once(agent.stdout, "data")) as [Buffer];
    const { init, payload, cgroups } = JSON.parse(line.toString()) as {
      init: number;
      payload: number;
      cgroups: string[];
    };
    expect(existsSync(`/proc/${payload}`)).toBe(true);
    expect(cgroups.every((path) => existsSync(path))).toBe(true);
    agent.kill("SIGKILL");
    await once(agent, "close");
    for (let i = 0; i < 500 && [init, payload].some((pid) => alive(pid)); i++) await delay(10);
    expect([init, payload].filter((pid) => alive(pid))).toEqual([]);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(directory);

    await using next = await Host.open({ stateDir: directory });
    for (const path of cgroups) {
      const left = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
      expect(left.map(({ name }) => name)).not.toContain("left-behind");
    }
    expect(readdirSync(`${next.stateDir}/containers`)).toEqual([]);
    expect(readdirSync(next.stateDir).filter((name) => name.endsWith(".old"))).toEqual([]);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

/** A zombie that nobody has reaped yet is dead. */
function alive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

test("sweepDeadAgents removes what an agent left that will not come back, and nothing of one that lives", async () => {
  const [own = ""] = host.host.cgroups?.directories ?? [];
  // A parent of its own: agents of other tests are starting beside ours.
  const parent = join(dirname(own), `sweep-test-${process.pid}`);
  for (const name of ["slipway-dead-1", "slipway-live-1", "slipway-idle-1", "other"])
    mkdirSync(join(parent, name, "c1"), { recursive: true });
  // On v2 nothing runs in an agent's cgroup while it has no job.
  const mark = lockAgentCgroup(join(parent, "slipway-idle-1"));
  const sleeper = spawn("sleep", ["1000"], { stdio: "ignore" });
  try {
    writeFileSync(join(parent, "slipway-live-1/c1/cgroup.procs"), `${sleeper.pid}`);
    sweepDeadAgents(parent, "slipway-own-1");
    expect(existsSync(join(parent, "slipway-dead-1"))).toBe(true); // it may be starting
    sweepDeadAgents(parent, "slipway-own-1", 0);
    expect(existsSync(join(parent, "slipway-dead-1"))).toBe(false);
    expect(existsSync(join(parent, "slipway-live-1/c1"))).toBe(true);
    expect(existsSync(join(parent, "slipway-idle-1/c1"))).toBe(true);
    closeSync(mark);
    sweepDeadAgents(parent, "slipway-own-1", 0);
    expect(existsSync(join(parent, "slipway-idle-1"))).toBe(false);
    expect(existsSync(join(parent, "other/c1"))).toBe(true);
  } finally {
    sleeper.kill("SIGKILL");
    await once(sleeper, "close");
    removeCgroupTree(parent);
  }
  expect(existsSync(parent)).toBe(false);
});

test("Host.open refuses a state directory that another agent uses", async () => {
  await expect(Host.open({ stateDir: host.host.stateDir })).rejects.toThrow("another agent uses it");
});
