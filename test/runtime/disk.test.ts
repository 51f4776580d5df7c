/** Containers that write more than they may, on the real kernel. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runContainer } from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";
import { needRight } from "./host-rights.ts";

const MiB = 1024 ** 2;
const base = { memoryBytes: 128 * MiB, cpu: 2, pids: 64 };
const write = (path: string, mebibytes: number) => `dd if=/dev/zero of=${path} bs=1M count=${mebibytes} 2>/dev/null`;

/** Whatever directories of containers and their removal have left. */
function left(host: TestHost): string[] {
  const { stateDir } = host.host;
  return ["containers", "trash"].flatMap((name) =>
    readdirSync(join(stateDir, name)).map((entry) => `${name}/${entry}`),
  );
}

async function isClean(host: TestHost): Promise<boolean> {
  for (let i = 0; i < 1000 && left(host).length > 0; i++) await delay(20);
  return left(host).length === 0;
}

describe("a container that writes more than it may", () => {
  let host: TestHost;
  beforeAll(async () => {
    host = await TestHost.open();
  });
  afterAll(async () => host[Symbol.asyncDispose]());
  const resources = { ...base, diskBytes: 40 * MiB };

  test.for([
    ["its root file system", write("/var-file", 400)],
    ["the workspace", write("/workspace/file", 400)],
    ["both together", `${write("/a", 30)}; ${write("/workspace/b", 30)}; sleep 1000`],
    [
      "a file that it has deleted",
      "exec 3>/file; rm /file; dd if=/dev/zero bs=1M count=400 2>/dev/null >&3; sleep 1000",
    ],
  ] as const)("on %s is killed, and says so", async ([, script]) => {
    const workspace = { dir: host.workspace() };
    const result = await host.run(`${script}; sleep 1000`, { resources, workspace });
    expect(result).toMatchObject({ reason: "disk", exitCode: 137, signal: "SIGKILL" });
    expect(result.message).toMatch(/^killed: wrote \d+(\.\d)? MiB of 40 MiB disk$/);
    expect(result.usage.diskBytes).toBeGreaterThan(40 * MiB);
    expect(await isClean(host)).toBe(true);
  });

  test("in a workspace that it sees copy-on-write is killed, too", async () => {
    const workspace = { dir: host.workspace(), copyOnWrite: true };
    const result = await host.run(`${write("/workspace/file", 400)}; sleep 1000`, { resources, workspace });
    expect(result).toMatchObject({ reason: "disk" });
  });

  test("by adding to what was there before is killed, but not for what was there", async () => {
    const dir = host.workspace();
    writeFileSync(join(dir, "large"), Buffer.alloc(100 * MiB, 1));
    const workspace = { dir };
    const kept = await host.run(`${write("/workspace/small", 8)}; sleep 1`, { resources, workspace });
    expect(kept).toMatchObject({ reason: "exited", exitCode: 0 });
    const script =
      "for i in 1 2 3 4 5 6 7 8 9 10; do head -c 8M /dev/zero >> /workspace/large; sleep 0.3; done; sleep 1000";
    const added = await host.run(script, { resources, workspace });
    expect(added).toMatchObject({ reason: "disk" });
    expect(existsSync(join(dir, "large"))).toBe(true);
  });

  test("by making files without end is killed, and they are gone", async () => {
    const many = `exec python3 -c 'import os
for d in range(1000):
    os.mkdir("/many%d" % d)
    for i in range(1000): os.close(os.open("/many%d/%d" % (d, i), os.O_CREAT))'`;
    const result = await host.run(many, { resources: { ...resources, diskBytes: 1024 * MiB, diskFiles: 5000 } });
    expect(result.reason).toBe("disk");
    expect(result.message).toMatch(/^killed: wrote \d+ files, of 5000 that 1 GiB disk allow$/);
    expect(await isClean(host)).toBe(true);
  }, 900_000);

  test("in a workspace that is on another's account is not killed for it", async () => {
    const workspace = { dir: host.workspace(), isOthers: true };
    const result = await host.run(`${write("/workspace/file", 100)}; sleep 1`, { resources, workspace });
    expect(result).toMatchObject({ reason: "exited", exitCode: 0 });
  });

  test("10 000 files are nothing special", async () => {
    const many = `exec python3 -c 'import os
os.mkdir("/workspace/many")
for i in range(10000): open("/workspace/many/%d" % i, "w").write("x")'`;
    const workspace = { dir: host.workspace() };
    expect(await host.run(many, { resources: { ...resources, diskBytes: 200 * MiB }, workspace })).toMatchObject({
      reason: "exited",
      exitCode: 0,
    });
  });

  test("by nesting directories deeper than any path is killed or kept, and they are gone", async () => {
    const deep = `exec python3 -c 'import os
for i in range(3000):
    os.mkdir("d" * 100); os.chdir("d" * 100)'`;
    const result = await host.run(deep, { resources: { ...resources, diskBytes: 400 * MiB } });
    expect(["exited", "disk"]).toContain(result.reason);
    expect(await isClean(host)).toBe(true);
  });

  test("neighbours go on", async () => {
    await using neighbour = await runContainer(
      host.host,
      host.script("sleep 1000", { resources, workspace: { dir: host.workspace() } }),
    );
    await host.run(`${write("/file", 400)}; sleep 1000`, { resources });
    expect(readdirSync(`/proc/${neighbour.pid}`)).not.toEqual([]);
  });
});

