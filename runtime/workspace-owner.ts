/**
 * A workspace that belongs to whoever a step runs as.
 *
 * On disk a workspace is root's. A step that runs as another user sees it through a mount that exchanges the two: root's files
 * are the user's, what the user makes is root's on disk. So steps with different users share one workspace, each as its
 * owner, and nothing has to be given away (chown) in between.
 */
import type { IdMapping } from "./oci-config.ts";
import { close } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";
import { mapUserNamespace } from "./user-namespace.ts";

/** Exchanges root and another id; an id that is not mapped exchanges nothing. */
export function exchangeRoot(mappings: readonly IdMapping[], id: number): IdMapping[] {
  if (id === 0) return [...mappings];
  const split = [0, id].reduce<IdMapping[]>((parts, at) => parts.flatMap((part) => isolate(part, at)), [...mappings]);
  const hostIdOf = (containerID: number) => split.find((part) => part.containerID === containerID)?.hostID;
  const [root, user] = [hostIdOf(0), hostIdOf(id)];
  if (root === undefined || user === undefined) return [...mappings];
  return split.map((part) => {
    if (part.containerID === 0) return { ...part, hostID: user };
    return part.containerID === id ? { ...part, hostID: root } : part;
  });
}

/** Splits a mapping so that one id has one of its own. */
function isolate(mapping: IdMapping, id: number): IdMapping[] {
  const { containerID, hostID, size } = mapping;
  const before = id - containerID;
  if (before < 0 || before >= size) return [mapping];
  return [
    { containerID, hostID, size: before },
    { containerID: id, hostID: hostID + before, size: 1 },
    { containerID: id + 1, hostID: hostID + before + 1, size: size - before - 1 },
  ].filter((part) => part.size > 0);
}

/** The user namespaces that such mounts are mapped by; each costs a short-lived process, so they are kept while the job lasts. */
export class WorkspaceOwners {
  readonly #namespaces = new Map<string, Map<string, number>>();

  /** For idmapped mounts; stays open until `release`. */
  get(range: UidRange, { uid, gid }: { readonly uid: number; readonly gid: number }): number {
    if (uid === 0 && gid === 0) return range.userNamespaceFd;
    const known = this.#namespaces.getOrInsertComputed(range.key, () => new Map<string, number>());
    return known.getOrInsertComputed(`${uid}:${gid}`, () =>
      mapUserNamespace(exchangeRoot(range.mappings, uid), exchangeRoot(range.mappings, gid)),
    );
  }

  /** Closes those of a range whose job is over. */
  release({ key }: Pick<UidRange, "key">): void {
    for (const fd of this.#namespaces.get(key)?.values() ?? []) close(fd);
    this.#namespaces.delete(key);
  }

  close(): void {
    for (const key of this.#namespaces.keys()) this.release({ key });
  }
}
