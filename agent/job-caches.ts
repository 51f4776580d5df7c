/** What the nested steps of one job keep between builds: images and layers of their builders. */
import { mkdirSync } from "node:fs";
import { formatBytes } from "../pipelines/index.ts";
import { type CacheKey, type Host, isRootless } from "../runtime/index.ts";
import { asError } from "./cause.ts";

/** Whose caches a job has. */
export interface CachePolicy {
  /** Others have others: a repository. */
  readonly namespace: string;
  /** Whether what a successful job leaves is for later builds: asked at its end. */
  readonly mayKeep: () => Promise<boolean>;
  /** Takes over what a successful job has left, until its build has ended. */
  readonly leave: (cache: { readonly key: CacheKey; readonly directory: string }) => Promise<void>;
}

export interface JobCachesOptions {
  readonly host: Host;
  /** The job's. */
  readonly id: string;
  readonly policy: CachePolicy | undefined;
  readonly signal: AbortSignal;
  readonly onProblem: (error: Error) => void;
}

/** A job's copy of a cache. */
interface Copy {
  /** Undefined where this agent has no caches. */
  readonly directory: Promise<string | undefined>;
  /** For the log of the first step that has it. */
  readonly notes: string[];
}

/**
 * Gives each step that names a cache the job's own copy of it, made when the first one needs it, and hands on or removes the
 * copies at the job's end.
 */
export class JobCaches {
  readonly #options: JobCachesOptions;
  readonly #copies = new Map<string, Copy>();

  constructor(options: JobCachesOptions) {
    this.#options = options;
  }

  /**
   * @returns The directory of the copy: for all steps of the job that name it the same one.
   * @throws What the signal was aborted with.
   */
  get(name: string): Promise<string | undefined> {
    return this.#copies.getOrInsertComputed(name, () => this.#copy(name)).directory;
  }

  /** What a person should know of it. Told once. */
  takeNotes(name: string): readonly string[] {
    return this.#copies.get(name)?.notes.splice(0) ?? [];
  }

  /** When no container of the job is left. Never rejects: what is not kept is no failure of the job. */
  async finish({ succeeded }: { readonly succeeded: boolean }): Promise<void> {
    const { policy, onProblem } = this.#options;
    if (this.#copies.size === 0) return;
    let keep = false;
    try {
      keep = succeeded && policy !== undefined && (await policy.mayKeep());
    } catch (error) {
      onProblem(asError(error));
    }
    for (const [name, { directory }] of this.#copies) {
      const copied = await directory.catch(() => undefined);
      if (copied !== undefined)
        await this.#end(name, copied, keep).catch((error: unknown) => onProblem(asError(error)));
    }
  }

  #copy(name: string): Copy {
    const { host, id, policy, signal } = this.#options;
    const notes: string[] = [];
    const directory = `${host.keptDir}/cache-${id}-${name}`;
    const copy = async () => {
      if (policy === undefined) return undefined;
      if (isRootless()) {
        notes.push(`cache "${name}" is not used: an agent that is not root cannot map its owners`);
        return undefined;
      }
      this.#make(directory);
      try {
        const bytes = await host.containerCaches.copy({ namespace: policy.namespace, name }, directory, signal);
        notes.push(bytes === undefined ? `cache "${name}" is empty` : `cache "${name}": ${formatBytes(bytes)}`);
      } catch (error) {
        await host.removeTree(directory);
        signal.throwIfAborted();
        // A full disk, for example. The builders can do without.
        this.#options.onProblem(new Error(`Cannot copy cache "${name}"`, { cause: error }));
        notes.push(`cache "${name}" cannot be copied: this job begins without`);
        this.#make(directory);
      }
      return directory;
    };
    const copied = copy();
    copied.catch(() => undefined); // the step that has it says so
    return { directory: copied, notes };
  }

  #make(directory: string): void {
    mkdirSync(directory, { mode: 0o700 });
    this.#options.host.workspaces.adopt(directory);
  }

  async #end(name: string, directory: string, keep: boolean): Promise<void> {
    const { host, policy } = this.#options;
    if (keep && policy !== undefined) await policy.leave({ key: { namespace: policy.namespace, name }, directory });
    else await host.removeTree(directory);
  }
}
