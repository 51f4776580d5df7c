/** One end of a shell: messages and bytes over a WebSocket, the bytes limited by credit in both directions. */
import type { WebSocket } from "ws";
import { loadWs } from "./libraries.ts";
import {
  maxShellMessageBytes,
  parseShellMessage,
  type ShellData,
  type ShellMessage,
  shellPingMs,
} from "./shell-protocol.ts";
import type { z } from "zod";

/**
 * How much may be on its way, in bytes and `messageCost` for each message: an end sends no more before the other one has
 * said that it has taken some. So neither end, nor the server in between, ever holds more of one direction.
 */
const windowCost = 256 << 10;
/** What a message costs beside its bytes: else a million messages of one byte would fit. */
const messageCost = 64;
const longestPiece = 32 << 10;
/** Taken bytes are told in portions of this. */
const ackCost = windowCost / 8;

const dialTimeoutMs = 15_000;

export interface ShellChannelHandlers<Message> {
  /** A text message other than an acknowledgement, which is the channel's own business. */
  message(message: Message): void;
  /** Bytes came. `taken` is called once they are where they belong; until then they count against the sender. */
  data(kind: number, bytes: Buffer, taken: () => void): void;
  /** `write` may be called again after it answered `false`. */
  drain(): void;
  /** Called once, at last; why, if not by `close` on either side. */
  closed(reason: string | undefined): void;
}

/** A connection for a shell that the server has accepted. */
export type ShellSocket = WebSocket;

/** One end of a shell, from its connection on. */
export class ShellChannel<Message extends { readonly type: string }> {
  readonly #socket: WebSocket;
  readonly #schema: z.ZodType<Message>;
  readonly #handlers: ShellChannelHandlers<Message>;
  #credit = windowCost;
  #owed = 0;
  #taken = 0;
  #waiting = false;
  #reason: string | undefined;
  #silence: NodeJS.Timeout | undefined;

  /** @param socket Open; the channel's from now on. */
  constructor(socket: WebSocket, schema: z.ZodType<Message>, handlers: ShellChannelHandlers<Message>) {
    this.#socket = socket;
    this.#schema = schema;
    this.#handlers = handlers;
    socket.on("message", (data: Buffer, isBinary: boolean) => this.#receive(data, isBinary));
    socket.on("ping", () => this.#alive());
    socket.on("error", (error) => (this.#reason ??= error.message));
    socket.on("close", (code, text) => {
      clearTimeout(this.#silence);
      const said = text.toString();
      this.#reason ??= code === 1000 ? undefined : said === "" ? `the connection broke (${code})` : said;
      this.#handlers.closed(this.#reason);
    });
    this.#alive();
  }

  /**
   * Dials the server and resolves when it has accepted.
   *
   * @param url With http or https.
   * @throws {ShellRefusedError} If the server answered with a status instead.
   * @throws {Error} If it cannot be reached.
   */
  static async dial(
    url: URL,
    options: { readonly headers: Readonly<Record<string, string>>; readonly signal?: AbortSignal },
  ): Promise<ShellSocket> {
    options.signal?.throwIfAborted();
    const { WebSocket: Socket } = loadWs();
    const address = new URL(url);
    address.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new Socket(address, {
      headers: options.headers,
      perMessageDeflate: false,
      maxPayload: maxShellMessageBytes,
      handshakeTimeout: dialTimeoutMs,
    });
    const { promise, resolve, reject } = Promise.withResolvers<WebSocket>();
    const abort = () => socket.terminate();
    options.signal?.addEventListener("abort", abort, { once: true });
    socket.on("unexpected-response", (_request, response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => void (parts.length < 16 && parts.push(part)));
      response.on("close", () => {
        reject(new ShellRefusedError(response.statusCode ?? 0, Buffer.concat(parts).toString()));
        socket.terminate();
      });
    });
    socket.on("open", () => {
      // Messages that come right behind the answer wait until the channel listens.
      socket.pause();
      resolve(socket);
    });
    socket.on("error", (error) => reject(options.signal?.aborted ? options.signal.reason : error));
    try {
      return await promise;
    } finally {
      options.signal?.removeEventListener("abort", abort);
    }
  }

  /** Begins to hand on what comes, after the handlers can take it. */
  start(): void {
    this.#socket.resume();
  }

  /** Sends a message; it waits for no credit. */
  send(message: ShellMessage): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Sends all of `bytes` (copied) and answers whether more is welcome; `drain` follows a `false`. */
  write(kind: ShellData, bytes: Uint8Array): boolean {
    for (let at = 0; at < bytes.length; at += longestPiece) {
      const piece = bytes.subarray(at, at + longestPiece);
      const message = Buffer.allocUnsafe(1 + piece.length);
      message[0] = kind;
      message.set(piece, 1);
      this.#credit -= piece.length + messageCost;
      if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(message);
    }
    this.#waiting = this.#credit <= 0;
    return !this.#waiting;
  }

  /** Closes; what was sent before arrives. */
  close(): void {
    this.#socket.close(1000);
  }

  /** Breaks the connection off; the other end is told that it broke. */
  terminate(reason: string): void {
    this.#reason ??= reason;
    this.#socket.terminate();
  }

  #receive(data: Buffer, isBinary: boolean): void {
    try {
      if (isBinary) this.#receiveBytes(data);
      else this.#receiveMessage(data.toString());
    } catch (error) {
      this.terminate(error instanceof Error ? error.message : String(error));
    }
  }

  #receiveBytes(data: Buffer): void {
    const cost = data.length - 1 + messageCost;
    this.#owed += cost;
    // A sender that counts right goes one piece beyond the window at the most.
    if (this.#owed > windowCost + 2 * longestPiece) throw new Error("it sends more than was asked for");
    let isTaken = false;
    this.#handlers.data(data[0] ?? 0, data.subarray(1), () => {
      if (isTaken) return;
      isTaken = true;
      this.#owed -= cost;
      this.#taken += cost;
      if (this.#taken < ackCost) return;
      this.send({ type: "ack", cost: this.#taken });
      this.#taken = 0;
    });
  }

  #receiveMessage(text: string): void {
    const message = parseShellMessage(this.#schema, text);
    if (message.type !== "ack") return this.#handlers.message(message);
    this.#credit = Math.min(windowCost, this.#credit + (message as unknown as { cost: number }).cost);
    if (!this.#waiting || this.#credit <= 0) return;
    this.#waiting = false;
    this.#handlers.drain();
  }

  #alive(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.terminate("the server does not answer any more"), 3 * shellPingMs);
  }
}

/** The server answered the dialing with a status: it refuses. */
export class ShellRefusedError extends Error {
  override readonly name = "ShellRefusedError";
  readonly status: number;

  constructor(status: number, body: string) {
    super(refusal(status, body));
    this.status = status;
  }
}

function refusal(status: number, body: string): string {
  try {
    const { error } = JSON.parse(body) as { error?: unknown };
    if (typeof error === "string") return error;
  } catch {
    // A proxy's page, not our server's answer.
  }
  return `it answers ${status}`;
}
