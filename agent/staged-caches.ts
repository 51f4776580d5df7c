/** What jobs have left for later builds, until their own builds have succeeded. */
import { formatBytes } from "../pipelines/index.ts";
import type { CacheKey, Host } from "../runtime/index.ts";
import { asError } from "./cause.ts";

/** One cache that a job has left. */
export interface LeftCache {
  readonly attemptId: string;
  /** Of several jobs of a build that leave the same cache, the one that has left it last counts. */
  readonly buildId: string;
  /** What a later build has left stays. @default whatever is there gives way */
  readonly buildNumber?: number;
  readonly key: CacheKey;
  /** Taken over: moved or removed. */
  readonly directory: string;
}

interface Staged extends LeftCache {
  readonly bytes: number;
}

export interface StagedCachesOptions {
  readonly host: Host;
  readonly onProblem: (error: Error) => void;
}

/**
 * The caches of jobs whose builds still run. They are where the jobs had them, in a directory that the next agent empties: what an
 * agent that dies had not published is gone.
 */
export class StagedCaches implements AsyncDisposable {
  readonly #options: StagedCachesOptions;
  /** In the order in which they were left. */
  readonly #staged: Staged[] = [];
  readonly #work = new Set<Promise<void>>();
  #isClosed = false;

  constructor(options: StagedCachesOptions) {
    this.#options = options;
  }

  /** Takes a cache over. All of them together have at most what caches may have: the oldest goes. Never rejects. */
  async add(left: LeftCache): Promise<void> {
    const { containerCaches } = this.#options.host;
    try {
      const bytes = await containerCaches.measure(left.directory);
      if (bytes > containerCaches.budgetBytes) throw tooLarge(left, bytes);
      // Nobody would end it any more.
      if (this.#isClosed) throw new Error(`Cache "${left.key.name}" is not kept: the agent was stopped`);
      const same = ({ buildId, key }: Staged) =>
        buildId === left.buildId && key.name === left.key.name && key.namespace === left.key.namespace;
      for (const staged of this.#staged.filter(same)) await this.#remove(staged);
      this.#staged.push({ ...left, bytes });
      await this.#makeRoom();
    } catch (error) {
      this.#options.onProblem(asError(error));
      await this.#options.host.removeTree(left.directory);
    }
  }

  /** Whether something of an attempt waits for the end of its build. */
  has(attemptId: string): boolean {
    return this.#staged.some((staged) => staged.attemptId === attemptId);
  }

  /** What an attempt has left takes the place of what was there, or is removed. Never rejects. */
  async end(attemptId: string, options: { readonly succeeded: boolean }): Promise<void> {
    for (const staged of this.#staged.filter((each) => each.attemptId === attemptId)) {
      if (options.succeeded) await this.#publish(staged);
      else await this.#remove(staged);
    }
  }

  /** Removes all that is not published, and takes over no more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    for (const staged of this.#staged.toReversed()) void this.#remove(staged);
    while (this.#work.size > 0) await Promise.all(this.#work);
  }

  async #publish(staged: Staged): Promise<void> {
    const { host, onProblem } = this.#options;
    const { key, directory, bytes, buildNumber: build } = staged;
    const published = async () => {
      try {
        const { outcome } = await host.containerCaches.keep(key, directory, {
          bytes,
          ...(build !== undefined && { build }),
        });
        if (outcome === "too large") throw tooLarge(staged, bytes);
      } catch (error) {
        onProblem(asError(error));
      } finally {
        await host.removeTree(directory);
      }
    };
    await this.#settle(staged, published);
  }

  async #remove(staged: Staged): Promise<void> {
    await this.#settle(staged, () => this.#options.host.removeTree(staged.directory));
  }

  /** Once. */
  async #settle(staged: Staged, settle: () => Promise<void>): Promise<void> {
    const index = this.#staged.indexOf(staged);
    if (index < 0) return;
    this.#staged.splice(index, 1);
    const work = settle();
    this.#work.add(work);
    await work.finally(() => this.#work.delete(work));
  }

  async #makeRoom(): Promise<void> {
    const { host, onProblem } = this.#options;
    const bytes = () => this.#staged.reduce((sum, staged) => sum + staged.bytes, 0);
    for (let [staged] = this.#staged; staged !== undefined; [staged] = this.#staged) {
      if (bytes() <= host.containerCaches.budgetBytes) return;
      onProblem(
        new Error(`Cache "${staged.key.name}" is not kept: newer ones need the room before its build has ended`),
      );
      await this.#remove(staged);
    }
  }
}

function tooLarge({ key }: LeftCache, bytes: number): Error {
  return new Error(`Cache "${key.name}" is not kept: it has ${formatBytes(bytes)}, more than this agent keeps`);
}
