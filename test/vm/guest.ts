/** What goes into the virtual machine's disk besides Debian: the project, its packages, and the unit that runs the tests. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { installInit } from "./bare.ts";
import { type Architecture, hostArchitecture } from "./debian.ts";
import { consoleOf } from "./machine.ts";

const project = fileURLToPath(new URL("../..", import.meta.url));
/** No part of what runs: linters, formatter, compiler. */
const notNeeded = /^(?:@biomejs|@oxlint|@oxlint-tsgolint|@typescript|oxlint|oxlint-tsgolint|typescript)$/;

/** What differs between one virtual machine and another. */
export interface Guest {
  readonly architecture: Architecture;
  readonly cgroup: "v1" | "v2";
  /** Linux has one of the two at a time. */
  readonly lsm: "apparmor" | "selinux";
  /** Run with /bin/sh in the project's directory; the last one's exit code is the result. */
  readonly commands: readonly string[];
}

/** The validation programs want a profile of this name, and look no further. */
const profile =
  "profile acme_secure_profile flags=(attach_disconnected) {\n  file,\n  capability,\n  network,\n  mount,\n  umount,\n  pivot_root,\n  ptrace,\n  signal,\n  unix,\n  dbus,\n}\n";
/** Nor has Debian's policy the type that they name. */
const policy =
  "(type svirt_sandbox_file_t)\n(roletype object_r svirt_sandbox_file_t)\n(typeattributeset file_type (svirt_sandbox_file_t))\n";

/** The kernel's words for what `guest` is. */
export function commandLine({ cgroup, lsm }: Guest): string[] {
  const unified = cgroup === "v2" ? "1" : "0";
  const hierarchy = [`systemd.unified_cgroup_hierarchy=${unified}`];
  if (cgroup === "v1") hierarchy.push("systemd.legacy_systemd_cgroup_controller=1");
  return [...hierarchy, `security=${lsm}`, ...(lsm === "selinux" ? ["enforcing=0"] : [])];
}

/** Writes all of it into the tree of a Debian. */
export function installGuest(root: string, guest: Guest): void {
  copyProject(root);
  copyModules(root, guest.architecture);
  mkdirSync(join(root, "etc/apparmor.d"), { recursive: true });
  writeFileSync(join(root, "etc/apparmor.d/acme_secure_profile"), profile);
  if (guest.lsm === "selinux") installPolicy(root);
  const path = "/opt/slipway/node_modules/.bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
  const script = [
    "#!/bin/sh",
    "cd /opt/slipway",
    `export PATH=${path} HOME=/root NO_COLOR=1 NODE_COMPILE_CACHE=/var/cache/slipway-node`,
    "uname -rm; stat -f -c 'cgroup file system: %T' /sys/fs/cgroup; node --version",
    ...guest.commands,
    'echo "SLIPWAY-VM $?"',
    "sync; echo o > /proc/sysrq-trigger; sleep 60",
  ];
  writeFileSync(join(root, "opt/slipway-test"), `${script.join("\n")}\n`, { mode: 0o755 });
  writeFileSync(join(root, "etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
  if (guest.architecture === hostArchitecture()) installUnit(root, consoleOf(guest.architecture));
  else installInit(root);
}

/** The script as a service of systemd's, once all others are up. */
function installUnit(root: string, terminal: string): void {
  const unit = [
    "[Unit]",
    "After=multi-user.target",
    "[Service]",
    "Type=oneshot",
    "Environment=SLIPWAY_TEST_SYSTEMD=1",
    "ExecStart=/opt/slipway-test",
    "Delegate=yes",
    "StandardOutput=tty",
    "StandardError=tty",
    `TTYPath=/dev/${terminal}`,
    "TimeoutStartSec=infinity",
    "[Install]",
    "WantedBy=multi-user.target",
  ];
  writeFileSync(join(root, "etc/systemd/system/slipway-test.service"), `${unit.join("\n")}\n`);
  const systemctl = (...args: string[]) => execFileSync("systemctl", ["--quiet", `--root=${root}`, ...args]);
  systemctl("enable", "slipway-test.service");
  // Debian's profiles are not what is tried, and take a minute to compile.
  systemctl("mask", "apparmor.service", "redis-server.service", `serial-getty@${terminal}.service`);
}

/** Copies what the validation programs need to run, below `parent`, as buildSuite finds it again. */
export function copySuite(root: string, suite: string, parent: string): void {
  const filter = (source: string) => !/^[^/]+\/(?:vendor|docs|\.git)$/.test(relative(suite, source));
  cpSync(suite, join(root, parent, basename(suite)), { recursive: true, verbatimSymlinks: true, filter });
}

function copyProject(root: string): void {
  const target = join(root, "opt/slipway");
  mkdirSync(target, { recursive: true });
  const files = execFileSync("git", ["-C", project, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
  for (const file of files.toString().split("\0").filter(Boolean)) {
    if (existsSync(join(project, file))) cpSync(join(project, file), join(target, file), { recursive: true });
  }
}

function copyModules(root: string, architecture: Architecture): void {
  const modules = architecture === hostArchitecture() ? join(project, "node_modules") : foreignModules(architecture);
  const filter = (source: string) => !notNeeded.test(relative(modules, source));
  cpSync(modules, join(root, "opt/slipway/node_modules"), { recursive: true, verbatimSymlinks: true, filter });
}

/** The project's packages for another architecture, Node itself among them; kept beside the temporary directory. */
function foreignModules(architecture: Architecture): string {
  const lock = readFileSync(join(project, "package-lock.json"));
  const version = createHash("sha256").update(lock).digest("hex").slice(0, 12);
  const directory = join(tmpdir(), `slipway-vm-modules-${architecture}-${version}`);
  const modules = join(directory, "node_modules");
  if (existsSync(join(directory, "complete"))) return modules;
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory);
  for (const name of ["package.json", "package-lock.json"])
    cpSync(join(project, name), join(directory, basename(name)));
  const cpu = architecture === "arm64" ? "arm64" : "x64";
  execFileSync("npm", ["ci", "--silent", "--os=linux", "--libc=glibc", `--cpu=${cpu}`, "--ignore-scripts"], {
    cwd: directory,
    stdio: "inherit",
  });
  writeFileSync(join(directory, "complete"), "");
  return modules;
}

/** Here rather than there: compiling all of a policy takes long under emulation. */
function installPolicy(root: string): void {
  writeFileSync(join(root, "etc/selinux/config"), "SELINUX=permissive\nSELINUXTYPE=default\n");
  writeFileSync(join(root, "opt/slipway-test.cil"), policy);
  execFileSync("chroot", [root, "semodule", "--noreload", "--install=/opt/slipway-test.cil"], { stdio: "inherit" });
}
