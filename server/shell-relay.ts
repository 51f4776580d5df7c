/** Pairs a person's command line with the agent that runs the step, and hands messages on between them. */
import { randomBytes } from "node:crypto";
import type { Logger } from "pino";
import { type RawData, WebSocket } from "ws";
import {
  clientMessageSchema,
  maxShellMessageBytes,
  parseShellMessage,
  type ShellAgentMessage,
  type ShellOpen,
  type ShellOpenStep,
  shellPingMs,
} from "../queue/index.ts";
import { HttpError } from "./http-error.ts";

/** The step that a shell is wanted in. */
export interface ShellTarget {
  readonly buildId: string;
  readonly attemptId: string;
  readonly step: number;
  /** What the agent calls itself. */
  readonly agent: string;
}

export interface ShellRelayOptions {
  /** Has the agent ask what there is; it may not hear it. */
  readonly wake: (attemptId: string) => void;
  /** How long the agent may take to dial in: long enough for it to ask by itself. */
  readonly dialMs: number;
  /** Told when a session begins, by whom, and when it is over. */
  readonly onSession: (target: ShellTarget, event: { readonly by: string } & ShellEvent) => void;
  readonly logger: Logger;
  /** @default 15000 */
  readonly pingMs?: number;
}

export type ShellEvent = { readonly kind: "opened" } | { readonly kind: "closed"; readonly durationMs: number };

const maxSessions = 200;
/** The ends keep to their credit (queue/shell-channel.ts), which is less; one that does not is cut off here. */
const maxBufferedBytes = 4 * maxShellMessageBytes;
const openTimeoutMs = 10_000;

/**
 * The sessions of one server. They live in memory and end with it.
 *
 * What the ends say is not looked at, but for the first message, which is checked, completed and kept until the agent has
 * dialed in.
 */
export class ShellRelay implements Disposable {
  readonly #options: ShellRelayOptions;
  readonly #sessions = new Map<string, Session>();
  readonly #ping: NodeJS.Timeout;

