import { z } from "zod";
import { cancelChannel } from "./names.ts";
import { closeClient, openClient, plainError, type RedisConnection, readyClient } from "./redis-connection.ts";

/** Must not throw. */
export type CancelListener = (attemptId: string, reason: string) => void;

export interface CancelSubscription extends AsyncDisposable {
  /** Resolves once Redis has confirmed the first subscription (never, while Redis is away), or on disposal. */
  readonly ready: Promise<void>;
}

const messageSchema = z.object({ attemptId: z.string(), reason: z.string() });

/**
 * Tells agents, at once, that an attempt is to be stopped.
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
    try {
      const client = await readyClient(this.#connection);
      await client.publish(cancelChannel, JSON.stringify({ attemptId, reason: reason.slice(0, 2_000) }));
    } catch (error) {
      throw plainError(`send the cancellation of attempt "${attemptId}"`, error, this.#connection);
    }
  }

  /** Listens until disposed of (from then on the listener is not called any more), over a client of its own; subscribes again after every reconnect. */
  subscribe(listener: CancelListener): CancelSubscription {
    const connection = this.#connection;
    const client = openClient(connection, { name: "slipway-cancel", patient: true });
    client.on("message", (_channel: string, text: string) => {
      const message = parse(text);
      if (message !== undefined) listener(message.attemptId, message.reason);
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
