/**
 * What is asked of a registry, with proof of who we are, retries and mirrors.
 *
 * @see {@link https://github.com/opencontainers/distribution-spec/blob/main/spec.md}
 */
import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import { z } from "zod";
import { ImageError } from "./image-error.ts";
import { type AccessRequest, RegistryAuthorizer } from "./registry-auth.ts";
import { readBody, readPieces } from "./registry-body.ts";
import { cleanText, RegistryError } from "./registry-error.ts";
import { dockerHub, type ImageReference } from "./registry-reference.ts";
import { parseRetryAfter, withRetries } from "./registry-retry.ts";
import type { Credentials, RegistrySettings } from "./registry-settings.ts";
import { RegistryTransport, type TransportRequest } from "./registry-transport.ts";

/** One place that has a repository. */
export interface Endpoint {
  /** As in a reference: `docker.io`, `mirror.example:5000`. */
  readonly registry: string;
  /** Where requests go. */
  readonly host: string;
  readonly repository: string;
  readonly isMirror: boolean;
}

export interface RegistryRequest extends Omit<TransportRequest, "body" | "namedBy"> {
  /** Behind `/v2/REPOSITORY/`; or a whole address of the same registry that it has named. */
  readonly path: string | URL;
  /** Made anew for each try. */
  readonly body?: () => Uint8Array | Readable;
  /** What the answer may be; everything else is an error. */
  readonly expect: readonly number[];
  /** What is done: `pull`, `pull,push`. @default "pull" */
  readonly access?: string;
  /** Further scopes: to mount a blob from another repository. */
  readonly scopes?: readonly string[];
  /** @default as many as the client tries */
  readonly attempts?: number;
}

export interface ClientOptions {
  /** Instead of those the agent has. */
  readonly credentials?: Credentials;
  /** @default 5 */
  readonly attempts?: number;
  /** Before the first retry. @default 500 */
  readonly retryBaseMs?: number;
  /** How long a registry may send nothing. @default 30000 for a body, 60000 for the head of an answer */
  readonly stallMs?: number;
  /** Told of what went wrong and is tried again. */
  readonly onRetry?: (error: RegistryError, waitMs: number) => void;
}

/** As whom registries are asked. */
export interface ClientIdentity {
  /** By registry, as in a reference; the others are asked as before. */
  readonly credentials?: ReadonlyMap<string, Credentials>;
  /**
   * Asks all as nobody, and no mirror, which may have credentials of its own: what is had this way anybody may have. Says why, for
   * who is denied access.
   */
  readonly nobody?: string;
}

/** Docker's own registry has another host than its name. */
const dockerHubHost = "registry-1.docker.io";
const MAX_ERROR_BYTES = 65_536;

/** Asks registries. One for many images: it keeps connections and tokens. */
export class RegistryClient implements Disposable {
  readonly retryBaseMs: number;
  readonly #settings: RegistrySettings;
  readonly #options: ClientOptions;
  readonly #transport: RegistryTransport;
  readonly #authorizer: RegistryAuthorizer;
  readonly #identity: ClientIdentity;
  readonly #isBorrowed: boolean;

  /** @param as Of another client, whose connections are used: whose they are, and as whom this one asks. */
  constructor(
    settings: RegistrySettings,
    options: ClientOptions = {},
    as?: { readonly identity: ClientIdentity; readonly transport: RegistryTransport },
  ) {
    this.#settings = settings;
    this.#options = options;
    this.retryBaseMs = options.retryBaseMs ?? 500;
    this.#identity = as?.identity ?? {};
    this.#isBorrowed = as !== undefined;
    this.#transport = as?.transport ?? new RegistryTransport(settings);
    const known = this.#identity.nobody === undefined ? settings : {};
    this.#authorizer = new RegistryAuthorizer(known, this.#transport);
  }

  /** One that asks as somebody else over the same connections, with tokens of its own. It ends with this one. */
  as(identity: ClientIdentity): RegistryClient {
    const { credentials, ...options } = this.#options;
    const given = identity.nobody === undefined && credentials !== undefined ? { credentials } : {};
    return new RegistryClient(this.#settings, { ...options, ...given }, { identity, transport: this.#transport });
  }

  /** Whether what it has had of a registry so far was given to nobody in particular, by the registry itself. */
  hasAskedAsNobody({ registry }: Pick<ImageReference, "registry">): boolean {
    const mirrors = this.#mirrors(registry);
    return mirrors.length === 0 && !this.#authorizer.hasShown(registry);
  }

  #mirrors(registry: string): readonly string[] {
    return this.#identity.nobody === undefined ? (this.#settings.hosts?.[registry]?.mirrors ?? []) : [];
  }

  /** Where an image may be pulled from, in the order to try: its mirrors, then its registry. */
  endpoints({ registry, repository }: Pick<ImageReference, "registry" | "repository">): Endpoint[] {
    const mirrors = this.#mirrors(registry);
    return [
      ...mirrors.map((mirror): Endpoint => {
        const slash = mirror.indexOf("/");
        const host = slash === -1 ? mirror : mirror.slice(0, slash);
        const prefix = slash === -1 ? "" : `${mirror.slice(slash + 1).replace(/\/+$/, "")}/`;
        return { registry: host, host: hostOf(host), repository: `${prefix}${repository}`, isMirror: true };
      }),
      this.origin({ registry, repository }),
    ];
  }

  /** The registry itself: where an image is pushed to. */
  origin({ registry, repository }: Pick<ImageReference, "registry" | "repository">): Endpoint {
    return { registry, host: hostOf(registry), repository, isMirror: false };
  }

