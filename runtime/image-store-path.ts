/** Where the images of a directory are for this process. Small: commands that answer in milliseconds ask it. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { findOwnIds } from "./own-ids.ts";

/**
 * Where the images of a directory are for this process. Layers have the owners that jobs see, if mounts do not map them: with
 * other ids, another store.
 */
export function imageStorePath(directory: string): string {
  if (findOwnIds().all) return directory;
  const maps = ["uid_map", "gid_map"].map((file) => readFileSync(`/proc/self/${file}`, "utf8")).join();
  return `${directory}-${createHash("sha256").update(maps).digest("hex").slice(0, 12)}`;
}
