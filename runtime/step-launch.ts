/**
 * How the runtime gets from a step's configuration to a launch plan.
 *
 * The configuration says what, the plan how: what the agent can make ahead of time it makes as detached mounts and hands
 * over by descriptor (the root file system, /dev, binds); the rest is the program's. Nothing is ignored: what a step's
 * program cannot do is refused by its name.
 */
import { newCgroupMounts, type ShownHierarchy } from "./cgroup-mounts.ts";
import type { LaunchPlan, PlannedRootfs } from "./launch-plan.ts";
import { launchedDescriptors } from "./launcher-program.ts";
import { networkSys } from "./network-join.ts";
import { isNew, type NamespaceType, type OciConfig, type OciMount } from "./oci-config.ts";
import { beneathRoot, type ResolvedMount } from "./oci-file-system.ts";
import { type MountOptions, parseMountOptions } from "./oci-mount-options.ts";
import { OciConfigError } from "./oci-parser.ts";
import type { OverlayByPath } from "./rootfs.ts";
import { profileOf } from "./seccomp-profile-oci.ts";
import { ociSeccomp } from "./seccomp-oci.ts";
import { type SeccompFilter, seccompProfile } from "./seccomp.ts";
import { stepFilesSource } from "./step-files.ts";
import type { Architecture } from "./syscall-table.ts";

/** A descriptor that the program gets; `open` makes it, for the launch to own. */
export interface Source {
  readonly name: string;
  readonly open: () => number;
  /** It is there already, and somebody else's to close. */
  readonly isOthers?: boolean;
}

/** What makes the mounts that are handed over. */
export interface MountMakers {
  /** A bind of the configuration's options, ids mapped. */
  bind(mount: OciMount, options: MountOptions): { readonly open: () => number; readonly isDirectory: boolean };
  /** /dev with the standard devices and the configuration's. */
  dev(mount: OciMount, config: OciConfig): number;
  /** Nodes for that /dev that cannot be made in it; by their paths. */
  boundDevices(config: OciConfig): readonly { readonly path: string; open(): number }[];
  /** The agent's own /sys, for who is in its network. */
  hostSys(): number;
  /** The overlay that shows a workspace without changing it. */
  overlay(mount: OciMount): number;
  /** The directory of files in memory that the configuration has a place for. */
  files(mount: OciMount): number;
}

export interface LaunchContext {
  readonly architecture: Architecture;
  readonly attachPath: string | undefined;
  readonly lastCapability: number;
  /** @see LaunchPlan */
  readonly keepsGroups: boolean;
  readonly hierarchies: readonly ShownHierarchy[];
  /** Descriptors with fixed meanings; absent ones are not needed. */
  readonly status: Source;
  readonly process: Source;
  readonly start?: Source;
  /** Only further processes will run in it, until `start` ends. */
  readonly isIdle?: true;
  readonly cgroup?: Source;
  readonly network?: Source;
  /** The user namespace that the configuration names. */
  readonly user?: Source;
  /** Control files of a delegated cgroup: where to join, and where to go below it. */
  readonly delegation?: { readonly join: readonly Source[]; readonly leaf?: Source };
  /** The root file system, by descriptor or out of layers. */
  readonly rootfs:
    | { readonly whole: Source }
    | { readonly layers: readonly Source[]; readonly overlays: readonly OverlayByPath[] };
  readonly make: MountMakers;
}

/** Plans the launch of a configuration; the program finds source i at descriptor `launchedDescriptors.first + i`. */
export function planStep(config: OciConfig, context: LaunchContext): { plan: LaunchPlan; sources: readonly Source[] } {
  refuseUnsupported(config);
  const sources: Source[] = [];
  const place = (source: Source) => launchedDescriptors.first + sources.push(source) - 1;
  const placeIf = <K extends string>(key: K, source: Source | undefined) =>
    source === undefined ? {} : ({ [key]: place(source) } as { readonly [P in K]: number });
  const rootfs = (): PlannedRootfs =>
    "whole" in context.rootfs
      ? { fd: place(context.rootfs.whole) }
      : { layerFds: context.rootfs.layers.map(place), overlays: context.rootfs.overlays };
  const { linux = {}, process, hostname, domainname } = config;
  const { seccomp, resources: _, devices: __, namespaces = [], ...rest } = linux;
  const { args: ___, env: ____, ...identity } = process ?? { cwd: "/" };
  const plan: LaunchPlan = {
    statusFd: place(context.status),
    processFd: place(context.process),
    ...placeIf("startFd", context.start),
    ...(context.isIdle ? { isIdle: true } : {}),
    ...placeIf("cgroupFd", context.cgroup),
    ...placeIf("networkFd", context.network),
    ...placeIf("userFd", context.user),
    joinFds: (context.delegation?.join ?? []).map(place),
    ...placeIf("leafFd", context.delegation?.leaf),
    rootfs: rootfs(),
    attachPath: context.attachPath,
    config: {
      ...(hostname === undefined ? {} : { hostname }),
      ...(domainname === undefined ? {} : { domainname }),
      process: identity,
      // Which namespace is joined the descriptors say: programs of all jobs are the same.
      linux: { ...rest, namespaces: namespaces.map((one) => (isNew(one) ? one : { ...one, path: "descriptor" })) },
    },
    mounts: (config.mounts ?? []).flatMap((mount) => resolveMount(mount, config, { ...context, place })),
    lastCapability: context.lastCapability,
    ...(context.keepsGroups ? { keepsGroups: true } : {}),
    ...(seccomp === undefined ? {} : { seccomp: filterOf(seccomp, context.architecture) }),
  };
  return { plan, sources };
}

