import type { Logger } from "pino";
import { createBuild } from "./builds.ts";
import { type Trigger, beginDelivery, findDelivery, pendingDeliveries, settleDelivery } from "./deliveries.ts";
import type { Plan, Planner } from "./planner.ts";
import { type Repository, findRepository } from "./repositories.ts";
import type { Scheduler } from "./scheduler.ts";
import type { Store } from "./store.ts";

/** Repositories evaluated at the same time: each may wait for a forge. */
const maxConcurrent = 4;
/**
 * A delivery whose evaluation takes the server down must not do so for ever. Many, for a server that is killed by others
 * while it evaluates must lose nothing.
 */
const maxTries = 20;

export interface InboxOptions {
  readonly store: Store;
  readonly planner: Planner;
  readonly scheduler: Scheduler;
  readonly logger: Logger;
}

/**
 * Evaluates stored deliveries: one after the other per repository (so builds are numbered in the order of the pushes),
 * several repositories at a time. A delivery is settled in the transaction that creates its build, so it leads to one
 * build or none, however often the server is killed.
 */
export class Inbox implements AsyncDisposable {
  readonly #options: InboxOptions;
  readonly #waiting = new Set<string>();
  readonly #working = new Map<string, Promise<void>>();
  readonly #stop = new AbortController();
  readonly #settled = new Map<string, (() => void)[]>();

  constructor(options: InboxOptions) {
    this.#options = options;
  }

  /** Takes up what was stored before the server stopped. */
  start(): void {
    for (const { repositoryId } of pendingDeliveries(this.#options.store)) this.wake(repositoryId);
  }

  /** Says that a repository has a new delivery. */
  wake(repositoryId: string): void {
    this.#waiting.add(repositoryId);
    this.#next();
  }

  /** Resolves once a delivery is evaluated, or after `timeoutMs`. */
  async settled(deliveryId: string, timeoutMs: number): Promise<void> {
    if (findDelivery(this.#options.store, deliveryId)?.status !== "pending") return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timeoutMs);
    this.#settled.set(deliveryId, [...(this.#settled.get(deliveryId) ?? []), resolve]);
    await promise;
    clearTimeout(timer);
  }

  /** Stops; what was being evaluated is evaluated again after the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error("the server is stopping"));
    await Promise.all(this.#working.values());
  }

  #next(): void {
    for (const repositoryId of this.#waiting) {
      if (this.#stop.signal.aborted || this.#working.size >= maxConcurrent) return;
      if (this.#working.has(repositoryId)) continue;
      this.#waiting.delete(repositoryId);
      const work = this.#work(repositoryId).finally(() => {
        this.#working.delete(repositoryId);
        this.#next();
      });
      this.#working.set(repositoryId, work);
    }
  }

  async #work(repositoryId: string): Promise<void> {
    const { store, logger } = this.#options;
    for (;;) {
      const [delivery] = store.all<{ seq: number; id: string }>(
        "SELECT seq, id FROM deliveries WHERE repository_id = ? AND status = 'pending' ORDER BY seq LIMIT 1",
        repositoryId,
      );
      if (!delivery || this.#stop.signal.aborted) return;
      try {
        await this.#evaluate(repositoryId, delivery);
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        logger.error({ err: error, delivery: delivery.id }, "cannot evaluate a delivery");
        settleDelivery(store, delivery.seq, {
          status: "error",
          reason: "Slipway's own error; the server's log has it",
        });
      }
      for (const resolve of this.#settled.get(delivery.id) ?? []) resolve();
      this.#settled.delete(delivery.id);
    }
  }

  async #evaluate(repositoryId: string, { seq, id }: { readonly seq: number; readonly id: string }): Promise<void> {
    const { store, logger } = this.#options;
    const begun = beginDelivery(store, seq);
    const repository = findRepository(store, repositoryId);
    if (!begun || !repository) return;
    const plan = begun.tries > maxTries ? giveUp(begun.trigger) : await this.#plan(repository, seq, begun.trigger);
    if (this.#stop.signal.aborted) return;
    const build = this.#settle(repositoryId, seq, { plan, trigger: begun.trigger });
    if (!build) return;
    logger.info({ build: build.id, number: build.number, repository: repository.name, delivery: id }, "build created");
    this.#options.scheduler.advance(build.id);
  }

  async #plan(repository: Repository, seq: number, trigger: Trigger): Promise<Plan> {
    const { store, planner } = this.#options;
    try {
      return await planner.plan(repository, trigger, this.#stop.signal);
    } catch (error) {
      // An orderly stop is not the delivery's fault.
      if (this.#stop.signal.aborted) store.run("UPDATE deliveries SET tries = tries - 1 WHERE seq = ?", seq);
      throw error;
    }
  }

  #settle(repositoryId: string, deliverySeq: number, { plan, trigger }: { plan: Plan; trigger: Trigger }) {
    const { store } = this.#options;
    if ("ignored" in plan) return settleDelivery(store, deliverySeq, { status: "ignored", reason: plan.ignored });
    if ("failed" in plan) return settleDelivery(store, deliverySeq, { status: "error", reason: plan.failed });
    return store.transaction(() => {
      const build = createBuild(store, { ...plan.build, repositoryId, deliverySeq, trigger });
      settleDelivery(store, deliverySeq, { status: "built" });
      return build;
    });
  }
}

function giveUp({ commit, title = "", author = "" }: Trigger): Plan {
  const reason = `given up: the server stopped ${maxTries} times while it evaluated this delivery`;
  if (!commit) return { failed: reason };
  return { build: { commit, title, author, jobs: [], outcome: { status: "error", reason } } };
}
