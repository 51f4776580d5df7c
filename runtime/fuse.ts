/**
 * FUSE connections of containers: who waits for a file system that its own process serves cannot be killed until the
 * connection is aborted, and so could keep its container from ever ending.
 *
 * @see {@link https://docs.kernel.org/filesystems/fuse.html} "Aborting a filesystem connection"
 */
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { makeMount } from "./mount.ts";
import type { RangePlan } from "./own-ids.ts";
import { close } from "./syscall.ts";

/** Where many hosts have it mounted; an agent that may not mount it itself has no other. */
const controlPath = "/sys/fs/fuse/connections";

/**
 * Aborts the connections of a job: whatever waits for their answers gets an error, whatever serves them an end.
 *
 * They are found by their owner, an id of the job's range, for a mount that was detached is in no list of mounts.
 */
export function abortConnections({ mappings }: Pick<RangePlan, "mappings">): void {
  const isOurs = (uid: number) => mappings.some(({ hostID, size }) => uid >= hostID && uid < hostID + size);
  const mount = mountControl();
  const directory = mount === undefined ? controlPath : `/proc/self/fd/${mount}`;
  try {
    for (const connection of listOrNothing(directory)) abortIf(`${directory}/${connection}`, isOurs);
  } finally {
    if (mount !== undefined) close(mount);
  }
}

/** Undefined where the kernel has no FUSE, or we may not. */
function mountControl(): number | undefined {
  try {
    return makeMount("fusectl", [], 0);
  } catch {
    return undefined;
  }
}

function listOrNothing(directory: string): string[] {
  try {
    return readdirSync(directory).filter((name) => /^\d+$/.test(name));
  } catch {
    return [];
  }
}

function abortIf(path: string, isOurs: (uid: number) => boolean): void {
  try {
    if (isOurs(statSync(path).uid)) writeFileSync(`${path}/abort`, "1");
  } catch {
    // gone meanwhile
  }
}
