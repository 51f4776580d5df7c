/** HTTP to registries: which hosts, which protocol, which redirects, how long. */
import { Agent as HttpAgent, type IncomingMessage, request as httpRequest, type RequestOptions } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { isIP } from "node:net";
import type { Readable } from "node:stream";
import { readFileSync } from "node:fs";
import { rootCertificates } from "node:tls";
import { checkReach, guardedLookup, reach, type Reach, reachOf } from "./registry-address.ts";
import { connectionError, MAX_HEADER_BYTES, RegistryError } from "./registry-error.ts";
import { isLoopbackName } from "./registry-reference.ts";
import type { RegistrySettings } from "./registry-settings.ts";

export interface TransportRequest {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly headers?: Readonly<Record<string, string>>;
  /** A stream needs a `content-length` among the headers. */
  readonly body?: Uint8Array | Readable;
  readonly signal?: AbortSignal | undefined;
  /** For the head of the answer. @default 60000 */
  readonly timeoutMs?: number;
  /** The host that named this one, which must not lead us further inside than it is itself. */
  readonly namedBy?: string;
}

const HEAD_TIMEOUT_MS = 60_000;
const CONNECTIONS_PER_HOST = 16;
const MAX_REDIRECTS = 5;
const userAgent = "slipway/0.1";

/** One for all that an agent asks registries; disposing it closes its connections. */
export class RegistryTransport implements Disposable {
  readonly #settings: RegistrySettings;
  readonly #agents = new Map<string, HttpAgent | HttpsAgent>();
  /** How far inside the hosts are that have been connected to. */
  readonly #reached = new Map<string, Reach>();
  readonly #protocols = new Map<string, Promise<"http:" | "https:">>();

  constructor(settings: RegistrySettings) {
    this.#settings = settings;
  }

  /**
   * The address of a host: HTTPS, or HTTP where the settings allow it by name. For this machine's own names, as for Docker,
   * HTTP is what is left if nobody answers there with TLS.
   */
  async baseUrl(host: string, signal?: AbortSignal): Promise<URL> {
    const settings = this.#settings.hosts?.[host];
    if (settings?.plainHttp === true) return new URL(`http://${host}`);
    if (!isLoopbackName(host) || settings?.plainHttp === false) return new URL(`https://${host}`);
    let protocol = this.#protocols.get(host);
    if (protocol === undefined) {
      protocol = this.#probe(host, signal);
      this.#protocols.set(host, protocol);
      protocol.catch(() => this.#protocols.delete(host));
    }
    return new URL(`${await protocol}//${host}`);
  }

  async #probe(host: string, signal: AbortSignal | undefined): Promise<"http:" | "https:"> {
    try {
      const response = await this.#once(new URL(`https://${host}/v2/`), { method: "HEAD", signal }, reach.loopback);
      response.destroy();
      return "https:";
    } catch (error) {
      const { code = "" } = error as NodeJS.ErrnoException;
      if (code === "EPROTO" || code === "ECONNRESET" || code.startsWith("ERR_SSL_")) return "http:";
      throw connectionError(error, host);
    }
  }

