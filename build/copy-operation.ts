/** COPY and ADD. */
import { AccountError } from "../runtime/files.ts";
import { parseMode } from "./mode.ts";
import type { SelectionSpec, TreeSpec } from "./file-tasks.ts";
import { cacheKey } from "./key.ts";
import { type OperationContext, OperationError, type OperationPlace, type OperationPlan, treeOf } from "./operation.ts";
import { PathPatterns } from "./pattern.ts";
import { timesOf } from "./selection-layer.ts";
import type { CopyOperation } from "./stage-state.ts";

/** Finds the files, and digests them: their content is the key, not their time. */
export async function planCopy(
  operation: CopyOperation,
  place: OperationPlace,
  context: OperationContext,
): Promise<OperationPlan> {
  const { workers, view, signal, downloads } = context;
  // Before anything is looked for: what is wrong with the flags themselves.
  if (operation.chmod !== undefined) parseMode(operation.chmod);
  void new PathPatterns(operation.excludes);
  const remote = operation.sources.filter(isRemote);
  if (remote.length > 0 && !operation.isAdd) {
    throw new OperationError(`COPY takes no URL: ${JSON.stringify(remote[0])}`, { suggestion: "write ADD" });
  }
  checkChecksum(operation, remote);
  const selection = await selectionOf(operation, place, context);
  const { digest, fingerprint } = await digestOf(selection, place, { operation, context });
  const { checksum, keepGitDir } = operation;
  const fetched = await Promise.all(remote.map((url) => downloads.fetch(url, { checksum, keepGitDir, context })));
  const layers = operation.link ? [] : place.layers;
  const owner = await ownerOf(operation, place, context);
  const { destination, chmod, files, isAdd } = operation;
  const key = cacheKey(operation.link ? "" : place.parentKey, {
    copy: digest,
    ...timesOf(selection),
    fetched: fetched.map((each) => each.key),
    files,
    destination,
    owner,
    chmod,
    unpack: operation.unpack ?? isAdd,
  });
  return {
    key,
    async make(draft) {
      const into = { layers, upper: draft.files, work: draft.scratch("work") };
      const copy = {
        selection,
        fingerprint,
        destination,
        files,
        fetched,
        owner,
        chmod,
        unpack: operation.unpack,
        isAdd,
        maxBytes: context.cache.leftBytes,
      };
      return await workers.run("copy", { into, copy, view }, signal);
    },
  };
}

/** Whether ADD fetches it. */
function isRemote(source: string): boolean {
  return /^(?:https?|git|ssh):\/\//.test(source) || /^git@[^/:]+:/.test(source);
}

function checkChecksum({ checksum, sources, isAdd }: CopyOperation, remote: readonly string[]): void {
  if (checksum === undefined || checksum === "") return;
  if (!isAdd || sources.length !== 1 || remote.length !== 1) {
    throw new OperationError("--checksum is for one source, and that a URL");
  }
  if (/^sha(256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})$/.test(checksum)) return;
  if (/^[0-9a-f]{40,64}$/.test(checksum)) return;
  throw new OperationError(`${JSON.stringify(checksum)} is no checksum`, {
    suggestion: "write sha256: and 64 hex digits",
  });
}

async function selectionOf(
  operation: CopyOperation,
  place: OperationPlace,
  context: OperationContext,
): Promise<SelectionSpec> {
  const { from, parents, excludes } = operation;
  let tree: TreeSpec = { kind: "context", ...context.context };
  if (from !== undefined) tree = treeOf(await place.source(from), from);
  return { tree, sources: operation.sources.filter((source) => !isRemote(source)), parents, excludes };
}

/** What a selection holds; of layers, which never change, it is remembered. */
async function digestOf(
  selection: SelectionSpec,
  place: OperationPlace,
  { operation, context }: { readonly operation: CopyOperation; readonly context: OperationContext },
): Promise<{ readonly digest: string; readonly fingerprint: string }> {
  const { workers, view, signal, cache } = context;
  if (selection.sources.length === 0) return { digest: "", fingerprint: "" };
  const spec = { selection, view, maxBytes: cache.diskBytes };
  if (operation.from === undefined || selection.tree.kind === "context")
    return await workers.run("digest", spec, signal);
  const { key } = await place.source(operation.from);
  const { sources, parents, excludes } = selection;
  const name = cacheKey(key, { content: sources, parents, excludes });
  const known = (await cache.recall(name)) as { digest: string; fingerprint: string } | undefined;
  if (typeof known?.digest === "string" && typeof known.fingerprint === "string") return known;
  const found = await workers.run("digest", spec, signal);
  await cache.remember(name, found);
  return found;
}

/** Names become numbers, of the image that is copied to: another image may have others. */
async function ownerOf(
  { chown }: CopyOperation,
  { layers, parentKey }: OperationPlace,
  { workers, view, signal, cache }: OperationContext,
): Promise<{ readonly uid: number; readonly gid: number } | undefined> {
  if (chown === undefined || chown === "") return undefined;
  const numeric = /^(\d{1,10})(?::(\d{1,10}))?$/.exec(chown);
  if (numeric !== null) {
    const [uid, gid] = [Number(numeric[1]), Number(numeric[2] ?? numeric[1])];
    if (uid > 0xffff_fffe || gid > 0xffff_fffe)
      throw new AccountError(`the id in ${JSON.stringify(chown)} is too large`);
    return { uid, gid };
  }
  const name = cacheKey(parentKey, { owner: chown });
  const known = (await cache.recall(name)) as { uid: number; gid: number } | undefined;
  if (typeof known?.uid === "number" && typeof known.gid === "number") return known;
  const found = await workers.run("owner", { layers, owner: chown, view }, signal);
  await cache.remember(name, found);
  return found;
}
