/** What image builds of strangers leave in an agent's store: the last few jobs', for the jobs behind them, and no more. */
import { basename, dirname } from "node:path";
import type { CachedLayer } from "../build/index.ts";
import { collectImages, type Host, ImageStore, removeTrees } from "../runtime/index.ts";

/** What one job's builds have put into the store. */
export class MadeParts {
  /** Names of images, in full. */
  readonly names = new Set<string>();
  /** By key: layers of instructions, of builds that have failed, too. */
  readonly layers = new Map<string, CachedLayer>();

  get isEmpty(): boolean {
    return this.names.size === 0 && this.layers.size === 0;
  }
}

/** Jobs whose images later jobs of their builds may still want. */
const KEPT_JOBS = 4;

/** By agent, the oldest first. */
const left = new WeakMap<Host, MadeParts[]>();

/**
 * Notes what a job of strangers has made, and removes what earlier ones have. Nobody may hold it by then but other jobs, whose parts
 * stay.
 */
export async function keepFew(host: Host, made: MadeParts): Promise<void> {
  if (made.isEmpty) return;
  const jobs = left.get(host) ?? [];
  left.set(host, jobs);
  jobs.push(made);
  while (jobs.length > KEPT_JOBS) await forget(host, jobs.shift() as MadeParts, jobs);
}

async function forget(host: Host, { names, layers }: MadeParts, others: readonly MadeParts[]): Promise<void> {
  const store = await ImageStore.open(host.imageStoreDir);
  const isOthers = (name: string) => others.some((job) => job.names.has(name));
  await collectImages(store, { names: [...names].filter((name) => !isOthers(name)) });
  const gone: string[] = [];
  for (const [key, { directory }] of layers) {
    if (directory === undefined || others.some((job) => job.layers.has(key))) continue;
    const path = await store.layers.takeOut(basename(dirname(directory)));
    if (path !== undefined) gone.push(path);
  }
  await removeTrees(gone);
}