  /**
   * Sends a request and returns the answer's head, whatever its status; the caller reads or destroys its body.
   *
   * Redirects of GET and HEAD are followed; `authorization` stays with the host it is for.
   *
   * @throws {RegistryError} If there is no answer. @throws What the signal was aborted with.
   */
  async request(url: URL, request: TransportRequest): Promise<IncomingMessage> {
    let current = url;
    let headers = request.headers ?? {};
    let most = request.namedBy === undefined ? this.#ownReach(url.host) : this.#reachBy(request.namedBy, url.host);
    for (let hops = 0; ; hops++) {
      request.signal?.throwIfAborted();
      this.#checkProtocol(current, url);
      const response = await this.#once(current, { ...request, headers }, most).catch((error: unknown) => {
        request.signal?.throwIfAborted();
        throw connectionError(error, current.host);
      });
      const { location } = response.headers;
      const status = response.statusCode ?? 0;
      const isRedirect = [301, 302, 303, 307, 308].includes(status) && location !== undefined;
      if (!isRedirect || (request.method !== "GET" && request.method !== "HEAD")) return response;
      response.destroy();
      const next = URL.canParse(location, current) ? new URL(location, current) : undefined;
      if (next === undefined || hops === MAX_REDIRECTS) {
        const why = next === undefined ? "to what is no address" : `more than ${MAX_REDIRECTS} times`;
        throw new RegistryError(`"${current.host}" redirects ${why}`, { transient: false });
      }
      if (next.origin !== current.origin) headers = withoutAuthorization(headers);
      most = this.#reachBy(url.host, next.host);
      current = next;
    }
  }

  /** Only what was asked for unencrypted may be answered so; a redirect must not take the encryption away. */
  #checkProtocol(url: URL, first: URL): void {
    if (url.protocol === "https:") return;
    const allowed = url.host === first.host || isLoopbackName(url.host) || this.#isPlainHost(url.host);
    if (url.protocol === "http:" && first.protocol === "http:" && allowed) return;
    if (url.protocol === "http:" && this.#isPlainHost(url.host)) return;
    throw new RegistryError(
      `"${first.host}" leads to "${url.protocol}//${url.host}": only https is followed, and http where the registries' settings allow it for the host ("plainHttp": true)`,
      { transient: false },
    );
  }

  #isPlainHost(host: string): boolean {
    return this.#settings.hosts?.[host]?.plainHttp === true;
  }

  /** How far inside a host may be that a person has named. */
  #ownReach(host: string): Reach {
    if (this.#settings.hosts?.[host] !== undefined) return reach.linkLocal;
    return isLoopbackName(host) ? reach.loopback : reach.private;
  }

  /** How far inside a host may be that another host has named. */
  #reachBy(by: string, host: string): Reach {
    if (by === host || this.#settings.hosts?.[host] !== undefined) return this.#ownReach(host);
    return Math.min(this.#reached.get(by) ?? reach.public, reach.loopback) as Reach;
  }

  #once(url: URL, request: TransportRequest, most: Reach): Promise<IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const { host, hostname } = url;
    const proxied = this.#isProxied(url);
    const options: RequestOptions = {
      method: request.method,
      // Some registries compress JSON when they may; digests are of what is not.
      headers: { "accept-encoding": "identity", "user-agent": userAgent, ...request.headers },
      agent: this.#agent(url, proxied),
      maxHeaderSize: MAX_HEADER_BYTES,
      ...(request.signal === undefined ? {} : { signal: request.signal }),
    };
    if (!proxied) {
      const literal = hostname.replace(/^\[|\]$/g, "");
      if (isIP(literal) !== 0) {
        checkReach(host, reachOf(literal), most);
        this.#reached.set(host, reachOf(literal));
      } else {
        // A connection that is kept open needs no look-up: what it found out holds.
        checkReach(host, this.#reached.get(host) ?? reach.public, most);
        options.lookup = guardedLookup(most, (found) => this.#reached.set(host, found));
      }
    }
    const outgoing = (url.protocol === "http:" ? httpRequest : httpsRequest)(url, options);
    const timeoutMs = request.timeoutMs ?? HEAD_TIMEOUT_MS;
    const timer = setTimeout(() => {
      outgoing.destroy(
        new RegistryError(`"${host}" does not answer within ${timeoutMs / 1000} s`, { transient: true }),
      );
    }, timeoutMs);
    outgoing.once("response", (response) => {
      clearTimeout(timer);
      resolve(response);
    });
    outgoing.once("close", () => clearTimeout(timer));
    // After the answer's head an error is the body's; somebody must listen all the same.
    outgoing.on("error", reject);
    if (request.body === undefined || request.body instanceof Uint8Array) {
      outgoing.end(request.body);
    } else {
      request.body.once("error", (error) => outgoing.destroy(error));
      request.body.pipe(outgoing);
    }
    return promise;
  }

  #agent(url: URL, proxied: boolean): HttpAgent | HttpsAgent {
    const key = `${url.protocol}//${url.host} ${proxied}`;
    const known = this.#agents.get(key);
    if (known !== undefined) return known;
    const { ca: caFile } = this.#settings.hosts?.[url.host] ?? {};
    const options = {
      keepAlive: true,
      maxSockets: CONNECTIONS_PER_HOST,
      timeout: HEAD_TIMEOUT_MS,
      ...(proxied ? { proxyEnv: proxyVariables(this.#settings.environment) } : {}),
    };
    const agent =
      url.protocol === "http:"
        ? new HttpAgent(options)
        : new HttpsAgent({
            ...options,
            ...(caFile === undefined ? {} : { ca: [...rootCertificates, readCa(caFile)] }),
          });
    this.#agents.set(key, agent);
    return agent;
  }

  #isProxied(url: URL): boolean {
    const variables = proxyVariables(this.#settings.environment);
    const proxy = url.protocol === "http:" ? variables.HTTP_PROXY : variables.HTTPS_PROXY;
    return Boolean(proxy) && !isLoopbackName(url.host) && !isExempt(url, this.#settings.environment);
  }

  [Symbol.dispose](): void {
    for (const agent of this.#agents.values()) agent.destroy();
    this.#agents.clear();
  }
}

function withoutAuthorization(headers: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => name.toLowerCase() !== "authorization"));
}

function readCa(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new Error(`Cannot read the certificates in the registries' settings: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function proxyVariables(environment: RegistrySettings["environment"]): { HTTP_PROXY?: string; HTTPS_PROXY?: string } {
  const http = environment?.["http_proxy"] || environment?.["HTTP_PROXY"];
  const https = environment?.["https_proxy"] || environment?.["HTTPS_PROXY"];
  return { ...(http ? { HTTP_PROXY: http } : {}), ...(https ? { HTTPS_PROXY: https } : {}) };
}

/** NO_PROXY: hosts and domains separated by commas, `*` for all; a port is part of the match where it is written. */
function isExempt(url: URL, environment: RegistrySettings["environment"]): boolean {
  const list = environment?.["no_proxy"] || environment?.["NO_PROXY"] || "";
  return list
    .split(",")
    .map((entry) =>
      entry
        .trim()
        .toLowerCase()
        .replace(/^\*?\./, ""),
    )
    .some(
      (entry) =>
        entry !== "" &&
        (entry === "*" || entry === url.host || entry === url.hostname || url.hostname.endsWith(`.${entry}`)),
    );
}
