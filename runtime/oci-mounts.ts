/** What of an OCI container's mounts is the host's to do: bind sources, id maps, what fills a tmpfs, where cgroups are. */
import {
  chmodSync,
  chownSync,
  copyFileSync,
  fstatSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  symlinkSync,
  utimesSync,
} from "node:fs";
import { posix } from "node:path";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_RECURSIVE,
  MOUNT_ATTR_IDMAP,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  MS_PRIVATE,
  MS_SHARED,
  MS_SLAVE,
  O_DIRECTORY,
  O_PATH,
  OPEN_TREE_CLOEXEC,
  OPEN_TREE_CLONE,
  RESOLVE_IN_ROOT,
} from "./linux.ts";
import { makeMount } from "./mount.ts";
import type { CgroupMount, OciCgroup } from "./oci-cgroup.ts";
import { isNew, type IdMapping, type NamespaceType, type OciConfig, type OciMount } from "./oci-config.ts";
import { beneathRoot, type ResolvedMount } from "./oci-file-system.ts";
import { type Attributes, mountAttr, type MountOptions, parseMountOptions } from "./oci-mount-options.ts";
import { OciConfigError } from "./oci-parser.ts";
import { mapUserNamespace } from "./oci-user-namespace.ts";
import { close, cString, open, openat2, SyscallError, trySyscall } from "./syscall.ts";

/** What the resolution of mounts needs to know of the container. */
export interface MountContext {
  readonly config: OciConfig;
  readonly bundle: string;
  readonly rootPath: string;
  readonly cgroup: OciCgroup;
  readonly cgroupMounts: readonly CgroupMount[];
  /** Takes a descriptor to close once the container has its own. */
  readonly own: (fd: number) => number;
}

/** Clones the root file system as a detached tree. */
export function cloneRoot(path: string, propagation: string | undefined): number {
  const tree = cloneTree(path, true);
  const flag = propagation === "slave" || propagation === "rslave" ? MS_SLAVE : MS_PRIVATE;
  return setTree(
    tree,
    `set the propagation of "${path}"`,
    { set: 0, clear: 0 },
    { propagation: flag, recursive: true },
  );
}

/** In the order of the configuration. @throws {OciConfigError | SyscallError} Naming the mount. */
export function resolveMounts(context: MountContext): ResolvedMount[] {
  return (context.config.mounts ?? []).flatMap((mount, i) => {
    try {
      return resolveMount(mount, context);
    } catch (error) {
      throw new OciConfigError(`mounts[${i}] on "${mount.destination}": ${(error as Error).message}`, { cause: error });
    }
  });
}

function resolveMount(mount: OciMount, context: MountContext): ResolvedMount[] {
  const options = parseMountOptions(mount.options ?? []);
  const { destination } = mount;
  if (beneathRoot(destination) === "." && !options.remount) {
    throw new OciConfigError("nothing can be mounted on the root itself");
  }
  const mapsIds = mount.uidMappings !== undefined || mount.gidMappings !== undefined || options.idMap !== "none";
  if (mapsIds && !options.bind) throw new OciConfigError("id mappings are supported for bind mounts only");
  if (options.remount) return [{ kind: "remount", destination, options }];
  if (options.bind) return [bindMount(mount, options, context)];
  const type = mount.type ?? "";
  if (type === "" || type === "none") throw new OciConfigError("its type is missing");
  if (type === "cgroup" || type === "cgroup2") return cgroupMounts(mount, options, context);
  if (type === "sysfs" && needsHostSys(context.config)) return [hostSys(destination, options, context)];
  const isTmpfs = type === "tmpfs";
  if (options.copyUp) {
    if (!isTmpfs) throw new OciConfigError('option "tmpcopyup" is supported for tmpfs only');
    return [copiedTmpfs(mount, options, context)];
  }
  const readonlyAtLast = isTmpfs || beneathRoot(destination) === "dev";
  return [{ kind: "new", type, source: mount.source || type, destination, options, readonlyAtLast }];
}

/** A new sysfs belongs to a network namespace and may be mounted by its owner only. */
function needsHostSys(config: OciConfig): boolean {
  const find = (type: NamespaceType) => config.linux?.namespaces?.find((namespace) => namespace.type === type);
  return find("user") !== undefined && find("network") === undefined;
}

