/** The options of a mount, as the runtime specification and mount(8) name them, in the terms of mount_setattr(2). */
import {
  MOUNT_ATTR_NOATIME,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NODIRATIME,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_NOSYMFOLLOW,
  MOUNT_ATTR_RDONLY,
  MOUNT_ATTR_STRICTATIME,
  MOUNT_ATTR__ATIME,
  MS_PRIVATE,
  MS_SHARED,
  MS_SLAVE,
  MS_UNBINDABLE,
} from "./linux.ts";

/** What a mount's attributes become. */
export interface Attributes {
  readonly set: number;
  readonly clear: number;
}

export interface MountOptions {
  readonly bind: boolean;
  readonly remount: boolean;
  readonly recursiveBind: boolean;
  /** Of the mount itself. */
  readonly attributes: Attributes;
  /** Of it and all below it. */
  readonly recursiveAttributes: Attributes;
  /** MS_SHARED and so on; undefined if nothing was said. */
  readonly propagation: { readonly flag: number; readonly recursive: boolean } | undefined;
  readonly idMap: "none" | "idmap" | "ridmap";
  readonly copyUp: boolean;
  /** For the file system: flags like `sync`, and what only it knows. */
  readonly data: readonly { readonly key: string; readonly value?: string }[];
}

const none: Attributes = { set: 0, clear: 0 };
const atime = (set: number): Attributes => ({ set, clear: MOUNT_ATTR__ATIME });

const attributeOptions: Readonly<Record<string, Attributes>> = {
  ro: { set: MOUNT_ATTR_RDONLY, clear: 0 },
  rw: { set: 0, clear: MOUNT_ATTR_RDONLY },
  nosuid: { set: MOUNT_ATTR_NOSUID, clear: 0 },
  suid: { set: 0, clear: MOUNT_ATTR_NOSUID },
  nodev: { set: MOUNT_ATTR_NODEV, clear: 0 },
  dev: { set: 0, clear: MOUNT_ATTR_NODEV },
  noexec: { set: MOUNT_ATTR_NOEXEC, clear: 0 },
  exec: { set: 0, clear: MOUNT_ATTR_NOEXEC },
  nosymfollow: { set: MOUNT_ATTR_NOSYMFOLLOW, clear: 0 },
  symfollow: { set: 0, clear: MOUNT_ATTR_NOSYMFOLLOW },
  nodiratime: { set: MOUNT_ATTR_NODIRATIME, clear: 0 },
  diratime: { set: 0, clear: MOUNT_ATTR_NODIRATIME },
  noatime: atime(MOUNT_ATTR_NOATIME),
  strictatime: atime(MOUNT_ATTR_STRICTATIME),
  relatime: atime(0),
  // Their opposites leave the kernel's default, which is relatime.
  atime: atime(0),
  norelatime: atime(0),
  nostrictatime: atime(0),
};

const propagationFlags: Readonly<Record<string, number>> = {
  private: MS_PRIVATE,
  shared: MS_SHARED,
  slave: MS_SLAVE,
  unbindable: MS_UNBINDABLE,
};

/** Flags of the superblock that every file system takes. */
const superblockOptions = ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];

/** They say nothing to the kernel: defaults of mount(8), and how loudly it fails. */
const silentOptions = ["defaults", "loud", "silent", "iversion", "noiversion"];

/** Every option that `parseMountOptions` knows by name. */
export const mountOptionNames: readonly string[] = [
  ...Object.keys(attributeOptions),
  ...Object.keys(attributeOptions).map((name) => `r${name}`),
  ...Object.keys(propagationFlags),
  ...Object.keys(propagationFlags).map((name) => `r${name}`),
  ...superblockOptions,
  ...silentOptions,
  "bind",
  "idmap",
  "rbind",
  "remount",
  "ridmap",
  "tmpcopyup",
].toSorted();

/** Reads options in their order: the later of two that contradict each other holds. */
export function parseMountOptions(options: readonly string[]): MountOptions {
  let [bind, recursiveBind, remount, copyUp] = [false, false, false, false];
  let attributes = none;
  let recursiveAttributes = none;
  let propagation: MountOptions["propagation"];
  let idMap: MountOptions["idMap"] = "none";
  const data: { key: string; value?: string }[] = [];
  for (const option of options) {
    const plain = lookUp(attributeOptions, option);
    const recursive = option.startsWith("r") ? lookUp(attributeOptions, option.slice(1)) : undefined;
    const flag = lookUp(propagationFlags, option) ?? lookUp(propagationFlags, option.slice(1));
    if (plain !== undefined) attributes = change(attributes, plain);
    else if (recursive !== undefined) recursiveAttributes = change(recursiveAttributes, recursive);
    else if (flag !== undefined && (option in propagationFlags || option.startsWith("r"))) {
      propagation = { flag, recursive: !(option in propagationFlags) };
    } else if (option === "bind" || option === "rbind") {
      bind = true;
      // Flags add up, as those of mount(2) do: podman writes "rbind" and "bind" together.
      recursiveBind ||= option === "rbind";
    } else if (option === "remount") remount = true;
    else if (option === "tmpcopyup") copyUp = true;
    else if (option === "idmap" || option === "ridmap") idMap = option;
    else if (option !== "" && !silentOptions.includes(option)) data.push(dataOption(option));
  }
  return { bind, remount, recursiveBind, attributes, recursiveAttributes, propagation, idMap, copyUp, data };
}

function lookUp<T>(table: Readonly<Record<string, T>>, key: string): T | undefined {
  return Object.hasOwn(table, key) ? table[key] : undefined;
}

function change(before: Attributes, { set, clear }: Attributes): Attributes {
  return { set: (before.set & ~clear) | set, clear: (before.clear & ~set) | clear };
}

function dataOption(option: string): { key: string; value?: string } {
  const equals = option.indexOf("=");
  return equals < 0 ? { key: option } : { key: option.slice(0, equals), value: option.slice(equals + 1) };
}

/** struct mount_attr. */
export function mountAttr(
  { set, clear }: Attributes,
  options: { readonly propagation?: number; readonly idMapFd?: number } = {},
): Buffer {
  const attr = Buffer.alloc(32);
  attr.writeBigUInt64LE(BigInt(set), 0);
  attr.writeBigUInt64LE(BigInt(clear), 8);
  attr.writeBigUInt64LE(BigInt(options.propagation ?? 0), 16);
  attr.writeBigUInt64LE(BigInt(options.idMapFd ?? 0), 24);
  return attr;
}
