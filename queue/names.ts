/**
 * What producers and workers must agree on in Redis. The braces make Redis Cluster put every key of ours into one slot, so
 * that one BZPOPMIN may wait on several pools.
 */
export const keyPrefix = "{slipway}";

export const cancelChannel = "slipway:cancel";

/** `CLIENT LIST` shows a worker that takes jobs under this name, followed by its pools. */
export const workerClientPrefix = "slipway-worker:";

/**
 * Checks a pool's name.
 *
 * @throws {Error} If it is not 1 to 60 of a–z, 0–9 and `-`.
 */
export function checkPool(pool: string): string {
  if (/^[a-z0-9-]{1,60}$/.test(pool)) return pool;
  throw new Error(`Cannot use the pool name ${JSON.stringify(pool.slice(0, 80))}: use 1 to 60 of a-z, 0-9 and "-"`);
}

/**
 * Checks an attempt's id, which BullMQ takes as job id: it refuses integers and colons.
 *
 * @throws {Error} If it is not 1 to 100 of letters, digits, `_` and `-`, or if it is an integer.
 */
export function checkAttemptId(attemptId: string): string {
  if (/^[A-Za-z0-9_-]{1,100}$/.test(attemptId) && !/^-?\d+$/.test(attemptId)) return attemptId;
  const shown = JSON.stringify(attemptId.slice(0, 120));
  throw new Error(`Cannot queue the attempt id ${shown}: use 1 to 100 letters, digits, "_" and "-", not digits alone`);
}