function hostSys(destination: string, options: MountOptions, { own }: MountContext): ResolvedMount {
  const tree = own(cloneTree("/sys", true));
  setTree(tree, 'bind "/sys"', options.attributes, { propagation: MS_PRIVATE, recursive: true });
  return { kind: "tree", fd: tree, destination, isDirectory: true, readonlyAtLast: false };
}

function cloneTree(path: string, recursive: boolean): number {
  const flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0);
  const tree = trySyscall("open_tree", AT_FDCWD, cString(path), flags);
  if (tree < 0) throw new SyscallError("open_tree", -tree, `bind "${path}"`);
  return tree;
}

function setTree(
  tree: number,
  action: string,
  attributes: Attributes,
  options: { readonly propagation?: number; readonly recursive: boolean; readonly idMapFd?: number },
): number {
  const set = attributes.set | (options.idMapFd === undefined ? 0 : MOUNT_ATTR_IDMAP);
  const attr = mountAttr({ set, clear: attributes.clear }, options);
  const flags = AT_EMPTY_PATH | (options.recursive ? AT_RECURSIVE : 0);
  const result = trySyscall("mount_setattr", tree, cString(""), flags, attr, attr.length);
  if (result < 0) throw new SyscallError("mount_setattr", -result, action);
  return tree;
}

function bindMount(mount: OciMount, options: MountOptions, context: MountContext): ResolvedMount {
  if (mount.source === undefined) throw new OciConfigError("a bind mount needs a source");
  const source = posix.resolve(context.bundle, mount.source);
  const tree = context.own(cloneTree(source, options.recursiveBind));
  const action = `bind "${source}"`;
  const { propagation } = options;
  // Nothing said: what was set for the root holds, and that is "private" if nothing was set at all.
  const inherited = inheritedPropagation(context.config.linux?.rootfsPropagation);
  setTree(tree, action, { set: 0, clear: 0 }, { propagation: inherited, recursive: true });
  if (propagation !== undefined) {
    setTree(tree, action, { set: 0, clear: 0 }, { propagation: propagation.flag, recursive: propagation.recursive });
  }
  if (options.idMap !== "none") {
    const idMapFd = context.own(idMapOf(mount, context.config));
    setTree(tree, action, { set: 0, clear: 0 }, { recursive: options.idMap === "ridmap", idMapFd });
  } else if (mount.uidMappings?.length || mount.gidMappings?.length) {
    const idMapFd = context.own(idMapOf(mount, context.config));
    setTree(tree, action, { set: 0, clear: 0 }, { recursive: false, idMapFd });
  }
  if (hasAny(options.recursiveAttributes)) setTree(tree, action, options.recursiveAttributes, { recursive: true });
  if (hasAny(options.attributes)) setTree(tree, action, options.attributes, { recursive: false });
  const isDirectory = fstatSync(tree).isDirectory();
  return { kind: "tree", fd: tree, destination: mount.destination, isDirectory, readonlyAtLast: false };
}

const hasAny = ({ set, clear }: Attributes) => set !== 0 || clear !== 0;

function inheritedPropagation(root: string | undefined): number {
  if (root === "slave" || root === "rslave") return MS_SLAVE;
  return root === "shared" || root === "rshared" ? MS_SHARED : MS_PRIVATE;
}

function idMapOf(mount: OciMount, config: OciConfig): number {
  const user = config.linux?.namespaces?.find(({ type }) => type === "user");
  let uids: readonly IdMapping[] | undefined = mount.uidMappings;
  let gids: readonly IdMapping[] | undefined = mount.gidMappings;
  if (uids === undefined && gids === undefined) {
    if (user === undefined) throw new OciConfigError("an id mapping needs uidMappings and gidMappings");
    if (!isNew(user)) return open(user.path ?? "", 0);
    uids = config.linux?.uidMappings;
    gids = config.linux?.gidMappings;
  }
  if (!uids?.length || !gids?.length) throw new OciConfigError("uidMappings and gidMappings go together");
  return mapUserNamespace(uids, gids);
}

