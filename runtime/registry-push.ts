/**
 * What a push writes to a registry: blobs, in chunks and resumed, and manifests.
 *
 * @see {@link https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push}
 */
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import type { BlobIdentity } from "./blob-store.ts";
import { ImageError } from "./image-error.ts";
import type { Endpoint, RegistryClient } from "./registry-client.ts";
import { cleanText, RegistryError } from "./registry-error.ts";
import { waitToRetry } from "./registry-retry.ts";

/** Bytes of a blob, from any position on, as often as they are asked for. */
export type BlobSource = (offset: number) => AsyncIterable<Buffer>;

export interface PushBlobOptions {
  readonly source: BlobSource;
  /** Repositories of the same registry that have the blob: it is taken over from there without being sent. */
  readonly mountFrom?: readonly string[];
  /** Bytes sent at a time: what is lost when a connection breaks, at most. @default 33554432 */
  readonly chunkBytes?: number;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((sentBytes: number) => void) | undefined;
}

/** How a blob got there. */
export type PushedHow = "there" | "mounted" | "sent";

const access = "pull,push";
const CHUNK_BYTES = 32 * 2 ** 20;
/** A registry may want minutes to move a large blob to its place. */
const COMMIT_TIMEOUT_MS = 10 * 60_000;
const MAX_FRUITLESS_TRIES = 6;
const MAX_MOUNTS_TRIED = 3;

/**
 * Puts a blob into a repository, unless it is there.
 *
 * @throws {ImageError} If access is denied. @throws {RegistryError} If the registry takes it not, or not as it is.
 */
export async function pushBlob(
  client: RegistryClient,
  endpoint: Endpoint,
  blob: BlobIdentity,
  options: PushBlobOptions,
): Promise<PushedHow> {
  if (await hasBlob(client, endpoint, blob.digest, options.signal)) return "there";
  for (const from of (options.mountFrom ?? []).slice(0, MAX_MOUNTS_TRIED)) {
    if (from !== endpoint.repository && (await mountBlob(client, endpoint, blob.digest, from, options.signal)))
      return "mounted";
  }
  await new Upload(client, endpoint, blob, options).run();
  return "sent";
}

/** Whether a repository has a blob. */
export async function hasBlob(
  client: RegistryClient,
  endpoint: Endpoint,
  digest: string,
  signal?: AbortSignal,
): Promise<boolean> {
  const response = await client.send(endpoint, {
    method: "HEAD",
    path: `blobs/${digest}`,
    expect: [200, 404],
    access,
    signal,
  });
  response.destroy();
  return response.statusCode === 200;
}

/** @returns Whether the registry has taken it over; if not it begins an upload instead, which is left to expire. */
async function mountBlob(
  client: RegistryClient,
  endpoint: Endpoint,
  digest: string,
  from: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const query = new URLSearchParams({ mount: digest, from });
  try {
    const response = await client.send(endpoint, {
      method: "POST",
      path: `blobs/uploads/?${query.toString()}`,
      headers: { "content-length": "0" },
      expect: [201, 202],
      access,
      scopes: [`repository:${from}:pull`],
      signal,
    });
    response.destroy();
    return response.statusCode === 201;
  } catch (error) {
    // We may not read there any more, or it is gone: then it is sent.
    if (error instanceof ImageError) return false;
    throw error;
  }
}

/** One blob on its way into a repository. */
class Upload {
  readonly #client: RegistryClient;
  readonly #endpoint: Endpoint;
  readonly #blob: BlobIdentity;
  readonly #options: PushBlobOptions;
  /** Where it goes on, as the registry says. */
  #location: URL | undefined;
  #offset = 0;
  #chunkBytes: number;

  constructor(client: RegistryClient, endpoint: Endpoint, blob: BlobIdentity, options: PushBlobOptions) {
    this.#client = client;
    this.#endpoint = endpoint;
    this.#blob = blob;
    this.#options = options;
    this.#chunkBytes = options.chunkBytes ?? CHUNK_BYTES;
  }

