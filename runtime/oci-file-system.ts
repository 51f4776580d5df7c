/**
 * The file system of an OCI container as operations: mounts, device nodes, masked and read-only paths.
 *
 * Every path of the container is resolved beneath its root with openat2 (RESOLVE_IN_ROOT), then used by descriptor: no
 * symbolic link of an image leads out, and what is checked is what is used (CVE-2021-30465, CVE-2025-31133, -52565).
 */
import { posix } from "node:path";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_RECURSIVE,
  EACCES,
  EEXIST,
  ELOOP,
  ENOENT,
  ENOTDIR,
  EPERM,
  EROFS,
  FSCONFIG_CMD_CREATE,
  FSCONFIG_CMD_RECONFIGURE,
  FSCONFIG_SET_FLAG,
  FSCONFIG_SET_STRING,
  FSMOUNT_CLOEXEC,
  FSOPEN_CLOEXEC,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  MOVE_MOUNT_F_EMPTY_PATH,
  MOVE_MOUNT_T_EMPTY_PATH,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  OPEN_TREE_CLOEXEC,
  OPEN_TREE_CLONE,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  S_IFBLK,
  S_IFCHR,
  S_IFIFO,
  S_IFREG,
  F_DUPFD_CLOEXEC,
} from "./linux.ts";
import type { OciDevice } from "./oci-config.ts";
import { mountAttr, type MountOptions } from "./oci-mount-options.ts";
import { messageBytes, type Operation, type Value } from "./program.ts";
import type { Architecture } from "./syscall-table.ts";

/** A mount that the runtime has resolved: nothing of it depends on the host any more. */
export type ResolvedMount =
  /** A detached tree: a bind, or a file system that was filled before. */
  | {
      readonly kind: "tree";
      /** Undefined: the runtime makes it when its turn comes, so that the kernel numbers mounts in their order. */
      readonly fd: Value | undefined;
      readonly destination: string;
      readonly isDirectory: boolean;
      readonly readonlyAtLast: boolean;
    }
  | {
      readonly kind: "new";
      readonly type: string;
      readonly source: string;
      readonly destination: string;
      readonly options: MountOptions;
      /** Other mounts may need places in it first. */
      readonly readonlyAtLast: boolean;
    }
  | { readonly kind: "remount"; readonly destination: string; readonly options: MountOptions }
  | { readonly kind: "link"; readonly destination: string; readonly text: string };

/** How the program asks the runtime for trees: a message on one descriptor, the tree on a socket. */
export interface MountRequests {
  readonly message: number;
  readonly statusFd: number;
  readonly socketFd: number;
  /** Where to go on if there is no answer. */
  readonly abandoned: string;
}

/** Memory that means "nothing" until a descriptor is stored there. */
const nothing = 0xffff_ffff;
/** The tmpfs that masks directories. */
const emptyDirectory = "empty directory";

/** A path of the container without its leading slash; "." is the root. */
export function beneathRoot(path: string): string {
  return posix.normalize(`/${path}`).replace(/^\/+|\/+$/g, "") || ".";
}

export interface FileSystemOptions {
  /** Absent where all trees are there when the program starts. */
  readonly requests?: MountRequests;
  /** Places, written as `beneathRoot` does, that the runtime has made itself: nothing of an image can lead elsewhere. */
  readonly ours?: ReadonlySet<string>;
  /** What masked files are covered with: the host's, or one in a /dev that is ours. */
  readonly nullDevice?: "/dev/null" | "dev/null";
}

/** Writes the operations; one for each container, because it names memory and labels. */
export class FileSystemPlan {
  readonly #rootFd: number;
  readonly #requests: MountRequests | undefined;
  readonly #ours: ReadonlySet<string>;
  readonly #nullDevice: string;
  readonly #how = new Map<string, Buffer>();
  readonly #readonlyLater: { readonly memory: string; readonly destination: string }[] = [];
  #names = 0;

