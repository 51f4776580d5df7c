/**
 * The directories of `RUN --mount=type=cache`, kept between builds.
 *
 *     NAMESPACE/HASH/files/   what commands see; HASH is that of the mount's id
 */
import { createHash } from "node:crypto";
import { chmodSync, chownSync, mkdirSync } from "node:fs";
import { fileAt, tryLock, waitForLock } from "../runtime/index.ts";
import type { CacheSharing } from "./run-mount.ts";

/** A cache directory for one command; disposing it lets the next one have it. */
export interface CacheMount extends Disposable {
  readonly directory: string;
  /** Nobody has had it before. */
  readonly isNew: boolean;
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

  /**
   * Gives the directory of an id, made if there is none.
   *
   * @param options.scratch Where one that is not kept may be made.
   */
  async take(
    id: string,
    options: {
      readonly sharing: CacheSharing;
      readonly uid: number;
      readonly gid: number;
      readonly mode: number;
      readonly scratch: (name: string) => string;
      readonly signal: AbortSignal;
    },
  ): Promise<CacheMount> {
    if (!this.isKept) {
      return { ...this.#make(options.scratch(`cache-${crypto.randomUUID()}`), options), [Symbol.dispose]: () => {} };
    }
    const name = createHash("sha256").update(id).digest("hex");
    if (options.sharing === "private") return this.#takePrivate(name, options);
    const made = this.#make(`${this.#directory}/${name}`, options);
    if (options.sharing === "shared") return { ...made, [Symbol.dispose]: () => {} };
    // Other builds, in whatever process, wait too.
    const lock = await waitForLock(made.directory, "exclusive", options.signal);
    return { ...made, [Symbol.dispose]: () => fileAt.closeFile(lock) };
  }

  /** One that no other command has at the moment; a second command at the same time gets a second directory. */
  #takePrivate(name: string, owner: { readonly uid: number; readonly gid: number; readonly mode: number }): CacheMount {
    for (let copy = 0; ; copy++) {
      const made = this.#make(`${this.#directory}/${name}-${copy}`, owner);
      const lock = tryLock(made.directory, "exclusive");
      if (typeof lock === "number") return { ...made, [Symbol.dispose]: () => fileAt.closeFile(lock) };
    }
  }

  #make(
    path: string,
    owner: { readonly uid: number; readonly gid: number; readonly mode: number },
  ): { readonly directory: string; readonly isNew: boolean } {
    const files = `${path}/files`;
    mkdirSync(path, { recursive: true, mode: 0o700 });
    try {
      mkdirSync(files);
      chownSync(files, owner.uid, owner.gid);
      chmodSync(files, owner.mode);
      return { directory: files, isNew: true };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    return { directory: files, isNew: false };
  }
}
