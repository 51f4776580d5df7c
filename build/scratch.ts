/** Directories that a build needs for as long as it lasts: what it clones, and what it unpacks. */
import { lstatSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileAt, removeTrees, tryLock } from "../runtime/index.ts";

const name = /^(?:git|context)-[0-9a-f-]{36}$/;
/** One that has just been made may not be locked yet. */
const UNLOCKED_MS = 10_000;

/**
 * Makes an empty directory.
 *
 * @param stack Deletes it, with whatever is in it then.
 */
export function scratchDirectory(stateDir: string, kind: "git" | "context", stack: AsyncDisposableStack): string {
  const directory = join(stateDir, "build", `${kind}-${crypto.randomUUID()}`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  stack.defer(() => removeTrees([directory]));
  const lock = tryLock(directory, "shared");
  if (typeof lock === "number") stack.defer(() => fileAt.closeFile(lock));
  return directory;
}

/** Removes what builds have left that were killed. */
export async function sweepScratch(stateDir: string): Promise<void> {
  const all = readdirSync(join(stateDir, "build")).filter((each) => name.test(each));
  for (const directory of all.map((each) => join(stateDir, "build", each))) {
    const stat = lstatSync(directory, { throwIfNoEntry: false });
    if (stat?.isDirectory() !== true || Date.now() - stat.mtimeMs < UNLOCKED_MS) continue;
    const lock = tryLock(directory, "exclusive");
    if (typeof lock !== "number") continue;
    await removeTrees([directory]);
    fileAt.closeFile(lock);
  }
}