  /** @param rootFd The root file system, as the program sees it: a descriptor, or AT_FDCWD. */
  constructor(rootFd: number, { requests, ours = new Set(), nullDevice = "/dev/null" }: FileSystemOptions = {}) {
    this.#rootFd = rootFd;
    this.#requests = requests;
    this.#ours = ours;
    this.#nullDevice = nullDevice;
  }

  /** Reserves what the others use; once, at the start of the program. */
  memory(): Operation[] {
    const message = Buffer.alloc(56); // struct msghdr
    message.writeBigUInt64LE(1n, 24);
    message.writeBigUInt64LE(24n, 40); // room for one descriptor, and what the kernel makes of it again
    const vector = Buffer.alloc(16);
    vector.writeBigUInt64LE(1n, 8);
    const names = ["directory", "target", "context", "mount", "node"];
    return [
      ...names.map((memory) => ({ memory, size: 4 })),
      absent(emptyDirectory),
      { memory: "nodeStatus", size: 256 },
      { memory: "treeControl", size: 24 },
      { memory: "treeVector", size: 16, bytes: vector, pointers: [{ at: 0, to: "byte" }] },
      {
        memory: "treeMessage",
        size: 56,
        bytes: message,
        pointers: [
          { at: 16, to: "treeVector" },
          { at: 32, to: "treeControl" },
        ],
      },
    ];
  }

  /** Opens a path beneath the root. `tolerate`: then the memory keeps what it had. */
  open(
    path: string,
    store: string,
    options: { flags?: number; resolve?: number; tolerate?: readonly number[] } = {},
  ): Operation {
    const flags = (options.flags ?? O_PATH) | O_CLOEXEC;
    const resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (options.resolve ?? 0);
    return {
      name: `open "/${path === "." ? "" : path}" in the container`,
      call: "openat2",
      args: [this.#rootFd, { text: path }, { bytes: this.#openHow(flags, resolve) }, 24],
      store,
      ...(options.tolerate === undefined ? {} : { tolerate: options.tolerate }),
    };
  }

  #openHow(flags: number, resolve: number): Buffer {
    const key = `${flags} ${resolve}`;
    const how = this.#how.get(key) ?? Buffer.alloc(24);
    how.writeBigUInt64LE(BigInt(flags), 0);
    how.writeBigUInt64LE(BigInt(resolve), 16);
    this.#how.set(key, how);
    return how;
  }

