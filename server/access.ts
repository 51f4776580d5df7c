import type { FastifyReply, FastifyRequest } from "fastify";
import { HttpError } from "./http-error.ts";
import { sameToken, sessionValue } from "./token.ts";

const cookieName = "slipway-session";

export interface AccessOptions {
  readonly adminToken: string;
  readonly agentToken: string;
  /** The address the server is bound to. */
  readonly host: string;
  readonly publicUrl?: string | undefined;
}

/**
 * Decides who may do what.
 *
 * Agents carry the agent token. Changes need the admin token or a session. Reading is free on a server bound to loopback
 * that is not published under another name (a proxy in front of it may send any Host, its own address too), if the request
 * names it so: a page of a stranger whose name was rebound to 127.0.0.1 sends the stranger's name.
 */
export class Access {
  readonly #options: AccessOptions;
  readonly #session: string;
  readonly #readsAreFree: boolean;
  readonly #publicHost: string | undefined;

  constructor(options: AccessOptions) {
    this.#options = options;
    this.#session = sessionValue(options.adminToken);
    const publicUrl = options.publicUrl ? new URL(options.publicUrl) : undefined;
    this.#publicHost = publicUrl?.host;
    this.#readsAreFree = isLoopback(options.host) && (publicUrl === undefined || isLoopback(publicUrl.hostname));
  }

  /** @throws {HttpError} 401 without the agent token. */
  requireAgent(request: FastifyRequest): void {
    const token = bearer(request);
    if (token === undefined || !sameToken(token, this.#options.agentToken)) {
      throw new HttpError(
        401,
        "The agent token is missing or wrong: give the one in agent-token of the server's data directory",
      );
    }
  }

  /** @throws {HttpError} 401 without admin token or session, 403 if another site's page sent the request. */
  requireAdmin(request: FastifyRequest): void {
    if (this.#isAdmin(request)) return;
    throw new HttpError(401, "Sign in with the token in admin-token of the server's data directory");
  }

  /** @throws {HttpError} 401 if reading is not free and there is neither admin token nor session. */
  requireReader(request: FastifyRequest): void {
    if (this.#readsAreFree && this.#isOwnHost(request.headers.host)) return;
    this.requireAdmin(request);
  }

  /** Starts a session if the token is the admin token. */
  signIn(token: unknown, reply: FastifyReply): boolean {
    if (typeof token !== "string" || !sameToken(token, this.#options.adminToken)) return false;
    const secure = this.#options.publicUrl?.startsWith("https:") ? "; Secure" : "";
    const yearSeconds = 365 * 24 * 3600;
    const attributes = `Path=/; HttpOnly; SameSite=Strict; Max-Age=${yearSeconds}${secure}`;
    void reply.header("set-cookie", `${cookieName}=${this.#session}; ${attributes}`);
    return true;
  }

  #isAdmin(request: FastifyRequest): boolean {
    const token = bearer(request);
    if (token !== undefined) return sameToken(token, this.#options.adminToken);
    const session = cookie(request, cookieName);
    if (session === undefined || !sameToken(session, this.#session)) return false;
    // SameSite lets other ports of the same host through; their pages name themselves in Origin.
    const { origin, host } = request.headers;
    if (origin === undefined || isOrigin(origin, host) || isOrigin(origin, this.#publicHost)) return true;
    throw new HttpError(403, `The page at "${origin.slice(0, 200)}" may not act for you here`);
  }

  #isOwnHost(host: string | undefined): boolean {
    return host !== undefined && isLoopback(host.replace(/:\d+$/, ""));
  }
}

/** Tells whether a host name or address can only mean this machine. */
export function isLoopback(host: string): boolean {
  return /^(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|::1|\[::1\])$/i.test(host);
}

function bearer(request: FastifyRequest): string | undefined {
  return /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? "")?.[1];
}

function cookie(request: FastifyRequest, name: string): string | undefined {
  for (const pair of (request.headers.cookie ?? "").split(";")) {
    const [key, value] = pair.trim().split("=", 2);
    if (key === name) return value;
  }
  return undefined;
}

function isOrigin(origin: string, host: string | undefined): boolean {
  return host !== undefined && URL.canParse(origin) && new URL(origin).host === host.toLowerCase();
}
