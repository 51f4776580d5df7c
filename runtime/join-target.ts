/** What a further process of a container has to join, read from the one that is there. */
import { readFileSync, readlinkSync } from "node:fs";
import { RLIMIT } from "./linux.ts";
import { findCgroupMounts } from "./oci-cgroup.ts";
import type { NamespaceType, OciProcess } from "./oci-config.ts";
import { OciConfigError } from "./oci-parser.ts";
import { SyscallError, trySyscall } from "./syscall.ts";

/**
 * The files to which a process writes "0" to be in the cgroups in which the container's process is now, which may be below
 * the ones that were made for it; none for those in which this process is, too.
 *
 * @param mounts The hierarchies to join in. @default all
 */
export function cgroupFiles(pid: number, mounts = findCgroupMounts()): string[] {
  const paths = cgroupPaths(pid);
  const own = cgroupPaths("self");
  return mounts.flatMap(({ version, controllers, mountPoint }) => {
    const keys = version === 2 ? [""] : [controllers.join(","), controllers.toReversed().join(",")];
    const key = keys.find((candidate) => paths.has(candidate));
    const path = key === undefined ? undefined : paths.get(key);
    if (path === undefined || path === own.get(key ?? "")) return [];
    return [`${mountPoint}${path === "/" ? "" : path}/cgroup.procs`];
  });
}

/** By controllers, as /proc/PID/cgroup has them. */
function cgroupPaths(pid: number | "self"): ReadonlyMap<string, string> {
  const paths = new Map<string, string>();
  for (const line of readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n")) {
    const [, controllers = "", path = "/"] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    paths.set(controllers, path);
  }
  return paths;
}

const namespaceFiles: Readonly<Record<NamespaceType, string>> = {
  user: "user",
  mount: "mnt",
  pid: "pid",
  network: "net",
  ipc: "ipc",
  uts: "uts",
  cgroup: "cgroup",
  time: "time",
};

/** The namespaces in which a process is and this one is not. */
export function differingNamespaces(pid: number): NamespaceType[] {
  return (Object.keys(namespaceFiles) as NamespaceType[]).filter((type) => {
    const file = namespaceFiles[type];
    return readlinkSync(`/proc/${pid}/ns/${file}`) !== readlinkSync(`/proc/self/ns/${file}`);
  });
}

/** Limits a process from outside: in a user namespace it could not raise them itself. @throws {OciConfigError} */
export function limitProcess(pid: number, rlimits: OciProcess["rlimits"]): void {
  const limits = new Map((rlimits ?? []).map((limit) => [limit.type, limit]));
  for (const { type, soft, hard } of limits.values()) {
    if (soft > hard) throw new OciConfigError(`process.rlimits: the soft limit of ${type} is above the hard one`);
    const value = Buffer.alloc(16);
    value.writeBigUInt64LE(soft, 0);
    value.writeBigUInt64LE(hard, 8);
    const result = trySyscall("prlimit64", pid, RLIMIT[type], value, 0);
    if (result < 0) throw new SyscallError("prlimit64", -result, `set ${type} to ${soft}, at the most ${hard}`);
  }
}
