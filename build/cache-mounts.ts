/**
 * The directories of `RUN --mount=type=cache`, kept between builds.
 *
 *     NAMESPACE/HASH/files/   what commands see; HASH is that of the mount's id
 */
import { createHash } from "node:crypto";
import { chmodSync, chownSync, mkdirSync } from "node:fs";
import type { CacheSharing } from "./run-mount.ts";

/** A cache directory for one command; disposing it lets the next one have it. */
export interface CacheMount extends Disposable {
  readonly directory: string;
  /** Nobody has had it before. */
  readonly isNew: boolean;
}

export class CacheMounts {
  readonly #directory: string;
  /** By directory, who has it alone or waits for it; within this process, as an agent's state directory has one. */
  readonly #turns = new Map<string, Promise<void>>();
  /** Used by a command that shares it with nobody. */
  readonly #private = new Set<string>();

  /**
   * @param stateDir Of the agent.
   * @param namespace What builds of other trust must not see: a hash or a plain name.
   */
  constructor(stateDir: string, namespace: string) {
    this.#directory = `${stateDir}/build/caches/${createHash("sha256").update(namespace).digest("hex").slice(0, 32)}`;
  }

  /** Gives the directory of an id, made if there is none. */
  async take(
    id: string,
    options: {
      readonly sharing: CacheSharing;
      readonly uid: number;
      readonly gid: number;
      readonly mode: number;
      readonly signal: AbortSignal;
    },
  ): Promise<CacheMount> {
    const name = createHash("sha256").update(id).digest("hex");
    if (options.sharing === "private") return this.#takePrivate(name, options);
    const made = this.#make(`${this.#directory}/${name}`, options);
    if (options.sharing === "shared") return { ...made, [Symbol.dispose]: () => {} };
    return { ...made, [Symbol.dispose]: await this.#turn(made.directory, options.signal) };
  }

  /** One that no other command has at the moment; a second command at the same time gets a second directory. */
  #takePrivate(name: string, owner: { readonly uid: number; readonly gid: number; readonly mode: number }): CacheMount {
    for (let copy = 0; ; copy++) {
      const path = `${this.#directory}/${name}-${copy}`;
      if (this.#private.has(path)) continue;
      this.#private.add(path);
      return { ...this.#make(path, owner), [Symbol.dispose]: () => void this.#private.delete(path) };
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

  async #turn(directory: string, signal: AbortSignal): Promise<() => void> {
    const before = this.#turns.get(directory);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#turns.set(directory, before === undefined ? promise : before.then(() => promise));
    if (before !== undefined) {
      const aborted = Promise.withResolvers<void>();
      const abort = () => aborted.resolve();
      signal.addEventListener("abort", abort, { once: true });
      await Promise.race([before, aborted.promise]);
      signal.removeEventListener("abort", abort);
      if (signal.aborted) resolve();
      signal.throwIfAborted();
    }
    return resolve;
  }
}
