/**
 * Whose files are: ids of a container on a disk of the host.
 *
 * An agent that is root on its host leaves files with the ids that they have in every container; mounts map them to the
 * range of the job that sees them. A mount of the host's file systems can be mapped by nobody else, so a rootless agent's
 * files carry the ids of the job that sees them: a workspace those of its job, images those of the first range. A job with
 * another range sees a copy of the image's layers, made when it is needed for the first time.
 */
import { chmodSync, lchownSync, lstatSync, readdirSync } from "node:fs";
import { cString, SyscallError, trySyscall } from "./syscall.ts";
import { agentId, containerId, findOwnIds, type OwnIds, planRanges, type RangePlan } from "./own-ids.ts";

let known: { readonly ids: OwnIds; readonly ranges: readonly RangePlan[] } | undefined;

/** The ids of this process, which do not change, and how jobs share them. */
export function jobIds(): { readonly ids: OwnIds; readonly ranges: readonly RangePlan[] } {
  if (known === undefined) {
    const ids = findOwnIds();
    known = { ids, ranges: planRanges(ids) };
  }
  return known;
}

/** The agent has its privileges in a user namespace only: as an ordinary user, or as root in a container. */
export function isRootless(): boolean {
  return !jobIds().ids.all;
}

/** The range whose ids files of images have on disk, where mounts map none. */
export function firstRange(): RangePlan {
  return jobIds().ranges[0] as RangePlan;
}

/** The id that a file of an image has on disk. */
export function diskOwner(id: number): number {
  return isRootless() ? agentId(firstRange(), id) : id;
}

/** The id that containers see for a file of an image; the disk's own where it is none of theirs. */
export function imageOwner(id: number): number {
  return isRootless() ? (containerId(firstRange(), id) ?? id) : id;
}

/**
 * File capabilities as they are kept on disk. In a user namespace they name whose root they hold for, and nobody there could
 * write any that hold for everybody's (struct vfs_ns_cap_data, version 3).
 */
export function diskCapability(value: Buffer): Buffer {
  return isRootless() ? capabilityOf(diskOwner(0), value) : value;
}

/** Capabilities of a file on disk as images have them, for everybody's root, if they are for containers'. */
export function imageCapability(value: Buffer): Buffer {
  if (!isRootless() || value.length !== 24 || value.readUInt32LE(20) !== diskOwner(0)) return value;
  const everybodys = Buffer.from(value.subarray(0, 20));
  everybodys.writeUInt32LE((everybodys.readUInt32LE(0) & 0x00ff_ffff) | 0x0200_0000, 0);
  return everybodys;
}

/** The same capabilities, for the root with this id and whoever is in its namespace. */
function capabilityOf(root: number, value: Buffer): Buffer {
  const kept = Buffer.alloc(24);
  value.copy(kept, 0, 0, 20);
  kept.writeUInt32LE((kept.readUInt32LE(0) & 0x00ff_ffff) | 0x0300_0000, 0);
  kept.writeUInt32LE(root, 20);
  return kept;
}

/** What the names of overlayfs' own extended attributes begin with: in a user namespace nobody may set trusted ones. */
export function overlayXattrs(): "trusted.overlay." | "user.overlay." {
  return isRootless() ? "user.overlay." : "trusted.overlay.";
}

/** Makes what the agent has written with its own id root's in containers; a few files of an image. */
export function adoptTree(path: string): void {
  if (!isRootless()) return;
  const first = firstRange();
  const owner = (id: number) => (containerId(first, id) === undefined ? diskOwner(0) : id);
  walk(Buffer.from(path), { owner, root: diskOwner(0) });
}

/** Gives a tree of one range to another, file capabilities along with it. */
export function shiftTree(path: string, from: RangePlan, to: RangePlan): void {
  const owner = (id: number) => {
    // Not in it: shifted already, by another name of the same file.
    const inside = containerId(from, id);
    return inside === undefined ? id : agentId(to, inside);
  };
  walk(Buffer.from(path), { owner, root: agentId(to, 0) });
}

/** Gives a tree of a range the ids that it has in containers, for mounts that map them; file capabilities along with it. */
export function unshiftTree(path: string, from: RangePlan): void {
  walk(Buffer.from(path), { owner: (id) => containerId(from, id) ?? id, root: 0 });
}

interface OwnerChange {
  readonly owner: (id: number) => number;
  /** Whose file capabilities are from then on. */
  readonly root: number;
}

/** Changes every owner and group in a tree that nobody else changes meanwhile. */
function walk(path: Buffer, change: OwnerChange): void {
  const stat = lstatSync(path);
  const [uid, gid] = [change.owner(stat.uid), change.owner(stat.gid)];
  if (uid !== stat.uid || gid !== stat.gid) {
    const capability = stat.isFile() ? readCapability(path) : undefined;
    lchownSync(path, uid, gid);
    // A new owner takes these off.
    if (stat.isFile() && (stat.mode & 0o6000) !== 0) chmodSync(path, stat.mode & 0o7777);
    if (capability !== undefined) writeCapability(path, capabilityOf(change.root, capability));
  }
  if (!stat.isDirectory()) return;
  for (const name of readdirSync(path, { encoding: "buffer" })) {
    walk(Buffer.concat([path, Buffer.from("/"), name]), change);
  }
}

const capabilityName = cString("security.capability");
const zero = Buffer.from([0]);

/** Of a file; undefined if it has none. @see capabilities(7), "File capability extended attribute versioning" */
function readCapability(path: Buffer): Buffer | undefined {
  const value = Buffer.alloc(24);
  const size = trySyscall("lgetxattr", Buffer.concat([path, zero]), capabilityName, value, value.length);
  return size < 20 ? undefined : value.subarray(0, size);
}

function writeCapability(path: Buffer, value: Buffer): void {
  const result = trySyscall("lsetxattr", Buffer.concat([path, zero]), capabilityName, value, value.length, 0);
  if (result < 0) throw new SyscallError("lsetxattr", -result, `keep the capabilities of "${path.toString()}"`);
}