  /** Where a registry's own paths begin. */
  baseUrl({ host }: Endpoint, signal?: AbortSignal): Promise<URL> {
    return this.#transport.baseUrl(host, signal);
  }

  /**
   * Sends a request, again if it fails in a way that passes, and returns the answer's head.
   *
   * @throws {ImageError} If access is denied or there is no such thing: the user's failure.
   * @throws {RegistryError} If the registry cannot be reached, or answers what is not expected.
   */
  async send(endpoint: Endpoint, request: RegistryRequest): Promise<IncomingMessage> {
    return await withRetries(() => this.#authorized(endpoint, request), {
      attempts: request.attempts ?? (endpoint.isMirror ? 2 : (this.#options.attempts ?? 5)),
      baseMs: this.retryBaseMs,
      signal: request.signal,
      onRetry: this.#options.onRetry,
    });
  }

  async #authorized(endpoint: Endpoint, request: RegistryRequest): Promise<IncomingMessage> {
    const { host, registry, repository } = endpoint;
    const { signal, timeoutMs = this.#options.stallMs } = request;
    const base = await this.#transport.baseUrl(host, signal);
    const url = request.path instanceof URL ? request.path : new URL(`/v2/${repository}/${request.path}`, base);
    const given = this.#identity.credentials?.get(registry) ?? this.#options.credentials;
    const credentials = endpoint.isMirror || this.#identity.nobody !== undefined ? undefined : given;
    const access: AccessRequest = {
      registry,
      host,
      repository,
      scopes: [`repository:${repository}:${request.access ?? "pull"}`, ...(request.scopes ?? [])],
      credentials,
      signal,
    };
    let authorization = await this.#authorizer.header(access);
    for (let attempt = 0; ; attempt++) {
      const response = await this.#transport.request(url, {
        method: request.method,
        // An upload's address may be another host's, signed by itself.
        headers: {
          ...request.headers,
          ...(authorization === undefined || url.host !== base.host ? {} : { authorization }),
        },
        ...(request.body === undefined ? {} : { body: request.body() }),
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
        ...(url.host === base.host ? {} : { namedBy: base.host }),
        signal,
      });
      const status = response.statusCode ?? 0;
      if (request.expect.includes(status)) return response;
      if (status === 401 && attempt === 0) {
        const sent = authorization;
        const challenge = response.headers["www-authenticate"];
        if (this.#authorizer.learn(access, challenge)) {
          authorization = await this.#authorizer.header(access);
          if (authorization !== undefined && authorization !== sent) {
            response.destroy();
            continue;
          }
        }
      }
      const { nobody } = this.#identity;
      throw await answerError(response, { endpoint, request, known: authorization !== undefined, nobody });
    }
  }

  /** Reads an answer's body in pieces. @throws {RegistryError} If it stalls, trickles or breaks off. */
  pieces(response: IncomingMessage, endpoint: Endpoint, signal?: AbortSignal): AsyncGenerator<Buffer, void> {
    return readPieces(response, { host: endpoint.host, signal, stallMs: this.#options.stallMs });
  }

  /** Reads an answer's small body. @throws {RegistryError} If it is longer than `maxBytes`. */
  body(
    response: IncomingMessage,
    endpoint: Endpoint,
    options: { readonly maxBytes: number; readonly signal?: AbortSignal | undefined },
  ): Promise<Buffer> {
    return readBody(response, { host: endpoint.host, stallMs: this.#options.stallMs, ...options });
  }

  [Symbol.dispose](): void {
    if (!this.#isBorrowed) this.#transport[Symbol.dispose]();
  }
}

function hostOf(registry: string): string {
  return registry === dockerHub ? dockerHubHost : registry;
}

const errorsSchema = z.object({
  errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })).min(1),
});

/** What an answer that was not expected means. Its body is read, as far as it is short. */
async function answerError(
  response: IncomingMessage,
  context: {
    readonly endpoint: Endpoint;
    readonly request: RegistryRequest;
    readonly known: boolean;
    readonly nobody: string | undefined;
  },
): Promise<ImageError | RegistryError> {
  const { endpoint, request, known, nobody } = context;
  const { registry, repository } = endpoint;
  const status = response.statusCode ?? 0;
  const said = await readErrors(response, endpoint.host, request.signal);
  const words = said === "" ? `${status}` : `${status}: ${said}`;
  switch (status) {
    case 401:
    case 403: {
      const mend =
        nobody ??
        (known
          ? "the credentials there are do not give access"
          : 'if it is private, give credentials: "registries" of the pipeline, docker login, or the registries\' settings');
      return new ImageError(`registry "${registry}" denies access to "${repository}" (${words}); ${mend}`);
    }
    case 404:
      return new ImageError(`registry "${registry}" does not have it in "${repository}" (${words})`);
    default: {
      const transient = status === 408 || status === 425 || status === 429 || status >= 500;
      const limited = status === 429 ? "limits how much may be asked" : "answers";
      return new RegistryError(`registry "${registry}" ${limited} (${words})`, {
        status,
        transient,
        retryAfterMs: parseRetryAfter(response.headers["retry-after"]),
      });
    }
  }
}

/** The registry's own words, for a person. */
async function readErrors(response: IncomingMessage, host: string, signal: AbortSignal | undefined): Promise<string> {
  try {
    const body = await readBody(response, { host, maxBytes: MAX_ERROR_BYTES, signal });
    const { errors } = errorsSchema.parse(JSON.parse(body.toString("utf8")));
    const [first] = errors;
    return cleanText(first?.message || first?.code || "");
  } catch {
    signal?.throwIfAborted();
    return "";
  }
}
