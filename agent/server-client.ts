/** The agent's side of the HTTP protocol in queue/protocol.ts. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import {
  attemptTokenHeader,
  type BuildEnd,
  type ClaimedJob,
  type ClaimRequest,
  type FinishReport,
  type ImagePin,
  type KeptReport,
  type KeptResponse,
  type RenewResponse,
  ShellChannel,
  type ShellSocket,
  type StepReport,
} from "../queue/index.ts";
import { asError } from "./cause.ts";

/** Somebody else owns the attempt, or nobody does any more: whoever works on it stops, and reports nothing. */
export class FencedError extends Error {
  override readonly name = "FencedError";
}

/** The server did not take a request, for a reason that may pass: it is away, overloaded, or does not know the token (yet). */
export class UnansweredError extends Error {
  override readonly name = "UnansweredError";
}

class StaleConnectionError extends Error {
  override readonly name = "StaleConnectionError";
}

/** The attempt a request is about. */
export interface AttemptKey {
  readonly attemptId: string;
  /** The fencing token. */
  readonly token: string;
}

/** What the server says to a piece of log: its length now, and whether it takes more. */
export interface LogAnswer {
  readonly offset: number;
  readonly full: boolean;
}

export interface ServerClientOptions {
  readonly serverUrl: string;
  /** The agent token. */
  readonly token: string;
  readonly logger: Logger;
}

interface Call {
  readonly method: "GET" | "POST" | "PUT";
  readonly path: string;
  readonly attempt?: AttemptKey;
  readonly body?: Buffer;
  readonly type?: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Once it is aborted, a call that is not answered is not tried again. */
  readonly patience?: AbortSignal;
}

interface Answer {
  readonly status: number;
  readonly body: Buffer;
}

const requestTimeoutMs = 30_000;
const maxAnswerBytes = 32 * 1024 * 1024;
const firstRetryMs = 100;
const lastRetryMs = 5_000;

/** Talks to the server. What fails for a passing reason is tried again, with growing pauses, until it is answered. */
export class ServerClient implements Disposable {
  readonly #base: URL;
  readonly #token: string;
  readonly #logger: Logger;
  readonly #connections: HttpAgent | HttpsAgent;
  #awaySinceMs: number | undefined;
  #hasAnswered = false;

  /** @throws {Error} If the URL is not one of a server. */
  constructor({ serverUrl, token, logger }: ServerClientOptions) {
    const base = URL.parse(serverUrl.endsWith("/") ? serverUrl : `${serverUrl}/`);
    if (base === null || !/^https?:$/.test(base.protocol)) {
      throw new Error(`Cannot use the server URL "${serverUrl}": it must begin with http:// or https://`);
    }
    this.#base = base;
    this.#token = token;
    this.#logger = logger;
    const options = { keepAlive: true, maxFreeSockets: 32 };
    this.#connections = base.protocol === "https:" ? new HttpsAgent(options) : new HttpAgent(options);
  }

  /** Whether the server answered the last call, and as one that knows the token. */
  get isReachable(): boolean {
    return this.#hasAnswered && this.#awaySinceMs === undefined;
  }

  /** Resolves once the server is there and knows the token, or the signal is aborted. */
  async reach(signal: AbortSignal): Promise<void> {
    await this.#persist({ method: "GET", path: "api/agent/hello", signal }).catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }

  /**
   * Claims an attempt.
   *
   * @param options.patience Once it is aborted, a claim that is not answered is not tried again.
   * @throws {FencedError} If it is not to be had (any more).
   * @throws {UnansweredError} If patience was at its end.
   * @throws The signal's reason, if it was aborted.
   */
  async claim(
    request: ClaimRequest,
    options: { readonly signal: AbortSignal; readonly patience: AbortSignal },
  ): Promise<ClaimedJob> {
    const answer = await this.#persist({ method: "POST", path: "api/agent/claim", ...json(request), ...options });
    return JSON.parse(answer.body.toString());
  }

  /**
   * Renews a lease, trying once.
   *
   * @throws {FencedError} If the attempt is another's.
   */
  async renew(
    attempt: AttemptKey,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<RenewResponse> {
    const answer = await this.#send({
      method: "POST",
      path: attemptPath(attempt, "renew"),
      attempt,
      ...json({}),
      ...options,
    });
    return JSON.parse(answer.body.toString());
  }

