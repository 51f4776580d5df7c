/** `npm run bench -- pull`: pull and unpack, cold, beside Podman and Docker; then the start of a step in the image. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Host, ImageLease, RegistryClient, resolveImage, runContainer } from "../runtime/index.ts";
import { find } from "./peers.ts";
import { type BenchImage, makeImage, startRegistry } from "./pull-image.ts";
import { machine, milliseconds, summarize, type Summary, table } from "./stats.ts";

const bin = fileURLToPath(new URL("../cli/slipway.cjs", import.meta.url));

/** What a pull has cost. */
interface Cost {
  readonly ms: number;
  /** Of all processors, in user and kernel mode; what other programs do meanwhile hardly changes it. */
  readonly cpuMs: number;
  /** The most memory that the puller's own processes had, where that can be told. */
  readonly peakBytes?: number;
}

/** One way to pull. */
interface Puller {
  readonly name: string;
  /**
   * Pulls into a store of its own below a directory that does not exist yet.
   *
   * Nothing is deleted before all is measured: ext4 without a journal makes files slowly where others have just been deleted.
   */
  readonly pull: (image: string, own: string) => Promise<Cost>;
}

export async function benchPull({ runs, json }: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const count = Math.min(runs, 5);
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-pull-"));
  try {
    const layout = join(directory, "layout");
    const made = makeImage(layout);
    await using registry = await startRegistry(directory, layout);
    const image = `${registry.host}/bench:1`;
    compile(directory);
    const pullers = [slipway, podman(), docker()].filter((each) => each !== undefined);
    const costs = new Map(pullers.map(({ name }) => [name, [] as Cost[]]));
    // By turns: whatever else the machine does, it does to all of them. What was written by the one before is on the disk.
    for (let i = 0; i < count; i++) {
      for (const { name, pull } of pullers) {
        execFileSync("sync", ["-f", directory]);
        costs.get(name)?.push(await pull(image, join(directory, `${name}-${i}`)));
      }
    }
    const starts = await measureStarts(directory, image);
    report({ made, costs, starts, count, json });
  } finally {
    removeStorage(directory);
  }
}

function report({
  made,
  costs,
  starts,
  count,
  json,
}: {
  readonly made: BenchImage;
  readonly costs: ReadonlyMap<string, readonly Cost[]>;
  readonly starts: Awaited<ReturnType<typeof measureStarts>>;
  readonly count: number;
  readonly json: boolean;
}): void {
  const summaries = [...costs].map(([name, each]) => ({
    name,
    ms: summarize(each.map(({ ms }) => ms)),
    cpuMs: summarize(each.map(({ cpuMs }) => cpuMs)),
  }));
  const peakBytes = Math.max(...(costs.get("slipway") ?? []).map((cost) => cost.peakBytes ?? 0));
  if (json) {
    const pull = Object.fromEntries(summaries.map(({ name, ms, cpuMs }) => [name, { ms, cpuMs }]));
    console.log(JSON.stringify({ machine: machine(), image: made, peakBytes, pull, starts }));
    return;
  }
  const megabytes = (bytes: number) => Math.round(bytes / 1e6);
  console.log(`${machine()}\n`);
  console.log(
    `${megabytes(made.bytes)} MB in ${made.files} files and ${made.layers} layers, ${megabytes(made.compressedBytes)} MB compressed, from a registry on loopback; ${count} runs by turns, cold\n`,
  );
  const ours = summaries.find(({ name }) => name === "slipway");
  for (const [what, of] of [
    ["seconds", "ms"],
    ["seconds of CPU", "cpuMs"],
  ] as const) {
    const rows = summaries.map((each) => [
      each.name,
      ...[each[of].min, each[of].median, each[of].max].map((value) => (value / 1000).toFixed(2)),
      `${((ours?.[of].median ?? Number.NaN) / each[of].median).toFixed(2)} ×`,
    ]);
    console.log(`${table([what, "min", "median", "max", "slipway's part"], rows)}\n`);
  }
  console.log(`slipway's peak memory: ${megabytes(peakBytes)} MB`);
  const more = milliseconds(starts.image.median - starts.host.median);
  const describe = ({ min, median, max }: Summary) => [min, median, max].map(milliseconds).join(" / ");
  console.log(
    `start of a step, image found and container run until \`true\` has ended, min / median / max in ms: host ${describe(starts.host)}, the image ${describe(starts.image)}: ${more} ms more`,
  );
}

