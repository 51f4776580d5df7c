/**
 * What 100 idle containers cost in memory, beyond the agent's own: what it grows by, and the processes that it keeps for
 * them. The user's programs (`sleep`) and the kernel's share are shown beside it.
 *
 * Proportional set sizes: a page that processes share counts once. The kernel's share is what its counters in
 * /proc/meminfo rise by; others' work on the machine is in it, so run this alone.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { type Container, Host, runContainer } from "../runtime/index.ts";
import { machine, summarize, table } from "./stats.ts";
import { makeRootDirectory, stepOn } from "./subject.ts";

const containers = 100;
const kernelFields = ["Slab", "KernelStack", "PageTables", "SecPageTables", "Percpu"];

/** In KiB. */
interface Measurement {
  readonly agent: number;
  readonly own: number;
  readonly programs: number;
  readonly kernel: number;
}

export async function benchMemory(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  if (process.env["SLIPWAY_BENCH_MEMORY"] === "1") {
    process.send?.(await measure());
    return;
  }
  const runs = Math.min(options.runs, 5);
  const measurements: Measurement[] = [];
  // Each in a process of its own: a heap that has grown once does not grow again.
  for (let run = 0; run < runs; run++) measurements.push(await inNewProcess());
  const names = {
    agent: "what the agent grows by",
    own: "processes that the agent keeps for them",
    total: "both: beyond the agent's own",
    programs: "the user's programs",
    kernel: "the kernel, for all of them",
  } as const;
  const values = (name: keyof typeof names) =>
    measurements.map((one) => (name === "total" ? one.agent + one.own : one[name]) / 1024);
  const rows = (Object.keys(names) as (keyof typeof names)[]).map((name) => ({
    name: names[name],
    ...summarize(values(name)),
  }));
  if (options.json) {
    console.log(JSON.stringify({ benchmark: "memory", machine: machine(), unit: "MiB", containers, results: rows }));
    return;
  }
  console.log(`${containers} idle containers, MiB (proportional set size). ${machine()}\n`);
  const cells = rows.map(({ name, min, median, max }) => [
    name,
    ...[min, median, max].map((value) => value.toFixed(1)),
  ]);
  console.log(table(["", "min", "median", "max"], cells));
}

async function inNewProcess(): Promise<Measurement> {
  const argv = ["--expose-gc", ...process.argv.slice(1)];
  const child = spawn(process.execPath, argv, {
    env: { ...process.env, SLIPWAY_BENCH_MEMORY: "1" },
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const [message] = (await once(child, "message")) as [Measurement];
  await once(child, "exit");
  return message;
}

async function measure(): Promise<Measurement> {
  const directory = mkdtempSync(`${tmpdir()}/slipway-bench-`);
  try {
    chmodSync(directory, 0o755);
    const rootDir = makeRootDirectory(directory);
    await using host = await Host.open({ stateDir: `${directory}/state` });
    using uidRange = host.claimUidRange();
    using network = await host.claimNetwork();
    const start = (id: string, args: readonly string[]) =>
      runContainer(host, { ...stepOn(rootDir, id, { uidRange, network }), args, env: {} });
    // What the first containers load and compile is the agent's own.
    for (let i = 0; i < 20; i++) {
      const container = await start(`warm${i}`, ["/usr/bin/true"]);
      await container.result;
      await container[Symbol.asyncDispose]();
    }
    const before = await settled();
    const running: Container[] = [];
    for (let i = 0; i < containers; i++) running.push(await start(`idle${i}`, ["/usr/bin/sleep", "infinity"]));
    const after = await settled();
    await Promise.all(running.map((container) => container[Symbol.asyncDispose]()));
    return {
      agent: after.agent - before.agent,
      own: after.own - before.own,
      programs: after.programs - before.programs,
      kernel: after.kernel - before.kernel,
    };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function settled(): Promise<Measurement> {
  await delay(1000);
  for (let i = 0; i < 3; i++) (globalThis as { gc?: () => void }).gc?.();
  await delay(500);
  let [own, programs] = [0, 0];
  for (const pid of descendants(process.pid)) {
    const kib = proportionalSize(pid);
    if (programName(pid) === "sleep") programs += kib;
    else own += kib;
  }
  const info = readFileSync("/proc/meminfo", "utf8");
  const kernel = kernelFields.reduce((sum, name) => {
    return sum + Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(info)?.[1] ?? 0);
  }, 0);
  return { agent: proportionalSize(process.pid), own, programs, kernel };
}

function proportionalSize(pid: number): number {
  try {
    return Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0; // gone
  }
}

function programName(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim();
  } catch {
    return "";
  }
}

function descendants(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const name of readdirSync("/proc").filter((one) => /^\d+$/.test(one))) {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, "utf8");
      const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
      children.set(parent, [...(children.get(parent) ?? []), Number(name)]);
    } catch {
      // gone
    }
  }
  const all: number[] = [];
  const visit = (pid: number) => {
    for (const child of children.get(pid) ?? []) {
      all.push(child);
      visit(child);
    }
  };
  visit(root);
  return all;
}
