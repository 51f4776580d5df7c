/** What `slipway oci spec` writes for somebody to edit: a shell in a container of its own, in a terminal. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { maskedPaths, readonlyPaths } from "./container-defaults.ts";
import { findCgroupMounts } from "./oci-cgroup.ts";
import { ociVersion } from "./oci-state.ts";

const capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/** A configuration with the sections that most bundles change; as runc's, whose users expect its words to be there. */
export function exampleConfig() {
  const isUnified = findCgroupMounts().every(({ version }) => version === 2);
  const namespaces = ["pid", "network", "ipc", "uts", "mount", ...(isUnified ? ["cgroup"] : [])];
  return {
    ociVersion,
    process: {
      terminal: true,
      user: { uid: 0, gid: 0 },
      args: ["sh"],
      env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
      cwd: "/",
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [{ type: "RLIMIT_NOFILE", hard: 1024, soft: 1024 }],
      noNewPrivileges: true,
    },
    root: { path: "rootfs", readonly: true },
    hostname: "slipway",
    mounts: [
      { destination: "/proc", type: "proc", source: "proc", options: undefined },
      fileSystem("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
      fileSystem("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
      { ...fileSystem("/dev/shm", "tmpfs", ...bare, "mode=1777", "size=65536k"), source: "shm" },
      fileSystem("/dev/mqueue", "mqueue", ...bare),
      fileSystem("/sys", "sysfs", ...bare, "ro"),
      fileSystem("/sys/fs/cgroup", "cgroup", ...bare, "relatime", "ro"),
    ],
    linux: {
      resources: { devices: [{ allow: false, access: "rwm" }] },
      namespaces: namespaces.map((type) => ({ type })),
      maskedPaths,
      readonlyPaths,
    },
  };
}

const bare = ["nosuid", "noexec", "nodev"];

function fileSystem(destination: string, type: string, ...options: readonly string[]) {
  return { destination, type, source: type, options };
}

/** The example in a user namespace whose root is the caller, who may make no network and set no limits. */
export function rootlessConfig(config: ReturnType<typeof exampleConfig>): object {
  const { linux, mounts } = config;
  const { resources: _, ...rest } = linux;
  const owned = (hostID: number | undefined) => [{ containerID: 0, hostID: hostID ?? 0, size: 1 }];
  return {
    ...config,
    mounts: mounts.map((mount) => {
      if (mount.destination === "/sys")
        return { ...mount, type: "none", source: "/sys", options: ["rbind", ...bare, "ro"] };
      if (mount.options === undefined) return mount;
      return { ...mount, options: mount.options.filter((option) => !/^[ug]id=/.test(option)) };
    }),
    linux: {
      ...rest,
      namespaces: [...linux.namespaces.filter(({ type }) => type !== "network"), { type: "user" }],
      uidMappings: owned(process.geteuid?.()),
      gidMappings: owned(process.getegid?.()),
    },
  };
}

/** Writes the example as a bundle's config.json. @throws {Error} If there is one. */
export function writeExampleConfig(bundle: string, { rootless = false }: { readonly rootless?: boolean } = {}): void {
  const path = join(bundle, "config.json");
  const config = rootless ? rootlessConfig(exampleConfig()) : exampleConfig();
  try {
    writeFileSync(path, `${JSON.stringify(config, undefined, "\t")}\n`, { flag: "wx" });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reason = code === "EEXIST" ? "it exists; remove it first" : code;
    throw new Error(`Cannot write "${path}": ${reason}`, { cause: error });
  }
}
