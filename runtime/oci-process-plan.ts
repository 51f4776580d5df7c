/** What `slipway oci` finds out about a container's process before it plans it: capabilities, filter, label, environment. */
import { existsSync, fstatSync, readFileSync } from "node:fs";
import { O_DIRECTORY, O_NONBLOCK, O_PATH, O_RDONLY, RESOLVE_IN_ROOT } from "./linux.ts";
import type { OciConfig, OciProcess } from "./oci-config.ts";
import { hasSelinux } from "./oci-mounts.ts";
import { OciConfigError } from "./oci-parser.ts";
import { type ProcessPlan, readCapabilities } from "./oci-process.ts";
import type { SeccompFilter } from "./seccomp.ts";
import { type OciSeccomp, ociSeccomp } from "./seccomp-oci.ts";
import { architecture, close, open, openat2 } from "./syscall.ts";

/** Says what does not stop anything. */
export type Warn = (message: string) => void;

/** What is decided here about the process: its filter, label, environment. @throws {OciConfigError} */
export function planProcess(
  process: OciProcess,
  config: OciConfig,
  context: {
    readonly rootPath: string;
    /** A process of the user namespace it will be in, or of one around that. */
    readonly sibling: number | "self";
    readonly options: { readonly preserveFds: readonly number[]; readonly listenFds?: number; readonly warn: Warn };
  },
): ProcessPlan {
  const lastCapability = Number(readFileSync("/proc/sys/kernel/cap_last_cap", "utf8"));
  const hasUsers = config.linux?.namespaces?.some(({ type }) => type === "user");
  const all = (1n << 64n) - 1n;
  const capabilities = readCapabilities(process.capabilities, {
    lastCapability,
    ownBounding: hasUsers ? all : ownCapabilities("CapBnd"),
    ownPermitted: hasUsers ? all : ownCapabilities("CapPrm"),
  });
  for (const warning of capabilities.warnings) context.options.warn(warning);
  const seccomp = config.linux?.seccomp === undefined ? undefined : compileSeccomp(config.linux.seccomp);
  const { env: given = [] } = process;
  const env = environmentOf(given, () => homeOf(process.user?.uid ?? 0, context.rootPath) ?? "/");
  const { listenFds } = context.options;
  if (listenFds) env.push(`LISTEN_FDS=${listenFds}`, "LISTEN_PID=1");
  return {
    process: { ...process, env },
    capabilities,
    lastCapability,
    seccomp,
    label: labelOf(process),
    keepsGroups: keepsGroups(process, context.sibling),
    preserveFds: context.options.preserveFds,
    pipes: process.terminal || !process.user?.uid ? [] : [0, 1, 2].filter(isPipe),
  };
}

/** Whether its user namespace takes no additional groups, as one of a user without subordinate ids. @throws {OciConfigError} */
function keepsGroups({ user }: OciProcess, sibling: number | "self"): boolean {
  if (readText(`/proc/${sibling}/setgroups`).trim() !== "deny") return false;
  if (!user?.additionalGids?.length) return true;
  throw new OciConfigError(
    "process.user.additionalGids cannot be set in this user namespace: setgroups(2) is denied; map subordinate ids",
  );
}

/** Each name once, with the last value: getenv(3) would find the first. `home` is for who has none, or an empty one. */
function environmentOf(entries: readonly string[], home: () => string): string[] {
  const byName = new Map(entries.map((entry) => [entry.split("=", 1)[0], entry]));
  if ((byName.get("HOME") ?? "HOME=") === "HOME=") byName.set("HOME", `HOME=${home()}`);
  return [...byName.values()];
}

function compileSeccomp(seccomp: OciSeccomp): SeccompFilter {
  try {
    return ociSeccomp(seccomp, architecture);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new OciConfigError(`linux.seccomp has too many rules: ${error.message}`, { cause: error });
  }
}

/** Of the standard descriptors only pipes are the container's own: files, terminals and /dev/null belong to the host. */
function isPipe(fd: number): boolean {
  try {
    return fstatSync(fd).isFIFO();
  } catch {
    return false; // closed
  }
}

function ownCapabilities(set: "CapBnd" | "CapPrm"): bigint {
  const mask = new RegExp(`^${set}:\\s*([0-9a-f]+)$`, "m").exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  return BigInt(`0x${mask ?? "0"}`);
}

function labelOf({ apparmorProfile, selinuxLabel }: OciProcess): ProcessPlan["label"] {
  if (apparmorProfile && apparmorProfile !== "unconfined") {
    if (!readText("/sys/module/apparmor/parameters/enabled").startsWith("Y")) {
      throw new OciConfigError(
        `process.apparmorProfile "${apparmorProfile}" is not supported: this kernel has no AppArmor`,
      );
    }
    const own = "/proc/self/attr/apparmor/exec";
    return { file: existsSync(own) ? own : "/proc/self/attr/exec", text: `exec ${apparmorProfile}` };
  }
  if (selinuxLabel) {
    if (!hasSelinux()) {
      throw new OciConfigError(`process.selinuxLabel "${selinuxLabel}" is not supported: this kernel has no SELinux`);
    }
    return { file: "/proc/self/attr/exec", text: selinuxLabel };
  }
  return undefined;
}

/** A file's text; of one that cannot be read, none. */
export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function homeOf(uid: number, rootPath: string): string | undefined {
  const root = open(rootPath, O_PATH | O_DIRECTORY);
  try {
    const fd = openat2(root, "etc/passwd", { flags: O_RDONLY | O_NONBLOCK, resolve: RESOLVE_IN_ROOT });
    try {
      if (!fstatSync(fd).isFile()) return undefined;
      const lines = readFileSync(fd, "utf8").split("\n");
      return lines.map((line) => line.split(":")).find((fields) => fields[2] === `${uid}`)?.[5];
    } finally {
      close(fd);
    }
  } catch {
    return undefined;
  } finally {
    close(root);
  }
}