  /** Makes what is missing of a path's directories; `directory` then holds the last one, to be closed. */
  #directories(path: string): Operation[] {
    const parts = path === "." ? [] : path.split("/");
    const operations = [this.open(".", "directory", { flags: O_PATH | O_DIRECTORY })];
    parts.forEach((part, i) => {
      const prefix = parts.slice(0, i + 1).join("/");
      operations.push(
        {
          name: `make directory "/${prefix}" in the container`,
          call: "mkdirat",
          args: [{ load: "directory" }, { text: part }, 0o755],
          // If it is missing then, opening it says so.
          tolerate: [EEXIST, EROFS, EPERM, EACCES],
        },
        closeMemory("directory"),
        this.open(prefix, "directory", { flags: O_PATH | O_DIRECTORY }),
      );
    });
    return operations;
  }

  /** Makes a directory and those above it. */
  directory(path: string): Operation[] {
    return [...this.#directories(beneathRoot(path)), closeMemory("directory")];
  }

  /** Opens the place of a mount as `target`, made if it is missing. */
  #target(destination: string, options: { isDirectory: boolean; resolve?: number }): Operation[] {
    const path = beneathRoot(destination);
    if (this.#ours.has(path)) return [];
    const parent = posix.dirname(path);
    const name = posix.basename(path);
    const make: Operation = options.isDirectory
      ? {
          name: `make directory "/${path}" in the container`,
          call: "mkdirat",
          args: [{ load: "directory" }, { text: name }, 0o755],
          tolerate: [EEXIST, EROFS, EPERM, EACCES],
        }
      : {
          name: `make file "/${path}" in the container`,
          call: "mknodat",
          args: [{ load: "directory" }, { text: name }, S_IFREG | 0o644, 0],
          tolerate: [EEXIST, EROFS, EPERM, EACCES],
        };
    return [
      ...this.#directories(parent),
      make,
      closeMemory("directory"),
      this.open(path, "target", {
        flags: O_PATH | (options.isDirectory ? O_DIRECTORY : 0),
        ...(options.resolve === undefined ? {} : { resolve: options.resolve }),
      }),
    ];
  }

  /** One mount of the configuration. */
  mount(mount: ResolvedMount): Operation[] {
    switch (mount.kind) {
      case "tree":
        return this.#attachTree(mount);
      case "new":
        return this.#mountNew(mount);
      case "remount":
        return this.#remount(mount);
      case "link":
    }
    return this.#link(mount);
  }

  #attachTree({
    fd,
    destination,
    isDirectory,
    readonlyAtLast,
  }: ResolvedMount & { readonly kind: "tree" }): Operation[] {
    const tree: Value = fd ?? { load: "treeControl", offset: 16 };
    return [
      ...(fd === undefined ? this.#request(destination) : []),
      ...this.#target(destination, { isDirectory }),
      ...this.#attach(tree, destination),
      ...(readonlyAtLast ? this.#remember(tree, destination) : []),
      { name: `close the mount of "${destination}"`, call: "close", args: [tree] },
    ];
  }

  #request(destination: string): Operation[] {
    if (this.#requests === undefined) throw new Error(`The mount of "${destination}" has no descriptor`);
    const { message, statusFd, socketFd, abandoned } = this.#requests;
    const request = Buffer.alloc(messageBytes);
    request.writeUInt32LE(message, 0);
    const name = `receive the mount of "${destination}"`;
    return [
      {
        name: `ask for the mount of "${destination}"`,
        call: "write",
        args: [statusFd, { bytes: request }, messageBytes],
      },
      { name, call: "recvmsg", args: [socketFd, { addressOf: "treeMessage" }, MSG_CMSG_CLOEXEC], store: "count" },
      { name, unequal: [{ load: "count" }, 1], goto: abandoned },
    ];
  }

  #link(mount: ResolvedMount & { readonly kind: "link" }): Operation[] {
    const path = beneathRoot(mount.destination);
    return [
      ...this.#directories(posix.dirname(path)),
      {
        name: `make symbolic link "/${path}" in the container`,
        call: "symlinkat",
        args: [{ text: mount.text }, { load: "directory" }, { text: posix.basename(path) }],
        tolerate: [EEXIST],
      },
      closeMemory("directory"),
    ];
  }

  #attach(fd: Value, destination: string): Operation[] {
    const path = beneathRoot(destination);
    if (this.#ours.has(path)) {
      const args: Value[] = [fd, { text: "" }, this.#rootFd, { text: path }, MOVE_MOUNT_F_EMPTY_PATH];
      return [{ name: `attach "${destination}"`, call: "move_mount", args }];
    }
    return [
      {
        name: `attach "${destination}"`,
        call: "move_mount",
        args: [fd, { text: "" }, { load: "target" }, { text: "" }, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH],
      },
      closeMemory("target"),
    ];
  }

  #mountNew(mount: ResolvedMount & { readonly kind: "new" }): Operation[] {
    const { type, source, destination, options } = mount;
    const what = `${type} on "${destination}"`;
    const wanted = options.attributes.set | options.recursiveAttributes.set;
    const attributes = mount.readonlyAtLast ? wanted & ~MOUNT_ATTR_RDONLY : wanted;
    // What these show decides over what is masked in them: no symbolic link of an image says where they are.
    const resolve = type === "proc" || type === "sysfs" ? RESOLVE_NO_SYMLINKS : 0;
    const propagation = options.propagation?.flag;
    return [
      ...this.#target(destination, { isDirectory: true, resolve }),
      { name: `open file system ${what}`, call: "fsopen", args: [{ text: type }, FSOPEN_CLOEXEC], store: "context" },
      configure(what, "source", source),
      ...options.data.map(({ key, value }) => configure(what, key, value)),
      {
        name: `mount ${what}`,
        call: "fsconfig",
        args: [{ load: "context" }, FSCONFIG_CMD_CREATE, 0, 0, 0],
      },
      {
        name: `mount ${what}`,
        call: "fsmount",
        args: [{ load: "context" }, FSMOUNT_CLOEXEC, attributes],
        store: "mount",
      },
      closeMemory("context"),
      ...(propagation === undefined
        ? []
        : [setAttributes(`set the propagation of ${what}`, { load: "mount" }, mountAttr(unchanged, { propagation }))]),
      ...this.#attach({ load: "mount" }, destination),
      ...(mount.readonlyAtLast && (wanted & MOUNT_ATTR_RDONLY) !== 0
        ? this.#remember({ load: "mount" }, destination)
        : []),
      closeMemory("mount"),
    ];
  }

  /** Keeps a mount's descriptor until `makeReadonly`. */
  #remember(fd: Value, destination: string): Operation[] {
    const memory = this.#name("readonly");
    this.#readonlyLater.push({ memory, destination });
    return [
      { memory, size: 4 },
      { name: `keep "${destination}"`, call: "fcntl", args: [fd, F_DUPFD_CLOEXEC, 3], store: memory },
    ];
  }

  /** Makes those mounts read-only that were to be, now that all is in place. */
  makeReadonly(): Operation[] {
    return this.#readonlyLater.flatMap(({ memory, destination }) => [
      setAttributes(
        `make "${destination}" read-only`,
        { load: memory },
        mountAttr({ set: MOUNT_ATTR_RDONLY, clear: 0 }),
      ),
      closeMemory(memory),
    ]);
  }

  #remount({ destination, options }: ResolvedMount & { readonly kind: "remount" }): Operation[] {
    const what = `"${destination}"`;
    const attr = mountAttr(options.attributes, { propagation: options.propagation?.flag ?? 0 });
    return [
      this.open(beneathRoot(destination), "target"),
      setAttributes(`remount ${what}`, { load: "target" }, attr),
      ...(options.data.length === 0
        ? []
        : [
            {
              name: `remount ${what}`,
              call: "fspick",
              args: [{ load: "target" }, { text: "" }, FSPICK_CLOEXEC | FSPICK_EMPTY_PATH],
              store: "context",
            },
            ...options.data.map(({ key, value }) => configure(what, key, value)),
            {
              name: `remount ${what}`,
              call: "fsconfig",
              args: [{ load: "context" }, FSCONFIG_CMD_RECONFIGURE, 0, 0, 0],
            },
            closeMemory("context"),
          ]),
      closeMemory("target"),
    ];
  }

  /** Makes a device node, and checks that what is there is one: an image may have put something else in its place. */
  device(device: OciDevice, architecture: Architecture): Operation[] {
    const path = beneathRoot(device.path);
    const type = { c: S_IFCHR, u: S_IFCHR, b: S_IFBLK, p: S_IFIFO }[device.type];
    const mode = type | ((device.fileMode ?? 0o666) & 0o7777);
    const number = deviceNumber(device.major ?? 0, device.minor ?? 0);
    const name = posix.basename(path);
    const at = statOffsets[architecture];
    const wrong = this.#name("wrong node");
    const right = this.#name("right node");
    return [
      ...this.#directories(posix.dirname(path)),
      {
        name: `make device "/${path}" in the container`,
        call: "mknodat",
        args: [{ load: "directory" }, { text: name }, mode, number],
        tolerate: [EEXIST],
      },
      {
        name: `open device "/${path}" in the container`,
        call: "openat",
        args: [{ load: "directory" }, { text: name }, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0],
        store: "node",
      },
      {
        name: `look at device "/${path}" in the container`,
        call: "newfstatat",
        args: [{ load: "node" }, { text: "" }, { addressOf: "nodeStatus" }, AT_EMPTY_PATH],
      },
      ...(device.type === "p"
        ? []
        : [
            {
              name: `compare device "/${path}"`,
              unequal: [{ load: "nodeStatus", offset: at.rdev }, number] as const,
              goto: wrong,
            },
          ]),
      {
        name: `set the mode of device "/${path}" in the container`,
        call: "fchmodat",
        args: [{ load: "directory" }, { text: name }, mode & 0o7777],
      },
      {
        name: `look at device "/${path}" in the container`,
        call: "newfstatat",
        args: [{ load: "node" }, { text: "" }, { addressOf: "nodeStatus" }, AT_EMPTY_PATH],
      },
      { name: `compare device "/${path}"`, unequal: [{ load: "nodeStatus", offset: at.mode }, mode], goto: wrong },
      {
        name: `set the owner of device "/${path}" in the container`,
        call: "fchownat",
        args: [{ load: "node" }, { text: "" }, device.uid ?? 0, device.gid ?? 0, AT_EMPTY_PATH],
      },
      closeMemory("node"),
      closeMemory("directory"),
      { name: "go on", unequal: [0, 1], goto: right },
      { label: wrong },
      { name: `make device "/${path}" in the container: something else is there`, fail: EEXIST },
      { label: right },
    ];
  }

  /** The symbolic links that every /dev has. */
  deviceLinks(): Operation[] {
    const links = [
      ["fd", "/proc/self/fd"],
      ["stdin", "/proc/self/fd/0"],
      ["stdout", "/proc/self/fd/1"],
      ["stderr", "/proc/self/fd/2"],
    ] as const;
    return [
      ...this.#directories("dev"),
      ...links.map(
        ([name, text]): Operation => ({
          name: `make symbolic link "/dev/${name}" in the container`,
          call: "symlinkat",
          args: [{ text }, { load: "directory" }, { text: name }],
          tolerate: [EEXIST],
        }),
      ),
      {
        name: 'remove "/dev/ptmx" in the container',
        call: "unlinkat",
        args: [{ load: "directory" }, { text: "ptmx" }, 0],
        tolerate: [ENOENT],
      },
      {
        name: 'make symbolic link "/dev/ptmx" in the container',
        call: "symlinkat",
        args: [{ text: "pts/ptmx" }, { load: "directory" }, { text: "ptmx" }],
      },
      closeMemory("directory"),
    ];
  }

  /** Covers directories with one empty read-only tmpfs and anything else with /dev/null; what is missing stays so. */
  mask(paths: readonly string[]): Operation[] {
    if (paths.length === 0) return [];
    return [
      ...paths.flatMap((path) => this.#maskOne(path)),
      { name: "close the empty directory", call: "close", args: [{ load: emptyDirectory }], tolerate: [EBADF] },
    ];
  }

  #maskOne(path: string): Operation[] {
    const place = beneathRoot(path);
    const directory = this.#name("mask directory");
    const file = this.#name("mask file");
    const done = this.#name("masked");
    const name = `mask "${path}"`;
    return [
      absent(directory),
      absent(file),
      this.open(place, directory, { flags: O_PATH | O_DIRECTORY, tolerate: missing }),
      ...this.#ifPresent(directory, [
        ...this.#emptyDirectory(name, directory),
        closeMemory(directory),
        { name: "go on", unequal: [0, 1], goto: done },
      ]),
      this.open(place, file, { tolerate: missing }),
      ...this.#ifPresent(file, [
        {
          name,
          call: "open_tree",
          args: [AT_FDCWD, { text: this.#nullDevice }, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC],
          store: "mount",
        },
        attachTo(file, name),
        closeMemory("mount"),
        closeMemory(file),
      ]),
      { label: done },
    ];
  }

  /** Attaches the empty tmpfs: the first time a new one, then clones of it. (A detached mount can be cloned since 6.15 only.) */
  #emptyDirectory(name: string, directory: string): Operation[] {
    const another = this.#name("another");
    const attached = this.#name("attached");
    const attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    const target: Value[] = [{ load: directory }, { text: "" }, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH];
    return [
      { name: "is there one already", unequal: [{ load: emptyDirectory }, nothing], goto: another },
      { name, call: "fsopen", args: [{ text: "tmpfs" }, FSOPEN_CLOEXEC], store: "context" },
      configure(name, "nr_blocks", "1"),
      configure(name, "nr_inodes", "1"),
      configure(name, "mode", "755"),
      { name, call: "fsconfig", args: [{ load: "context" }, FSCONFIG_CMD_CREATE, 0, 0, 0] },
      { name, call: "fsmount", args: [{ load: "context" }, FSMOUNT_CLOEXEC, attributes], store: emptyDirectory },
      closeMemory("context"),
      { name, call: "move_mount", args: [{ load: emptyDirectory }, { text: "" }, ...target] },
      { name: "go on", unequal: [0, 1], goto: attached },
      { label: another },
      {
        name,
        call: "open_tree",
        args: [{ load: emptyDirectory }, { text: "" }, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH],
        store: "mount",
      },
      attachTo(directory, name),
      closeMemory("mount"),
      { label: attached },
    ];
  }

  /** Mounts a path read-only on itself; what is missing stays so. */
  readonly(path: string): Operation[] {
    const place = this.#name("readonly path");
    return [
      absent(place),
      this.open(beneathRoot(path), place, { tolerate: missing }),
      ...this.#ifPresent(place, [
        {
          name: `clone "${path}"`,
          call: "open_tree",
          args: [{ load: place }, { text: "" }, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE],
          store: "mount",
        },
        setAttributes(`make "${path}" read-only`, { load: "mount" }, mountAttr({ set: MOUNT_ATTR_RDONLY, clear: 0 })),
        attachTo(place, `make "${path}" read-only`),
        closeMemory("mount"),
        closeMemory(place),
      ]),
    ];
  }

  #ifPresent(memory: string, operations: readonly Operation[]): Operation[] {
    const present = this.#name("present");
    const skip = this.#name("skip");
    return [
      { name: "if it is there", unequal: [{ load: memory }, nothing], goto: present },
      { name: "else go on", unequal: [0, 1], goto: skip },
      { label: present },
      ...operations,
      { label: skip },
    ];
  }

  #name(what: string): string {
    return `${what} ${++this.#names}`;
  }
}

