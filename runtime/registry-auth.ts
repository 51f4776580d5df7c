/**
 * Proves to registries who we are: Basic, and tokens of a realm (Bearer).
 *
 * @see {@link https://distribution.github.io/distribution/spec/auth/token/}
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { readBody } from "./registry-body.ts";
import { findCredentials } from "./registry-credentials.ts";
import { cleanText, RegistryError } from "./registry-error.ts";
import type { Credentials, RegistrySettings } from "./registry-settings.ts";
import type { RegistryTransport } from "./registry-transport.ts";

/** What is asked for, and where. */
export interface AccessRequest {
  /** As in a reference: whose credentials these are. */
  readonly registry: string;
  /** Where requests go: the registry's own host, or a mirror's. */
  readonly host: string;
  readonly repository: string;
  /** `repository:library/node:pull`; several where a blob is mounted from another repository. */
  readonly scopes: readonly string[];
  /** Instead of those the agent has. */
  readonly credentials?: Credentials | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** One challenge of a `www-authenticate` header. */
export interface Challenge {
  /** In lower case. */
  readonly scheme: string;
  readonly parameters: Readonly<Record<string, string>>;
}

interface Authorization {
  readonly header: string;
  readonly expiresAtMs: number;
}

const MAX_TOKEN_BYTES = 1 << 20;
/** What a token is good for where the realm does not say (the specification's default). */
const DEFAULT_LIFETIME_S = 60;
/** Taken off every lifetime: clocks differ, and a token must last until the request is there. */
const MARGIN_MS = 10_000;

export class RegistryAuthorizer {
  readonly #settings: RegistrySettings;
  readonly #transport: RegistryTransport;
  readonly #challenges = new Map<string, Challenge>();
  readonly #tokens = new Map<string, Promise<Authorization>>();
  /** Registries that have been shown credentials. */
  readonly #shown = new Set<string>();

  constructor(settings: RegistrySettings, transport: RegistryTransport) {
    this.#settings = settings;
    this.#transport = transport;
  }

