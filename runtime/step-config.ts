/**
 * What a step gets, as an ordinary OCI configuration: the one place where it is decided.
 *
 * Pure: from what the step asks for and a few facts about the host to a configuration that `slipway oci run` takes, too.
 * step-launch.ts says how the runtime gets there. @see https://github.com/opencontainers/runtime-spec/blob/main/config.md
 */
import { type CapabilityName, capabilityNames } from "./linux.ts";
import type { IdMapping, OciConfig, OciDevice, OciMount, OciProcess, OciResources } from "./oci-config.ts";
import { profileSeccomp } from "./seccomp-profile-oci.ts";
import { type StepFiles, stepFilesSource } from "./step-files.ts";
import type { SeccompProfile } from "./seccomp-profile.ts";

/** What the configuration depends on beside the step itself; the same for all steps of a host. */
export interface HostFacts {
  /** Paths of Docker's lists that this kernel has. */
  readonly maskedPaths: readonly string[];
  readonly readonlyPaths: readonly string[];
  /** The agent's own hard limit: nobody in a user namespace may raise it. */
  readonly maxOpenFiles: bigint;
  /** Which process the kernel kills if the machine has no memory left: a step's before the agent. @see proc_pid_oom_score_adj(5) */
  readonly oomScoreAdj: number;
  /** There are cgroups to be shown. */
  readonly hasCgroups: boolean;
  /** Mounts of the host's files can be idmapped; else the files have the owners that the container is to see. */
  readonly mapsIds: boolean;
  /** Where not, containers of a nested step cannot either. */
  readonly mountsWritableSysfs: boolean;
}

/** As whom a step's program runs, in ids of the container. */
export interface StepUser {
  readonly uid: number;
  readonly gid: number;
  readonly additionalGids?: readonly number[];
  /** @default 0o022 */
  readonly umask?: number;
}

/** A mount beside the standard ones; its target is made in the container if it is missing. */
export type StepMount =
  | {
      readonly type: "bind";
      /** A file or directory of the host; its ids are mapped, so that root's is root's in the container. */
      readonly source: string;
      readonly target: string;
      readonly readonly?: boolean;
      /** Takes what is mounted below the source along. @default false */
      readonly recursive?: boolean;
    }
  | {
      readonly type: "tmpfs";
      readonly target: string;
      /** @default as the kernel has it: half of the memory, of which the step has less */
      readonly sizeBytes?: number;
      /** @default 0o1777 */
      readonly mode?: number;
    }
  /** A read-only directory in memory; its files are the step's user's alone. */
  | { readonly type: "files"; readonly target: string; readonly files: StepFiles };

/** What a step needs for containers of its own, beside what every step has. */
export interface NestedStep {
  /** The user namespace of the job's id range, which its network belongs to: the step is in it, and owns the network. */
  readonly userNamespacePath: string;
  /**
   * Directories of a real file system, owned by ids of the range, over those in which builders keep layers: an overlay is
   * refused as another one's upper directory.
   */
  readonly stores: readonly StepStore[];
}

export interface StepStore {
  readonly source: string;
  /** Its files have ids of the container on disk, not of the range. */
  readonly mapped?: true;
  readonly target: string;
}

/** What a step asks for. */
export interface StepOptions {
  /** What runs, if it is known already. */
  readonly program?: { readonly args: readonly string[]; readonly env: Readonly<Record<string, string>> };
  readonly cwd: string;
  readonly hostname: string;
  readonly user: StepUser;
  /** Docker's set if nothing is said, in a nested step all. */
  readonly capabilities?: readonly CapabilityName[];
  /** May have containers of its own. */
  readonly nested?: NestedStep;
  /** Ids of the container, and whose they are on the host; uids and gids alike. */
  readonly idMappings: readonly IdMapping[];
  /** Loopback only, the host's, or a namespace that is there already. */
  readonly network: "none" | "host" | { readonly path: string };
  /** Its limits; see step-resources.ts. */
  readonly resources: OciResources;
  /** The image's: bound read-only, with everything below. */
  readonly binds: readonly { readonly source: string; readonly target: string }[];
  /** A directory of the host on /workspace, or an overlay that shows one and keeps elsewhere what is written. */
  readonly workspace?: { readonly source: string } | { readonly lower: string; readonly writableDir: string };
  readonly mounts: readonly StepMount[];
  readonly devices: readonly OciDevice[];
  /** Told to whoever reads the configuration. */
  readonly annotations?: Readonly<Record<string, string>>;
}

/** The highest version of the specification that this follows. */
const ociVersion = "1.2.1";

