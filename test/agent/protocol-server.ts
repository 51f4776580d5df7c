/** A server that speaks queue/protocol.ts over real HTTP and remembers what it was told; it can be stopped and come back. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import {
  attemptTokenHeader,
  type BuildEnd,
  type ClaimedJob,
  type FinishReport,
  type StepReport,
} from "../../queue/index.ts";

export interface LogRecord {
  readonly stream: number;
  readonly timeMs: number;
  readonly text: string;
}

export class ProtocolServer implements AsyncDisposable {
  readonly agentToken = "agent-token";
  readonly jobs = new Map<string, ClaimedJob>();
  readonly owners = new Map<string, string>();
  readonly reports: { readonly index: number; readonly report: StepReport }[] = [];
  readonly finished = new Map<string, FinishReport>();
  readonly logs = new Map<number, Buffer>();
  readonly records: LogRecord[] = [];
  readonly requests: string[] = [];
  /** Answered before anything else, if it returns a status. */
  intercept: ((path: string, body: Buffer) => { status: number; body?: unknown } | undefined) | undefined;
  canceled = false;
  buildEnd: BuildEnd = { ended: false };
  leaseMs = 30_000;
  #port = 0;
  #server: Server | undefined;
  readonly #waiting: { condition: () => boolean; resolve: () => void }[] = [];

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  async start(): Promise<void> {
    this.#server = createServer((request, response) => void this.#serve(request, response));
    await new Promise<void>((resolve) => this.#server?.listen(this.#port, "127.0.0.1", resolve));
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  /** As if killed: open connections break. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    server?.closeAllConnections();
    await new Promise<void>((resolve) => (server === undefined ? resolve() : server.close(() => resolve())));
  }

  /** Resolves as soon as a request has made the condition true. */
  async until(condition: () => boolean): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve) => this.#waiting.push({ condition, resolve }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  log(index: number): string {
    return (this.logs.get(index) ?? Buffer.alloc(0)).toString();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part as Buffer);
      const body = Buffer.concat(parts);
      const path = request.url ?? "";
      this.requests.push(`${request.method} ${path}`);
      const answer = this.intercept?.(path, body) ?? this.#answer(path, request, body);
      response.writeHead(answer.status, { "content-type": "application/json" });
      response.end(answer.body === undefined ? undefined : JSON.stringify(answer.body));
    } catch {
      response.destroy();
    }
    const ready = this.#waiting.filter(({ condition }) => condition());
    for (const waiting of ready) {
      this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
      waiting.resolve();
    }
  }

  #answer(path: string, request: IncomingMessage, body: Buffer): { status: number; body?: unknown } {
    if (request.headers.authorization !== `Bearer ${this.agentToken}`) return { status: 401, body: { error: "who?" } };
    if (path === "/api/agent/hello") return { status: 204 };
    if (path === "/api/agent/claim")
      return this.#claim(JSON.parse(body.toString()) as { attemptId: string; agent: string });
    const [, attemptId = "", action = ""] = /^\/api\/agent\/attempts\/([^/]+)\/(.*)$/.exec(path) ?? [];
    if (action === "build" && this.jobs.get(attemptId)?.token === request.headers[attemptTokenHeader]) {
      return { status: 200, body: this.buildEnd };
    }
    if (this.jobs.get(attemptId)?.token !== request.headers[attemptTokenHeader] || this.finished.has(attemptId)) {
      return { status: 409, body: { error: "not yours" } };
    }
    if (action === "renew") return { status: 200, body: { canceled: this.canceled, leaseMs: this.leaseMs } };
    if (action === "finish") {
      this.finished.set(attemptId, JSON.parse(body.toString()) as FinishReport);
      return { status: 204 };
    }
    const [, index = "", log, offset] = /^steps\/(\d+)(?:\/(log)\?offset=(\d+))?$/.exec(action) ?? [];
    if (log !== undefined) return this.#append(Number(index), Number(offset), body);
    this.reports.push({ index: Number(index), report: JSON.parse(body.toString()) as StepReport });
    return { status: 204 };
  }

  #claim({ attemptId, agent }: { attemptId: string; agent: string }): { status: number; body?: unknown } {
    const job = this.jobs.get(attemptId);
    if (job === undefined || this.owners.has(attemptId)) return { status: 409, body: { error: "taken" } };
    this.owners.set(attemptId, agent);
    return { status: 200, body: job };
  }

  #append(index: number, offset: number, body: Buffer): { status: number; body?: unknown } {
    const log = this.logs.get(index) ?? Buffer.alloc(0);
    const count = body.readUInt32LE(0);
    const bytes = body.subarray(4 + count * 16);
    if (offset < log.length && offset + bytes.length <= log.length)
      return { status: 200, body: { offset: log.length } };
    if (offset !== log.length) return { status: 416, body: { offset: log.length } };
    let at = 0;
    for (let record = 0; record < count; record++) {
      const length = body.readUInt32LE(4 + record * 16);
      const stream = body.readUInt32LE(8 + record * 16);
      const timeMs = body.readDoubleLE(12 + record * 16);
      this.records.push({ stream, timeMs, text: bytes.toString("utf8", at, at + length) });
      at += length;
    }
    if (at !== bytes.length) return { status: 400, body: { error: `${at} of ${bytes.length} bytes have records` } };
    this.logs.set(index, Buffer.concat([log, bytes]));
    return { status: 200, body: { offset: log.length + bytes.length } };
  }
}