/** Has our own modules compiled, threads' too: the first command after an installation does that once and for all. */
function compile(directory: string): void {
  const archive = join(directory, "compile.tar");
  execFileSync("tar", ["--create", "--file", archive, "-C", "/", "usr/bin/true"]);
  const options = ["--data-dir", join(directory, "compile")];
  execFileSync(process.execPath, [bin, "image", "import", archive, "compile:1", ...options], { stdio: "ignore" });
}

const slipway: Puller = {
  name: "slipway",
  pull: async (image, own) => await timed(process.execPath, [bin, "image", "pull", "--data-dir", own, image]),
};

function podman(): Puller | undefined {
  const path = find("podman");
  if (path === undefined) return undefined;
  return {
    name: "podman",
    pull: async (image, own) => {
      const global = [
        `--root=${own}/root`,
        `--runroot=${own}/run`,
        "--storage-driver=overlay",
        "--events-backend=none",
      ];
      return await timed(path, [...global, "pull", "--quiet", "--tls-verify=false", image]);
    },
  };
}

function docker(): Puller | undefined {
  const [path, daemonPath] = [find("docker"), find("dockerd")];
  if (path === undefined || daemonPath === undefined) return undefined;
  return {
    name: "docker",
    pull: async (image, own) => {
      await using daemon = await startDocker({ path, daemonPath, own });
      const before = cpuOf(daemon.pid);
      const { ms, cpuMs } = await timed(path, ["--host", daemon.socket, "pull", "--quiet", image]);
      return { ms, cpuMs: cpuMs + cpuOf(daemon.pid) - before };
    },
  };
}

/** A daemon of its own, ready to be asked; starting it is not measured. @throws {Error} If it does not start. */
async function startDocker(options: {
  readonly path: string;
  readonly daemonPath: string;
  readonly own: string;
}): Promise<AsyncDisposable & { readonly socket: string; readonly pid: number }> {
  const { path, daemonPath, own } = options;
  mkdirSync(own);
  const socket = `unix://${own}/docker.sock`;
  const places = [`--data-root=${own}/data`, `--exec-root=${own}/run`, `--pidfile=${own}/docker.pid`];
  // In the host's network, where the registry is, so without bridge and rules of its own.
  const script = 'mount -t tmpfs tmpfs /run; exec "$@"';
  const words = [daemonPath, ...places, `--host=${socket}`, "--bridge=none", "--iptables=false", "--ip6tables=false"];
  const log: Buffer[] = [];
  const daemon = spawn("unshare", ["-m", "sh", "-c", script, "sh", ...words], { stdio: ["ignore", "ignore", "pipe"] });
  daemon.stderr.on("data", (chunk: Buffer) => log.push(chunk));
  const started = { socket, pid: daemon.pid ?? 0, [Symbol.asyncDispose]: () => end(daemon) };
  for (let i = 0; i < 300 && daemon.exitCode === null; i++) {
    if (spawnSync(path, ["--host", socket, "version"], { stdio: "ignore" }).status === 0) return started;
    await delay(100);
  }
  await end(daemon);
  throw new Error(`dockerd does not start:\n${Buffer.concat(log).toString().slice(-2000)}`);
}

async function end(child: ChildProcess): Promise<void> {
  child.kill("SIGTERM");
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}

/** Storage of overlays may have mounts in it. */
function removeStorage(path: string): void {
  for (const line of readFileSync("/proc/self/mounts", "utf8").split("\n").toReversed()) {
    const target = line.split(" ")[1] ?? "";
    if (target.startsWith(`${path}/`)) spawnSync("umount", [target]);
  }
  rmSync(path, { recursive: true, force: true, maxRetries: 5 });
}

