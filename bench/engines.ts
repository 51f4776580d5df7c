/**
 * Docker and Podman with scratch storage, each in a network namespace of its own: their bridges and firewall rules do not
 * touch the host's, and are gone with it.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { type Contender, find, peer } from "./peers.ts";
import { limits } from "./subject.ts";

/** Contenders that need something running beside them. */
export interface Engine extends AsyncDisposable {
  readonly contenders: readonly Contender[];
}

const image = "slipway-bench";
const memory = `${limits.memoryBytes}b`;
const runOptions = ["--memory", memory, "--cpus", `${limits.cpu}`, "--pids-limit", `${limits.pids}`];
/** Podman's own are above the machine's where CAP_SYS_RESOURCE is not there to raise them. */
const ulimits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
/** Below which both put their containers; removed afterwards. */
const cgroupParent = "/slipway-bench";
const command = ["-v", "/usr:/usr:ro", image, "/usr/bin/true"];
const networks = [
  { label: "", detail: "a bridge network made for it", options: [] },
  { label: ", no network", detail: "loopback only", options: ["--network", "none"] },
] as const;

/** `podman run` with Debian's defaults, by crun. */
export async function podman(directory: string, rootDir: string): Promise<Engine> {
  const path = find("podman");
  if (path === undefined) return none;
  const own = `${directory}/podman`;
  mkdirSync(own);
  const network = await networkNamespace();
  const global = [`--root=${own}/root`, `--runroot=${own}/run`, "--cgroup-manager=cgroupfs", "--events-backend=none"];
  // Programs are started without an environment here; Podman finds iptables and the rest by PATH.
  const enter = ["-n", "-t", `${network.pid}`, "/usr/bin/env", `PATH=${process.env["PATH"] ?? "/usr/sbin:/usr/bin"}`];
  const argv = (...words: readonly string[]) => [...enter, path, ...global, ...words];
  const dispose = async () => {
    // Not "podman system reset": that also deletes the machine's networks in /etc/containers.
    spawnSync("umount", ["--recursive", `${own}/root/overlay`]);
    await end(network);
    removeCgroups();
  };
  if (!importImage("nsenter", argv("import", "-", image), rootDir)) {
    await dispose();
    return none;
  }
  const contenders = await working(
    networks.map(({ label, detail, options }) =>
      peer(
        { name: `podman run${label}`, detail: `Podman's defaults, by crun; ${detail}`, slow: true },
        "/usr/bin/nsenter",
        () => argv("run", "--rm", ...options, ...runOptions, `--cgroup-parent=${cgroupParent}`, ...ulimits, ...command),
      ),
    ),
  );
  return { contenders, [Symbol.asyncDispose]: dispose };
}

/** `docker run` with Debian's defaults: a daemon that is started for it, containerd and runc. */
export async function docker(directory: string, rootDir: string): Promise<Engine> {
  const path = find("docker");
  const daemonPath = find("dockerd");
  if (path === undefined || daemonPath === undefined) return none;
  const own = `${directory}/docker`;
  mkdirSync(own);
  const socket = `unix://${own}/docker.sock`;
  const options = [
    `--data-root=${own}/data`,
    `--exec-root=${own}/run`,
    `--pidfile=${own}/docker.pid`,
    `--host=${socket}`,
    `--cgroup-parent=${cgroupParent}`,
  ];
  // /run/docker, /run/containerd: not those of a daemon that runs here.
  const script = 'mount -t tmpfs tmpfs /run && ip link set lo up; exec "$@"';
  const daemon = spawn("unshare", ["-n", "-m", "sh", "-c", script, "sh", daemonPath, ...options], { stdio: "ignore" });
  const dispose = async () => {
    await end(daemon);
    removeCgroups();
  };
  const argv = (...words: readonly string[]) => ["--host", socket, ...words];
  if (!(await answers(daemon, path, argv("version"))) || !importImage(path, argv("import", "-", image), rootDir)) {
    console.error("dockerd does not start here and is not measured: see its own messages with dockerd --debug");
    await dispose();
    return none;
  }
  const contenders = await working(
    networks.map(({ label, detail, options: chosen }) =>
      peer({ name: `docker run${label}`, detail: `Docker's defaults, by runc; ${detail}`, slow: true }, path, () =>
        argv("run", "--rm", ...chosen, ...runOptions, ...command),
      ),
    ),
  );
  return { contenders, [Symbol.asyncDispose]: dispose };
}

const none: Engine = { contenders: [], [Symbol.asyncDispose]: async () => undefined };

async function working(contenders: readonly Contender[]): Promise<Contender[]> {
  const found: Contender[] = [];
  for (const contender of contenders) {
    try {
      await contender.once();
      found.push(contender);
    } catch (error) {
      console.error((error as Error).message);
    }
  }
  return found;
}

function importImage(program: string, argv: readonly string[], rootDir: string): boolean {
  const script = 'dir=$1; shift; tar -C "$dir" -c . | "$@"';
  return spawnSync("sh", ["-c", script, "sh", rootDir, program, ...argv], { stdio: "ignore" }).status === 0;
}

function removeCgroups(): void {
  // Podman's monitors have one of their own in it; where no hierarchy is mounted, that is a plain directory with a plain file.
  spawnSync("sh", ["-c", `rm -f /sys/fs/cgroup/*${cgroupParent}/conmon/tasks 2>/dev/null`]);
  for (const path of [`${cgroupParent}/conmon`, cgroupParent]) {
    spawnSync("sh", ["-c", `rmdir /sys/fs/cgroup${path} /sys/fs/cgroup/*${path} 2>/dev/null`]);
  }
}

async function networkNamespace(): Promise<ChildProcess & { readonly pid: number }> {
  const child = spawn("unshare", ["-n", "sh", "-c", "ip link set lo up; echo; exec sleep infinity"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  await once(child.stdout, "data");
  return child as typeof child & { readonly pid: number };
}

async function answers(daemon: ChildProcess, path: string, argv: readonly string[]): Promise<boolean> {
  for (let i = 0; i < 120 && daemon.exitCode === null; i++) {
    if (spawnSync(path, argv, { timeout: 3000 }).status === 0) return true;
    await delay(250);
  }
  return false;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), 20_000);
  await ended;
  clearTimeout(timer);
}
