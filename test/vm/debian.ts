/** A minimal Debian 12 root file system for the virtual machine, for amd64 or arm64. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Debian's names of architectures. */
export type Architecture = "amd64" | "arm64";

const packages = [
  "apparmor",
  "busybox-static",
  "ca-certificates",
  "dbus",
  "dbus-user-session",
  "e2fsprogs",
  "git",
  "iproute2",
  "kmod",
  "libatomic1",
  "libcap2-bin",
  "libpam-systemd",
  "mount",
  "netbase",
  "nftables",
  "passt",
  "podman",
  "procps",
  "python3",
  "redis-server",
  "selinux-policy-default",
  "systemd-sysv",
  "udev",
  "uidmap",
  "xfsprogs",
  "zstd",
];

/** What a Debian has anyhow, but not one whose packages are only unpacked. */
const essential = [
  "base-files",
  "bash",
  "coreutils",
  "dash",
  "diffutils",
  "findutils",
  "grep",
  "gzip",
  "hostname",
  "libc-bin",
  "libstdc++6",
  "login",
  "mawk",
  "passwd",
  "sed",
  "tar",
  "util-linux",
];
/** Of no use where nothing is configured. */
const configured =
  /^(?:apparmor|dbus|dbus-user-session|libpam-systemd|passt|podman|redis-server|selinux-policy-default|systemd-sysv|xfsprogs)$/;

/**
 * Unpacks it to `directory`/root; it is kept beside the temporary directory, for making it takes longer than anything but the tests.
 *
 * Of another architecture than this machine's the packages are unpacked and not configured: nothing of it runs here.
 */
export function buildRoot(directory: string, architecture: Architecture): string {
  const root = join(directory, "root");
  const isForeign = architecture !== hostArchitecture();
  const wanted = isForeign ? [...essential, ...packages.filter((name) => !configured.test(name))] : packages;
  const included = [...wanted, `linux-image-cloud-${architecture}`].toSorted().join(",");
  const version = createHash("sha256").update(included).digest("hex").slice(0, 12);
  const kept = join(tmpdir(), `slipway-vm-debian-${architecture}-${version}.tar`);
  if (!existsSync(kept)) {
    console.log(`building a Debian 12 root file system for ${architecture}`);
    const variant = isForeign
      ? ["--variant=extract", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
      : ["--variant=minbase"];
    const options = ["--quiet", "--mode=root", "--format=tar", ...variant, `--architectures=${architecture}`];
    const args = [...options, `--include=${included}`, "bookworm", `${kept}.part`];
    execFileSync("mmdebstrap", args, { stdio: "inherit" });
    renameSync(`${kept}.part`, kept);
  }
  mkdirSync(root);
  execFileSync("tar", ["--extract", "--file", kept, "--directory", root, "--numeric-owner", "--xattrs"]);
  return root;
}

/** This machine's, by Debian's name; anything but AArch64 is emulated on and taken for amd64. */
export function hostArchitecture(): Architecture {
  return process.arch === "arm64" ? "arm64" : "amd64";
}