/** Writes a step's configuration. `root.path` is a name only: the root file system is an overlay of the image's layers. */
export function stepConfig(step: StepOptions, host: HostFacts): OciConfig {
  const { idMappings: ids, resources, nested } = step;
  return {
    ociVersion,
    root: { path: "rootfs", readonly: false },
    hostname: step.hostname,
    process: process(step, host),
    mounts: [
      ...standardMounts(step, host),
      ...imageMounts(step, host),
      ...(nested?.stores ?? []).map(storeMount),
      ...step.mounts.map((mount) => furtherMount(mount, host)),
    ],
    ...(step.annotations === undefined ? {} : { annotations: new Map(Object.entries(step.annotations)) }),
    linux: {
      namespaces: [
        { type: "user", ...(nested === undefined ? {} : { path: nested.userNamespacePath }) },
        { type: "mount" },
        { type: "pid" },
        { type: "ipc" },
        { type: "uts" },
        { type: "cgroup" },
        ...network(step.network),
      ],
      ...(nested === undefined ? { uidMappings: ids, gidMappings: ids } : {}),
      // As on a machine with systemd: rootless builders want it so.
      ...(nested === undefined ? {} : { rootfsPropagation: "rshared" as const }),
      devices: [...(nested === undefined ? [] : nestedDevices), ...step.devices],
      resources,
      seccomp: profileSeccomp(seccompProfileOf(step)),
      maskedPaths: host.maskedPaths,
      readonlyPaths: host.readonlyPaths.filter((path) => nested === undefined || path !== "/proc/sys"),
    },
  };
}

function seccompProfileOf({ nested }: StepOptions): SeccompProfile {
  return nested === undefined ? "default" : "nested";
}

/** For fuse-overlayfs, and for slirp4netns and pasta. */
const nestedDevices: readonly OciDevice[] = [
  { type: "c", path: "/dev/fuse", major: 10, minor: 229, fileMode: 0o666 },
  { type: "c", path: "/dev/net/tun", major: 10, minor: 200, fileMode: 0o666 },
];

function process(step: StepOptions, host: HostFacts): OciProcess {
  const { uid, gid, additionalGids = [], umask = 0o022 } = step.user;
  const bounding = step.capabilities ?? (step.nested === undefined ? defaultCapabilities : capabilityNames);
  // Whoever is not root holds none, and the inheritable set is empty for everyone (CVE-2022-24769).
  const held = uid === 0 ? bounding : [];
  return {
    ...(step.program === undefined ? {} : { args: step.program.args, env: environment(step.program.env) }),
    cwd: step.cwd,
    terminal: false,
    user: { uid, gid, additionalGids, umask },
    capabilities: { bounding, permitted: held, effective: held, inheritable: [], ambient: [] },
    rlimits: rlimits(step.resources, host),
    oomScoreAdj: host.oomScoreAdj,
    // newuidmap and newgidmap are set-uid or have file capabilities; a set-uid program makes its user root of the range.
    noNewPrivileges: step.nested === undefined,
  };
}

function environment(env: Readonly<Record<string, string>>): string[] {
  return Object.entries(env).map(([name, value]) => `${name}=${value}`);
}

/** Docker's default set (moby daemon/pkg/oci/caps/defaults.go), held in the container's own user namespace only. */
export const defaultCapabilities: readonly CapabilityName[] = capabilityNames.filter((name) =>
  new Set<string>([
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
  ]).has(name),
);

/**
 * No core files; more descriptors than the usual 1024 allowed, but not by default: select(2) and slow closers. Without
 * cgroups each of the container's users has as many processes as all of them should have together: the kernel counts them by
 * user and user namespace (Linux 5.14), and stops a fork bomb at least.
 */
function rlimits({ pids }: OciResources, { maxOpenFiles, hasCgroups }: HostFacts): NonNullable<OciProcess["rlimits"]> {
  const hard = maxOpenFiles < 524_288n ? maxOpenFiles : 524_288n;
  const processes = hasCgroups || pids?.limit === undefined || pids.limit <= 0n ? [] : [pids.limit];
  return [
    ...processes.map((limit) => ({ type: "RLIMIT_NPROC" as const, soft: limit, hard: limit })),
    { type: "RLIMIT_CORE", soft: 0n, hard: 0n },
    { type: "RLIMIT_NOFILE", soft: hard < 1024n ? hard : 1024n, hard },
  ];
}

const strict = ["nosuid", "noexec", "nodev"];