const EBADF = 9;
const MSG_CMSG_CLOEXEC = 0x40000000;
const FSPICK_CLOEXEC = 1;
const FSPICK_EMPTY_PATH = 8;
const unchanged = { set: 0, clear: 0 };
const missing = [ENOENT, ENOTDIR, EACCES, ELOOP];

/** Where struct stat has st_mode and st_rdev. */
const statOffsets = { x64: { mode: 24, rdev: 40 }, arm64: { mode: 16, rdev: 32 } } as const;

/** The kernel's dev_t of 32 bits. @see makedev(3) */
export function deviceNumber(major: number, minor: number): number {
  return (((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) & 0xffff_ffff) >>> 0;
}

function absent(memory: string): Operation {
  return { memory, size: 4, bytes: Buffer.alloc(4, 0xff) };
}

export function closeMemory(memory: string): Operation {
  return { name: `close ${memory}`, call: "close", args: [{ load: memory }] };
}

function configure(what: string, key: string, value: string | undefined): Operation {
  const args: Value[] =
    value === undefined
      ? [FSCONFIG_SET_FLAG, { text: key }, 0, 0]
      : [FSCONFIG_SET_STRING, { text: key }, { text: value }, 0];
  const option = value === undefined ? key : `${key}=${value}`;
  return { name: `mount ${what} with option "${option}"`, call: "fsconfig", args: [{ load: "context" }, ...args] };
}

/** mount_setattr(2) of one mount. */
export function setAttributes(name: string, fd: Value, attr: Buffer): Operation {
  return { name, call: "mount_setattr", args: [fd, { text: "" }, AT_EMPTY_PATH, { bytes: attr }, attr.length] };
}

function attachTo(memory: string, name: string): Operation {
  const flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
  return { name, call: "move_mount", args: [{ load: "mount" }, { text: "" }, { load: memory }, { text: "" }, flags] };
}
