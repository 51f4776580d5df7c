/** Keys of the build cache: two layers of one key are the same layer, whenever they were made. */
import { createHash } from "node:crypto";

/** Changes when the same instruction would make another layer than before. */
const VERSION = 2;

/** A key of what stands below and what is done; values are compared as JSON, maps in the order they have. */
export function cacheKey(parent: string, what: Readonly<Record<string, unknown>>): string {
  return createHash("sha256")
    .update(JSON.stringify([VERSION, parent, what]))
    .digest("hex");
}