/** Those of every container, as Docker has them. The devices of the specification are in /dev without a word about them. */
function standardMounts({ idMappings: ids, nested }: StepOptions, host: HostFacts): OciMount[] {
  const { hasCgroups, mountsWritableSysfs } = host;
  // The group of terminals, if there is one.
  const ttyGroup = ids.some(({ containerID, size }) => containerID <= 5 && containerID + size > 5) ? ["gid=5"] : [];
  const mount = (destination: string, type: string, options: readonly string[]): OciMount => {
    return { destination, type, source: type, options };
  };
  return [
    mount("/dev", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
    mount("/proc", "proc", strict),
    mount("/sys", "sysfs", [...strict, "ro"]),
    mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", ...ttyGroup]),
    mount("/dev/shm", "tmpfs", [...strict, "mode=1777", "size=65536k"]),
    mount("/dev/mqueue", "mqueue", strict),
    ...(hasCgroups ? [mount("/sys/fs/cgroup", "cgroup", nested === undefined ? [...strict, "ro"] : strict)] : []),
    // A user namespace may mount a new proc or sysfs if it sees one of which nothing is covered (mnt_already_visible in the
    // kernel's fs/namespace.c): here, where nobody looks for one. One that may be written to is what privileged containers of a
    // user mount; all in it but what belongs to the network is the host's root's.
    ...(nested === undefined
      ? []
      : [
          mount(`${hiddenDirectory}/proc`, "proc", [...strict, "subset=pid"]),
          mount(`${hiddenDirectory}/sys`, "sysfs", mountsWritableSysfs ? strict : [...strict, "ro"]),
          mount(hiddenDirectory, "tmpfs", [...strict, "mode=0", "size=4k", "nr_inodes=1", "ro"]),
        ]),
  ];
}

/** In /dev, which is ours: no image has anything there. */
const hiddenDirectory = "/dev/.slipway";

function storeMount({ source, target, mapped }: StepStore): OciMount {
  return { destination: target, type: "bind", source, options: ["bind", "nodev", ...(mapped ? ["idmap"] : [])] };
}

function imageMounts({ binds, workspace, nested }: StepOptions, { mapsIds }: HostFacts): OciMount[] {
  const setUid = nested === undefined ? ["rnosuid"] : [];
  const options = ["rbind", "rro", ...setUid, "rnodev", ...(mapsIds ? ["ridmap"] : [])];
  const mounts: OciMount[] = binds.map(({ source, target }) => ({
    destination: `/${target}`,
    type: "bind",
    source,
    options,
  }));
  if (workspace === undefined) return mounts;
  const destination = "/workspace";
  const workspaceMount: OciMount =
    "source" in workspace
      ? {
          destination,
          type: "bind",
          source: workspace.source,
          options: ["bind", "nosuid", "nodev", ...(mapsIds ? ["idmap"] : [])],
        }
      : {
          destination,
          type: "overlay",
          source: "overlay",
          options: [
            "nosuid",
            "nodev",
            `lowerdir=${workspace.lower}`,
            `upperdir=${workspace.writableDir}/upper`,
            `workdir=${workspace.writableDir}/work`,
          ],
        };
  return [...mounts, workspaceMount];
}

function furtherMount(mount: StepMount, { mapsIds }: HostFacts): OciMount {
  const { target } = mount;
  if (mount.type === "files") {
    const options = [...strict, "ro", "mode=755", `size=${mount.files.sizeBytes}`];
    return { destination: target, type: "tmpfs", source: stepFilesSource, options };
  }
  if (mount.type === "tmpfs") {
    const mode = `mode=${(mount.mode ?? 0o1777).toString(8)}`;
    const size = mount.sizeBytes === undefined ? [] : [`size=${mount.sizeBytes}`];
    return { destination: target, type: "tmpfs", source: "tmpfs", options: ["nosuid", "nodev", mode, ...size] };
  }
  const { source, readonly = false, recursive = false } = mount;
  const r = recursive ? "r" : "";
  const idMap = mapsIds ? [`${r}idmap`] : [];
  const options = [`${r}bind`, `${r}nosuid`, `${r}nodev`, ...idMap, ...(readonly ? [`${r}ro`] : [])];
  return { destination: target, type: "bind", source, options };
}

function network(network: StepOptions["network"]): NonNullable<NonNullable<OciConfig["linux"]>["namespaces"]> {
  if (network === "host") return [];
  return network === "none" ? [{ type: "network" }] : [{ type: "network", path: network.path }];
}

/** A configuration as the text of a config.json. */
export function formatOciConfig(config: OciConfig): string {
  const plain = (_key: string, value: unknown) => {
    if (value instanceof Map) return Object.fromEntries(value as ReadonlyMap<string, unknown>);
    return typeof value === "bigint" ? rawJson(`${value}`) : value;
  };
  return `${JSON.stringify(config, plain, 2)}\n`;
}

/** A number of more than 53 bits as it is written. TypeScript does not know the function yet. */
function rawJson(text: string): unknown {
  return (JSON as typeof JSON & { rawJSON(text: string): unknown }).rawJSON(text);
}
