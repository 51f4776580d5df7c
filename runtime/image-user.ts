/** As whom an image's programs run: `USER` of its configuration, looked up in its own /etc/passwd and /etc/group. */
import { createHash } from "node:crypto";
import { z } from "zod";
import { AccountError, type ResolvedUser, resolveUser } from "./accounts.ts";
import { ImageError } from "./image-error.ts";
import type { ImageStore } from "./image-store.ts";
import { LayerWorkers } from "./layer-workers.ts";

const resolvedSchema = z.object({
  uid: z.int(),
  gid: z.int(),
  additionalGids: z.array(z.int()),
  home: z.string(),
});

/** What only the image can be at fault for: links in a circle, files where directories should be. */
const unreadable: ReadonlySet<string> = new Set(["ELOOP", "ENOTDIR", "ENAMETOOLONG", "ENXIO"]);

/** Names that need no looking up. */
const rootNames: ReadonlySet<string> = new Set(["", "root", "0", "0:0", "root:root"]);

/**
 * Finds whom the configuration means; undefined for root.
 *
 * What was found is kept in the store: the same layers have the same users.
 *
 * @param layers The image's directories in the store, base first.
 * @throws {ImageError} If there is no such user or group in the image.
 */
export async function findImageUser(
  store: ImageStore,
  user: string | undefined,
  layers: readonly string[],
): Promise<ResolvedUser | undefined> {
  if (user === undefined || rootNames.has(user)) return undefined;
  // A layer's directory is named by its content.
  const key = `user-${createHash("sha256")
    .update(JSON.stringify([user, layers]))
    .digest("hex")}`;
  const known = resolvedSchema.safeParse(await store.recall(key));
  if (known.success) return known.data;
  await using workers = new LayerWorkers({ max: 1 });
  const emptyDir = await store.emptyDirectory();
  const accounts = await workers.run({ kind: "accounts", layers, emptyDir }).catch((error: unknown) => {
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (!unreadable.has(code)) throw error;
    throw new ImageError(`its /etc/passwd or /etc/group cannot be read: ${message}`, { cause: error });
  });
  try {
    const resolved = resolveUser(user, accounts);
    await store.remember(key, resolved);
    return resolved;
  } catch (error) {
    if (!(error instanceof AccountError)) throw error;
    throw new ImageError(`its USER is ${JSON.stringify(user)}, but ${error.message}`, { cause: error });
  }
}
