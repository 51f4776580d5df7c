/** Reads the users and groups of an image out of its layers, as a container would see them. */
import type { Accounts } from "./accounts.ts";
import { readTextInRoot } from "./file-at.ts";
import { openLayerView } from "./layer-view.ts";
import { EINVAL } from "./linux.ts";
import { close, SyscallError } from "./syscall.ts";

/** More than any real one; both are a stranger's. */
const MAX_BYTES = 4 << 20;

/**
 * Reads /etc/passwd and /etc/group, following links inside the image only.
 *
 * Only in a thread of its own: see `openLayerView`.
 *
 * @param layers Absolute paths, base first.
 * @param emptyDir An empty directory, which nothing is written into.
 */
export function readAccounts(layers: readonly string[], emptyDir: string): Accounts {
  const root = openView(layers, emptyDir);
  try {
    const read = (path: string) => readTextInRoot(root, path, MAX_BYTES) ?? "";
    return { passwd: read("etc/passwd"), group: read("etc/group") };
  } finally {
    close(root);
  }
}

function openView(layers: readonly string[], emptyDir: string): number {
  try {
    return openLayerView(layers, { emptyDir });
  } catch (error) {
    // Linux before 6.13 takes layers by path only.
    if (!(error instanceof SyscallError) || error.errno !== EINVAL) throw error;
    return openLayerView(layers, { emptyDir, byPath: true });
  }
}
