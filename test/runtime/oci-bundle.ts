/** Bundles for tests: a root file system of this host's programs, and the `slipway oci` command on it. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const command = fileURLToPath(new URL("../../cli/slipway.cjs", import.meta.url));

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** What a test says of its configuration; the rest is the usual. */
export interface Change {
  readonly process?: object;
  readonly root?: object;
  readonly mounts?: readonly object[];
  readonly linux?: {
    readonly namespaces?: readonly object[];
    readonly uidMappings?: readonly { readonly hostID: number }[];
    readonly [key: string]: unknown;
  };
  readonly [key: string]: unknown;
}

const capabilities = ["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"];

export const namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"].map((type) => ({ type }));

const mounts = [
  { destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "nodev", "noexec"] },
  {
    destination: "/dev",
    type: "tmpfs",
    source: "tmpfs",
    options: ["nosuid", "strictatime", "mode=755", "size=65536k"],
  },
  {
    destination: "/dev/pts",
    type: "devpts",
    source: "devpts",
    options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
  },
];

/** One directory with the state of containers and all bundles; disposing it deletes what is left of them. */
export class OciWorld implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "slipway-oci-"));
  readonly root = join(this.directory, "state");
  #sequence = 0;

  /** Makes a bundle whose program is `script`, run by a shell. */
  bundle(script: string | readonly string[], change: Change = {}): { readonly path: string; readonly rootfs: string } {
    const path = join(this.directory, `bundle-${++this.#sequence}`);
    const rootfs = join(path, "rootfs");
    mkdirSync(rootfs, { recursive: true });
    // An image's files belong to the ids that its user namespace maps.
    const owner = change.linux?.uidMappings?.[0]?.hostID ?? 0;
    chownSync(rootfs, owner, owner);
    const host = ["/usr", "/bin", "/sbin", "/lib", "/lib64"].filter((name) => existsSync(name));
    const binds = host.filter((name) => !lstatSync(name).isSymbolicLink());
    for (const name of host) if (!binds.includes(name)) symlinkSync(readlinkSync(name), rootfs + name);
    const config = {
      ociVersion: "1.3.0",
      hostname: "bundle",
      ...change,
      root: { path: "rootfs", ...change.root },
      process: {
        cwd: "/",
        args: typeof script === "string" ? ["/bin/sh", "-c", script] : script,
        env: ["PATH=/usr/bin:/bin"],
        user: { uid: 0, gid: 0 },
        capabilities: { bounding: capabilities, permitted: capabilities, effective: capabilities },
        noNewPrivileges: true,
        ...change.process,
      },
      mounts: [
        ...mounts,
        ...binds.map((name) => ({ destination: name, source: name, options: ["rbind", "ro"] })),
        ...(change.mounts ?? []),
      ],
      linux: { ...change.linux, namespaces: change.linux?.namespaces ?? namespaces },
    };
    writeFileSync(join(path, "config.json"), JSON.stringify(config));
    return { path, rootfs };
  }

  /** A new id, not taken on this host by other tests: cgroups are named by it. */
  id(): string {
    return `slipway-test-${process.pid}-${++this.#sequence}`;
  }

  /** Runs `slipway oci` to its end. The files are where a container that goes on can write after that. */
  run(...args: readonly string[]): Outcome {
    return this.runWith("", ...args);
  }

  /** With further redirections, as a shell has them: `3</etc/passwd`. */
  runWith(redirections: string, ...args: readonly string[]): Outcome {
    const output = join(this.directory, `output-${++this.#sequence}`);
    const shell = `"$0" "$@" > ${output} 2> ${output}.err < /dev/null ${redirections}; code=$?; wait; exit $code`;
    const argv = ["-c", shell, process.execPath, command, "oci", "--root", this.root, ...args];
    const { status } = spawnSync("bash", argv, { stdio: "ignore", timeout: 300_000, killSignal: "SIGKILL" });
    return { code: status, stdout: readFileSync(output, "utf8"), stderr: readFileSync(`${output}.err`, "utf8") };
  }

  /** As `run`, beside others. */
  async runAside(args: readonly string[]): Promise<Outcome> {
    const output = join(this.directory, `output-${++this.#sequence}`);
    const shell = `"$0" "$@" > ${output} 2> ${output}.err < /dev/null`;
    const argv = ["-c", shell, process.execPath, command, "oci", "--root", this.root, ...args];
    const [status] = (await once(spawn("bash", argv, { stdio: "ignore" }), "exit")) as [number | null];
    return { code: status, stdout: readFileSync(output, "utf8"), stderr: readFileSync(`${output}.err`, "utf8") };
  }

  /** Runs a bundle to the end of its program. */
  runBundle(script: string | readonly string[], change: Change = {}): Outcome {
    const id = this.id();
    return this.run("run", "--bundle", this.bundle(script, change).path, id);
  }

  /** Starts `slipway oci` with pipes. */
  start(...args: readonly string[]) {
    const child = spawn(process.execPath, [command, "oci", "--root", this.root, ...args]);
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    const ended = once(child, "close").then(([code]): Outcome => ({ code: code as number | null, stdout, stderr }));
    return { child, ended };
  }

  state(id: string): { readonly status: string; readonly pid: number; readonly bundle: string } {
    return JSON.parse(this.run("state", id).stdout) as { status: string; pid: number; bundle: string };
  }

  /** Waits until a container has a status; the kernel tells nobody. */
  async reaches(id: string, status: string): Promise<void> {
    for (let i = 0; i < 400 && this.state(id).status !== status; i++) await new Promise((done) => setTimeout(done, 5));
    if (this.state(id).status !== status) throw new Error(`container ${id} is ${this.state(id).status}, not ${status}`);
  }

  [Symbol.dispose](): void {
    for (const id of this.run("list", "--quiet").stdout.split("\n").filter(Boolean)) this.run("delete", "--force", id);
    rmSync(this.directory, { recursive: true, force: true });
  }
}
