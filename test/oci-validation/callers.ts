/**
 * `npm run validate:oci -- callers [--runtime runc] [NAME...]`: Podman, buildah, containerd and Docker, those that are
 * installed, with `slipway oci` as their runtime, or with another one to compare, on scratch storage and in mount and
 * network namespaces of their own.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import {
  buildahChecks,
  type Check,
  containerdChecks,
  dockerChecks,
  podmanChecks,
  podmanUserChecks,
} from "./caller-checks.ts";
import { podmanOptionChecks } from "./podman-options.ts";
import { dockerLiveRestoreChecks, dockerOptionChecks, dockerUserChecks } from "./docker-options.ts";

interface Caller {
  readonly name: string;
  readonly programs: readonly string[];
  readonly checks: readonly Check[];
  /** A daemon's command line, and a command that succeeds when it answers. */
  readonly daemon?: { readonly command: string; readonly answers: string };
  /** Brings the image in. */
  readonly prepare: string;
}

const inner = "SLIPWAY_CALLERS_INNER";
/** Who runs Podman without privileges. */
const user = { name: "slipway-user", id: 64_279 };

/** Runs all checks of the callers that are here. @returns The exit code: 1 if one fails. */
export async function validateCallers(names: readonly string[], runtime: string): Promise<number> {
  if (process.env[inner] === undefined) return becomeIsolated();
  const directory = mkdtempSync(join(tmpdir(), "slipway-callers-"));
  chmodSync(directory, 0o755); // for users, those that a daemon maps among them
  try {
    const environment = makeWorld(directory, runtime);
    let failed = 0;
    for (const caller of callers(directory)) {
      if (names.length > 0 && !names.includes(caller.name)) continue;
      const missing = caller.programs.find((program) => spawnSync("sh", ["-c", `command -v ${program}`]).status !== 0);
      if (missing === undefined) failed += await validateCaller(caller, environment);
      else console.log(`${caller.name}: not here (${missing})`);
    }
    return failed > 0 ? 1 : 0;
  } finally {
    for (const at of mountsBelow(directory)) spawnSync("umount", ["--lazy", at]);
    rmSync(directory, { recursive: true, force: true });
  }
}

/** The latest first. */
function mountsBelow(directory: string): string[] {
  const places = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "");
  return places.filter((place) => place === directory || place.startsWith(`${directory}/`)).toReversed();
}

/** The parents that the callers make and leave; those in use by others stay. */
function removeCgroups(): void {
  // Where no hierarchy is mounted, Podman makes plain directories, with a plain file for its monitors.
  spawnSync("sh", [
    "-c",
    "rm -f /sys/fs/cgroup/*/libpod_parent/conmon/tasks /sys/fs/cgroup/*/libpod_parent/*/conmon/tasks 2>/dev/null",
  ]);
  for (const path of ["libpod_parent/*/conmon", "libpod_parent/*", "libpod_parent", "docker/*", "docker", "default"]) {
    spawnSync("sh", ["-c", `rmdir /sys/fs/cgroup/${path} /sys/fs/cgroup/*/${path} 2>/dev/null`]);
  }
}

/** Bridges, firewall rules, what is mounted below /run, and containers that outlive their daemon end with these namespaces. */
function becomeIsolated(): number {
  const ids = `printf '%s:100000:65536\\n' nobody containers ${user.name} > /run/subuid; cp /run/subuid /run/subgid`;
  const account = `for name in passwd group; do (cat /etc/$name; echo ${user.name}:x:${user.id}:${user.id}::/:) > /run/$name; done`;
  const mounts =
    "for name in passwd group subuid subgid; do touch /etc/$name && mount --bind /run/$name /etc/$name; done";
  // Networks of users need what Debian opens to all.
  const tun = "mkdir -p /dev/net && mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200";
  const script = `mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ${ids}; ${account}; ${mounts}; ${tun}; ip link set lo up; exec "$@"`;
  const argv = [process.execPath, ...process.argv.slice(1)];
  const namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
  const { status } = spawnSync("unshare", [...namespaces, "sh", "-c", script, "sh", ...argv], {
    stdio: "inherit",
    env: { ...process.env, [inner]: "1" },
  });
  removeCgroups();
  return status ?? 1;
}