  /**
   * The `authorization` header to send, by what the host has demanded before; undefined if it has demanded nothing.
   *
   * @throws {RegistryError} If the realm does not give a token.
   */
  async header(request: AccessRequest): Promise<string | undefined> {
    const challenge = this.#challenges.get(request.host);
    if (challenge === undefined) return undefined;
    const credentials =
      request.credentials ?? (await findCredentials(this.#settings, request.registry, request.repository));
    if (credentials !== undefined) this.#shown.add(request.registry);
    if (credentials !== undefined && "registryToken" in credentials) return `Bearer ${credentials.registryToken}`;
    if (challenge.scheme === "basic") {
      return credentials !== undefined && "username" in credentials ? basic(credentials) : undefined;
    }
    const key = tokenKey(request);
    const known = await this.#tokens.get(key)?.catch(() => undefined);
    if (known !== undefined && known.expiresAtMs > Date.now()) return known.header;
    const token = this.#fetchToken(challenge, request, credentials);
    this.#tokens.set(key, token);
    token.catch(() => this.#tokens.delete(key));
    return (await token).header;
  }

  /** Whether a registry, `docker.io`, has been shown whom it is asked by. */
  hasShown(registry: string): boolean {
    return this.#shown.has(registry);
  }

  /**
   * Learns from a 401 what the host demands, and forgets the tokens it no longer takes.
   *
   * @returns Whether it demands something that can be given.
   */
  learn(request: AccessRequest, header: string | undefined): boolean {
    const challenges = parseChallenges(header ?? "");
    const challenge =
      challenges.find(({ scheme }) => scheme === "bearer") ?? challenges.find(({ scheme }) => scheme === "basic");
    if (challenge === undefined) return false;
    this.#challenges.set(request.host, challenge);
    this.#tokens.delete(tokenKey(request));
    return true;
  }

  async #fetchToken(
    { parameters }: Challenge,
    request: AccessRequest,
    credentials: Credentials | undefined,
  ): Promise<Authorization> {
    const { host, signal } = request;
    const realm = parameters["realm"] ?? "";
    if (!URL.canParse(realm) || !/^https?:$/.test(new URL(realm).protocol)) {
      const what = realm === "" ? "no realm" : `the realm ${JSON.stringify(cleanText(realm))}, which is no web address`;
      throw new RegistryError(`"${host}" demands a token but names ${what}`, { transient: false });
    }
    const url = new URL(realm);
    const { service } = parameters;
    const headers: Record<string, string> = { accept: "application/json" };
    let body: Buffer | undefined;
    if (credentials !== undefined && "identityToken" in credentials) {
      // OAuth 2: a refresh token for an access token.
      const form = new URLSearchParams({ grant_type: "refresh_token", client_id: "slipway" });
      form.set("refresh_token", credentials.identityToken);
      if (service !== undefined) form.set("service", service);
      form.set("scope", request.scopes.join(" "));
      body = Buffer.from(form.toString());
      headers["content-type"] = "application/x-www-form-urlencoded";
    } else {
      if (service !== undefined) url.searchParams.set("service", service);
      for (const scope of request.scopes) url.searchParams.append("scope", scope);
      if (credentials !== undefined && "username" in credentials) {
        url.searchParams.set("account", credentials.username);
        headers["authorization"] = basic(credentials);
      }
    }
    const requestedAtMs = Date.now();
    const response = await this.#transport.request(url, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? headers : { ...headers, "content-length": `${body.length}` },
      ...(body === undefined ? {} : { body }),
      signal,
      namedBy: host,
    });
    const status = response.statusCode ?? 0;
    const content = await readBody(response, { host: url.host, maxBytes: MAX_TOKEN_BYTES, signal });
    if (status !== 200) {
      const who = credentials === undefined ? "without credentials" : "with the credentials there are";
      const denied = status === 400 || status === 401 || status === 403;
      throw new RegistryError(
        denied
          ? `"${url.host}" gives no token for ${request.repository} ${who} (${status})`
          : `"${url.host}" gives no token: it answers ${status}`,
        { status, transient: status === 429 || status >= 500 },
      );
    }
    return readToken(content, url.host, requestedAtMs);
  }
}

const tokenSchema = z.object({
  token: z.string().optional(),
  access_token: z.string().optional(),
  expires_in: z.number().optional(),
});

function readToken(content: Buffer, host: string, requestedAtMs: number): Authorization {
  let answer: z.infer<typeof tokenSchema> = {};
  try {
    answer = tokenSchema.parse(JSON.parse(content.toString("utf8")));
  } catch {
    // The same error as for JSON without a token.
  }
  const token = answer.token || answer.access_token;
  // What stands in a header must not end it.
  if (token === undefined || !/^[\x21-\x7e]+$/.test(token)) {
    throw new RegistryError(`"${host}" answers without a token that can be used`, { transient: false });
  }
  const lifetimeMs = Math.max(answer.expires_in ?? 0, DEFAULT_LIFETIME_S) * 1000;
  return { header: `Bearer ${token}`, expiresAtMs: requestedAtMs + lifetimeMs - MARGIN_MS };
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
}

/** One token for each thing that may be done as somebody; the credentials themselves are not kept in it. */
function tokenKey({ host, scopes, credentials }: AccessRequest): string {
  const who = credentials === undefined ? "" : createHash("sha256").update(JSON.stringify(credentials)).digest("hex");
  return JSON.stringify([host, [...scopes].sort(), who]);
}

/**
 * Reads a `www-authenticate` header: several challenges, each a scheme and `name="value"` parameters.
 *
 * @see RFC 9110, section 11.6.1
 */
export function parseChallenges(header: string): Challenge[] {
  const challenges: { scheme: string; parameters: Record<string, string> }[] = [];
  // Each match takes at least one character, so this is linear.
  const token = /([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?|[^]/g;
  for (const match of header.slice(0, 8192).matchAll(token)) {
    const [, name, quoted, plain] = match;
    if (name === undefined) continue;
    const value = quoted?.replaceAll(/\\(.)/g, "$1") ?? plain;
    if (value === undefined) challenges.push({ scheme: name.toLowerCase(), parameters: {} });
    else if (challenges.length > 0)
      (challenges.at(-1) as Challenge & { parameters: Record<string, string> }).parameters[name.toLowerCase()] = value;
  }
  return challenges;
}
