/** Asks the server how builds have ended whose jobs have left caches here. */
import type { Logger } from "pino";
import { asError } from "./cause.ts";
import { type AttemptKey, FencedError, type ServerClient } from "./server-client.ts";
import type { StagedCaches } from "./staged-caches.ts";

export interface BuildEndsOptions {
  readonly client: ServerClient;
  readonly caches: StagedCaches;
  readonly logger: Logger;
}

const askTimeoutMs = 10_000;
/** What has heard of no end for so long is given up. */
const patienceMs = 24 * 3600 * 1000;

/** A finished attempt. */
export interface FollowedAttempt extends AttemptKey {
  /** How often the server is asked that has not told of the end by itself: Redis was away, perhaps. */
  readonly leaseMs: number;
}

interface Waiting {
  readonly attempt: FollowedAttempt;
  readonly sinceMs: number;
  timer: NodeJS.Timeout | undefined;
  asking: Promise<void> | undefined;
  isAskedAgain: boolean;
}

/** Ends what attempts have left, as their builds end. */
export class BuildEnds {
  readonly #options: BuildEndsOptions;
  readonly #waiting = new Map<string, Waiting>();
  readonly #closing = new AbortController();

  constructor(options: BuildEndsOptions) {
    this.#options = options;
  }

  /** Takes up an attempt whose end the server has accepted. Resolves when the server has been asked once. */
  async follow(attempt: FollowedAttempt): Promise<void> {
    if (!this.#options.caches.has(attempt.attemptId) || this.#closing.signal.aborted) return;
    const waiting: Waiting = {
      attempt,
      sinceMs: performance.now(),
      timer: undefined,
      asking: undefined,
      isAskedAgain: false,
    };
    this.#waiting.set(attempt.attemptId, waiting);
    await this.#ask(waiting);
  }

  /** The server has something to say about an attempt. */
  wake(attemptId: string): void {
    const waiting = this.#waiting.get(attemptId);
    if (waiting !== undefined) void this.#ask(waiting);
  }

  /** Asks no more. */
  async close(): Promise<void> {
    this.#closing.abort();
    for (const { timer } of this.#waiting.values()) clearTimeout(timer);
    await Promise.all([...this.#waiting.values()].flatMap(({ asking }) => asking ?? []));
    this.#waiting.clear();
  }

  /** One question at a time; an answer may be older than what it is asked for. */
  async #ask(waiting: Waiting): Promise<void> {
    if (waiting.asking !== undefined) {
      waiting.isAskedAgain = true;
      return await waiting.asking;
    }
    clearTimeout(waiting.timer);
    waiting.asking = (async () => {
      do {
        waiting.isAskedAgain = false;
        await this.#askOnce(waiting);
      } while (waiting.isAskedAgain && this.#isWaiting(waiting));
    })();
    await waiting.asking;
    waiting.asking = undefined;
    if (this.#isWaiting(waiting)) {
      waiting.timer = setTimeout(() => void this.#ask(waiting), waiting.attempt.leaseMs);
    }
  }

  #isWaiting({ attempt }: Waiting): boolean {
    return this.#waiting.has(attempt.attemptId) && !this.#closing.signal.aborted;
  }

  async #askOnce({ attempt, sinceMs }: Waiting): Promise<void> {
    const { client, caches, logger } = this.#options;
    const { attemptId } = attempt;
    const end = async (succeeded: boolean) => {
      this.#waiting.delete(attemptId);
      await caches.end(attemptId, { succeeded });
    };
    try {
      const build = await client.askBuild(attempt, { timeoutMs: askTimeoutMs, signal: this.#closing.signal });
      if (build.ended) return await end(build.succeeded);
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      if (error instanceof FencedError) {
        logger.info({ attempt: attemptId }, `what it has left is not kept: ${error.message}`);
        return await end(false);
      }
      logger.debug({ attempt: attemptId }, `cannot ask how its build has ended: ${asError(error).message}`);
    }
    if (performance.now() - sinceMs < patienceMs) return;
    logger.info({ attempt: attemptId }, "what it has left is not kept: its build has not ended for a day");
    await end(false);
  }
}
