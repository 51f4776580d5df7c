/** How a container joins a job's network: operations for its launch plan. */
import {
  CLONE_NEWNET,
  FSCONFIG_CMD_CREATE,
  FSMOUNT_CLOEXEC,
  FSOPEN_CLOEXEC,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
} from "./linux.ts";
import type { Operation, Value } from "./program.ts";

const CONTEXT = "sysContext";
const MOUNT = "sysMount";

/** The memory that `joinNetwork` and `networkSys` share. */
export const networkMemory: readonly Operation[] = [
  { memory: CONTEXT, size: 4 },
  { memory: MOUNT, size: 4 },
];

/**
 * For stage 0, which is root on the host, before it clones init (without CLONE_NEWNET): joins the network and makes a
 * read-only sysfs that shows it.
 *
 * A sysfs may be mounted by the owner of the network namespace only; init, in a user namespace of its own, is not.
 */
export function joinNetwork(namespaceFd: number): Operation[] {
  const attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
  return [
    joinOwnNetwork(namespaceFd),
    { name: "open sysfs", call: "fsopen", args: [{ text: "sysfs" }, FSOPEN_CLOEXEC], store: CONTEXT },
    { name: "make sysfs", call: "fsconfig", args: [{ load: CONTEXT }, FSCONFIG_CMD_CREATE, 0, 0, 0] },
    { name: "mount sysfs", call: "fsmount", args: [{ load: CONTEXT }, FSMOUNT_CLOEXEC, attributes], store: MOUNT },
  ];
}

/** The same for a container in the user namespace that owns the network: it mounts sysfs itself. */
export function joinOwnNetwork(namespaceFd: number): Operation {
  return { name: "join the job's network", call: "setns", args: [namespaceFd, CLONE_NEWNET] };
}

/** For init, in place of mounting sysfs: the mount that stage 0 has made. */
export const networkSys: Value = { load: MOUNT };
