/** Other programs that start containers, found on this machine, as contenders of the container benchmarks. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import type { Host } from "../runtime/index.ts";
import { reap } from "../runtime/reaper.ts";
import { spawnProgram } from "../runtime/syscall.ts";
import { peerConfig, type Place } from "./subject.ts";

export interface Contender {
  readonly name: string;
  readonly detail: string;
  /** Takes so long that a tenth of the runs says enough. */
  readonly slow?: boolean;
  /** One container from start to reaped, in milliseconds. */
  once(): Promise<number>;
}

/** Which Debian package has a peer that is not here. */
const packages: Readonly<Record<string, string>> = {
  crun: "crun",
  runc: "runc",
  bwrap: "bubblewrap",
  podman: "podman",
  docker: "docker.io",
  dockerd: "docker.io",
};

const told = new Set<string>();

/** The program's path; if it is not here, says once in one line how to get it. */
export function find(name: string): string | undefined {
  const found = spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" });
  if (found.status === 0) return found.stdout.trim();
  if (!told.has(name)) console.error(`${name} is not here and not measured: apt-get install ${packages[name] ?? name}`);
  told.add(name);
  return undefined;
}

/** crun 1.8 refuses a hybrid host whose v2 hierarchy has a controller; where there is one, the benchmark runs without it. */
export function hideUnifiedHierarchy(): void {
  if (!existsSync("/sys/fs/cgroup/unified") || process.env["SLIPWAY_BENCH_INNER"] === "1") return;
  const script = 'umount /sys/fs/cgroup/unified; exec "$@"';
  const argv = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const inner = spawnSync("unshare", ["-m", "sh", "-c", script, "sh", ...argv], {
    stdio: "inherit",
    env: { ...process.env, SLIPWAY_BENCH_INNER: "1" },
  });
  process.exit(inner.status ?? 1);
}

/** A peer's time is that of its whole process, started by posix_spawn as Slipway starts its own. */
export function peer(
  contender: Pick<Contender, "name" | "detail" | "slow">,
  path: string,
  args: () => readonly string[],
): Contender {
  return {
    ...contender,
    async once() {
      const argv = args();
      const startMs = performance.now();
      const { exitCode } = await reap(spawnProgram(path, argv));
      const ms = performance.now() - startMs;
      if (exitCode === 0) return ms;
      throw new Error(`Cannot measure ${contender.name}: "${path} ${argv.join(" ")}" ended with ${exitCode}`);
    },
  };
}

let sequence = 0;

/** An OCI runtime on the configuration that Slipway's step has. */
export function ociRuntime(
  name: "crun" | "runc",
  options: {
    readonly host: Host;
    readonly directory: string;
    readonly rootDir: string;
    readonly place: Place;
    readonly hasUserNamespace: boolean;
    readonly label?: string;
  },
): Contender[] {
  const path = find(name);
  if (path === undefined) return [];
  const bundle = `${options.directory}/bundle-${++sequence}`;
  mkdirSync(bundle);
  writeFileSync(`${bundle}/config.json`, peerConfig(options.host, { ...options, bundle }));
  const { hasUserNamespace } = options;
  const contender = {
    name: `${name}${hasUserNamespace ? "" : ", no user namespace"}`,
    detail: hasUserNamespace ? "the same configuration; no overlay" : "the same without idmapped layers",
  };
  // runc warns at every start of limits that it ignores; what it fails of is in the exit code.
  const id = () => `slipway-bench-${process.pid}-${++sequence}`;
  return [peer(contender, path, () => ["--log", `${bundle}.log`, "run", "--bundle", bundle, id()])];
}

export function bubblewrap(rootDir: string): Contender[] {
  const path = find("bwrap");
  if (path === undefined) return [];
  const mounts = ["--bind", rootDir, "/", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"];
  const detail = "all namespaces, loopback only; no overlay, no seccomp, no limits";
  return [peer({ name: "bubblewrap", detail }, path, () => ["--unshare-all", ...mounts, "/usr/bin/true"])];
}
