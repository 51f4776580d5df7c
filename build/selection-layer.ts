/** Files as a layer of their own, which does not depend on any other. */
import type { CachedLayer } from "./build-cache.ts";
import type { FileTaskResult, SelectionSpec } from "./file-tasks.ts";
import { cacheKey } from "./key.ts";
import type { OperationContext } from "./operation.ts";

/** Copies into a directory what is selected: a directory's content to its top, a file to `file`. */
export function copySelection(
  { selection, found }: { readonly selection: SelectionSpec; readonly found: FileTaskResult<"digest"> },
  { upper, work }: { readonly upper: string; readonly work: string },
  { workers, view, signal, cache }: OperationContext,
) {
  const { fingerprint, isDirectory } = found;
  const destination = isDirectory ? "/" : "/file";
  const copy = { selection, fingerprint, destination, files: [], maxBytes: cache.leftBytes };
  return workers.run("copy", { into: { layers: [], upper, work }, copy, view }, signal);
}

/** The layer, made if it is not in the cache. @param found What `digest` has said of the selection. */
export async function layerOf(
  selection: SelectionSpec,
  found: FileTaskResult<"digest">,
  context: OperationContext,
): Promise<CachedLayer> {
  const { cache, signal } = context;
  const key = cacheKey("bind", { digest: found.digest, ...timesOf(selection) });
  const known = await cache.find(key, signal);
  if (known !== undefined) return known;
  return await cache.make(
    key,
    ({ files, scratch }) => copySelection({ selection, found }, { upper: files, work: scratch("work") }, context),
    signal,
  );
}

/** What of a selection makes another layer beside its digest. */
export function timesOf({ tree }: SelectionSpec): { readonly times?: "fixed" } {
  return tree.kind === "context" && tree.hasFixedTimes === true ? { times: "fixed" } : {};
}