  /**
   * Says what is kept of an attempt, trying once.
   *
   * @throws {FencedError} If the server knows nothing of the attempt, or it is another's.
   * @throws {UnansweredError}
   */
  async reportKept(
    attempt: AttemptKey,
    report: KeptReport,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<KeptResponse> {
    const path = attemptPath(attempt, "kept");
    const answer = await this.#send({ method: "POST", path, attempt, ...json(report), ...options });
    return JSON.parse(answer.body.toString());
  }

  /**
   * Asks how the build of an attempt has ended, trying once.
   *
   * @throws {FencedError} If the server knows nothing of the attempt, or it is another's.
   * @throws {UnansweredError}
   */
  async askBuild(
    attempt: AttemptKey,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<BuildEnd> {
    const answer = await this.#send({ method: "GET", path: attemptPath(attempt, "build"), attempt, ...options });
    return JSON.parse(answer.body.toString());
  }

  /** Dials in for a shell that somebody has asked for. @throws {Error} If the server does not want it any more, or is away. */
  async dialShell(attempt: AttemptKey, session: string, signal: AbortSignal): Promise<ShellSocket> {
    const headers = { authorization: `Bearer ${this.#token}`, [attemptTokenHeader]: attempt.token };
    const url = new URL(`api/agent/shells/${encodeURIComponent(session)}`, this.#base);
    return await ShellChannel.dial(url, { headers, signal });
  }

  /**
   * Reports a step.
   *
   * @throws {FencedError} If the attempt is another's.
   */
  async reportStep(attempt: AttemptKey, index: number, report: StepReport, signal: AbortSignal): Promise<void> {
    await this.#persist({
      method: "POST",
      path: attemptPath(attempt, `steps/${index}`),
      attempt,
      ...json(report),
      signal,
    });
  }

  /**
   * Sends a piece of a step's log, in the form of queue/protocol.ts.
   *
   * @throws {FencedError} If the attempt is another's.
   */
  async sendLog(
    attempt: AttemptKey,
    index: number,
    chunk: { readonly offset: number; readonly body: Buffer },
    signal: AbortSignal,
  ): Promise<LogAnswer> {
    const path = attemptPath(attempt, `steps/${index}/log?offset=${chunk.offset}`);
    const { body } = chunk;
    const answer = await this.#persist({
      method: "PUT",
      path,
      attempt,
      body,
      type: "application/octet-stream",
      signal,
    });
    const { offset } = JSON.parse(answer.body.toString()) as { offset: number };
    return { offset, full: answer.status === 413 };
  }

  /**
   * Proposes what an image's name stands for in the build.
   *
   * @returns The digest that holds.
   * @throws {FencedError} If the attempt is another's.
   */
  async agreeOnImage(attempt: AttemptKey, pin: ImagePin, signal: AbortSignal): Promise<string> {
    const path = attemptPath(attempt, "images");
    const answer = await this.#persist({ method: "POST", path, attempt, ...json(pin), signal });
    return (JSON.parse(answer.body.toString()) as ImagePin).digest;
  }

  /**
   * Reports the end of an attempt.
   *
   * @throws {FencedError} If the attempt is another's.
   */
  async finish(attempt: AttemptKey, report: FinishReport, signal: AbortSignal): Promise<void> {
    await this.#persist({ method: "POST", path: attemptPath(attempt, "finish"), attempt, ...json(report), signal });
  }

  [Symbol.dispose](): void {
    this.#connections.destroy();
  }

  async #persist(call: Call): Promise<Answer> {
    const wakers = AbortSignal.any([call.signal, call.patience].filter((signal) => signal !== undefined));
    for (let retryMs = firstRetryMs; ; retryMs = Math.min(retryMs * 2, lastRetryMs)) {
      call.signal?.throwIfAborted();
      try {
        return await this.#send(call);
      } catch (error) {
        if (!(error instanceof UnansweredError) || call.patience?.aborted === true) throw error;
      }
      // Not all agents at the same moment, when a server comes back.
      await delay(retryMs * (0.5 + Math.random() / 2), undefined, { signal: wakers }).catch(() => {});
    }
  }

  async #send(call: Call): Promise<Answer> {
    const answer = await this.#exchangeAfresh(call).catch((error: unknown) => {
      call.signal?.throwIfAborted();
      throw this.#unanswered(asError(error).message);
    });
    const { status } = answer;
    if (status === 409 || status === 404) throw new FencedError(errorText(answer));
    if ((status >= 200 && status < 300) || status === 416 || (status === 413 && call.method === "PUT")) {
      this.#answered();
      return answer;
    }
    if (status === 401 || status === 403) {
      throw this.#unanswered(`it refuses the agent token (${status}); give the agent the server's token`);
    }
    if (status >= 500 || status === 429 || status === 408)
      throw this.#unanswered(`it answers ${status}: ${errorText(answer)}`);
    throw new Error(`The server refuses ${call.method} ${call.path} with ${status}: ${errorText(answer)}`);
  }

  /** An idle connection may be closed by the server at the moment it is used again; that says nothing about the server. */
  async #exchangeAfresh(call: Call): Promise<Answer> {
    try {
      return await this.#exchange(call);
    } catch (error) {
      if (!(error instanceof StaleConnectionError)) throw error;
      return await this.#exchange(call);
    }
  }

  #exchange(call: Call): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    const url = new URL(call.path, this.#base);
    const request = (url.protocol === "https:" ? httpsRequest : httpRequest)(url, {
      agent: this.#connections,
      method: call.method,
      ...(call.signal !== undefined && { signal: call.signal }),
      headers: {
        authorization: `Bearer ${this.#token}`,
        "content-type": call.type ?? "application/json",
        "content-length": call.body?.length ?? 0,
        ...(call.attempt !== undefined && { [attemptTokenHeader]: call.attempt.token }),
      },
    });
    const timer = setTimeout(
      () => request.destroy(new Error("it does not answer in time")),
      call.timeoutMs ?? requestTimeoutMs,
    );
    request.on("response", (response) => {
      const parts: Buffer[] = [];
      let length = 0;
      response.on("data", (part: Buffer) => {
        parts.push(part);
        length += part.length;
        if (length > maxAnswerBytes) request.destroy(new Error(`the answer is longer than ${maxAnswerBytes} bytes`));
      });
      response.on("end", () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(parts) }));
      response.on("error", reject);
    });
    request.on("error", (error) => {
      const stale = request.reusedSocket && asError(error).code === "ECONNRESET";
      reject(stale ? new StaleConnectionError() : error);
    });
    request.on("close", () => {
      clearTimeout(timer);
      // An answer cut off in the middle ends without "end".
      reject(new Error("the connection broke"));
    });
    request.end(call.body);
    return promise;
  }

  #unanswered(why: string): UnansweredError {
    if (this.#awaySinceMs === undefined) {
      this.#awaySinceMs = performance.now();
      this.#logger.warn({ server: this.#base.origin }, `cannot reach the server, trying again: ${why}`);
    }
    return new UnansweredError(why);
  }

  #answered(): void {
    this.#hasAnswered = true;
    if (this.#awaySinceMs === undefined) return;
    const seconds = Math.round((performance.now() - this.#awaySinceMs) / 1000);
    this.#awaySinceMs = undefined;
    this.#logger.info({ server: this.#base.origin }, `the server is back after ${seconds} s`);
  }
}

function attemptPath({ attemptId }: AttemptKey, rest: string): string {
  return `api/agent/attempts/${encodeURIComponent(attemptId)}/${rest}`;
}

function json(value: unknown): Pick<Call, "body"> {
  return { body: Buffer.from(JSON.stringify(value)) };
}

function errorText({ status, body }: Answer): string {
  const text = body.toString("utf8", 0, 2000);
  try {
    const { error, message } = JSON.parse(text) as { error?: unknown; message?: unknown };
    if (typeof error === "string") return error;
    if (typeof message === "string") return message;
  } catch {
    // A proxy's page, not our server's answer.
  }
  return text.trim() === "" ? `status ${status}` : text.replaceAll(/\s+/g, " ").slice(0, 200);
}
