/**
 * An ordinary user for tests, with subordinate ids: in a mount namespace of its own that has the accounts, so that nothing
 * on the host changes. Needs root, unshare(1) and setpriv(1), and newuidmap(1) where there are subordinate ids.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { findMountedCgroups } from "../../runtime/cgroup-host.ts";
import { jobIds } from "../../runtime/file-owners.ts";
import { removeCgroupTree } from "../../runtime/cgroup-sweep.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

export interface RootlessUserOptions {
  /** How many subordinate ids. @default 65536 */
  readonly ids?: number;
  /** Whether /dev/net/tun is there and open to everybody, as udev makes it. @default true */
  readonly tun?: boolean;
  /** Whether cgroups with memory, cpu and pids are delegated to the user; without cpu on v1 only. @default false */
  readonly delegated?: boolean | "without cpu";
  /** nsenter(1)'s option for the network namespace that is the host's. */
  readonly network?: string;
  /** A file in place of /etc/resolv.conf. */
  readonly resolvConf?: string;
}

export interface Outcome {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export class RootlessUser implements Disposable {
  /** Far from everything, the host does not know them; another test's user, which runs beside this one, has others. */
  readonly uid = 61_000 + (process.pid % 4000);
  readonly gid = this.uid + 4000;
  readonly firstSubordinate = firstSubordinate();
  readonly directory = mkdtempSync(join(tmpdir(), "slipway-rootless-"));
  /** Writable for the user. */
  readonly home = join(this.directory, "home");
  readonly #options: RootlessUserOptions;
  readonly #cgroups: string[] = [];

  constructor(options: RootlessUserOptions = {}) {
    this.#options = options;
    const { uid, gid, firstSubordinate } = this;
    const { ids = 65_536 } = options;
    chmodSync(this.directory, 0o755);
    for (const name of ["home", "project"]) mkdirSync(join(this.directory, name), { mode: 0o755 });
    chownSync(this.home, uid, gid);
    const file = (name: string, text: string) => writeFileSync(join(this.directory, name), text);
    file("passwd", `root:x:0:0::/root:/bin/sh\nrootless:x:${uid}:${gid}::${this.home}:/bin/sh\n`);
    file("group", `root:x:0:\nrootless:x:${gid}:\n`);
    if (options.delegated) this.#delegate();
    file("subid", ids === 0 ? "" : `rootless:${firstSubordinate}:${ids}\n`);
  }

  /** Makes cgroups at the top of every hierarchy and gives them to the user. @see cgroups(7), Delegation */
  #delegate(): void {
    for (const { version, hierarchies } of [findMountedCgroups()].filter((host) => host !== undefined)) {
      for (const { mountPoint, controllers } of hierarchies) {
        if (this.#options.delegated === "without cpu" && controllers.includes("cpu")) continue;
        const path = `${mountPoint}/slipway-rootless-${this.uid}`;
        if (version === 2) writeFileSync(`${mountPoint}/cgroup.subtree_control`, "+memory +cpu +pids");
        mkdirSync(path);
        this.#cgroups.push(path);
        const files =
          version === 2 ? ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] : ["cgroup.procs", "tasks"];
        for (const name of ["", ...files]) chownSync(join(path, name), this.uid, this.gid);
      }
    }
  }

  /** A directory that belongs to the user. */
  directoryOf(name: string): string {
    const path = join(this.home, name);
    mkdirSync(path);
    chownSync(path, this.uid, this.gid);
    return path;
  }

  /** This Node, where the user can see it. */
  get node(): string {
    const inside = relative(root, process.execPath);
    return inside.startsWith("..") ? process.execPath : join(this.directory, "project", inside);
  }

  /** A file of the project, where the user can see it. */
  file(path: string): string {
    return join(this.directory, "project", path);
  }

  /** The command that runs a script of the project, as the user. */
  script(path: string): readonly string[] {
    return [this.node, "--require", this.file("runtime/load-typescript.cjs"), this.file(path)];
  }

  /** Starts a program as the user. */
  spawn(
    command: readonly string[],
    options: { readonly directory?: string; readonly environment?: NodeJS.ProcessEnv } = {},
  ): ChildProcess {
    const { tun = true, network, resolvConf } = this.#options;
    const script = [
      'mount --bind "$1" "$2/project"',
      'for f in passwd group; do mount --bind "$2/$f" "/etc/$f"; done',
      "touch /etc/subuid /etc/subgid",
      'for f in subuid subgid; do mount --bind "$2/subid" "/etc/$f"; done',
      "mkdir -p /dev/net",
      // Where no node can be made, the one that is there is bound.
      'if test -e /dev/net/tun; then touch "$2/tun"; mount --bind /dev/net/tun "$2/tun"; fi',
      "mount -t tmpfs none /dev/net",
      resolvConf === undefined ? "" : `mount --bind ${resolvConf} /etc/resolv.conf`,
      tun
        ? 'mknod -m 666 /dev/net/tun c 10 200 2>/dev/null || { touch /dev/net/tun; mount --bind "$2/tun" /dev/net/tun; }'
        : "",
      // Where an agent has been, v2 takes processes in the leaf only that it has moved itself to.
      ...this.#cgroups.map(
        (path) => `echo $$ 2>/dev/null > ${path}/cgroup.procs || echo $$ > ${path}/slipway-agent/cgroup.procs`,
      ),
      'cd "$3"',
      "shift 3",
      `exec setpriv --reuid ${this.uid} --regid ${this.gid} --clear-groups -- "$@"`,
    ];
    const args = ["--mount", "--propagation", "private", "sh", "-e", "-c", script.filter(Boolean).join("\n"), "sh"];
    const enter = network === undefined ? [] : ["nsenter", network, "--"];
    const place = [root, this.directory, options.directory ?? this.home];
    const [program, ...rest] = [...enter, "unshare", ...args, ...place, ...command];
    return spawn(program as string, rest, {
      env: {
        HOME: this.home,
        PATH: process.env["PATH"],
        LANG: "C.UTF-8",
        ...options.environment,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
  }

  /** Runs a program as the user to its end. */
  async run(command: readonly string[], options: Parameters<RootlessUser["spawn"]>[1] = {}): Promise<Outcome> {
    const child = this.spawn(command, options);
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      child[name]?.setEncoding("utf8").on("data", (chunk: string) => (output[name] += chunk));
    }
    const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
    return { code, signal, ...output };
  }

  /** Runs the `slipway` command as the user. */
  async slipway(args: readonly string[], options: Parameters<RootlessUser["spawn"]>[1] = {}): Promise<Outcome> {
    return await this.run([this.node, this.file("cli/slipway.cjs"), ...args], options);
  }

  [Symbol.dispose](): void {
    for (const path of this.#cgroups) removeCgroupTree(path);
    for (const path of [this.directory, `/tmp/slipway-${this.uid}`]) rmSync(path, { recursive: true, force: true });
  }
}

/** In a user namespace with fewer ids, those that no job has; of the two workers of `npm test` each has its own. */
function firstSubordinate(): number {
  const { ids, ranges } = jobIds();
  if (ids.all) return 700_000_000 + (process.pid % 4000) * 65_536;
  const { hostID, size } = ranges.at(-1)?.mappings.at(-1) ?? { hostID: 0, size: 0 };
  return hostID + size + (Number(process.env["VITEST_POOL_ID"] ?? process.pid) % 2) * 65_536;
}
