/** The server's API, as the verbs use it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { recallServerUrl } from "./server-url.ts";
import { dataDirOption, findDataDir, type Context } from "./verb.ts";

/** The options of every verb that talks to a server. */
export const apiOptions = {
  server: {
    value: "URL",
    help: "The server (SLIPWAY_SERVER)\n[default: the one running with this data directory, else http://127.0.0.1:7433]",
  },
  "data-dir": dataDirOption,
} as const;

interface ApiValues {
  readonly server: string | undefined;
  readonly "data-dir": string | undefined;
}

/** What the server answered instead of what was asked for. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

interface Init {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  readonly signal?: AbortSignal;
}

/** One server-sent event. */
export interface ServerEvent {
  readonly event: string;
  readonly data: unknown;
}

/** A connection to one server with one token. */
export class Api {
  readonly url: string;
  readonly #token: string | undefined;

  constructor(url: string, token: string | undefined) {
    this.url = url.replace(/\/+$/, "");
    this.#token = token;
  }

  /** The server and token that options, environment and data directory name. */
  static find(values: ApiValues, context: Context): Api {
    const { environment } = context;
    const dataDir = findDataDir(values, context);
    const named = values.server ?? (environment["SLIPWAY_SERVER"] || undefined);
    const url = named ?? recallServerUrl(dataDir) ?? "http://127.0.0.1:7433";
    if (!/^https?:\/\/[^/]/.test(url))
      throw new Error(`Cannot use server ${JSON.stringify(url)}: it must begin with http:// or https://`);
    return new Api(url, environment["SLIPWAY_TOKEN"] || readToken(join(dataDir, "admin-token")));
  }

  /**
   * Asks for JSON.
   *
   * @throws {ApiError} If the answer is not 2xx; its message is the server's.
   */
  async request<T>(method: "GET" | "POST" | "DELETE", path: string, body?: unknown): Promise<T> {
    const response = await this.#fetch(path, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
    const text = await response.text();
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  /** Yields the bytes of an answer as they come. @throws {ApiError} If the answer is not 2xx. */
  async *bytes(path: string): AsyncGenerator<Uint8Array> {
    const { body } = await this.#fetch(path, {});
    if (body !== null) yield* body as unknown as AsyncIterable<Uint8Array>;
  }

  /**
   * Yields the events of a stream until the server closes it after `end`; a connection that breaks before is made again
   * and goes on where it broke off.
   */
  async *events(path: string, signal: AbortSignal): AsyncGenerator<ServerEvent> {
    let lastEventId: string | undefined;
    for (let failures = 0; ; ) {
      try {
        const headers = lastEventId === undefined ? {} : { "last-event-id": lastEventId };
        const response = await this.#fetch(path, { headers: { accept: "text/event-stream", ...headers }, signal });
        // No content: we have had all of it.
        if (response.status === 204) return;
        for await (const event of readEvents(response)) {
          failures = 0;
          lastEventId = event.id ?? lastEventId;
          yield { event: event.event, data: JSON.parse(event.data) };
          if (event.event === "end") return;
        }
      } catch (error) {
        if (signal.aborted) return;
        const isFinal = error instanceof ApiError && error.status < 500;
        if (isFinal || ++failures > 30) throw error;
      }
      await sleep(1000, undefined, { signal }).catch(() => {});
      if (signal.aborted) return;
    }
  }

  /** The header that says who asks. */
  get authorization(): Readonly<Record<string, string>> {
    return this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` };
  }

  /** What a person is told of a server that does not answer. */
  unreachable(error: unknown): Error {
    const cause = (error as Error).cause ?? error;
    const reason =
      cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code : (error as Error).message;
    return new Error(`Cannot reach the server at ${this.url}: ${reason}; is it running? (slipway up, --server URL)`, {
      cause: error,
    });
  }

  async #fetch(path: string, init: Init): Promise<Response> {
    const headers = { ...this.authorization, ...init.headers };
    let response: Response;
    try {
      response = await fetch(`${this.url}${path}`, { ...init, headers });
    } catch (error) {
      throw this.unreachable(error);
    }
    if (response.ok) return response;
    throw new ApiError(response.status, errorMessage(response.status, await response.text()));
  }
}

function errorMessage(status: number, body: string): string {
  try {
    const { error, message } = JSON.parse(body) as { error?: unknown; message?: unknown };
    return `The server refused (${status}): ${String(error ?? message)}`;
  } catch {
    return `The server refused (${status}): ${body.slice(0, 200)}`;
  }
}

function readToken(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim() || undefined;
  } catch {
    // Reading may be free; what needs the token will say so.
    return undefined;
  }
}

interface RawEvent {
  readonly event: string;
  readonly data: string;
  readonly id: string | undefined;
}

/** Parses `text/event-stream`. @see https://html.spec.whatwg.org/multipage/server-sent-events.html */
async function* readEvents(response: Response): AsyncGenerator<RawEvent> {
  if (response.body === null) return;
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of response.body) {
    const blocks = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const field = (name: string) =>
        block
          .split("\n")
          .filter((line) => line.startsWith(`${name}:`))
          .map((line) => line.slice(name.length + 1).replace(/^ /, ""));
      const data = field("data");
      if (data.length > 0)
        yield { event: field("event").at(-1) ?? "message", data: data.join("\n"), id: field("id").at(-1) };
    }
  }
}
