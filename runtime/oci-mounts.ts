/** What of an OCI container's mounts is the host's to do: bind sources, id maps, what fills a tmpfs, where cgroups are. */
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  fstatSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  statSync,
  symlinkSync,
  utimesSync,
} from "node:fs";
import { posix } from "node:path";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_RECURSIVE,
  MOUNT_ATTR_IDMAP,
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
import { byteString, resolveInRoot, textOf } from "./file-at.ts";
import { makeMount } from "./mount.ts";
import { cgroupTmpfs, controllerLinks, newHierarchy } from "./cgroup-mounts.ts";
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
}

/** A mount as the program sees it, and what makes it when the program asks. */
export interface PlannedMount {
  readonly mount: ResolvedMount;
  readonly open?: () => number;
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
export function resolveMounts(context: MountContext): PlannedMount[] {
  checkMountLabel(context.config.linux?.mountLabel);
  const mounts = context.config.mounts ?? [];
  return mounts.flatMap((wanted, i) => {
    const naming = <T>(work: () => T): T => {
      try {
        return work();
      } catch (error) {
        const { message } = error as Error;
        throw new OciConfigError(`mounts[${i}] on "${wanted.destination}": ${message}`, { cause: error });
      }
    };
    const mount = naming(() => settle(wanted, context.rootPath, mounts.slice(0, i)));
    return naming(() => resolveMount(mount, context)).map(({ mount: resolved, open }) => ({
      mount: resolved,
      ...(open === undefined ? {} : { open: () => naming(open) }),
    }));
  });
}

/**
 * A mount whose place is a link to what is missing has its place there: an image's /etc/resolv.conf often leads to a /run
 * that only a running system fills. The program makes what is missing, beneath the root whatever this answers; below an
 * earlier mount the image does not say where a path leads.
 */
function settle(mount: OciMount, rootPath: string, earlier: readonly OciMount[]): OciMount {
  const path = beneathRoot(mount.destination);
  // What they show decides over what is masked in them: no link says where they are.
  if (mount.type === "proc" || mount.type === "sysfs") return mount;
  if (earlier.some(({ destination }) => path.startsWith(`${beneathRoot(destination)}/`))) return mount;
  let root: number;
  try {
    root = open(rootPath, O_PATH | O_DIRECTORY);
  } catch {
    return mount; // whoever mounts the root says why
  }
  try {
    const resolved = textOf(resolveInRoot(root, byteString(path)).path);
    return resolved === path || resolved === "" ? mount : { ...mount, destination: `/${resolved}` };
  } finally {
    close(root);
  }
}

/** Whether processes and files of this host have labels. */
export function hasSelinux(): boolean {
  return existsSync("/sys/fs/selinux/enforce");
}

function checkMountLabel(label: string | undefined): void {
  if (!label) return;
  if (!hasSelinux()) {
    throw new OciConfigError(`linux.mountLabel "${label}" is not supported: this kernel has no SELinux`);
  }
  if (label.includes('"')) throw new OciConfigError(`linux.mountLabel ${JSON.stringify(label)} is no label`);
}

/** What the kernel labels by itself, or by its own rules. */
const unlabelled = new Set(["proc", "sysfs", "mqueue", "cgroup", "cgroup2"]);

/** All that is in a new file system gets the container's label. @see mount(8), "context=" */
function labelled(type: string, options: MountOptions, { config }: MountContext): MountOptions {
  const label = config.linux?.mountLabel;
  if (!label || unlabelled.has(type) || options.data.some(({ key }) => key === "context")) return options;
  return { ...options, data: [...options.data, { key: "context", value: label }] };
}

function resolveMount(mount: OciMount, context: MountContext): PlannedMount[] {
  const options = parseMountOptions(mount.options ?? []);
  const { destination } = mount;
  if (beneathRoot(destination) === "." && !options.remount) {
    throw new OciConfigError("nothing can be mounted on the root itself");
  }
  const mapsIds = mount.uidMappings !== undefined || mount.gidMappings !== undefined || options.idMap !== "none";
  if (mapsIds && !options.bind) throw new OciConfigError("id mappings are supported for bind mounts only");
  if (options.remount) return [{ mount: { kind: "remount", destination, options } }];
  if (options.bind) return [bindMount(mount, options, context)];
  const type = mount.type ?? "";
  if (type === "" || type === "none") throw new OciConfigError("its type is missing");
  if (type === "cgroup" || type === "cgroup2") return cgroupMounts(mount, options, context);
  if (type === "sysfs" && needsHostSys(context.config)) return [hostSys(destination, options)];
  const isTmpfs = type === "tmpfs";
  if (options.copyUp) {
    if (!isTmpfs) throw new OciConfigError('option "tmpcopyup" is supported for tmpfs only');
    return [copiedTmpfs(mount, labelled(type, options, context), context)];
  }
  const readonlyAtLast = isTmpfs || beneathRoot(destination) === "dev";
  const source = mount.source || type;
  const own = labelled(type, isTmpfs ? withMode(options, destination, context) : options, context);
  return [{ mount: { kind: "new", type, source, destination, options: own, readonlyAtLast } }];
}

/** A tmpfs without a mode has that of the directory it covers, as under runc; where there is none, the kernel's own, 1777. */
function withMode(options: MountOptions, destination: string, { rootPath }: MountContext): MountOptions {
  if (options.data.some(({ key }) => key === "mode")) return options;
  let mode: number;
  try {
    const root = open(rootPath, O_PATH | O_DIRECTORY);
    try {
      const place = openat2(root, beneathRoot(destination), { flags: O_PATH | O_DIRECTORY, resolve: RESOLVE_IN_ROOT });
      mode = fstatSync(place).mode & 0o7777;
      close(place);
    } finally {
      close(root);
    }
  } catch {
    return options;
  }
  return { ...options, data: [...options.data, { key: "mode", value: mode.toString(8) }] };
}

function treeAt(
  destination: string,
  options: { readonly isDirectory: boolean; readonly readonlyAtLast?: boolean },
): ResolvedMount {
  const { isDirectory, readonlyAtLast = false } = options;
  return { kind: "tree", fd: undefined, destination, isDirectory, readonlyAtLast };
}

/** Makes a tree and changes it; one that cannot be changed is closed. */
function makeTree(tree: number, change: (tree: number) => void): number {
  try {
    change(tree);
    return tree;
  } catch (error) {
    close(tree);
    throw error;
  }
}

/** A new sysfs belongs to a network namespace and may be mounted by its owner only. */
function needsHostSys(config: OciConfig): boolean {
  const find = (type: NamespaceType) => config.linux?.namespaces?.find((namespace) => namespace.type === type);
  return find("user") !== undefined && find("network") === undefined;
}

function hostSys(destination: string, options: MountOptions): PlannedMount {
  const open = () =>
    makeTree(cloneTree("/sys", true), (tree) =>
      setTree(tree, 'bind "/sys"', options.attributes, { propagation: MS_PRIVATE, recursive: true }),
    );
  return { mount: treeAt(destination, { isDirectory: true }), open };
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

function bindMount(mount: OciMount, options: MountOptions, context: MountContext): PlannedMount {
  if (mount.source === undefined) throw new OciConfigError("a bind mount needs a source");
  const source = posix.resolve(context.bundle, mount.source);
  const { isDirectory } = sourceKind(source);
  const open = () =>
    makeTree(cloneTree(source, options.recursiveBind), (tree) => changeBind(tree, { mount, options, source, context }));
  return { mount: treeAt(mount.destination, { isDirectory }), open };
}

function sourceKind(source: string): { isDirectory: boolean } {
  try {
    return { isDirectory: statSync(source).isDirectory() };
  } catch (error) {
    throw new OciConfigError(`its source "${source}": ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
}

function changeBind(
  tree: number,
  bind: {
    readonly mount: OciMount;
    readonly options: MountOptions;
    readonly source: string;
    readonly context: MountContext;
  },
): void {
  const { mount, options, source, context } = bind;
  const { propagation, attributes, recursiveAttributes } = options;
  const action = `bind "${source}"`;
  const unchanged: Attributes = { set: 0, clear: 0 };
  // Nothing said: what was set for the root holds, and that is "private" if nothing was set at all.
  const inherited = inheritedPropagation(context.config.linux?.rootfsPropagation);
  setTree(tree, action, unchanged, { propagation: inherited, recursive: true });
  if (propagation !== undefined) {
    setTree(tree, action, unchanged, { propagation: propagation.flag, recursive: propagation.recursive });
  }
  if (options.idMap !== "none" || mount.uidMappings?.length || mount.gidMappings?.length) {
    const idMapFd = idMapOf(mount, context.config);
    try {
      setTree(tree, action, unchanged, { recursive: options.idMap === "ridmap", idMapFd });
    } finally {
      close(idMapFd);
    }
  }
  if (hasAny(recursiveAttributes)) setTree(tree, action, recursiveAttributes, { recursive: true });
  if (hasAny(attributes)) setTree(tree, action, attributes, { recursive: false });
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
function copiedTmpfs(mount: OciMount, options: MountOptions, context: MountContext): PlannedMount {
  const attributes = options.attributes.set & ~MOUNT_ATTR_RDONLY;
  const data = [{ key: "source", value: mount.source || "tmpfs" }, ...options.data];
  const open = () =>
    makeTree(makeMount("tmpfs", data, attributes), (tree) => {
      const keepsOwn = options.data.some(({ key }) => key === "mode" || key === "uid" || key === "gid");
      copyUp(tree, mount.destination, context.rootPath, { keepsOwn });
    });
  const readonlyAtLast = (options.attributes.set & MOUNT_ATTR_RDONLY) !== 0;
  return { mount: treeAt(mount.destination, { isDirectory: true, readonlyAtLast }), open };
}

function copyUp(tree: number, destination: string, rootPath: string, options: { readonly keepsOwn: boolean }): void {
  const root = open(rootPath, O_PATH | O_DIRECTORY);
  try {
    const flags = O_PATH | O_DIRECTORY;
    const source = openat2(root, beneathRoot(destination), { flags, resolve: RESOLVE_IN_ROOT });
    try {
      const target = `/proc/self/fd/${tree}`;
      copyTree(`/proc/self/fd/${source}/.`, `${target}/.`);
      const { uid, gid, mode } = fstatSync(source);
      if (options.keepsOwn) return;
      chownSync(`${target}/.`, uid, gid);
      chmodSync(`${target}/.`, mode & 0o7777);
    } finally {
      close(source);
    }
  } catch (error) {
    // The image has nothing there.
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
  } finally {
    close(root);
  }
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
function cgroupMounts(mount: OciMount, options: MountOptions, context: MountContext): PlannedMount[] {
  const { destination } = mount;
  const [first, ...others] = context.cgroupMounts;
  if (first === undefined) throw new OciConfigError("this host has no cgroups");
  if (others.length === 0 && first.version === 2) return [showCgroup(destination, first, options, context)];
  if (mount.type === "cgroup2") throw new OciConfigError("this host has cgroup v1");
  return [
    { mount: cgroupTmpfs(destination, labelled("tmpfs", options, context)) },
    ...context.cgroupMounts.flatMap((hierarchy): PlannedMount[] => {
      const name = posix.basename(hierarchy.mountPoint);
      return [
        showCgroup(`${destination}/${name}`, hierarchy, options, context),
        ...controllerLinks(destination, { ...hierarchy, name }).map((mount) => ({ mount })),
      ];
    }),
  ];
}

/** One hierarchy: mounted anew in a cgroup namespace, which shows its own part only, else that part of the host's. */
function showCgroup(
  destination: string,
  hierarchy: CgroupMount,
  options: MountOptions,
  context: MountContext,
): PlannedMount {
  const { mountPoint } = hierarchy;
  if (context.config.linux?.namespaces?.some(({ type }) => type === "cgroup")) {
    return { mount: newHierarchy(destination, { ...hierarchy, name: posix.basename(mountPoint) }, options) };
  }
  const own = context.cgroup.directories.find(({ path }) => path.startsWith(`${mountPoint}/`))?.path ?? mountPoint;
  const open = () =>
    makeTree(cloneTree(own, false), (tree) =>
      setTree(tree, `bind "${own}"`, options.attributes, { propagation: MS_PRIVATE, recursive: false }),
    );
  return { mount: treeAt(destination, { isDirectory: true }), open };
}
