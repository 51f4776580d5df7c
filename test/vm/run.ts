/**
 * `npm run test:vm`: the tests of containers in a Debian 12 virtual machine: systemd, Linux 6.1.
 *
 *     npm run test:vm -- [OPTION...] [VITEST ARGUMENT...]
 *     npm run test:vm -- [OPTION...] validate [OPTION OF validate:oci...] [PROGRAM...]
 *
 * `--cgroup v2` (unified; the default) or `v1`, `--arch amd64` (the default: this machine's) or `arm64`, `--lsm apparmor`
 * (the default) or `selinux` (permissive). The second form runs runtime-tools' validation programs, built on this machine.
 *
 * Built with Debian's mmdebstrap and e2fsprogs, run by qemu-system-x86 (Debian packages of these names; as root) under
 * software emulation, which works inside a virtual machine too and takes thirty times the hardware's processor time: without
 * files it runs those that differ most there, which is half an hour of it; `test/runtime` takes hours.
 * SLIPWAY_TEST_VM_ACCEL=kvm where that works. Another architecture needs its QEMU (qemu-system-arm); its
 * Debian is unpacked and not configured, so it has no systemd.
 * Arguments go to vitest, files among them; the exit code is its own, or 125 if the machine went down or silent before.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { buildSuite } from "../oci-validation/suite.ts";
import { buildRoot, hostArchitecture } from "./debian.ts";
import { commandLine, copySuite, type Guest, installGuest } from "./guest.ts";
import { boot, makeDisk } from "./machine.ts";

/** What differs most on cgroup v2, Linux 6.1 and systemd; `test/runtime` in its place is all that touches the kernel. */
const defaultTests = [
  "cgroup",
  "oom",
  "removals",
  "disk",
  "network",
  "oci-control",
  "rootless-limits",
  "rootless-systemd",
].map((name) => `test/runtime/${name}.test.ts`);
const timeLimitMs = 600_000;
const choices: Readonly<Record<string, readonly string[]>> = {
  cgroup: ["v2", "v1"],
  arch: ["amd64", "arm64"],
  lsm: ["apparmor", "selinux"],
};
/** Where the guest finds the built suite; not /tmp, which systemd empties. */
const suiteParent = "opt/validation";

const directory = mkdtempSync(join(tmpdir(), "slipway-vm-"));
process.once("exit", () => rmSync(directory, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit(125));
process.exitCode = await main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<number> {
  const { chosen, rest } = readOptions(argv);
  const validates = rest[0] === "validate";
  const { suite, others } = takeSuite(rest.slice(1));
  const guest: Guest = { ...chosen, commands: validates ? validation(others) : vitest(rest) };
  if (guest.lsm === "selinux" && guest.architecture !== hostArchitecture())
    throw new Error("--lsm selinux: its policy is compiled on this machine, so only for this machine's architecture");
  const built = validates ? buildSuite(suite) : undefined;
  const root = buildRoot(directory, guest.architecture);
  installGuest(root, guest);
  if (built !== undefined) copySuite(root, dirname(built.original), suiteParent);
  const { architecture } = guest;
  return boot(root, makeDisk(directory, root), { architecture, commandLine: commandLine(guest) });
}

/** Ours come before everything else, for vitest's and validate:oci's are not known here. */
function readOptions(argv: readonly string[]): {
  readonly chosen: Omit<Guest, "commands">;
  readonly rest: readonly string[];
} {
  const chosen: Record<string, string> = { cgroup: "v2", arch: hostArchitecture(), lsm: "apparmor" };
  let at = 0;
  for (; ; at += 2) {
    const name = argv[at]?.replace(/^--/, "") ?? "";
    const allowed = argv[at]?.startsWith("--") && Object.hasOwn(choices, name) ? choices[name] : undefined;
    if (allowed === undefined) break;
    const value = argv[at + 1] ?? "";
    if (!allowed.includes(value)) throw new Error(`--${name} ${JSON.stringify(value)}: it is ${allowed.join(" or ")}`);
    chosen[name] = value;
  }
  const { cgroup, arch, lsm } = chosen;
  return {
    chosen: {
      architecture: arch as Guest["architecture"],
      cgroup: cgroup as Guest["cgroup"],
      lsm: lsm as Guest["lsm"],
    },
    rest: argv.slice(at),
  };
}

/** The suite's source is on this machine; the rest of the options is for the guest. */
function takeSuite(argv: readonly string[]): {
  readonly suite: string | undefined;
  readonly others: readonly string[];
} {
  const at = argv.indexOf("--suite");
  return at < 0 ? { suite: undefined, others: argv } : { suite: argv[at + 1], others: argv.toSpliced(at, 2) };
}

function vitest(argv: readonly string[]): string[] {
  const args = quoted(argv.length > 0 ? argv : defaultTests);
  return [
    "node cli/slipway.cjs doctor || true",
    `export SLIPWAY_TEST_TIME_LIMIT_MS=${timeLimitMs}`,
    `vitest run --maxWorkers=1 --reporter=./test/vm/reporter.ts ${args}`,
  ];
}

/** What the programs look for on a host: the disk 8:0 with weights, classes of packets, two interfaces, pages, profiles. */
function validation(argv: readonly string[]): string[] {
  return [
    "modprobe bfq && echo bfq > /sys/block/sda/queue/scheduler",
    "modprobe cls_cgroup",
    "modprobe dummy; ip link add dummy0 type dummy",
    "echo 8 > /proc/sys/vm/nr_hugepages",
    "[ ! -d /sys/kernel/security/apparmor ] || apparmor_parser --replace /etc/apparmor.d/acme_secure_profile",
    `export TMPDIR=/${suiteParent}`,
    `node test/oci-validation/run.ts --limit 3600 ${quoted(argv)}`,
  ];
}

function quoted(words: readonly string[]): string {
  return words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
}
