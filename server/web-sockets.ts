import { type IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type WebSocket, WebSocketServer } from "ws";
import { maxShellMessageBytes } from "../queue/index.ts";
import { HttpError } from "./http-error.ts";

/** Whether Node is to hand a request over instead of answering it: `curl --http2` asks for an upgrade to h2c. */
export function isWebSocket(request: Pick<IncomingMessage, "headers">): boolean {
  return request.headers.upgrade?.toLowerCase() === "websocket";
}

/**
 * Accepts WebSockets in ordinary routes: a request for one goes through the router, its hooks and its error handler like
 * any other, and becomes a WebSocket only where its route says so.
 */
export class WebSockets implements Disposable {
  readonly #server = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: maxShellMessageBytes,
  });
  /** What came right behind the request. */
  readonly #heads = new WeakMap<IncomingMessage, Buffer>();

  constructor(app: FastifyInstance) {
    app.server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => socket.destroy());
      this.#heads.set(request, head);
      const response = new ServerResponse(request);
      response.shouldKeepAlive = false;
      response.on("finish", () => socket.end());
      response.assignSocket(request.socket);
      app.routing(request, response);
    });
  }

  /**
   * Turns a request into a WebSocket; the reply is over.
   *
   * @throws {HttpError} 426 if it does not ask for one.
   */
  async accept({ raw }: FastifyRequest, reply: FastifyReply): Promise<WebSocket> {
    const head = this.#heads.get(raw);
    if (head === undefined || !isWebSocket(raw)) {
      void reply.header("upgrade", "websocket");
      throw new HttpError(426, "This address takes WebSockets only: slipway shell opens one");
    }
    reply.hijack();
    reply.raw.detachSocket(raw.socket);
    const { promise, resolve, reject } = Promise.withResolvers<WebSocket>();
    const gone = () => reject(new Error("the connection broke"));
    raw.socket.once("close", gone);
    this.#server.handleUpgrade(raw, raw.socket, head, (socket) => {
      raw.socket.off("close", gone);
      socket.on("error", () => {}); // "close" follows
      resolve(socket);
    });
    return await promise;
  }

  /** Breaks off what is still open. */
  [Symbol.dispose](): void {
    for (const socket of this.#server.clients) socket.terminate();
  }
}