/** A configuration's seccomp filter. */
export function filterOf(
  seccomp: NonNullable<NonNullable<OciConfig["linux"]>["seccomp"]>,
  architecture: Architecture,
): SeccompFilter {
  const profile = profileOf(seccomp);
  return profile === undefined ? ociSeccomp(seccomp, architecture) : seccompProfile(profile, architecture);
}

function resolveMount(
  mount: OciMount,
  config: OciConfig,
  { make, place, hierarchies }: LaunchContext & { readonly place: (source: Source) => number },
): ResolvedMount[] {
  const options = parseMountOptions(mount.options ?? []);
  const { destination, type = "" } = mount;
  const tree = (fd: ReturnType<typeof place> | typeof networkSys, isDirectory = true): ResolvedMount[] => [
    { kind: "tree", fd, destination, isDirectory, readonlyAtLast: false },
  ];
  const handedOver = (open: () => number, isDirectory = true) =>
    tree(place({ name: `mount of ${destination}`, open }), isDirectory);
  if (beneathRoot(destination) === ".") throw new OciConfigError("nothing can be mounted on the root itself");
  if (options.bind) {
    const { open, isDirectory } = make.bind(mount, options);
    return handedOver(open, isDirectory);
  }
  if (beneathRoot(destination) === "dev" && type === "tmpfs") {
    const nodes = make.boundDevices(config).map((device): ResolvedMount => {
      const { path } = device;
      const fd = place({ name: `device ${path}`, open: () => device.open() });
      return { kind: "tree", fd, destination: path, isDirectory: false, readonlyAtLast: false };
    });
    return [...handedOver(() => make.dev(mount, config)), ...nodes];
  }
  if (type === "tmpfs" && mount.source === stepFilesSource) return handedOver(() => make.files(mount));
  if (type === "overlay") return handedOver(() => make.overlay(mount));
  if (type === "cgroup") return newCgroupMounts(destination, hierarchies, options);
  if (type === "sysfs") {
    const network = namespaceOf(config, "network");
    if (network === undefined) return handedOver(() => make.hostSys());
    // Whoever is in the user namespace that owns the network mounts it itself.
    const user = namespaceOf(config, "user");
    if (!isNew(network) && (user === undefined || isNew(user))) return tree(networkSys);
  }
  if (type === "" || options.remount || options.copyUp) {
    throw new OciConfigError(`the mount on "${destination}" is not supported in a step`);
  }
  return [{ kind: "new", type, source: mount.source ?? type, destination, options, readonlyAtLast: type === "tmpfs" }];
}

/** A namespace that a configuration names. */
export function namespaceOf(
  config: Pick<OciConfig, "linux">,
  type: NamespaceType,
): { readonly type: NamespaceType; readonly path?: string } | undefined {
  return config.linux?.namespaces?.find((namespace) => namespace.type === type);
}

/** What `slipway oci` can do and a step's program cannot: its plan has no place for it. */
function refuseUnsupported(config: OciConfig): void {
  const { process, linux, hooks, root } = config;
  const refused: Readonly<Record<string, boolean>> = {
    hooks: Object.values(hooks ?? {}).some((list) => list !== undefined && list.length > 0),
    "root.readonly": root?.readonly === true,
    "process.terminal": process?.terminal === true,
    "process.apparmorProfile": Boolean(process?.apparmorProfile),
    "process.selinuxLabel": Boolean(process?.selinuxLabel),
    "process.execCPUAffinity": process?.execCPUAffinity !== undefined,
    "linux.mountLabel": Boolean(linux?.mountLabel),
    "linux.cgroupsPath": Boolean(linux?.cgroupsPath),
    "linux.rootfsPropagation": ![undefined, "", "private", "rprivate", "rshared"].includes(linux?.rootfsPropagation),
    "linux.timeOffsets": (linux?.timeOffsets?.size ?? 0) > 0,
  };
  for (const [field, isThere] of Object.entries(refused)) {
    if (isThere) throw new OciConfigError(`${field} is not supported in a step`);
  }
  for (const type of ["user", "mount", "pid", "ipc", "uts", "cgroup"] as const) {
    const namespace = namespaceOf(config, type);
    if (namespace === undefined || (type !== "user" && !isNew(namespace))) {
      throw new OciConfigError(`linux.namespaces: a step has a ${type} namespace of its own`);
    }
  }
  if (namespaceOf(config, "time") !== undefined) throw new OciConfigError("linux.namespaces: time is not supported");
}
