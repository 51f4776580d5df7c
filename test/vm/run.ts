/**
 * `npm run test:vm`: the runtime's tests in a Debian 12 virtual machine: systemd, cgroup v2 (unified), Linux 6.1.
 *
 * Built with Debian's mmdebstrap and e2fsprogs, run by qemu-system-x86 (Debian packages of these names; as root) under
 * software emulation, which works inside a virtual machine too. Arguments go to vitest; the exit code is its own.
 */
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const project = fileURLToPath(new URL("../..", import.meta.url));
const packages = [
  "ca-certificates",
  "dbus",
  "git",
  "iproute2",
  "kmod",
  "libpam-systemd",
  "linux-image-cloud-amd64",
  "nftables",
  "passt",
  "procps",
  "python3",
  "redis-server",
  "systemd-sysv",
  "udev",
  "uidmap",
];
const resultLine = /^SLIPWAY-VM (\d+)/;

const directory = mkdtempSync(join(tmpdir(), "slipway-vm-"));
try {
  const root = buildRoot(directory);
  installProject(root, process.argv.slice(2));
  process.exitCode = await boot(root, makeDisk(directory, root));
} finally {
  rmSync(directory, { recursive: true, force: true });
}

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
  cpSync(join(project, "node_modules"), join(target, "node_modules"), { recursive: true, verbatimSymlinks: true });
  const tests =
    vitestArguments.length > 0 ? vitestArguments : ["test/runtime", "--testTimeout=600000", "--hookTimeout=600000"];
  const quoted = tests.map((argument) => `'${argument.replaceAll("'", "'\\''")}'`).join(" ");
  const script = [
    "#!/bin/sh",
    "cd /opt/slipway",
    "export PATH=/opt/slipway/node_modules/.bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root NO_COLOR=1 SLIPWAY_TEST_SYSTEMD=1",
    "uname -r; stat -f -c 'cgroup file system: %T' /sys/fs/cgroup; node --version",
    "node cli/main.ts doctor || true",
    `{ vitest run --maxWorkers=1 --reporter=verbose ${quoted}; echo "SLIPWAY-VM $?"; } | cat`,
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
  const qemu = spawn(
    "qemu-system-x86_64",
    [
      "-accel tcg,thread=multi -cpu max -smp 2 -m 4G -nographic -no-reboot -nic none".split(" "),
      ["-drive", `file=${disk},if=virtio,format=raw,cache=unsafe`],
      ["-kernel", file("vmlinuz-"), "-initrd", file("initrd.img-")],
      ["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.unified_cgroup_hierarchy=1 systemd.show_status=no"],
    ].flat(),
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  let code = 125;
  for await (const line of createInterface({ input: qemu.stdout })) {
    const result = resultLine.exec(line.trim());
    if (result !== null) code = Number(result[1]);
    else console.log(line);
  }
  return code;
}
