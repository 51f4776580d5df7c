/** Layers as one tree, for the agent itself: what a build copies from and into. */
import { chownSync, mkdirSync } from "node:fs";
import { diskOwner, isRootless } from "./file-owners.ts";
import {
  CLONE_NEWNS,
  MNT_DETACH,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MS_BIND,
  MS_NODEV,
  MS_NOEXEC,
  MS_NOSUID,
  MS_PRIVATE,
  MS_REC,
  O_CLOEXEC,
  O_DIRECTORY,
  O_RDONLY,
} from "./linux.ts";
import { makeMount, type MountOption } from "./mount.ts";
import { OVERLAY_LAYERS_BY_PATH, splitLayers } from "./overlay-limit.ts";
import { close, cString, open, syscall, trySyscall } from "./syscall.ts";

export interface LayerViewOptions {
  /** Where what is changed goes; without it the view is read-only. Both are made if they are missing, on one file system. */
  readonly writable?: { readonly upper: string; readonly work: string };
  /** An empty directory, which nothing is written into. */
  readonly emptyDir: string;
  /** Mount as kernels before 6.13 want it, although this one could do better. @default false */
  readonly byPath?: boolean;
}

/**
 * Mounts layers on top of each other where only this thread sees it, and opens the root; the caller closes it, which also
 * unmounts. Owners are those on disk (file-owners.ts): there is no mapping of ids.
 *
 * Only in a thread of its own: where the kernel takes layers by path only, the thread moves to a mount namespace of its own.
 *
 * @param layers Absolute paths, base first.
 * @throws {SyscallError}
 */
export function openLayerView(layers: readonly string[], options: LayerViewOptions): number {
  const { writable, emptyDir } = options;
  for (const path of writable === undefined ? [] : [writable.upper, writable.work]) {
    if (mkdirSync(path, { recursive: true }) !== undefined) chownSync(path, diskOwner(0), diskOwner(0));
  }
  if (layers.length === 0 && writable === undefined) return open(emptyDir, O_RDONLY | O_DIRECTORY);
  // An overlay without an upper directory wants two layers.
  const lower = layers.length < 2 ? [emptyDir, ...layers] : layers;
  return options.byPath === true ? mountByPath(lower, options) : mountByDescriptor(lower, writable);
}

const flags = [
  "index=off",
  "metacopy=off",
  "xino=off",
  ...(isRootless() ? ["redirect_dir=nofollow", "userxattr"] : ["redirect_dir=off"]),
];

function mountByDescriptor(layers: readonly string[], writable: LayerViewOptions["writable"]): number {
  const opened: number[] = [];
  const make = (lower: readonly number[], options: readonly MountOption[]) => {
    const mountOptions: MountOption[] = [
      ...lower.toReversed().map((fd) => ({ key: "lowerdir+", value: fd })),
      ...options,
      ...flags.map((flag) => {
        const [key = "", value] = flag.split("=");
        return value === undefined ? { key } : { key, value };
      }),
    ];
    return makeMount("overlay", mountOptions, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  };
  try {
    for (const path of layers) opened.push(open(path, O_RDONLY | O_DIRECTORY));
    const { base, rest } = splitLayers(opened);
    const lower = [...rest];
    if (base.length > 0) {
      lower.unshift(make(base, []));
      opened.push(lower[0] as number);
    }
    const mount = make(
      lower,
      writable === undefined
        ? []
        : [{ key: "upperdir", value: writable.upper }, { key: "workdir", value: writable.work }, { key: "volatile" }],
    );
    try {
      return syscall("openat", mount, cString("."), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    } finally {
      close(mount);
    }
  } finally {
    for (const fd of opened) close(fd);
  }
}

let ownNamespace = false;

/** Layers get names that are short enough for the page that mount(2) takes, in the thread's own mount namespace. */
function mountByPath(layers: readonly string[], { writable, emptyDir }: LayerViewOptions): number {
  if (!ownNamespace) {
    syscall("unshare", CLONE_NEWNS);
    ownNamespace = true;
    mount("none", "/", { flags: MS_REC | MS_PRIVATE });
  }
  const quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  mount("tmpfs", emptyDir, { type: "tmpfs", flags: quiet, data: "size=4m" });
  try {
    for (const [index, layer] of layers.entries()) {
      mkdirSync(`${emptyDir}/${index}`);
      mount(layer, `${emptyDir}/${index}`, { flags: MS_BIND });
    }
    for (const name of ["base", "root"]) mkdirSync(`${emptyDir}/${name}`);
    // The thread's own working directory: it has no other part in what chdir(2) changes since its unshare(2).
    syscall("chdir", cString(emptyDir));
    const { base, rest } = splitLayers(
      layers.map((_, index) => `${index}`),
      OVERLAY_LAYERS_BY_PATH,
    );
    const escape = (path: string) => path.replaceAll(/[\\,:]/g, "\\$&");
    const make = (target: string, lower: readonly string[], ...others: readonly string[]) => {
      const data = [`lowerdir=${lower.toReversed().join(":")}`, ...others, ...flags].join(",");
      if (data.length >= 4096) throw new Error(`Cannot mount ${layers.length} layers: too many for this kernel`);
      mount("overlay", target, { type: "overlay", flags: quiet, data });
    };
    if (base.length > 0) make("base", base);
    make(
      "root",
      base.length > 0 ? ["base", ...rest] : rest,
      ...(writable === undefined
        ? []
        : [`upperdir=${escape(writable.upper)}`, `workdir=${escape(writable.work)}`, "volatile"]),
    );
    return open(`${emptyDir}/root`, O_RDONLY | O_DIRECTORY);
  } finally {
    syscall("chdir", cString("/"));
    trySyscall("umount2", cString(emptyDir), MNT_DETACH);
  }
}

function mount(
  source: string,
  target: string,
  options: { readonly type?: string; readonly flags: number; readonly data?: string },
): void {
  const { type = "none", flags: mountFlags, data = "" } = options;
  syscall("mount", cString(source), cString(target), cString(type), mountFlags, cString(data));
}
