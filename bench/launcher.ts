/**
 * `true` in a fresh container, from start to reaped, beside crun, runc, bubblewrap and docker on the same root directory.
 *
 * One run of each in turn, so that a machine whose speed drifts is unfair to nobody. The peers get what Slipway always has as far as they offer it (own
 * pid, mount, network, ipc, uts namespaces; memory, cpu and pids limits for crun and runc); Slipway adds a user namespace, an overlay and idmapped
 * layers. The peers' time is their whole process, started by posix_spawn as Slipway starts its own.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { Host, type Image, prepareContainer, runContainer, type UidRange } from "../runtime/index.ts";
import { reap } from "../runtime/reaper.ts";
import { spawnProgram } from "../runtime/syscall.ts";
import { machine, milliseconds, type Summary, summarize, table } from "./stats.ts";

interface Contender {
  readonly name: string;
  readonly detail: string;
  once(): Promise<number>;
}

const limits = { memoryBytes: 256 << 20, cpu: 1, pids: 64 };

export async function benchLauncher(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  hideUnifiedHierarchy();
  const directory = mkdtempSync(`${tmpdir()}/slipway-bench-`);
  try {
    const rootDir = makeRootDirectory(directory);
    await using host = await Host.open({ stateDir: `${directory}/state` });
    using range = host.claimUidRange();
    const contenders = [
      slipway(host, range, rootDir),
      slipwayAhead(host, range, rootDir),
      ...ociRuntimes(directory, rootDir),
      ...bubblewrap(rootDir),
      ...docker(rootDir),
    ];
    const times = new Map<Contender, number[]>(contenders.map((contender) => [contender, []]));
    const warmUp = 5;
    for (let run = -warmUp; run < options.runs; run++) {
      for (const contender of contenders) {
        // What one leaves to be done after it, in the kernel or in the agent, is not to be the next one's burden.
        await delay(30);
        const ms = await contender.once();
        if (run >= 0) times.get(contender)?.push(ms);
      }
    }
    report(contenders, times, options.json);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** crun 1.8 refuses a hybrid host whose v2 hierarchy has a controller; where there is one, the benchmark runs without it. */
function hideUnifiedHierarchy(): void {
  if (!existsSync("/sys/fs/cgroup/unified") || process.env["SLIPWAY_BENCH_INNER"] === "1") return;
  const script = 'umount /sys/fs/cgroup/unified; exec "$@"';
  const inner = spawnSync("unshare", ["-m", "sh", "-c", script, "sh", process.execPath, ...process.argv.slice(1)], {
    stdio: "inherit",
    env: { ...process.env, SLIPWAY_BENCH_INNER: "1" },
  });
  process.exit(inner.status ?? 1);
}

/** Links into /usr, which every contender mounts read-only, and the directories to mount on. */
function makeRootDirectory(directory: string): string {
  const rootDir = `${directory}/rootfs`;
  for (const name of ["dev", "etc", "proc", "sys", "tmp", "usr"]) mkdirSync(`${rootDir}/${name}`, { recursive: true });
  for (const name of ["bin", "lib", "lib64", "sbin"]) symlinkSync(`usr/${name}`, `${rootDir}/${name}`);
  return rootDir;
}

function slipwayConfig(range: UidRange, rootDir: string) {
  const image: Image = {
    reference: rootDir,
    layers: [rootDir],
    binds: [{ source: "/usr", target: "usr" }],
    config: { env: {} },
  };
  return { image, uidRange: range, resources: limits, network: "none" as const, output: () => undefined };
}

const trueProcess = { args: ["/usr/bin/true"], env: { PATH: "/usr/bin" } };

function slipway(host: Host, range: UidRange, rootDir: string): Contender {
  let n = 0;
  return {
    name: "slipway",
    detail: "user, mount, pid, net, ipc, uts, cgroup namespaces; overlay; limits",
    async once() {
      const startMs = performance.now();
      const container = await runContainer(host, {
        id: `bench${n++}`,
        ...slipwayConfig(range, rootDir),
        ...trueProcess,
      });
      await container.result;
      const ms = performance.now() - startMs;
      await container[Symbol.asyncDispose]();
      return ms;
    },
  };
}

