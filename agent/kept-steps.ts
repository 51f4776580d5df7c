/** What one agent keeps of failed steps, within its limits of number, size and time. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Logger } from "pino";
import { asError } from "./cause.ts";
import type { KeptStep } from "./kept-step.ts";
import { type AttemptKey, FencedError, type ServerClient } from "./server-client.ts";

/** What an agent keeps of failed steps at the most, whatever pipelines ask for. */
export interface KeepLimits {
  /** 0 keeps none. */
  readonly steps: number;
  /** All of them together, root file systems and workspaces. */
  readonly bytes: number;
  /** Since the failure, however often somebody looks. */
  readonly timeMs: number;
}

export interface KeptStepsOptions {
  readonly limits: KeepLimits;
  readonly client: ServerClient;
  readonly logger: Logger;
  /** Removes an attempt's directory, as soon as it is not used otherwise. */
  readonly removeDir: (dir: string, attemptId: string) => void;
  /** Told of the sessions of shells that wait for this agent. */
  readonly onShells: (attempt: AttemptKey, sessions: readonly string[]) => void;
}

/** How soon a report that was not answered is repeated. */
const retryMs = 2_000;
const reportTimeoutMs = 10_000;
/** How long an agent that stops tries to tell the server that it keeps nothing any more. */
const lastReportsMs = 5_000;

interface Kept {
  readonly attempt: AttemptKey;
  readonly index: number;
  readonly step: KeptStep;
  /** The attempt's directory, with the workspace. */
  readonly dir: string;
  readonly keepMs: number;
  /** However often somebody looks. */
  readonly lastMs: number;
  untilMs: number;
  bytes: number | undefined;
  timer: NodeJS.Timeout | undefined;
  reportTimer: NodeJS.Timeout | undefined;
  reporting: Promise<void> | undefined;
  isStale: boolean;
}

/**
 * The failed steps that an agent keeps, one of an attempt at the most. The oldest gives way to a new one, unless somebody
 * is in it. The server is told what there is, again and again: from an agent that is gone it hears nothing, and with the
 * agent all that it kept is gone.
 */
export class KeptSteps {
  readonly #options: KeptStepsOptions;
  readonly #kept = new Map<string, Kept>();
  readonly #removals = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  #isClosed = false;

  constructor(options: KeptStepsOptions) {
    this.#options = options;
  }

  /** Finds what is kept of an attempt. */
  find(attemptId: string): { readonly index: number; readonly step: KeptStep } | undefined {
    return this.#kept.get(attemptId);
  }

