/** What a mount of type `cgroup` shows in a cgroup namespace: all of v2, or a tmpfs with each hierarchy of v1. */
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID } from "./linux.ts";
import type { ResolvedMount } from "./oci-file-system.ts";
import type { MountOptions } from "./oci-mount-options.ts";

/** One hierarchy. */
export interface ShownHierarchy {
  /** Of its directory below the mount's destination. */
  readonly name: string;
  readonly version: 1 | 2;
  /** v1: as its mount option names them, `memory` or `name=systemd`. */
  readonly controllers: readonly string[];
}

/** The tmpfs in which the hierarchies of v1 are. */
export function cgroupTmpfs(destination: string, options: MountOptions): ResolvedMount {
  const attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
  const tmpfs: MountOptions = {
    ...options,
    attributes: { set: options.attributes.set | attributes, clear: 0 },
    data: [{ key: "mode", value: "755" }, ...options.data.filter(({ key }) => key === "context")],
  };
  return { kind: "new", type: "tmpfs", source: "tmpfs", destination, options: tmpfs, readonlyAtLast: true };
}

/** `cpu` beside `cpu,cpuacct`. */
export function controllerLinks(destination: string, { name, version, controllers }: ShownHierarchy): ResolvedMount[] {
  if (version === 2 || controllers.length < 2) return [];
  return controllers
    .filter((controller) => controller !== name)
    .map((controller) => ({ kind: "link", destination: `${destination}/${controller}`, text: name }));
}

/** A hierarchy, mounted anew: it shows the cgroup that is the root of the namespace. */
export function newHierarchy(
  destination: string,
  { version, controllers }: ShownHierarchy,
  options: MountOptions,
): ResolvedMount {
  const type = version === 2 ? "cgroup2" : "cgroup";
  const data = version === 2 ? options.data : controllers.map(controllerOption);
  return {
    kind: "new",
    type,
    source: "cgroup",
    destination,
    options: { ...options, data },
    readonlyAtLast: false,
  };
}

/** All of it, for a container with a cgroup namespace of its own. */
export function newCgroupMounts(
  destination: string,
  hierarchies: readonly ShownHierarchy[],
  options: MountOptions,
): ResolvedMount[] {
  const [first] = hierarchies;
  if (first === undefined) return [];
  if (hierarchies.length === 1 && first.version === 2) return [newHierarchy(destination, first, options)];
  return [
    cgroupTmpfs(destination, options),
    ...hierarchies.flatMap((hierarchy) => [
      newHierarchy(`${destination}/${hierarchy.name}`, hierarchy, options),
      ...controllerLinks(destination, hierarchy),
    ]),
  ];
}

function controllerOption(controller: string): { key: string; value?: string } {
  const [key = "", value] = controller.split("=");
  return value === undefined ? { key } : { key, value };
}
