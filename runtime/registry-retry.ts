/** Tries again what may succeed later. */
import { setTimeout as delay } from "node:timers/promises";
import { RegistryError } from "./registry-error.ts";

export interface RetryOptions {
  /** Tries in all. */
  readonly attempts: number;
  /** Before the second try; doubled before each further one. */
  readonly baseMs: number;
  readonly signal?: AbortSignal | undefined;
  /** Told before each wait. */
  readonly onRetry?: ((error: RegistryError, waitMs: number) => void) | undefined;
}

const MAX_BACKOFF_MS = 15_000;
/** A registry that wants more patience gets an error instead: whoever waits for the step should know. */
const MAX_RETRY_AFTER_MS = 90_000;

/**
 * Calls `action` until it succeeds, fails for good, or has been tried often enough.
 *
 * Waits longer each time, by random amounts (many agents must not come back at once), and as long as `Retry-After` says.
 *
 * @throws What the last try threw; what the signal was aborted with.
 */
export async function withRetries<T>(action: () => Promise<T>, options: RetryOptions): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await action();
    } catch (error) {
      options.signal?.throwIfAborted();
      if (!(error instanceof RegistryError) || attempt >= options.attempts) throw error;
      await waitToRetry(error, { ...options, attempt });
    }
  }
}

/**
 * Waits until it makes sense to try again.
 *
 * @param options.attempt How many tries have failed, from 1.
 * @throws The error, if it is not of the kind that passes, or the registry asks for more patience than there is.
 */
export async function waitToRetry(
  error: RegistryError,
  options: Omit<RetryOptions, "attempts"> & { readonly attempt: number },
): Promise<void> {
  if (!error.transient) throw error;
  const backoffMs = Math.min(options.baseMs * 2 ** (options.attempt - 1), MAX_BACKOFF_MS);
  const waitMs = Math.max(backoffMs * (0.75 + Math.random() / 2), error.retryAfterMs ?? 0);
  if (waitMs > MAX_RETRY_AFTER_MS) {
    throw new RegistryError(`${error.message}; it asks to wait ${Math.ceil(waitMs / 60_000)} minutes`, {
      transient: false,
      status: error.status,
      cause: error,
    });
  }
  options.onRetry?.(error, waitMs);
  await delay(waitMs, undefined, options.signal === undefined ? {} : { signal: options.signal }).catch(() => {});
  options.signal?.throwIfAborted();
}

/** Milliseconds that a `retry-after` header asks to wait: seconds, or a date. */
export function parseRetryAfter(header: string | undefined): number | undefined {
  if (header === undefined) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const atMs = Date.parse(header);
  return Number.isNaN(atMs) ? undefined : Math.max(0, atMs - Date.now());
}