/** Runs a program to its end. @throws {Error} If it fails: a failed pull is no fast one. */
async function timed(path: string, args: readonly string[]): Promise<Cost> {
  const [begin, cpuBefore] = [performance.now(), cpuOfChildren()];
  const child = spawn(path, args, { stdio: ["ignore", "ignore", "pipe"] });
  const words: Buffer[] = [];
  child.stderr.on("data", (chunk: Buffer) => words.push(chunk));
  let peakBytes = 0;
  const timer = setInterval(() => (peakBytes = Math.max(peakBytes, memoryOf(child.pid ?? 0))), 50);
  const [code] = (await once(child, "close")) as [number | null];
  clearInterval(timer);
  if (code !== 0) throw new Error(`${path} ${args.join(" ")} failed: ${Buffer.concat(words).toString()}`);
  return { ms: performance.now() - begin, cpuMs: cpuOfChildren() - cpuBefore, peakBytes };
}

/** proc_pid_stat(5) counts in hundredths of a second: user, kernel, and both of the children that were waited for. */
function cpuFields(pid: number | "self"): readonly [number, number, number, number] {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [user = 0, kernel = 0, childUser = 0, childKernel = 0] = fields
    .slice(11, 15)
    .map((ticks) => Number(ticks) * 10);
  return [user, kernel, childUser, childKernel];
}

/** Milliseconds that ended children have used. */
function cpuOfChildren(): number {
  const [, , user, kernel] = cpuFields("self");
  return user + kernel;
}

/** Milliseconds that a process and its descendants have used. */
function cpuOf(pid: number): number {
  try {
    const own = cpuFields(pid).reduce((sum, each) => sum + each, 0);
    return childrenOf(pid).reduce((sum, child) => sum + cpuOf(child), own);
  } catch {
    return 0;
  }
}

/** Threads have children, too. */
function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number),
  );
}

/** The high-water mark of a process and its children. */
function memoryOf(pid: number): number {
  try {
    const [, kibibytes = "0"] = /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
    return Number(kibibytes) * 1024 + childrenOf(pid).reduce((sum, child) => sum + memoryOf(child), 0);
  } catch {
    return 0;
  }
}

/** A step by step run, as a job does it once the build has agreed on the image's digest. */
async function measureStarts(
  directory: string,
  image: string,
): Promise<{ readonly host: Summary; readonly image: Summary }> {
  await using host = await Host.open({ stateDir: join(directory, "state") });
  using range = host.claimUidRange();
  using client = new RegistryClient({});
  const pulled = new ImageLease();
  const options = { baseDir: directory, storeDir: host.imageStoreDir, client };
  const { digest = "" } = await resolveImage(image, { ...options, lease: pulled });
  const pinned = `${image.replace(/:1$/, "")}@${digest}`;
  const times: Record<"host" | "image", number[]> = { host: [], image: [] };
  for (let i = 0; i < 60; i++) {
    for (const [kind, reference] of [
      ["host", "host"],
      ["image", pinned],
    ] as const) {
      const begin = performance.now();
      using lease = new ImageLease();
      const found = await resolveImage(reference, { ...options, lease });
      await using container = await runContainer(host, {
        id: `bench-${kind}-${i}`,
        image: found,
        uidRange: range,
        args: ["/usr/bin/true"],
        env: {},
        network: "none",
        resources: { memoryBytes: 2 ** 28, cpu: 1, pids: 64 },
        output: () => {},
      });
      const { exitCode, message = "" } = await container.result;
      if (exitCode !== 0) throw new Error(`true in ${reference} ended with ${exitCode} ${message}`);
      if (i >= 10) times[kind].push(performance.now() - begin);
    }
  }
  pulled[Symbol.dispose]();
  return { host: summarize(times.host), image: summarize(times.image) };
}