/** The runtime as one program, a root file system of links into /usr, a Dockerfile, what is mounted and copied. */
function makeWorld(directory: string, runtimeName: string): NodeJS.ProcessEnv {
  const runtime = join(directory, "slipway");
  const slipway = fileURLToPath(new URL("../../cli/slipway.cjs", import.meta.url));
  const words = runtimeName === "slipway" ? `'${process.execPath}' '${slipway}' oci` : runtimeName;
  writeFileSync(runtime, `#!/bin/sh\nexec ${words} "$@"\n`);
  chmodSync(runtime, 0o755);
  const rootfs = join(directory, "rootfs");
  for (const name of ["dev", "etc", "proc", "sbin", "sys", "tmp", "usr"])
    mkdirSync(join(rootfs, name), { recursive: true });
  for (const name of ["bin", "lib", "lib64"]) symlinkSync(`usr/${name}`, join(rootfs, name));
  mkdirSync(join(directory, "context"));
  writeFileSync(join(directory, "context/Dockerfile"), "FROM slipway-test\nRUN echo built > /built && cat /built\n");
  makeSharedDirectory(join(directory, "shared"));
  writeFileSync(join(directory, "file"), "content\n");
  symlinkSync("file", join(directory, "link"));
  writeFileSync(join(directory, "env"), "FROM_FILE=file\n");
  // A pod's own container takes no options.
  const limits = '["nofile=1024:1024", "nproc=1024:1024"]';
  writeFileSync(join(directory, "containers.conf"), `[containers]\ndefault_ulimits = ${limits}\n`);
  const syscalls = [{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 36 }];
  writeFileSync(join(directory, "seccomp.json"), JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW", syscalls }));
  makeStaticContext(join(directory, "static"));
  makePodmanOfUser(directory);
  return { ...process.env, D: directory, RUNTIME: runtime, HOME: directory, DOCKER_BUILDKIT: "0" };
}

/** Podman as the user, with a home of his own. */
function makePodmanOfUser(directory: string): void {
  const [home, runtime] = [join(directory, "user"), `/run/user/${user.id}`];
  mkdirSync("/run/user", { mode: 0o755 });
  for (const path of [home, runtime]) {
    mkdirSync(path, { mode: 0o700 });
    chownSync(path, user.id, user.id);
  }
  const ids = `--reuid ${user.id} --regid ${user.id} --clear-groups`;
  const environment = `HOME=${home} XDG_RUNTIME_DIR=${runtime} USER=${user.name} PATH="$PATH" TERM=dumb`;
  const podman = `podman --cgroup-manager=cgroupfs --events-backend=file --runtime ${directory}/slipway`;
  const path = join(directory, "podman-user");
  writeFileSync(path, `#!/bin/sh\ncd ${home} && exec setpriv ${ids} env -i ${environment} ${podman} "$@"\n`);
  chmodSync(path, 0o755);
}

/** Mounts that are made in it reach whoever has it. */
function makeSharedDirectory(path: string): void {
  mkdirSync(path);
  spawnSync("mount", ["-t", "tmpfs", "shared", path]);
  spawnSync("mount", ["--make-shared", path]);
}

/** What is built where nothing of the host is mounted: a shell and its libraries. */
function makeStaticContext(path: string): void {
  const { stdout } = spawnSync("ldd", ["/bin/sh"], { encoding: "utf8" });
  for (const file of ["/bin/sh", ...(stdout.match(/\/\S+/g) ?? [])]) {
    mkdirSync(join(path, "root", dirname(file)), { recursive: true });
    copyFileSync(file, join(path, "root", file));
  }
  writeFileSync(
    join(path, "Dockerfile"),
    'FROM scratch\nCOPY root /\nRUN echo RUN RAN\nWORKDIR /w\nUSER 7\nRUN test "$PWD" = /w\n',
  );
}

/** For rates of a device. */
function someDisk(): string {
  return `/dev/${readdirSync("/sys/block").find((name) => !/^(?:loop|ram|zram|sr)/.test(name)) ?? "vda"}`;
}

function callers(directory: string): Caller[] {
  const tar = `tar -C ${directory}/rootfs -c .`;
  const podman = `podman --root=${directory}/podman --runroot=/run/podman-test --cgroup-manager=cgroupfs --events-backend=file`;
  const docker = `docker --host unix:///run/docker-test.sock`;
  const dockerd = `dockerd --data-root=${directory}/docker --exec-root=/run/docker-test --pidfile=/run/docker-test.pid --host=unix:///run/docker-test.sock --add-runtime slipway=${directory}/slipway --default-runtime slipway`;
  const dockerCaller = (name: string, checks: readonly Check[], options = ""): Caller => ({
    name,
    programs: ["docker", "dockerd"],
    daemon: { command: `${dockerd} ${options}`, answers: `${docker} version` },
    prepare: `${tar} | ${docker} import - slipway-test`,
    checks: expand(checks, {
      docker,
      dockerd: `${dockerd} ${options}`,
      o: "-v /usr:/usr:ro slipway-test",
      disk: someDisk(),
    }),
  });
  const ctr = "ctr --address /run/containerd-test.sock";
  // Their own limits are above the machine's where CAP_SYS_RESOURCE is not there to raise them.
  const ulimits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024";
  const expand = (checks: readonly Check[], words: Readonly<Record<string, string>>) =>
    checks.map((check) => ({
      ...check,
      command: check.command.replaceAll(/\{([\w-]+)\}/g, (_, name) => words[name as string] ?? `{${name}}`),
    }));
  const podmanWords = { podman: `${podman} --runtime $RUNTIME`, o: `-v /usr:/usr:ro ${ulimits}`, buildah: "" };
  const buildah = `buildah --root=${directory}/podman --runroot=/run/podman-test`;
  const mount = "--mount type=bind,src=/usr,dst=/usr,options=rbind:ro";
  return [
    {
      name: "podman",
      programs: ["podman"],
      prepare: `${tar} | ${podman} import - slipway-test`,
      checks: expand(podmanChecks, podmanWords),
    },
    {
      name: "podman-options",
      programs: ["podman"],
      prepare: `${podman} image exists slipway-test || ${tar} | ${podman} import - slipway-test`,
      checks: expand(podmanOptionChecks, {
        ...podmanWords,
        "podman-systemd": `${podman.replace("=cgroupfs", "=systemd")} --runtime $RUNTIME`,
      }),
    },
    {
      name: "podman-user",
      programs: ["podman", "setpriv", "newuidmap"],
      prepare: `${tar} | ${directory}/podman-user import - slipway-test`,
      checks: expand(podmanUserChecks, { podman: `${directory}/podman-user`, o: podmanWords.o }),
    },
    {
      name: "buildah",
      programs: ["buildah", "podman"],
      prepare: `${podman} image exists slipway-test || ${tar} | ${podman} import - slipway-test`,
      checks: expand(buildahChecks, { ...podmanWords, buildah }),
    },
    {
      name: "containerd",
      programs: ["containerd", "ctr", "podman"],
      daemon: {
        command: `containerd --config ${containerdConfig(directory)} --root ${directory}/containerd --state /run/containerd-test --address /run/containerd-test.sock`,
        answers: `${ctr} version`,
      },
      prepare: `${podman} image exists slipway-test || ${tar} | ${podman} import - slipway-test; ${podman} save -o ${directory}/image.tar localhost/slipway-test && ${ctr} images import ${directory}/image.tar`,
      checks: expand(containerdChecks, { ctr, o: `--runc-binary $RUNTIME ${mount} localhost/slipway-test:latest` }),
    },
    dockerCaller("docker", dockerChecks),
    dockerCaller("docker-options", dockerOptionChecks),
    dockerCaller("docker-userns", dockerUserChecks, "--userns-remap=nobody:nogroup"),
    dockerCaller("docker-live-restore", dockerLiveRestoreChecks, "--live-restore"),
  ];
}

function containerdConfig(directory: string): string {
  const path = join(directory, "containerd.toml");
  const opt = `[plugins."io.containerd.internal.v1.opt"]\npath = "${directory}/opt"\n`;
  writeFileSync(path, `version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n${opt}`);
  return path;
}

async function validateCaller(caller: Caller, env: NodeJS.ProcessEnv): Promise<number> {
  const daemon = caller.daemon === undefined ? undefined : await startDaemon(caller.daemon, env);
  let failed = 0;
  try {
    const prepared = shell(caller.prepare, env);
    if (prepared.code !== 0) throw new Error(`Cannot prepare ${caller.name}: ${prepared.output}`);
    for (const { name, command, code = 0, output = "" } of caller.checks) {
      const outcome = shell(command, env);
      const good = outcome.code === code && new RegExp(output, "m").test(outcome.output);
      console.log(`${good ? "ok    " : "NOT OK"} ${caller.name} ${name}`);
      if (good) continue;
      failed++;
      console.log(`       ${command}\n       ended with ${outcome.code}, not ${code}, or did not say /${output}/:`);
      console.log(outcome.output.replaceAll(/^/gm, "       "));
    }
  } finally {
    if (daemon !== undefined) await endDaemon(daemon);
  }
  console.log(`${caller.name}: ${caller.checks.length - failed} of ${caller.checks.length}`);
  return failed;
}

function shell(command: string, env: NodeJS.ProcessEnv): { readonly code: number | null; readonly output: string } {
  // To a file: a container that goes on would hold a pipe open.
  const script = `( ${command}\n) > "$D/output" 2>&1 < /dev/null; code=$?; cat "$D/output"; exit $code`;
  const { status, stdout } = spawnSync("sh", ["-c", script], { env, encoding: "utf8", timeout: 180_000 });
  return { code: status, output: stdout };
}

async function startDaemon(
  { command, answers }: NonNullable<Caller["daemon"]>,
  env: NodeJS.ProcessEnv,
): Promise<ChildProcess> {
  const daemon = spawn("sh", ["-c", `exec ${command} > "$D/daemon.log" 2>&1`], { env, stdio: "ignore" });
  for (let i = 0; i < 240; i++) {
    if (shell(answers, env).code === 0) return daemon;
    if (daemon.exitCode !== null) break;
    await delay(250);
  }
  await endDaemon(daemon);
  throw new Error(`Cannot start "${command}": ${shell('tail -n 3 "$D/daemon.log"', env).output}`);
}

async function endDaemon(daemon: ChildProcess): Promise<void> {
  if (daemon.exitCode !== null || daemon.signalCode !== null) return;
  const ended = once(daemon, "exit");
  daemon.kill("SIGTERM");
  const timer = setTimeout(() => daemon.kill("SIGKILL"), 30_000);
  await ended;
  clearTimeout(timer);
}
