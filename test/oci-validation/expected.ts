/** What no runtime can pass on this kind of host, and why; found by looking at the host, so that elsewhere it must pass. */
import { existsSync, readFileSync } from "node:fs";

/** Why a program cannot pass here; undefined if it must. */
export function hostLacks(program: string): string | undefined {
  return lacks.find(({ programs }) => programs.includes(program))?.why();
}

/** Scripts that mount hierarchies leave empty directories for controllers that the kernel does not have. */
const cgroups = "/sys/fs/cgroup";

const lacks: readonly { readonly programs: readonly string[]; readonly why: () => string | undefined }[] = [
  {
    programs: ["linux_cgroups_blkio", "linux_cgroups_relative_blkio"],
    why: () =>
      hasWeights("8:0")
        ? undefined
        : "Linux has no blkio.leaf_weight since 5.0 (refused by name), and here is no disk 8:0 under bfq for the rest",
  },
  {
    programs: ["linux_cgroups_hugetlb", "linux_cgroups_relative_hugetlb"],
    why: () =>
      without(`${cgroups}/hugetlb/cgroup.procs`, "looks for hugetlb on cgroup v1, where this host does not have it"),
  },
  {
    programs: ["linux_cgroups_network", "linux_cgroups_relative_network"],
    why: () => without(`${cgroups}/net_cls/cgroup.procs`, "this host has no net_cls: refused by name"),
  },
  {
    programs: ["linux_mount_label"],
    why: () => without("/sys/fs/selinux/enforce", "this host has no SELinux: refused by name"),
  },
  {
    programs: ["linux_process_apparmor_profile"],
    why: () =>
      hasAppArmorProfile("acme_secure_profile") ? undefined : "this host has no AppArmor with that profile: an error",
  },
  {
    programs: ["process_capabilities"],
    why: () => (hasCapability(24) ? undefined : "this host does not grant CAP_SYS_RESOURCE: a warning"),
  },
];

function without(path: string, why: string): string | undefined {
  return existsSync(path) ? undefined : why;
}

/** Whether the blkio controller of v1 gives shares of that disk. */
function hasWeights(device: string): boolean {
  if (!existsSync(`${cgroups}/blkio/cgroup.procs`)) return false;
  try {
    return readFileSync(`/sys/dev/block/${device}/queue/scheduler`, "utf8").includes("[bfq]");
  } catch {
    return false;
  }
}

function hasAppArmorProfile(name: string): boolean {
  try {
    return readFileSync("/sys/kernel/security/apparmor/profiles", "utf8").includes(`${name} `);
  } catch {
    return false;
  }
}

function hasCapability(number: number): boolean {
  const mask = /^CapBnd:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return ((BigInt(`0x${mask}`) >> BigInt(number)) & 1n) === 1n;
}
