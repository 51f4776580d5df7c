/** What this host can do for the limits of steps beyond what every agent needs: nothing here keeps one from starting. */
import { existsSync, statfsSync } from "node:fs";
import { findIoSupport } from "./block-device.ts";
import { findCgroups } from "./cgroup-host.ts";
import type { HostCheck } from "./check.ts";
import { OomReports } from "./kernel-log.ts";
import { ProjectQuota } from "./project-quota.ts";

/** Space, and how it is limited. */
export function checkDisk(stateDir: string): HostCheck {
  const { bavail, bsize } = statfsSync(stateDir);
  const free = bavail * bsize;
  const ok = free >= 1 << 30;
  using quota = ProjectQuota.open(stateDir);
  const how = quota === undefined ? "measured" : "counted by project quotas";
  return {
    name: "disk",
    ok,
    required: false,
    found: `${(free / (1 << 30)).toFixed(1)} GiB free in "${stateDir}"; what steps write is ${how}`,
    ...(ok ? {} : { mend: "free at least 1 GiB or choose another place with --data-dir" }),
  };
}

/** Whether pipelines may limit I/O, and whether shares of it mean something. */
export function checkIo(stateDir: string): HostCheck {
  const name = "I/O limits";
  const host = findCgroups();
  if (host === undefined) return { name, ok: false, required: false, found: "there are no cgroups" };
  const { version, hierarchies } = host;
  const has = (controller: string, file: string) => {
    const hierarchy = hierarchies.find(({ controllers }) => controllers.includes(controller));
    // The root of v2 has no files of limits.
    return hierarchy !== undefined && (version === 2 || existsSync(`${hierarchy.mountPoint}/${file}`));
  };
  const support = findIoSupport(stateDir, { version, has });
  if ("problem" in support) return { name, ok: false, required: false, found: support.problem };
  const { device, weight } = support;
  const shares = typeof weight === "string" ? `shares by ${weight}` : `no shares: ${weight.problem}`;
  return { name, ok: true, required: false, found: `rates of ${device.name}, ${shares}` };
}

/** Whether the reason of a kill for memory can be exact. */
export function checkKernelLog(): HostCheck {
  const reports = OomReports.open();
  reports?.close();
  return {
    name: "kernel log",
    ok: reports !== undefined,
    required: false,
    found: reports === undefined ? "/dev/kmsg cannot be read" : "tells who was large when memory ran out",
    ...(reports === undefined && { mend: "give the agent /dev/kmsg and CAP_SYSLOG for exact reasons" }),
  };
}
