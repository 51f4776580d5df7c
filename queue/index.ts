/**
 * Redis: connection, embedded server, BullMQ queues, cancel channel; and the protocols between server and agent, that of
 * shells among them.
 *
 * Redis carries work and wake-ups, never logs, secrets or history. A *pool* is one BullMQ queue; a BullMQ job is one
 * *attempt*, its job id is the attempt id and its data nothing but that id. The store is the source of truth: whatever
 * Redis forgets or delivers twice, reconciliation and the fencing token of the claim put right.
 */
export {
  CancelChannel,
  type CancelListener,
  type CancelSubscription,
  type WakeListener,
} from "./cancel-channel.ts";
export { type EmbeddedRedis, type EmbeddedRedisOptions, startEmbeddedRedis } from "./embedded-redis.ts";
export { JobQueue } from "./job-queue.ts";
export { type JobHandler, JobWorker, type JobWorkerOptions } from "./job-worker.ts";
export * from "./protocol.ts";
export { parseRedisAddress, type RedisAddress } from "./redis-address.ts";
export { checkRedis, type RedisProblem } from "./redis-check.ts";
export { connectRedis, type RedisConnection, type RedisOptions, RedisUnavailableError } from "./redis-connection.ts";
export { findRedisServer, installHint, type RedisServer } from "./redis-server.ts";
export { ShellChannel, type ShellChannelHandlers, ShellRefusedError, type ShellSocket } from "./shell-channel.ts";
export * from "./shell-protocol.ts";
