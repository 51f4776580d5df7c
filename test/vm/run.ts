/**
 * `npm run test:vm`: the tests of containers in a Debian 12 virtual machine: systemd, cgroup v2 (unified), Linux 6.1.
 *
 * Built with Debian's mmdebstrap and e2fsprogs, run by qemu-system-x86 (Debian packages of these names; as root) under
 * software emulation, which works inside a virtual machine too and takes ten to thirty times as long as the hardware: hours for
 * all of it. SLIPWAY_TEST_VM_ACCEL=kvm where that works.
 * Arguments go to vitest, files among them; the exit code is its own, or 125 if the machine went down or silent before.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const project = fileURLToPath(new URL("../..", import.meta.url));
const packages = [
  "busybox-static",
  "ca-certificates",
  "dbus",
  "git",
  "iproute2",
  "kmod",
  "libcap2-bin",
  "libpam-systemd",
  "linux-image-cloud-amd64",
  "mount",
  "netbase",
  "nftables",
  "passt",
  "procps",
  "python3",
  "redis-server",
  "systemd-sysv",
  "udev",
  "uidmap",
  "zstd",
];
/** What depends on the kernel and on cgroups; images from registries do not, and their tests need a registry. */
const defaultTests = [
  "test/runtime",
  "test/agent/ceiling.test.ts",
  "test/agent/nested-job.test.ts",
  "--exclude=test/runtime/{image-pull,image-push,image-export,registry-hostile,nested-tools}.test.ts",
];
const timeLimits = ["--testTimeout=600000", "--hookTimeout=600000"];
/** A test may take ten minutes, and Debian's boot takes two or three. */
const silenceMs = 15 * 60_000;
/** No part of what runs: linters, formatter, compiler. */
const notNeeded = /^(?:@biomejs|@oxlint|@oxlint-tsgolint|@typescript|oxlint|oxlint-tsgolint|typescript)$/;
// The terminal may get escape sequences before it.
const resultLine = /SLIPWAY-VM (\d+)/;

const directory = mkdtempSync(join(tmpdir(), "slipway-vm-"));
let machine: ChildProcess | undefined;
process.once("exit", () => {
  machine?.kill("SIGKILL");
  rmSync(directory, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(125));
const root = buildRoot(directory);
installProject(root, process.argv.slice(2));
process.exitCode = await boot(root, makeDisk(directory, root));

/** A minimal Debian; kept beside the temporary directory, for making it takes longer than anything but the tests. */
function buildRoot(directory: string): string {
  const root = join(directory, "root");
  const contents = createHash("sha256").update(packages.join()).digest("hex").slice(0, 12);
  const cached = join(tmpdir(), `slipway-vm-debian-${contents}.tar`);
  if (!existsSync(cached)) {
    console.log("building a Debian 12 root file system");
    const args = ["--quiet", "--variant=minbase", `--include=${packages.join(",")}`, "bookworm", `${cached}.part`];
    execFileSync("mmdebstrap", ["--format=tar", ...args], { stdio: "inherit" });
    execFileSync("mv", [`${cached}.part`, cached]);
  }
  mkdirSync(root);
  execFileSync("tar", ["--extract", "--file", cached, "--directory", root, "--numeric-owner", "--xattrs"]);
  return root;
}

function installProject(root: string, vitestArguments: readonly string[]): void {
  const target = join(root, "opt/slipway");
  mkdirSync(target, { recursive: true });
  const files = execFileSync("git", ["-C", project, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
  for (const file of files.toString().split("\0").filter(Boolean)) {
    if (existsSync(join(project, file))) cpSync(join(project, file), join(target, file), { recursive: true });
  }
  const modules = join(project, "node_modules");
  const filter = (source: string) => !notNeeded.test(relative(modules, source));
  cpSync(modules, join(target, "node_modules"), { recursive: true, verbatimSymlinks: true, filter });
  const quoted = [...timeLimits, ...(vitestArguments.length > 0 ? vitestArguments : defaultTests)]
    .map((argument) => `'${argument.replaceAll("'", "'\\''")}'`)
    .join(" ");
  const script = [
    "#!/bin/sh",
    "cd /opt/slipway",
    "export PATH=/opt/slipway/node_modules/.bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root NO_COLOR=1 SLIPWAY_TEST_SYSTEMD=1",
    "uname -r; stat -f -c 'cgroup file system: %T' /sys/fs/cgroup; node --version",
    "node cli/main.ts doctor || true",
    `vitest run --maxWorkers=1 --reporter=./test/vm/reporter.ts ${quoted}`,
    'echo "SLIPWAY-VM $?"',
    "sync; systemctl poweroff --force --force",
  ];
  writeFileSync(join(root, "opt/slipway-test"), `${script.join("\n")}\n`, { mode: 0o755 });
  const unit = [
    "[Unit]",
    "After=multi-user.target",
    "[Service]",
    "Type=oneshot",
    "ExecStart=/opt/slipway-test",
    "Delegate=yes",
    "StandardOutput=tty",
    "StandardError=tty",
    "TTYPath=/dev/ttyS0",
    "TimeoutStartSec=infinity",
    "[Install]",
    "WantedBy=multi-user.target",
  ];
  writeFileSync(join(root, "etc/systemd/system/slipway-test.service"), `${unit.join("\n")}\n`);
  writeFileSync(join(root, "etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
  execFileSync("chroot", [root, "systemctl", "enable", "--quiet", "slipway-test.service"]);
  execFileSync("chroot", [root, "systemctl", "mask", "--quiet", "redis-server.service", "serial-getty@ttyS0.service"]);
}

function makeDisk(directory: string, root: string): string {
  const disk = join(directory, "disk.img");
  execFileSync("mke2fs", ["-q", "-t", "ext4", "-d", root, disk, "4G"]);
  return disk;
}

/** Boots, shows the console, and returns the exit code that the tests had. */
async function boot(root: string, disk: string): Promise<number> {
  const file = (prefix: string) => {
    const name = readdirSync(join(root, "boot")).find((name) => name.startsWith(prefix));
    if (name === undefined) throw new Error(`The virtual machine has no /boot/${prefix}*`);
    return join(root, "boot", name);
  };
  const began = performance.now();
  const qemu = spawn(
    "qemu-system-x86_64",
    [
      `-accel ${process.env["SLIPWAY_TEST_VM_ACCEL"] ?? "tcg,thread=multi"} -cpu max -smp 2 -m 4G -nographic -no-reboot -nic none`.split(
        " ",
      ),
      ["-drive", `file=${disk},if=virtio,format=raw,cache=unsafe`],
      ["-kernel", file("vmlinuz-"), "-initrd", file("initrd.img-")],
      ["-append", "root=/dev/vda rw console=ttyS0 loglevel=3 panic=-1 systemd.unified_cgroup_hierarchy=1"],
    ].flat(),
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  machine = qemu;
  const silence = setTimeout(() => {
    console.log(`The virtual machine has said nothing for ${silenceMs / 60_000} minutes: ended`);
    qemu.kill("SIGKILL");
  }, silenceMs);
  let code = 125;
  for await (const line of createInterface({ input: qemu.stdout })) {
    silence.refresh();
    const result = resultLine.exec(line.trim());
    if (result !== null) code = Number(result[1]);
    const seconds = Math.round((performance.now() - began) / 1000);
    console.log(
      `${String(Math.floor(seconds / 60)).padStart(3)}:${String(seconds % 60).padStart(2, "0")} ${line.trimEnd()}`,
    );
  }
  clearTimeout(silence);
  return code;
}
