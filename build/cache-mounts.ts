/**
 * The directories of `RUN --mount=type=cache`, kept between builds.
 *
 *     NAMESPACE/HASH/files/   what commands see; HASH is that of the mount's id
 *     NAMESPACE/HASH/making/  `new/` in it becomes `files/` when it holds what it begins with; locked by whoever does that
 */
import { createHash } from "node:crypto";
import { chmodSync, chownSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs";
import { fileAt, tryLock, waitForLock } from "../runtime/index.ts";
import type { CacheSharing } from "./run-mount.ts";

/** A cache directory for one command; disposing it lets the next one have it. */
export interface CacheMount extends Disposable {
  readonly directory: string;
  /** Nobody has had it before. */
  readonly isNew: boolean;
}

/** How a command wants to have its directory. */
export interface CacheMountOptions {
  readonly sharing: CacheSharing;
  /** Of a new one. */
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
  /** Puts what a new one begins with into it, before anybody sees it. @default it is empty */
  readonly seed?: ((directory: string) => Promise<void>) | undefined;
  /** Where one that is not kept may be made. */
  readonly scratch: (name: string) => string;
  readonly signal: AbortSignal;
}

export class CacheMounts {
  readonly #directory: string;
  readonly isKept: boolean;

  /**
   * @param stateDir Of the agent.
   * @param namespace What builds of other trust must not see: a hash or a plain name.
   * @param options.isKept `false`: every command has empty ones, which go with it: nothing counts what is in them later.
   */
  constructor(stateDir: string, namespace: string, options: { readonly isKept: boolean } = { isKept: true }) {
    this.isKept = options.isKept;
    this.#directory = `${stateDir}/build/caches/${createHash("sha256").update(namespace).digest("hex").slice(0, 32)}`;
  }

  /** Gives the directory of an id, made if there is none. @throws {Error} What `seed` throws; the next command begins anew. */
  async take(id: string, options: CacheMountOptions): Promise<CacheMount> {
    if (!this.isKept) {
      const made = await make(options.scratch(`cache-${crypto.randomUUID()}`), options);
      return { ...made, [Symbol.dispose]: () => {} };
    }
    const path = `${this.#directory}/${createHash("sha256").update(id).digest("hex")}`;
    if (options.sharing === "private") return await takePrivate(path, options);
    if (options.sharing === "shared") return { ...(await make(path, options)), [Symbol.dispose]: () => {} };
    // Other builds, in whatever process, wait too.
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const lock = await waitForLock(path, "exclusive", options.signal);
    return await locked(lock, () => make(path, options));
  }
}

/** One that no other command has at the moment; a second command at the same time gets a second directory. */
async function takePrivate(path: string, options: CacheMountOptions): Promise<CacheMount> {
  for (let copy = 0; ; copy++) {
    const own = `${path}-${copy}`;
    mkdirSync(own, { recursive: true, mode: 0o700 });
    const lock = tryLock(own, "exclusive");
    if (typeof lock === "number") return await locked(lock, () => make(own, options));
  }
}

async function locked(lock: number, take: () => Promise<Omit<CacheMount, typeof Symbol.dispose>>): Promise<CacheMount> {
  try {
    return { ...(await take()), [Symbol.dispose]: () => fileAt.closeFile(lock) };
  } catch (error) {
    fileAt.closeFile(lock);
    throw error;
  }
}

/** The directory below `path`, which appears whole: who shares it never sees half of what it begins with. */
async function make(
  path: string,
  { uid, gid, mode, seed, signal }: CacheMountOptions,
): Promise<{ readonly directory: string; readonly isNew: boolean }> {
  const directory = `${path}/files`;
  if (isThere(directory)) return { directory, isNew: false };
  const making = `${path}/making`;
  mkdirSync(making, { recursive: true, mode: 0o700 });
  const lock = await waitForLock(making, "exclusive", signal);
  try {
    if (isThere(directory)) return { directory, isNew: false };
    const made = `${making}/new`;
    // Whoever was killed while filling it, or failed, leaves it.
    rmSync(made, { recursive: true, force: true });
    mkdirSync(made);
    chownSync(made, uid, gid);
    chmodSync(made, mode);
    await seed?.(made);
    renameSync(made, directory);
    return { directory, isNew: true };
  } finally {
    fileAt.closeFile(lock);
  }
}

function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}