  /**
   * Takes over a failed step with its attempt's directory, if there is room for one.
   *
   * @returns Until when it is kept; undefined if it is not.
   */
  add(given: Pick<Kept, "attempt" | "index" | "step" | "dir" | "keepMs">): number | undefined {
    const { limits } = this.#options;
    if (this.#isClosed || limits.steps === 0) return undefined;
    while (this.#kept.size >= limits.steps) {
      if (!this.#evictOldest(`there are ${limits.steps} newer ones`)) return undefined;
    }
    const nowMs = Date.now();
    const lastMs = nowMs + limits.timeMs;
    const kept: Kept = {
      ...given,
      lastMs,
      untilMs: Math.min(nowMs + given.keepMs, lastMs),
      bytes: undefined,
      timer: undefined,
      reportTimer: undefined,
      reporting: undefined,
      isStale: false,
    };
    this.#kept.set(given.attempt.attemptId, kept);
    this.#limitTime(kept);
    void this.#measure(kept);
    return kept.untilMs;
  }

  /** Resolves when the server has been told of what is kept of an attempt, or could not be. */
  async report(attemptId: string): Promise<void> {
    const kept = this.#kept.get(attemptId);
    if (kept !== undefined) await this.#report(kept);
  }

  /** Somebody has left it: its time begins anew, and it may be larger. */
  left(attemptId: string): void {
    const kept = this.#kept.get(attemptId);
    if (kept === undefined) return;
    kept.untilMs = Math.min(Date.now() + kept.keepMs, kept.lastMs);
    this.#limitTime(kept);
    void this.#measure(kept);
  }

  /** Removes those that nobody is in. */
  async drain(): Promise<void> {
    for (const [attemptId, { step }] of this.#kept) {
      if (!step.isInUse) this.remove(attemptId, "the agent stops");
    }
    await Promise.all(this.#removals);
  }

  /** Removes all, and ends the shells in them; keeps no more. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const attemptId of this.#kept.keys()) this.remove(attemptId, "the agent was stopped");
    const timer = setTimeout(() => this.#closing.abort(), lastReportsMs);
    await Promise.all(this.#removals);
    clearTimeout(timer);
    this.#closing.abort();
  }

  /** @param why Told to whoever is in it. */
  remove(attemptId: string, why: string): void {
    const kept = this.#kept.get(attemptId);
    if (kept === undefined) return;
    this.#kept.delete(attemptId);
    clearTimeout(kept.timer);
    const removal = (async () => {
      await kept.step.dispose(why);
      this.#options.removeDir(kept.dir, attemptId);
      await this.#report(kept);
      clearTimeout(kept.reportTimer);
    })().catch((error: unknown) => this.#options.logger.warn({ err: error }, "cannot remove a kept step"));
    this.#removals.add(removal);
    void removal.finally(() => this.#removals.delete(removal));
  }

  #evictOldest(why: string): boolean {
    const oldest = [...this.#kept].find(([, { step }]) => !step.isInUse)?.[0];
    if (oldest !== undefined) this.remove(oldest, why);
    return oldest !== undefined;
  }

  /** Who is in it may stay until `lastMs`. */
  #limitTime(kept: Kept): void {
    clearTimeout(kept.timer);
    kept.timer = setTimeout(
      () => {
        const { attemptId } = kept.attempt;
        const nowMs = Date.now();
        if (kept.step.isInUse && nowMs < kept.lastMs) {
          kept.untilMs = Math.min(nowMs + kept.keepMs, kept.lastMs);
          this.#limitTime(kept);
          void this.#report(kept);
        } else if (nowMs < kept.untilMs) this.#limitTime(kept);
        else this.remove(attemptId, "its time is over");
      },
      Math.min(Math.max(0, kept.untilMs - Date.now()), 2 ** 31 - 1),
    );
    kept.timer.unref();
  }

  async #measure(kept: Kept): Promise<void> {
    const { limits, logger } = this.#options;
    const { attemptId } = kept.attempt;
    try {
      kept.bytes = await diskUsage([kept.step.writableDir, kept.dir]);
    } catch (error) {
      if (!this.#kept.has(attemptId)) return;
      logger.warn({ err: error, attempt: attemptId }, "cannot measure a kept step: it is removed");
      return this.remove(attemptId, "it cannot be measured");
    }
    const total = () => [...this.#kept.values()].reduce((sum, { bytes = 0 }) => sum + bytes, 0);
    while (total() > limits.bytes) {
      logger.info({ attempt: attemptId, bytes: kept.bytes }, "kept steps take more than they may: the oldest goes");
      if (!this.#evictOldest("there is no room for it")) break;
    }
    await this.#report(kept);
  }

  /** Tells the server what is kept of the attempt now, and does what it answers. One report at a time. */
  async #report(kept: Kept): Promise<void> {
    kept.isStale = true;
    kept.reporting ??= (async () => {
      while (kept.isStale) {
        kept.isStale = false;
        await this.#reportOnce(kept);
      }
      kept.reporting = undefined;
    })();
    await kept.reporting;
  }

  async #reportOnce(kept: Kept): Promise<void> {
    const { client, onShells } = this.#options;
    const { attempt, index: step, untilMs, bytes } = kept;
    const { attemptId } = attempt;
    const isKept = this.#kept.get(attemptId) === kept;
    const steps = isKept ? [{ step, untilMs, ...(bytes !== undefined && { bytes }) }] : [];
    clearTimeout(kept.reportTimer);
    let nextMs = retryMs;
    try {
      const answer = await client.reportKept(
        attempt,
        { steps },
        { timeoutMs: reportTimeoutMs, signal: this.#closing.signal },
      );
      nextMs = answer.leaseMs / 3;
      if (answer.discard.includes(step)) this.remove(attemptId, "it was given up");
      else if (answer.shells.length > 0) onShells(attempt, answer.shells);
    } catch (error) {
      if (error instanceof FencedError) this.remove(attemptId, "the server does not know it any more");
      else if (!this.#closing.signal.aborted) {
        this.#options.logger.debug({ err: asError(error), attempt: attemptId }, "the server was not told what is kept");
      }
    }
    if (this.#kept.get(attemptId) !== kept || this.#closing.signal.aborted) return;
    clearTimeout(kept.reportTimer);
    kept.reportTimer = setTimeout(() => void this.#report(kept), nextMs);
    kept.reportTimer.unref();
  }
}

/** What directories take on their disk; what is mounted below them is not counted. @throws {Error} */
async function diskUsage(paths: readonly string[]): Promise<number> {
  const args = ["--summarize", "--one-file-system", "--block-size=1", "--total", "--", ...paths];
  const { stdout } = await promisify(execFile)("du", args, { maxBuffer: 1 << 20, env: { LC_ALL: "C" } });
  const total = /^(\d+)\ttotal$/m.exec(stdout)?.[1];
  if (total === undefined) throw new Error("Cannot measure what is kept: du printed no total");
  return Number(total);
}