/** From the start of a container that was created ahead, while nothing was waiting for it. */
function slipwayAhead(host: Host, range: UidRange, rootDir: string): Contender {
  let n = 0;
  return {
    name: "slipway, created ahead",
    detail: "the same; from start() to reaped",
    async once() {
      const container = prepareContainer(host, { id: `ahead${n++}`, ...slipwayConfig(range, rootDir) });
      await container.created;
      const startMs = performance.now();
      await container.start(trueProcess);
      await container.result;
      const ms = performance.now() - startMs;
      await container[Symbol.asyncDispose]();
      return ms;
    },
  };
}

function ociRuntimes(directory: string, rootDir: string): Contender[] {
  const bundle = `${directory}/bundle`;
  mkdirSync(bundle);
  const found = ["crun", "runc"].flatMap((name) => which(name));
  const [first] = found;
  if (first === undefined) return [];
  if (spawnSync(first, ["spec"], { cwd: bundle }).status !== 0) return [];
  const config = JSON.parse(readFileSync(`${bundle}/config.json`, "utf8"));
  config.root = { path: rootDir, readonly: false };
  config.process.terminal = false;
  config.process.args = trueProcess.args;
  config.mounts.push({ destination: "/usr", source: "/usr", type: "bind", options: ["rbind", "ro"] });
  config.linux.resources = {
    memory: { limit: limits.memoryBytes },
    pids: { limit: limits.pids },
    cpu: { quota: limits.cpu * 100_000, period: 100_000 },
  };
  writeFileSync(`${bundle}/config.json`, JSON.stringify(config));
  return found.map((path) => {
    const name = path.slice(path.lastIndexOf("/") + 1);
    let n = 0;
    return peer(name, "mount, pid, net, ipc, uts namespaces; limits", path, () => [
      "run",
      "--bundle",
      bundle,
      `slipway-bench-${process.pid}-${n++}`,
    ]);
  });
}

function bubblewrap(rootDir: string): Contender[] {
  const args = [
    "--unshare-all",
    "--bind",
    rootDir,
    "/",
    "--ro-bind",
    "/usr",
    "/usr",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
  ];
  return which("bwrap").map((path) =>
    peer("bubblewrap", "all namespaces; no overlay, no limits", path, () => [...args, "/usr/bin/true"]),
  );
}

function docker(rootDir: string): Contender[] {
  return which("docker").flatMap((path) => {
    if (spawnSync(path, ["version", "--format", "{{.Server.Version}}"], { timeout: 3000 }).status !== 0) return [];
    const image = "slipway-bench";
    const imported = spawnSync("sh", ["-c", `tar -C "$1" -c . | "$2" import - ${image}`, "sh", rootDir, path]);
    if (imported.status !== 0) return [];
    const args = ["run", "--rm", "--network", "none", "--memory", "256m", "-v", "/usr:/usr:ro", image, "/usr/bin/true"];
    return [peer("docker run", "Docker's defaults, no network", path, () => args)];
  });
}

function which(name: string): string[] {
  const found = spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" });
  return found.status === 0 ? [found.stdout.trim()] : [];
}

function peer(name: string, detail: string, path: string, args: () => readonly string[]): Contender {
  return {
    name,
    detail,
    async once() {
      const argv = args();
      const startMs = performance.now();
      const { exitCode } = await reap(spawnProgram(path, argv));
      const ms = performance.now() - startMs;
      if (exitCode !== 0) throw new Error(`Cannot measure ${name}: "${path} ${argv.join(" ")}" ended with ${exitCode}`);
      return ms;
    },
  };
}

function report(contenders: readonly Contender[], times: ReadonlyMap<Contender, number[]>, json: boolean): void {
  const crun = contenders.find(({ name }) => name === "crun");
  const baseline = crun === undefined ? undefined : summarize(times.get(crun) ?? []).median;
  const rows = contenders.map((contender) => {
    const summary: Summary = summarize(times.get(contender) ?? []);
    return {
      name: contender.name,
      detail: contender.detail,
      ...summary,
      toCrun: baseline && summary.median / baseline,
    };
  });
  if (json) {
    console.log(JSON.stringify({ benchmark: "launcher", machine: machine(), unit: "ms", results: rows }));
    return;
  }
  console.log(`\`true\` in a fresh container, start to reaped, ms. ${machine()}\n`);
  const cells = rows.map((row) => [
    row.name,
    ...[row.min, row.median, row.p99].map(milliseconds),
    row.toCrun === undefined ? "" : `${row.toCrun.toFixed(2)} ×`,
    `  ${row.detail}`,
  ]);
  console.log(table(["", "min", "median", "p99", "of crun's", "  what"], cells));
}