  constructor(options: ShellRelayOptions) {
    this.#options = options;
    this.#ping = setInterval(() => {
      for (const session of this.#sessions.values()) session.ping();
    }, options.pingMs ?? shellPingMs);
    this.#ping.unref();
  }

  /**
   * Begins a session before its person's connection is accepted, which then goes to `connect`.
   *
   * @throws {HttpError} 409 if there is one in this step already, 503 if there are too many.
   */
  begin(target: ShellTarget): Session {
    const key = keyOf(target);
    for (const session of this.#sessions.values()) {
      if (keyOf(session.target) !== key) continue;
      throw new HttpError(409, `Somebody has a shell in this step already: ${session.by ?? "it is just being opened"}`);
    }
    if (this.#sessions.size >= maxSessions) throw new HttpError(503, `There are ${maxSessions} shells open already`);
    const id = randomBytes(24).toString("base64url");
    const session = new Session(id, target, this.#options, () => this.#sessions.delete(id));
    this.#sessions.set(id, session);
    return session;
  }

  /** Lists the sessions in an attempt that wait for its agent. */
  waiting(attemptId: string): string[] {
    return [...this.#sessions.values()]
      .filter(({ target, isWaiting }) => isWaiting && target.attemptId === attemptId)
      .map(({ id }) => id);
  }

  /** @throws {HttpError} 404 if it is over or has its agent already. */
  find(id: string): Session {
    const session = this.#sessions.get(id);
    if (session?.isWaiting !== true) throw new HttpError(404, "There is no such session, or not any more");
    return session;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#ping);
    for (const session of this.#sessions.values()) session.end("the server is stopping");
  }
}

/** One shell: a person's socket, and the agent's once it has dialed in. */
export class Session {
  readonly id: string;
  readonly target: ShellTarget;
  readonly #options: ShellRelayOptions;
  readonly #onOver: () => void;
  /** Which of them have answered the last ping. */
  readonly #alive = new WeakSet<WebSocket>();
  #client: WebSocket | undefined;
  #agent: WebSocket | undefined;
  #open: ShellOpen | undefined;
  #timer: NodeJS.Timeout | undefined;
  #openedAtMs: number | undefined;
  #isOver = false;

  /** @internal */
  constructor(id: string, target: ShellTarget, options: ShellRelayOptions, onOver: () => void) {
    this.id = id;
    this.target = target;
    this.#options = options;
    this.#onOver = onOver;
  }

  /** Who opened it, once that is known. */
  get by(): string | undefined {
    return this.#open?.by;
  }

  /** Whether it has a person and no agent yet. */
  get isWaiting(): boolean {
    return this.#open !== undefined && this.#agent === undefined && !this.#isOver;
  }

  /** Takes the person's socket and waits for its first message. @param address Where it comes from. */
  connect(client: WebSocket, address: string): void {
    this.#client = client;
    this.#watch(client, () => this.end(undefined));
    this.#timer = setTimeout(() => this.end("no word came"), openTimeoutMs);
    client.on("message", (data, isBinary) => {
      if (this.#open === undefined) this.#receiveOpen(data, isBinary, address);
      else if (this.#agent === undefined) this.end("Cannot open the shell: something was sent before it was opened");
      else this.#handOn(data, isBinary, this.#agent);
    });
  }

  /** Takes the agent's socket; from here on the two talk. */
  join(agent: WebSocket): void {
    const client = this.#client;
    const open = this.#open;
    if (this.#isOver || client === undefined || open === undefined) return agent.close(4000, "it is over");
    clearTimeout(this.#timer);
    this.#agent = agent;
    this.#openedAtMs = performance.now();
    this.#watch(agent, (code) => this.end(code === 1000 ? undefined : "the connection to the agent broke"));
    const { attemptId, step } = this.target;
    agent.send(JSON.stringify({ ...open, attemptId, step } satisfies ShellOpenStep));
    agent.on("message", (data, isBinary) => this.#handOn(data, isBinary, client));
    this.#options.onSession(this.target, { kind: "opened", by: open.by });
  }

  /** Ends it; the person is told why, unless both know. */
  end(why: string | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#onOver();
    if (why !== undefined) this.#tell({ type: "error", message: why });
    this.#client?.close(1000);
    this.#agent?.close(4000, "the other end is gone");
    if (this.#openedAtMs === undefined || this.#open === undefined) return;
    const durationMs = performance.now() - this.#openedAtMs;
    this.#options.onSession(this.target, { kind: "closed", by: this.#open.by, durationMs });
  }

  /** Breaks off an end that has not answered the last ping, and pings again. */
  ping(): void {
    for (const socket of [this.#client, this.#agent]) {
      if (socket === undefined) continue;
      if (!this.#alive.delete(socket)) socket.terminate();
      else socket.ping();
    }
  }

  #watch(socket: WebSocket, onClose: (code: number) => void): void {
    this.#alive.add(socket);
    socket.on("pong", () => this.#alive.add(socket));
    socket.on("close", onClose);
    if (socket.readyState !== WebSocket.OPEN) onClose(1006);
  }

  #receiveOpen(data: RawData, isBinary: boolean, address: string): void {
    const { attemptId, agent } = this.target;
    try {
      if (isBinary) throw new Error("it sent bytes before it said what for");
      const message = parseShellMessage(clientMessageSchema, (data as Buffer).toString());
      if (message.type !== "open") throw new Error(`it began with "${message.type}", not with "open"`);
      this.#open = { ...message, by: `${message.by === "" ? "somebody" : message.by.slice(0, 200)} (${address})` };
    } catch (error) {
      return this.end(`Cannot open the shell: ${(error as Error).message}`);
    }
    this.#tell({ type: "waiting", agent });
    clearTimeout(this.#timer);
    const { dialMs } = this.#options;
    const late = `agent "${agent}" has not answered for ${Math.round(dialMs / 1000)} s; it may be gone`;
    this.#timer = setTimeout(() => this.end(late), dialMs);
    this.#options.wake(attemptId);
  }

  #handOn(data: RawData, isBinary: boolean, to: WebSocket): void {
    if (to.readyState !== WebSocket.OPEN) return;
    to.send(data as Buffer, { binary: isBinary });
    if (to.bufferedAmount <= maxBufferedBytes) return;
    const who = to === this.#agent ? "the command line" : "the agent";
    this.#options.logger.warn({ session: this.id, ...this.target }, `${who} sends more than was asked for`);
    this.end("more was sent than was asked for");
    this.#client?.terminate();
    this.#agent?.terminate();
  }

  #tell(message: ShellAgentMessage): void {
    if (this.#client?.readyState === WebSocket.OPEN) this.#client.send(JSON.stringify(message));
  }
}

function keyOf({ attemptId, step }: ShellTarget): string {
  return `${attemptId}/${step}`;
}