/** A tmpfs with what the image has at that place. */
function copiedTmpfs(mount: OciMount, options: MountOptions, context: MountContext): ResolvedMount {
  const attributes = options.attributes.set & ~MOUNT_ATTR_RDONLY;
  const data = options.data.map(({ key, value }) => ({ key, ...(value === undefined ? {} : { value }) }));
  const fd = context.own(makeMount("tmpfs", [{ key: "source", value: mount.source || "tmpfs" }, ...data], attributes));
  const root = open(context.rootPath, O_PATH | O_DIRECTORY);
  try {
    const source = openat2(root, beneathRoot(mount.destination), {
      flags: O_PATH | O_DIRECTORY,
      resolve: RESOLVE_IN_ROOT,
    });
    try {
      const target = `/proc/self/fd/${fd}`;
      copyTree(`/proc/self/fd/${source}/.`, `${target}/.`);
      if (!options.data.some(({ key }) => key === "mode" || key === "uid" || key === "gid")) {
        const { uid, gid, mode } = fstatSync(source);
        chownSync(`${target}/.`, uid, gid);
        chmodSync(`${target}/.`, mode & 0o7777);
      }
    } finally {
      close(source);
    }
  } catch (error) {
    // The image has nothing there.
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" && (error as NodeJS.ErrnoException).code !== "ENOTDIR")
      throw error;
  } finally {
    close(root);
  }
  const readonlyAtLast = (options.attributes.set & MOUNT_ATTR_RDONLY) !== 0;
  return { kind: "tree", fd, destination: mount.destination, isDirectory: true, readonlyAtLast };
}

function copyTree(from: string, to: string): void {
  for (const name of readdirSync(from)) {
    const [source, target] = [`${from}/${name}`, `${to}/${name}`];
    const stat = lstatSync(source);
    if (stat.isSymbolicLink()) {
      symlinkSync(readlinkSync(source), target);
      lchownSync(target, stat.uid, stat.gid);
      continue;
    }
    if (stat.isDirectory()) {
      mkdirSync(target);
      copyTree(source, target);
    } else if (stat.isFile()) copyFileSync(source, target);
    else continue; // sockets, pipes and devices of an image mean nothing here
    chownSync(target, stat.uid, stat.gid);
    chmodSync(target, stat.mode & 0o7777);
    utimesSync(target, stat.atime, stat.mtime);
  }
}

/** What a mount of type `cgroup` shows: all of v2, or a tmpfs with each hierarchy of v1. */
function cgroupMounts(mount: OciMount, options: MountOptions, context: MountContext): ResolvedMount[] {
  const { destination } = mount;
  const hasNamespace = context.config.linux?.namespaces?.some(({ type }) => type === "cgroup") ?? false;
  const show = (at: string, hierarchy: CgroupMount): ResolvedMount => {
    const { version, controllers, mountPoint } = hierarchy;
    if (hasNamespace) {
      const data = version === 2 ? options.data : controllers.map(controllerOption);
      const shown = { ...options, data };
      const type = version === 2 ? "cgroup2" : "cgroup";
      return { kind: "new", type, source: "cgroup", destination: at, options: shown, readonlyAtLast: false };
    }
    const path = context.cgroup.directories.find((directory) => directory.path.startsWith(`${mountPoint}/`))?.path;
    const fd = context.own(cloneTree(path ?? mountPoint, false));
    setTree(fd, `bind "${path}"`, options.attributes, { propagation: MS_PRIVATE, recursive: false });
    return { kind: "tree", fd, destination: at, isDirectory: true, readonlyAtLast: false };
  };
  const [first, ...others] = context.cgroupMounts;
  if (first === undefined) throw new OciConfigError("this host has no cgroups");
  if (others.length === 0 && first.version === 2) return [show(destination, first)];
  if (mount.type === "cgroup2") throw new OciConfigError("this host has cgroup v1");
  const attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
  const tmpfs: MountOptions = {
    ...options,
    attributes: { set: options.attributes.set | attributes, clear: 0 },
    data: [{ key: "mode", value: "755" }],
  };
  return [
    { kind: "new", type: "tmpfs", source: "tmpfs", destination, options: tmpfs, readonlyAtLast: true },
    ...context.cgroupMounts.flatMap((hierarchy): ResolvedMount[] => {
      const name = posix.basename(hierarchy.mountPoint);
      const links = hierarchy.version === 1 && hierarchy.controllers.length > 1 ? hierarchy.controllers : [];
      return [
        show(`${destination}/${name}`, hierarchy),
        ...links
          .filter((controller) => controller !== name)
          .map(
            (controller): ResolvedMount => ({ kind: "link", destination: `${destination}/${controller}`, text: name }),
          ),
      ];
    }),
  ];
}

function controllerOption(controller: string): { key: string; value?: string } {
  const [key = "", value] = controller.split("=");
  return value === undefined ? { key } : { key, value };
}
