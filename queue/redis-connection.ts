import type { Redis, RedisOptions as ClientOptions } from "ioredis";
import { loadIoredis } from "./libraries.ts";
import { parseRedisAddress, type RedisAddress } from "./redis-address.ts";

export interface RedisOptions {
  /** Shown by `CLIENT LIST`: who this is. @default "slipway" */
  readonly name?: string;
}

/** Redis does not answer now; the same call may succeed later. The text holds no user and no password. */
export class RedisUnavailableError extends Error {
  override readonly name = "RedisUnavailableError";
}

/**
 * Connects to Redis in the background and stays connected: returns at once, reconnects by itself for ever.
 *
 * While Redis is away, what uses the connection fails at once with {@link RedisUnavailableError}.
 *
 * @param url `redis://[user:password@]host[:port][/db]`, `rediss://…`, `unix:///path` or `/path`.
 * @throws {Error} If the URL is none of these.
 */
export function connectRedis(url: string, options: RedisOptions = {}): RedisConnection {
  return new RedisConnection(url, options);
}

/** How the clients differ that are opened over one {@link RedisConnection}. */
export interface ClientRole {
  readonly name: string;
  /** Commands wait for Redis to come back, instead of failing at once. */
  readonly patient: boolean;
}

/**
 * Opens a client of its own, closed with the connection at the latest.
 *
 * @internal Inside queue/ only: ioredis does not show outside.
 */
export let openClient: (connection: RedisConnection, role: ClientRole) => Redis;

/**
 * Closes a client at once; its waiting commands reject.
 *
 * @internal
 */
export let closeClient: (connection: RedisConnection, client: Redis) => void;

/**
 * Answers with the connection's shared client once it can take commands; the first connect is waited for.
 *
 * @internal
 * @throws {RedisUnavailableError} If Redis does not answer.
 */
export let readyClient: (connection: RedisConnection) => Promise<Redis>;

/** No command of the server's takes longer than this, or Redis is frozen and the caller should know. */
const commandTimeoutMs = 5_000;
const connectTimeoutMs = 5_000;
/** Half-open TCP: a patient client that waits for an answer this long reconnects. */
const silenceMs = 30_000;

/** One Redis, reconnected to for ever until disposed of. */
export class RedisConnection implements AsyncDisposable {
  readonly #address: RedisAddress;
  readonly #name: string;
  readonly #clients = new Set<Redis>();
  #shared: Redis | undefined;
  #lastError: string | undefined;
  #closed = false;

  static {
    openClient = (connection, role) => connection.#open(role);
    closeClient = (connection, client) => connection.#close(client);
    readyClient = (connection) => connection.#ready();
  }

  /** @internal Use {@link connectRedis}. */
  constructor(url: string, options: RedisOptions) {
    this.#address = parseRedisAddress(url);
    this.#name = options.name ?? "slipway";
    this.#shared = this.#open({ name: this.#name, patient: false });
  }

  /** The address without user and password, fit for logs. */
  get address(): string {
    return this.#address.display;
  }

  /** Why Redis was last found away, in the system's words. */
  get lastError(): string | undefined {
    return this.#lastError;
  }

  /** Closes every client opened over this connection; what still waits for an answer rejects. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#clients].map((client) => this.#end(client)));
  }

  async close(): Promise<void> {
    await this[Symbol.asyncDispose]();
  }

  #open(role: ClientRole): Redis {
    if (this.#closed) throw new Error(`Cannot use Redis at "${this.address}": the connection is closed`);
    const { Redis } = loadIoredis();
    const client = new Redis(this.#clientOptions(role));
    this.#clients.add(client);
    // Without a listener ioredis prints to the console; its errors also carry the command with the password.
    client.on("error", (error: Error) => {
      this.#lastError = error.message;
    });
    return client;
  }

  #clientOptions(role: ClientRole): ClientOptions & { readonly replyMapping: "legacy" } {
    const { path, host, port, tls, username, password, db } = this.#address;
    return {
      ...(path === undefined ? { host: host ?? "localhost", port: port ?? 6379 } : { path }),
      ...(tls ? { tls: host === undefined ? {} : { servername: host } } : {}),
      ...(username === undefined ? {} : { username }),
      ...(password === undefined ? {} : { password }),
      db,
      replyMapping: "legacy",
      connectionName: clientName(role.name),
      connectTimeout: connectTimeoutMs,
      retryStrategy: (times) => Math.min(50 * 2 ** Math.min(times - 1, 5), 1_000) + Math.floor(Math.random() * 100),
      ...(role.patient
        ? { maxRetriesPerRequest: null, socketTimeout: silenceMs }
        : {
            enableOfflineQueue: false,
            // 0, not 1: a command cut off by the first close would else be neither answered nor rejected (ioredis 6.0.0).
            maxRetriesPerRequest: 0,
            commandTimeout: commandTimeoutMs,
          }),
    };
  }

  async #ready(): Promise<Redis> {
    const client = this.#shared;
    if (client === undefined || this.#closed) throw this.#unavailable("the connection is closed");
    if (client.status !== "ready" && this.#lastError === undefined) await firstOutcome(client);
    if (client.status !== "ready") throw this.#unavailable(this.#lastError ?? "it is not connected");
    return client;
  }

  #unavailable(reason: string): RedisUnavailableError {
    return new RedisUnavailableError(`Cannot reach Redis at "${this.address}": ${reason}; is it running?`);
  }

  #close(client: Redis): void {
    this.#clients.delete(client);
    client.disconnect();
  }

  async #end(client: Redis): Promise<void> {
    this.#clients.delete(client);
    if (client.status === "end") return;
    // A client between two attempts to connect ends without an event.
    const ended = client.status === "reconnecting" ? Promise.resolve() : once(client, ["end"]);
    client.disconnect();
    await ended;
  }
}

/** Resolves once the first attempt to connect has succeeded or failed. */
async function firstOutcome(client: Redis): Promise<void> {
  if (["ready", "end", "close", "reconnecting"].includes(client.status)) return;
  await once(client, ["ready", "error", "close", "end"]);
}

function once(client: Redis, events: readonly string[]): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const settle = () => {
    for (const event of events) client.off(event, settle);
    resolve();
  };
  for (const event of events) client.on(event, settle);
  return promise;
}

/** `CLIENT SETNAME` refuses spaces and control characters. */
function clientName(name: string): string {
  return name.replace(/[^\x21-\x7e]/g, "-");
}

/**
 * Makes an error of ioredis or BullMQ fit to be thrown on: message only. Theirs carry `command.args`, and for `AUTH` that
 * is the password.
 *
 * @internal
 */
export function plainError(action: string, error: unknown, connection: RedisConnection): Error {
  if (error instanceof RedisUnavailableError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  if (isConnectionFailure(reason)) {
    const cause = connection.lastError ?? reason;
    return new RedisUnavailableError(`Cannot ${action}: Redis at "${connection.address}" went away: ${cause}`);
  }
  return new Error(`Cannot ${action}: Redis at "${connection.address}" says: ${reason}`);
}

/** In ioredis's words: the command was cut off or never sent. */
function isConnectionFailure(message: string): boolean {
  return /Connection is closed|Stream isn't writeable|max retries per request|Command timed out|ECONN|EPIPE|ENOENT|aborted due to connection close|Socket timeout|^LOADING|^MASTERDOWN/.test(
    message,
  );
}
