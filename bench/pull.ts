/** `npm run bench -- pull`: pull and unpack, cold, beside Podman and Docker; then the start of a step in the image. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Host, ImageLease, RegistryClient, resolveImage, runContainer } from "../runtime/index.ts";
import { find } from "./peers.ts";
import { makeImage, startRegistry } from "./pull-image.ts";
import { machine, milliseconds, summarize, table } from "./stats.ts";

const bin = fileURLToPath(new URL("../cli/slipway.cjs", import.meta.url));

/** One way to pull into an empty store. */
interface Puller extends AsyncDisposable {
  readonly name: string;
  /** @returns Milliseconds, and the most memory the puller's own processes had, where that can be told. */
  readonly pull: (image: string) => Promise<{ readonly ms: number; readonly peakBytes?: number }>;
}

export async function benchPull({ runs, json }: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const count = Math.min(runs, 5);
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-pull-"));
  try {
    const layout = join(directory, "layout");
    const made = makeImage(layout);
    await using registry = await startRegistry(directory, layout);
    const image = `${registry.host}/bench:1`;
    const pullers = [slipway(directory), podman(directory), await docker(directory)].filter(
      (each) => each !== undefined,
    );
    const times = new Map(pullers.map(({ name }) => [name, [] as number[]]));
    let peakBytes = 0;
    try {
      // By turns: whatever else the machine does, it does to all of them.
      for (let i = 0; i < count; i++) {
        for (const { name, pull } of pullers) {
          const measured = await pull(image);
          times.get(name)?.push(measured.ms);
          if (name === "slipway") peakBytes = Math.max(peakBytes, measured.peakBytes ?? 0);
        }
      }
    } finally {
      for (const puller of pullers) await puller[Symbol.asyncDispose]();
    }
    const starts = await measureStarts(directory, image);
    const summaries = new Map([...times].map(([name, values]) => [name, summarize(values)]));
    if (json) {
      console.log(
        JSON.stringify({ machine: machine(), image: made, peakBytes, pull: Object.fromEntries(summaries), starts }),
      );
      return;
    }
    const megabytes = (bytes: number) => Math.round(bytes / 1e6);
    console.log(`${machine()}\n`);
    console.log(
      `${megabytes(made.bytes)} MB in ${made.files} files and ${made.layers} layers, ${megabytes(made.compressedBytes)} MB compressed, from a registry on loopback; ${count} runs by turns, cold\n`,
    );
    const ours = summaries.get("slipway")?.median ?? Number.NaN;
    const rows = [...summaries].map(([name, { min, median, max }]) => [
      name,
      ...[min, median, max].map((value) => (value / 1000).toFixed(2)),
      `${(ours / median).toFixed(2)} ×`,
    ]);
    console.log(table(["seconds", "min", "median", "max", "slipway's part"], rows));
    console.log(`\nslipway's peak memory: ${megabytes(peakBytes)} MB`);
    console.log(
      `start of a step, image found and container run until \`true\` has ended, median: host ${milliseconds(starts.host)} ms, the image ${milliseconds(starts.image)} ms: ${milliseconds(starts.image - starts.host)} ms more`,
    );
  } finally {
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
  }
}

function slipway(directory: string): Puller {
  const data = join(directory, "slipway");
  return {
    name: "slipway",
    pull: async (image) => {
      rmSync(data, { recursive: true, force: true, maxRetries: 5 });
      return await timed(process.execPath, [bin, "image", "pull", "--data-dir", data, image]);
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

function podman(directory: string): Puller | undefined {
  const path = find("podman");
  if (path === undefined) return undefined;
  const own = join(directory, "podman");
  return {
    name: "podman",
    pull: async (image) => {
      removeStorage(own);
      const global = [
        `--root=${own}/root`,
        `--runroot=${own}/run`,
        "--storage-driver=overlay",
        "--events-backend=none",
      ];
      return await timed(path, [...global, "pull", "--quiet", "--tls-verify=false", image]);
    },
    [Symbol.asyncDispose]: () => Promise.resolve(removeStorage(own)),
  };
}

/** The daemon's own processes are not among those whose memory is told. */
async function docker(directory: string): Promise<Puller | undefined> {
  const [path, daemonPath] = [find("docker"), find("dockerd")];
  if (path === undefined || daemonPath === undefined) return undefined;
  const own = join(directory, "docker");
  mkdirSync(own);
  const socket = `unix://${own}/docker.sock`;
  const options = [
    `--data-root=${own}/data`,
    `--exec-root=${own}/run`,
    `--pidfile=${own}/docker.pid`,
    `--host=${socket}`,
  ];
  // In the host's network, where the registry is, so without bridge and rules of its own.
  const script = 'mount -t tmpfs tmpfs /run; exec "$@"';
  const words = [daemonPath, ...options, "--bridge=none", "--iptables=false", "--ip6tables=false"];
  const daemon = spawn("unshare", ["-m", "sh", "-c", script, "sh", ...words], { stdio: "ignore" });
  const call = (...args: readonly string[]) =>
    spawnSync(path, ["--host", socket, ...args], { stdio: "ignore" }).status === 0;
  const dispose = async () => {
    await end(daemon);
    removeStorage(own);
  };
  for (let i = 0; !call("version"); i++) {
    if (i < 300 && daemon.exitCode === null) {
      await delay(100);
      continue;
    }
    console.error("dockerd does not start here and is not measured");
    await dispose();
    return undefined;
  }
  return {
    name: "docker",
    pull: async (image) => {
      call("image", "rm", "--force", image);
      call("system", "prune", "--all", "--force");
      const { ms } = await timed(path, ["--host", socket, "pull", "--quiet", image]);
      return { ms };
    },
    [Symbol.asyncDispose]: dispose,
  };
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
async function timed(
  path: string,
  args: readonly string[],
): Promise<{ readonly ms: number; readonly peakBytes: number }> {
  const begin = performance.now();
  const child = spawn(path, args, { stdio: ["ignore", "ignore", "pipe"] });
  const words: Buffer[] = [];
  child.stderr.on("data", (chunk: Buffer) => words.push(chunk));
  let peakBytes = 0;
  const timer = setInterval(() => (peakBytes = Math.max(peakBytes, memoryOf(child.pid ?? 0))), 20);
  const [code] = (await once(child, "close")) as [number | null];
  clearInterval(timer);
  if (code !== 0) throw new Error(`${path} ${args.join(" ")} failed: ${Buffer.concat(words).toString()}`);
  return { ms: performance.now() - begin, peakBytes };
}

/** The high-water mark of a process and its children. */
function memoryOf(pid: number): number {
  try {
    const [, kibibytes = "0"] = /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
    return Number(kibibytes) * 1024 + children.reduce((sum, child) => sum + memoryOf(Number(child)), 0);
  } catch {
    return 0;
  }
}

/** A step by step run, as a job does it once the build has agreed on the image's digest. */
async function measureStarts(
  directory: string,
  image: string,
): Promise<{ readonly host: number; readonly image: number }> {
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
  return { host: summarize(times.host).median, image: summarize(times.image).median };
}