  async run(): Promise<void> {
    const { signal } = this.#options;
    let reached = 0;
    for (let fruitless = 1; ; fruitless++) {
      try {
        if (this.#location === undefined) {
          // The answer to the last request of an earlier try may have been lost.
          const { digest } = this.#blob;
          if (fruitless > 1 && (await hasBlob(this.#client, this.#endpoint, digest, signal))) return;
          await this.#begin();
        }
        await this.#sendRest();
        return;
      } catch (error) {
        signal?.throwIfAborted();
        if (this.#offset > reached) fruitless = 1;
        reached = Math.max(reached, this.#offset);
        const lost = error instanceof RegistryError && (error.status === 416 || error.status === 404);
        if (!(error instanceof RegistryError) || !(error.transient || lost) || fruitless >= MAX_FRUITLESS_TRIES)
          throw error;
        await waitToRetry(asTransient(error), { attempt: fruitless, baseMs: this.#client.retryBaseMs, signal });
        await this.#whereItIs();
      }
    }
  }

  async #begin(): Promise<void> {
    const response = await this.#send({ method: "POST", path: "blobs/uploads/", length: 0, expect: [202] });
    this.#offset = 0;
    const least = Number(response.headers["oci-chunk-min-length"] ?? 0);
    if (least > this.#chunkBytes) this.#chunkBytes = least;
    await this.#follow(response);
  }

  /** Chunk by chunk; the last one, or the only one, ends the upload. */
  async #sendRest(): Promise<void> {
    const { digest, size } = this.#blob;
    while (size - this.#offset > this.#chunkBytes) {
      const length = this.#chunkBytes;
      const range = `${this.#offset}-${this.#offset + length - 1}`;
      const response = await this.#send({ method: "PATCH", length, range, expect: [202] });
      await this.#follow(response);
      this.#offset += length;
      this.#options.onProgress?.(this.#offset);
    }
    const length = size - this.#offset;
    // Some registries forget what was sent before if the last request has content: then it has none.
    if (this.#offset > 0 && length > 0) {
      const range = `${this.#offset}-${size - 1}`;
      const response = await this.#send({ method: "PATCH", length, range, expect: [202] });
      await this.#follow(response);
      this.#offset = size;
    }
    const response = await this.#send({
      method: "PUT",
      length: size - this.#offset,
      digest,
      expect: [201, 204],
      timeoutMs: COMMIT_TIMEOUT_MS,
    });
    response.destroy();
    this.#offset = size;
    this.#options.onProgress?.(size);
  }

  /** Asks how much of it the registry has; if the upload is unknown there, it begins again. */
  async #whereItIs(): Promise<void> {
    if (this.#location === undefined) return;
    try {
      const response = await this.#send({ method: "GET", length: 0, expect: [204] });
      const [, last] = /^(?:bytes=)?0-(\d+)$/.exec(response.headers.range ?? "") ?? [];
      await this.#follow(response);
      // An upload of which nothing has come says 0-0, as one of a single byte does.
      this.#offset = last === undefined || last === "0" ? 0 : Math.min(Number(last) + 1, this.#blob.size);
    } catch (error) {
      this.#options.signal?.throwIfAborted();
      if (!(error instanceof RegistryError || error instanceof ImageError)) throw error;
      this.#location = undefined;
      this.#offset = 0;
    }
  }

  async #send(request: {
    readonly method: "GET" | "POST" | "PATCH" | "PUT";
    readonly path?: string;
    readonly length: number;
    readonly range?: string;
    readonly digest?: string;
    readonly expect: readonly number[];
    readonly timeoutMs?: number;
  }): Promise<IncomingMessage> {
    const { method, length, range, digest, expect, timeoutMs } = request;
    const { signal, source } = this.#options;
    let path: string | URL = request.path ?? (this.#location as URL);
    if (digest !== undefined) {
      path = new URL(path);
      path.searchParams.set("digest", digest);
    }
    const from = this.#offset;
    const hasBody = method !== "GET";
    try {
      return await this.#client.send(this.#endpoint, {
        method,
        path,
        headers: {
          ...(hasBody ? { "content-length": `${length}` } : {}),
          ...(length > 0 ? { "content-type": "application/octet-stream" } : {}),
          ...(range === undefined ? {} : { "content-range": range }),
        },
        ...(length > 0 ? { body: () => Readable.from(take(source(from), length), { objectMode: false }) } : {}),
        expect,
        access,
        // What a broken one has brought is asked for before the next.
        ...(method === "PATCH" || method === "PUT" ? { attempts: 1 } : {}),
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
        signal,
      });
    } catch (error) {
      // Of an upload "not found" means that the session has expired, not that the user is at fault.
      if (error instanceof ImageError && /\(404/.test(error.message) && method !== "POST") {
        throw new RegistryError(error.message, { status: 404, transient: true, cause: error });
      }
      throw error;
    }
  }

  async #follow(response: IncomingMessage): Promise<void> {
    const { location } = response.headers;
    response.resume();
    const base = this.#location ?? (await this.#client.baseUrl(this.#endpoint, this.#options.signal));
    if (location === undefined && this.#location !== undefined) return;
    if (location === undefined || !URL.canParse(location, base)) {
      throw new RegistryError(
        `registry "${this.#endpoint.registry}" does not say where the upload goes on (${cleanText(location ?? "nothing")})`,
        { transient: false },
      );
    }
    this.#location = new URL(location, base);
  }
}

/** The first so many bytes. */
async function* take(source: AsyncIterable<Buffer>, length: number): AsyncGenerator<Buffer, void> {
  let left = length;
  for await (const piece of source) {
    yield piece.length <= left ? piece : piece.subarray(0, left);
    left -= piece.length;
    if (left <= 0) return;
  }
  if (left > 0) throw new Error(`Cannot send the blob: ${left} bytes of it are missing`);
}

function asTransient(error: RegistryError): RegistryError {
  return error.transient
    ? error
    : new RegistryError(error.message, { status: error.status, transient: true, cause: error });
}

/**
 * Puts a manifest or index into a repository, under a tag or its digest. What it refers to must be there.
 *
 * @throws {ImageError} If access is denied. @throws {RegistryError} If the registry does not take it as it is.
 */
export async function pushManifest(
  client: RegistryClient,
  endpoint: Endpoint,
  manifest: {
    readonly content: Buffer;
    readonly mediaType: string;
    readonly digest: string;
    /** @default its digest */
    readonly tag?: string | undefined;
  },
  signal?: AbortSignal,
): Promise<void> {
  const { content, mediaType, digest, tag = digest } = manifest;
  const response = await client.send(endpoint, {
    method: "PUT",
    path: `manifests/${tag}`,
    headers: { "content-type": mediaType, "content-length": `${content.length}` },
    body: () => content,
    expect: [201],
    access,
    timeoutMs: COMMIT_TIMEOUT_MS,
    signal,
  });
  response.destroy();
  const stored = response.headers["docker-content-digest"];
  if (typeof stored === "string" && stored.startsWith("sha256:") && stored !== digest) {
    throw new RegistryError(
      `registry "${endpoint.registry}" has stored the manifest ${digest} as ${cleanText(stored)}: it has changed it`,
      { transient: false },
    );
  }
}
