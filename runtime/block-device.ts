/** Which disk a directory is on, and whether its I/O can be limited. */
import { readFileSync, realpathSync, statSync } from "node:fs";
import type { BlockDevice, ResourceFacts } from "./step-resources.ts";

/**
 * Finds the whole disk (not the partition) under a directory: the kernel limits no partitions.
 *
 * @returns The device, or why there is none.
 */
export function findDisk(directory: string): BlockDevice | { readonly problem: string } {
  const where = `"${directory}"`;
  let device = deviceOf(statSync(directory).dev);
  if (device.major === 0) {
    // Btrfs and overlay give their files numbers of their own.
    const source = mountSource(directory);
    const stat = source === undefined ? undefined : statSync(source, { throwIfNoEntry: false });
    if (stat === undefined || !stat.isBlockDevice()) {
      return { problem: `no block device is under ${where}; choose a --data-dir on a disk of this machine` };
    }
    device = deviceOf(stat.rdev);
  }
  try {
    return wholeDisk(realpathSync(`/sys/dev/block/${device.major}:${device.minor}`));
  } catch {
    return { problem: `/sys does not know the disk ${device.major}:${device.minor} under ${where}` };
  }
}

function wholeDisk(path: string): BlockDevice {
  const isPartition = statSync(`${path}/partition`, { throwIfNoEntry: false }) !== undefined;
  const disk = isPartition ? path.slice(0, path.lastIndexOf("/")) : path;
  const [major = 0, minor = 0] = readFileSync(`${disk}/dev`, "utf8").trim().split(":").map(Number);
  return { major, minor, name: disk.slice(disk.lastIndexOf("/") + 1) };
}

/** The encoding of glibc's makedev(3). */
function deviceOf(dev: number): { readonly major: number; readonly minor: number } {
  const [low, high] = [dev % 2 ** 32, Math.floor(dev / 2 ** 32)];
  return {
    major: ((low >>> 8) & 0xfff) | (high & 0xffff_f000),
    minor: (low & 0xff) | ((low >>> 12) & 0xf_ff00),
  };
}

/** What the file system of a directory was mounted from. */
function mountSource(directory: string): string | undefined {
  const path = realpathSync(directory);
  let found: { readonly mountPoint: string; readonly source: string } | undefined;
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [left = "", right = ""] = line.split(" - ");
    const mountPoint = unescape(left.split(" ")[4] ?? "");
    const isAbove = path === mountPoint || path.startsWith(mountPoint === "/" ? "/" : `${mountPoint}/`);
    // Of several on one directory the last one is on top.
    if (mountPoint === "" || !isAbove || mountPoint.length < (found?.mountPoint.length ?? 0)) continue;
    found = { mountPoint, source: unescape(right.split(" ")[1] ?? "") };
  }
  return found?.source;
}

/** Space, tab, newline and backslash are written in octal. @see proc_pid_mountinfo(5) */
function unescape(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
}

/**
 * Says how the I/O of containers on this disk can be limited.
 *
 * @param cgroups.has Whether a container's cgroup has a file of a controller.
 */
export function findIoSupport(
  directory: string,
  cgroups: { readonly version: 1 | 2; has(controller: string, file: string): boolean },
): ResourceFacts["io"] {
  const { version } = cgroups;
  const [controller, file] = version === 2 ? ["io", "io.max"] : ["blkio", "blkio.throttle.read_bps_device"];
  if (!cgroups.has(controller, file)) {
    const mend = version === 2 ? "delegate it to the agent (Delegate=yes), or" : "mount it, or";
    return {
      problem: `this host has no cgroup controller "${controller}" with ${file}; ${mend} use a kernel with CONFIG_BLK_DEV_THROTTLING`,
    };
  }
  const device = findDisk(directory);
  return "problem" in device ? device : { device, weight: weightOf(device, cgroups) };
}

function weightOf(
  { major, minor, name }: BlockDevice,
  cgroups: Parameters<typeof findIoSupport>[1],
): "io.weight" | "bfq" | { readonly problem: string } {
  const { version } = cgroups;
  const scheduler = /\[(\S+)\]/.exec(readOr(`/sys/block/${name}/queue/scheduler`))?.[1] ?? "none";
  const hasBfq = version === 2 ? cgroups.has("io", "io.bfq.weight") : cgroups.has("blkio", "blkio.bfq.weight");
  if (scheduler === "bfq" && hasBfq) return "bfq";
  const cost = new RegExp(`^${major}:${minor} .*\\benable=1\\b`, "m");
  const hasWeight = version === 2 && cgroups.has("io", "io.weight");
  if (hasWeight && cost.test(readOr("/sys/fs/cgroup/io.cost.qos"))) return "io.weight";
  return {
    problem: `the disk ${name} is scheduled by ${scheduler}; shares need bfq (echo bfq > /sys/block/${name}/queue/scheduler)${version === 2 ? " or io.cost" : ""}`,
  };
}

function readOr(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
