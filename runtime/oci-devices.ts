/** The device nodes of an OCI container: which it gets, and those that its user namespace may not make itself. */
import { mkdirSync } from "node:fs";
import { standardDevices } from "./container-defaults.ts";
import { isRootless } from "./file-owners.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  OPEN_TREE_CLOEXEC,
  OPEN_TREE_CLONE,
  S_IFBLK,
  S_IFCHR,
  S_IFIFO,
} from "./linux.ts";
import type { IdMapping, OciConfig, OciDevice } from "./oci-config.ts";
import { beneathRoot, deviceNumber } from "./oci-file-system.ts";
import { mountAttr } from "./oci-mount-options.ts";
import { OciConfigError } from "./oci-parser.ts";
import type { OciPlan } from "./oci-plan.ts";
import { close, cString, SyscallError, syscall, trySyscall } from "./syscall.ts";

const standard = standardDevices.map(
  ([name, major, minor]): OciDevice => ({ type: "c", path: `/dev/${name}`, major, minor, fileMode: 0o666 }),
);

/**
 * Says which nodes the container's init makes, and binds those that it may not make, being in a user namespace, or in ours.
 *
 * @param directory Of the host, for the container's root to see nothing of; made if nodes are bound, removed by the caller.
 * @throws {OciConfigError | SyscallError}
 */
export function planDevices(
  config: OciConfig,
  options: { readonly directory: string; readonly own: (fd: number) => number },
): Pick<OciPlan, "devices" | "makesDev" | "boundDevices"> {
  const isCallers = config.mounts?.some(
    ({ destination, options: words }) =>
      beneathRoot(destination) === "dev" && words?.some((word) => word === "bind" || word === "rbind"),
  );
  if (isCallers) return { devices: [], makesDev: false, boundDevices: [] };
  const configured = config.linux?.devices ?? [];
  for (const device of configured) {
    if (device.type !== "p" && (device.major === undefined || device.minor === undefined)) {
      throw new OciConfigError(`linux.devices "${device.path}" needs major and minor`);
    }
  }
  const paths = new Set(configured.map(({ path }) => beneathRoot(path)));
  const devices = [...standard.filter(({ path }) => !paths.has(beneathRoot(path))), ...configured];
  if (!isRootless() && !config.linux?.namespaces?.some(({ type }) => type === "user")) {
    return { devices, makesDev: true, boundDevices: [] };
  }
  mkdirSync(options.directory, { mode: 0o700 });
  // Every container's is a link to that of its own devpts, which could not take the place of a mount.
  const bound = devices.filter(({ path }) => beneathRoot(path) !== "dev/ptmx");
  const boundDevices = bound.map((device, i) => ({
    kind: "tree" as const,
    fd: options.own(bindDevice(device, `${options.directory}/${i}`, config)),
    destination: device.path,
    isDirectory: false,
    readonlyAtLast: false,
  }));
  return { devices: [], makesDev: true, boundDevices };
}

/** A node of the container's own, with its owner and mode; where not even we may make one, the host's of that name. */
function bindDevice(device: OciDevice, node: string, config: OciConfig): number {
  const source = makeNode(device, node, config) ? node : device.path;
  const tree = trySyscall("open_tree", AT_FDCWD, cString(source), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0) throw new SyscallError("open_tree", -tree, `bind device "${device.path}" of the host`);
  // What is mounted with "nodev", as a /run is, has nodes that cannot be opened.
  const clear = MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY;
  const attr = mountAttr({ set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, clear });
  const result = trySyscall("mount_setattr", tree, cString(""), AT_EMPTY_PATH, attr, attr.length);
  if (result === 0) return tree;
  close(tree);
  throw new SyscallError("mount_setattr", -result, `bind device "${device.path}"`);
}

function makeNode(device: OciDevice, node: string, { linux }: OciConfig): boolean {
  const type = { c: S_IFCHR, u: S_IFCHR, b: S_IFBLK, p: S_IFIFO }[device.type];
  const number = deviceNumber(device.major ?? 0, device.minor ?? 0);
  if (trySyscall("mknodat", AT_FDCWD, cString(node), type, number) < 0) return false;
  const uid = hostId(device.uid ?? 0, linux?.uidMappings);
  const gid = hostId(device.gid ?? 0, linux?.gidMappings);
  syscall("fchownat", AT_FDCWD, cString(node), uid, gid, 0);
  syscall("fchmodat", AT_FDCWD, cString(node), (device.fileMode ?? 0o666) & 0o7777);
  return true;
}

/** Of a namespace that is joined we do not know the mappings: the host's root shows there as nobody. */
function hostId(id: number, mappings: readonly IdMapping[] | undefined): number {
  const mapping = mappings?.find(({ containerID, size }) => id >= containerID && id - containerID < size);
  return mapping === undefined ? 0 : mapping.hostID + id - mapping.containerID;
}
