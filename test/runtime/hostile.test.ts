/**
 * Steps that mean harm, one after the other beside a neighbour that works: each ends for its own reason, the neighbour goes
 * on, and nothing of it is left. What fills memory and disks in other ways is in oom.test.ts and disk.test.ts.
 */
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  type Container,
  type ContainerConfig,
  prepareContainer,
  runContainer,
  type UidRange,
} from "../../runtime/index.ts";
import { TestHost } from "./host-fixture.ts";

const MiB = 1024 ** 2;
const resources = { memoryBytes: 64 * MiB, cpu: 1, pids: 32, diskBytes: 40 * MiB };

let host: TestHost;
/** The harmful ones'. */
let range: UidRange;
let neighbour: Container;
let beats = 0;

beforeAll(async () => {
  host = await TestHost.open();
  range = host.host.claimUidRange();
  const output: ContainerConfig["output"] = () => {
    beats += 1;
  };
  // Forks, uses memory and disk, and prints, all the time.
  const script = "while true; do head -c 1M /dev/zero > /tmp/file; sha256sum /tmp/file; sleep 0.1; done";
  neighbour = await runContainer(host.host, host.script(script, { output, resources: { ...resources, pids: 16 } }));
});
afterAll(async () => {
  await neighbour[Symbol.asyncDispose]();
  range[Symbol.dispose]();
  await host[Symbol.asyncDispose]();
});

/** Those whose user is of the range, as the whole machine sees them. */
function processesOf({ base, size }: UidRange): string[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const status = readFileSync(`/proc/${name}/status`, "utf8");
      const uid = Number(/^Uid:\t(\d+)/m.exec(status)?.[1]);
      return uid >= base && uid < base + size ? [status.split("\n", 1)[0] ?? ""] : [];
    } catch {
      return [];
    }
  });
}

function left(): unknown {
  const { stateDir, cgroups, launchers } = host.host;
  const containers = (directory: string) =>
    readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory()).length - launchers.ready;
  return {
    processes: processesOf(range),
    directories: [readdirSync(`${stateDir}/containers`).length, readdirSync(`${stateDir}/trash`).length],
    // The neighbour's.
    cgroups: new Set((cgroups?.directories ?? []).map(containers)),
  };
}

async function attack(script: string, options: Partial<ContainerConfig> = {}) {
  const result = await host.run(script, { resources, uidRange: range, timeoutMs: 60_000, ...options });
  const before = beats;
  for (let i = 0; i < 1000 && beats < before + 2; i++) await delay(20);
  const isWorking = beats >= before + 2;
  const clean = { processes: [], directories: [host.host.mountsDetachedOverlays ? 0 : 1, 0], cgroups: new Set([1]) };
  const isClean = () => JSON.stringify(left()) === JSON.stringify(clean) && left() !== undefined;
  for (let i = 0; i < 1000 && !isClean(); i++) await delay(20);
  return { ...result, isWorking, left: left(), clean };
}

describe("a neighbour goes on, and nothing is left, when a step", () => {
  test("forks without end", async () => {
    const script = `exec python3 -c 'import os
while True:
    try: os.fork()
    except OSError: pass'`;
    const { left: found, clean, ...result } = await attack(script, { timeoutMs: 1500, graceMs: 200 });
    expect(result).toMatchObject({ reason: "timeout", isWorking: true });
    expect(result.message).toMatch(
      /^timed out: it ran for longer than 1\.5 s \(\d+ forks were refused at the limit of 32 processes\)$/,
    );
    expect(result.usage.pidsPeak ?? 32).toBe(32);
    expect(found).toEqual(clean);
  });

  test("is a shell's fork bomb", async () => {
    const {
      left: found,
      clean,
      ...result
    } = await attack("bomb() { bomb | bomb; }; bomb", { timeoutMs: 5000, graceMs: 200 });
    expect(result.isWorking).toBe(true);
    expect(result.message).toContain("forks were refused at the limit of 32 processes");
    expect(found).toEqual(clean);
  });

  test("takes all memory, in many processes", async () => {
    const script = `exec python3 -c 'import os
for i in range(8):
    if os.fork() == 0: break
x = []
while True: x.append(bytearray(1 << 20))'`;
    const { left: found, clean, ...result } = await attack(script);
    expect(result).toMatchObject({ reason: "oom", exitCode: 137, isWorking: true });
    expect(result.message).toMatch(/^killed: used 6[34](\.\d)? MiB of 64 MiB/);
    expect(found).toEqual(clean);
  });

  test("fills its disk", async () => {
    const { left: found, clean, ...result } = await attack("cat /dev/zero > /tmp/file; sleep 1000");
    expect(result).toMatchObject({ reason: "disk", isWorking: true });
    expect(found).toEqual(clean);
  });

  test("prints without end to somebody who reads slowly, and is killed for it", async () => {
    let printed = 0;
    const { args, env, ...config } = host.script("yes", {
      uidRange: range,
      resources,
      output: (_, chunk) => {
        printed += chunk.length;
        if (printed > 10 * MiB) container.kill("log", "printed more than 10 MiB");
        setTimeout(() => container.resumeOutput(), 1);
        return false;
      },
    });
    // Known before its first output comes.
    const container: Container = prepareContainer(host.host, config);
    await container.start({ args, env });
    const result = await container.result;
    await container[Symbol.asyncDispose]();
    expect(result).toMatchObject({ reason: "log", exitCode: 137, message: "killed: printed more than 10 MiB" });
    // It goes on until the kernel has come to all of its processes.
    expect(printed).toBeLessThan(100 * MiB);
    const { left: found, clean } = await attack("true");
    expect(found).toEqual(clean);
  });

  test("leaves daemons behind that ignore every signal", async () => {
    const script = `python3 -c 'import os, signal, time
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
for i in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(0); os.close(1); os.close(2)
            time.sleep(100000)
        os._exit(0)'; echo done`;
    const { left: found, clean, ...result } = await attack(script);
    expect(result).toMatchObject({ reason: "exited", exitCode: 0, stdout: "done\n", isWorking: true });
    expect(found).toEqual(clean);
  });

  test("ignores SIGTERM, with all its children", async () => {
    const script = "trap '' TERM; (trap '' TERM; while true; do sleep 1; done) & while true; do sleep 1; done";
    const { left: found, clean, ...result } = await attack(script, { timeoutMs: 300, graceMs: 300 });
    expect(result).toMatchObject({ reason: "timeout", exitCode: 137, isWorking: true });
    expect(found).toEqual(clean);
  });

  test("does all of it at once", async () => {
    const script = `exec python3 -c 'import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for i in range(4):
    try: os.fork()
    except OSError: pass
if os.getpid() != os.getsid(0): os.setpgid(0, 0)
f = open("/tmp/%d" % os.getpid(), "w")
x = []
while True:
    try:
        x.append(bytearray(1 << 16))
        f.write("x" * 65536)
        print("y" * 1000)
        os.fork()
    except OSError: pass'`;
    const { left: found, clean, ...result } = await attack(script);
    expect(result).toMatchObject({ reason: expect.stringMatching(/^(oom|disk)$/) as string });
    expect(result.isWorking).toBe(true);
    expect(found).toEqual(clean);
  });
});
