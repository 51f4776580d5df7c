import { z } from "zod";
import { cancelChannel } from "./names.ts";
import { closeClient, openClient, plainError, type RedisConnection, readyClient } from "./redis-connection.ts";

/** Must not throw. */
export type CancelListener = (attemptId: string, reason: string) => void;

/** Must not throw. */
export type WakeListener = (attemptId: string) => void;

export interface CancelSubscription extends AsyncDisposable {
  /** Resolves once Redis has confirmed the first subscription (never, while Redis is away), or on disposal. */
  readonly ready: Promise<void>;
}

const messageSchema = z.union([
  z.object({ attemptId: z.string(), reason: z.string() }),
  z.object({ attemptId: z.string(), wake: z.literal(true) }),
]);

/**
 * Tells agents, at once, that an attempt is to be stopped, or that the server has something to say about it.
 *
 * Redis pub/sub: who does not listen at that moment misses it for good. That costs only time, for the answer to the
 * agent's next renewal over HTTP says the same.
 */
export class CancelChannel {
  readonly #connection: RedisConnection;

  constructor(redis: RedisConnection) {
    this.#connection = redis;
  }

  /**
   * Sends to everybody who listens now.
   *
   * @param reason One sentence for a person.
   * @throws {RedisUnavailableError} If Redis does not answer.
   */
  async publish(attemptId: string, reason: string): Promise<void> {
    const message = { attemptId, reason: reason.slice(0, 2_000) };
    await this.#publish(message, `send the cancellation of attempt "${attemptId}"`);
  }

  /**
   * Has the agent that works on an attempt, or keeps something of it, ask the server about it now instead of soon.
   *
   * @throws {RedisUnavailableError} If Redis does not answer.
   */
  async wake(attemptId: string): Promise<void> {
    await this.#publish({ attemptId, wake: true }, `wake the agent of attempt "${attemptId}"`);
  }

  async #publish(message: z.infer<typeof messageSchema>, what: string): Promise<void> {
    try {
      const client = await readyClient(this.#connection);
      await client.publish(cancelChannel, JSON.stringify(message));
    } catch (error) {
      throw plainError(what, error, this.#connection);
    }
  }

  /** Listens until disposed of (from then on the listener is not called any more), over a client of its own; subscribes again after every reconnect. */
  subscribe(listener: CancelListener, onWake?: WakeListener): CancelSubscription {
    const connection = this.#connection;
    const client = openClient(connection, { name: "slipway-cancel", patient: true });
    client.on("message", (_channel: string, text: string) => {
      const message = parse(text);
      if (message === undefined) return;
      if ("wake" in message) onWake?.(message.attemptId);
      else listener(message.attemptId, message.reason);
    });
    const { promise: ready, resolve } = Promise.withResolvers<void>();
    // At every connect, not once: a first attempt that Redis refused (no password yet) is never repeated by ioredis.
    client.on("ready", () => {
      client.subscribe(cancelChannel).then(() => resolve(), ignore);
    });
    return {
      ready,
      [Symbol.asyncDispose]: async () => {
        resolve();
        // What Redis has sent already would still arrive.
        client.removeAllListeners("message");
        closeClient(connection, client);
      },
    };
  }
}

/** Somebody else's message on our channel is not ours to judge: `undefined`. */
function parse(text: string): z.infer<typeof messageSchema> | undefined {
  try {
    return messageSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** A connection that broke meanwhile: the next `ready` subscribes again. */
function ignore(): void {}