test("all containers together have a ceiling, and the largest ends", async () => {
  await using host = await TestHost.open({ ceiling: { diskBytes: 60 * MiB } });
  await using small = await runContainer(
    host.host,
    host.script(`${write("/file", 20)}; sleep 1000`, { resources: base }),
  );
  const large = await host.run(`${write("/file", 50)}; sleep 1000`, { resources: base });
  expect(large).toMatchObject({ reason: "disk" });
  expect(large.message).toMatch(
    /^killed: all steps of this agent together wrote \d.* of 60 MiB disk, this one the most \(\d.*\)$/,
  );
  expect(readdirSync(`/proc/${small.pid}`)).not.toEqual([]);
});

/** A small disk of its own, as a file. */
class SmallDisk implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "slipway-disk-"));
  readonly path = join(this.directory, "mounted");

  constructor(options: readonly string[], mountOptions: string) {
    const image = join(this.directory, "image");
    mkdirSync(this.path);
    execFileSync("truncate", ["-s", "400M", image]);
    execFileSync("mkfs.ext4", ["-q", "-m", "0", ...options, image]);
    try {
      execFileSync("mount", ["-o", `loop,${mountOptions}`, image, this.path], { stdio: "ignore" });
    } catch (error) {
      rmSync(this.directory, { recursive: true });
      throw error;
    }
  }

  [Symbol.dispose](): void {
    // The image store keeps its layers for as long as this process lasts.
    execFileSync("umount", ["--lazy", this.path]);
    rmSync(this.directory, { recursive: true });
  }
}

test("a disk that is nearly full costs the one that has filled it, and neither the agent nor its neighbours", async (context) => {
  needRight("loop devices", context);
  using disk = new SmallDisk([], "noatime");
  {
    await using host = await TestHost.open({ stateDir: join(disk.path, "state") });
    const written = Promise.withResolvers<void>();
    await using neighbour = await runContainer(
      host.host,
      host.script(`${write("/file", 10)}; echo written; sleep 1000`, {
        resources: base,
        output: () => written.resolve(),
      }),
    );
    // Later there may be no room for it.
    await written.promise;
    const result = await host.run(`${write("/file", 2000)}; sleep 1000`, { resources: base });
    expect(result).toMatchObject({ reason: "disk" });
    // Whoever writes faster than we look has failed meanwhile.
    expect(result.message).toMatch(
      /^(killed: the agent's disk was nearly full \(\d.* of 3\d\d(\.\d)? MiB free\), and this step had written \d.*|exit code 1: the agent's disk was nearly full: \d.* of 3\d\d(\.\d)? MiB free)$/,
    );
    // Its files are gone when the kernel has dropped the last mount of them, a moment after its last process.
    while (freeBytes(disk) < 320 * MiB) await delay(20);
    // Not all of it: it is to be found out before a write fails.
    const slow = `${write("/file", Math.floor((freeBytes(disk) - 12 * MiB) / MiB))}; sleep 1000`;
    const killed = await host.run(slow, { resources: base });
    expect(killed.message).toMatch(/^killed: the agent's disk was nearly full \(.*\), and this step had written \d.*$/);
    expect(readdirSync(`/proc/${neighbour.pid}`)).not.toEqual([]);
    expect(await host.run(write("/file", 20), { resources: base })).toMatchObject({ exitCode: 0 });
  }
  while (freeBytes(disk) < 320 * MiB) await delay(20);
});

function freeBytes({ path }: SmallDisk): number {
  const { bfree, bsize } = statfsSync(path);
  return bfree * bsize;
}

describe("project quotas", () => {
  test("count and end what a container writes, at once", async (context) => {
    needRight("loop devices", context);
    let disk: SmallDisk;
    try {
      disk = new SmallDisk(["-O", "quota,project", "-E", "quotatype=prjquota"], "prjquota");
    } catch {
      return context.skip("this kernel has no quotas of ext4");
    }
    using mounted = disk;
    await using host = await TestHost.open({ stateDir: join(mounted.path, "state") });
    expect(host.host.disk.isCounted).toBe(true);
    const dir = join(mounted.path, "workspace");
    mkdirSync(dir);
    host.host.workspaces.adopt(dir);
    const workspace = { dir };
    const resources = { ...base, diskBytes: 40 * MiB };
    const kept = await host.run(`${write("/a", 10)}; ${write("/workspace/b", 10)}`, { resources, workspace });
    expect(kept).toMatchObject({ exitCode: 0 });
    expect(kept.usage.diskBytes).toBeGreaterThanOrEqual(20 * MiB);
    expect(kept.usage.diskBytes).toBeLessThan(22 * MiB);
    // What was there before does not count, nor does deleting it make room beyond it.
    const again = await host.run(`${write("/workspace/c", 30)}; rm /workspace/b`, { resources, workspace });
    expect(again).toMatchObject({ exitCode: 0 });
    expect(Math.round((again.usage.diskBytes ?? 0) / MiB)).toBe(20);
    const over = await host.run(`${write("/file", 300)}; sleep 1000`, { resources, workspace });
    expect(over).toMatchObject({ reason: "disk" });
    expect(over.message).toMatch(/^killed: wrote 4\d(\.\d)? MiB of 40 MiB disk$/);
    // However fast it writes, the file system gives no more than a little beyond the limit.
    expect(over.usage.diskBytes).toBeLessThan(46 * MiB);
    const files = `exec python3 -c 'import os
for i in range(30000): os.close(os.open("/f%d" % i, os.O_CREAT))'`;
    const tooMany = await host.run(files, { resources: { ...resources, diskFiles: 5000 }, workspace });
    expect(tooMany.exitCode).not.toBe(0);
    expect(await isClean(host)).toBe(true);
  }, 900_000);
});
