/** What a pull reads from registries: manifests and blobs, verified, from mirrors first. */
import { digestOf } from "./blob-store.ts";
import { MAX_JSON_BYTES, parseJson } from "./image-config.ts";
import { formatBytes, ImageError } from "./image-error.ts";
import { acceptedTypes, type Descriptor, isIndexType, isManifestType } from "./image-manifest.ts";
import type { Endpoint, RegistryClient } from "./registry-client.ts";
import { cleanText, RegistryError } from "./registry-error.ts";
import type { ImageReference } from "./registry-reference.ts";
import { waitToRetry } from "./registry-retry.ts";
import { z } from "zod";

/** A manifest or index as a registry has it. */
export interface FetchedManifest {
  readonly mediaType: string;
  readonly digest: string;
  readonly content: Buffer;
}

/** Of one blob: a connection that breaks again and again without a byte more. */
const MAX_FRUITLESS_TRIES = 6;
/** Of one blob in all. */
const MAX_TRIES = 100;

/**
 * Asks what a tag stands for without fetching it: registries do not count that as a pull.
 *
 * @returns The digest; undefined if the registry does not say (then fetch it).
 * @throws {ImageError} If there is no such tag. @throws {RegistryError}
 */
export async function resolveTag(
  client: RegistryClient,
  reference: ImageReference,
  signal?: AbortSignal,
): Promise<string | undefined> {
  return await fromAny(client, reference, async (endpoint) => {
    const response = await client.send(endpoint, {
      method: "HEAD",
      path: `manifests/${reference.digest ?? reference.tag ?? "latest"}`,
      headers: { accept: acceptedTypes.join(", ") },
      expect: [200],
      signal,
    });
    response.destroy();
    const digest = response.headers["docker-content-digest"];
    return typeof digest === "string" && /^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$/.test(digest) ? digest : undefined;
  });
}

/**
 * Fetches a manifest or index and verifies it.
 *
 * @param reference With a digest: that content and no other.
 * @throws {ImageError} If there is none, access is denied, or it is not what it should be. @throws {RegistryError}
 */
export async function fetchManifest(
  client: RegistryClient,
  reference: ImageReference,
  signal?: AbortSignal,
): Promise<FetchedManifest> {
  const wanted = reference.digest;
  return await fromAny(client, reference, async (endpoint) => {
    const response = await client.send(endpoint, {
      method: "GET",
      path: `manifests/${wanted ?? reference.tag ?? "latest"}`,
      headers: { accept: acceptedTypes.join(", ") },
      expect: [200],
      signal,
    });
    const content = await client.body(response, endpoint, { maxBytes: MAX_JSON_BYTES, signal });
    const said = wanted ?? response.headers["docker-content-digest"];
    const digest = digestOf(content, wanted);
    if (typeof said === "string" && said.startsWith("sha256:") && said !== digest) {
      throw new ImageError(
        `registry "${endpoint.registry}" sends a manifest with the digest ${digest} as ${cleanText(said)}`,
      );
    }
    if (wanted !== undefined && digest !== wanted) {
      throw new ImageError(`registry "${endpoint.registry}" sends a manifest with the digest ${digest} as ${wanted}`);
    }
    return { mediaType: typeOf(response.headers["content-type"], content), digest, content };
  });
}

const typedSchema = z.object({ mediaType: z.string().optional(), schemaVersion: z.number().optional() });

/** What the registry says it is, unless the content itself says it (an index that passes for a manifest is a trick: CVE-2021-41190). */
function typeOf(header: string | undefined, content: Buffer): string {
  const typed = parseJson(content, "manifest", typedSchema);
  if (typed.schemaVersion === 1) {
    throw new ImageError(
      "its manifest is of Docker's first form (schema 1, before 2016), which is not supported; push it again",
    );
  }
  const announced = (header ?? "").split(";")[0]?.trim() ?? "";
  const known = isIndexType(announced) || isManifestType(announced);
  if (known && typed.mediaType !== undefined && typed.mediaType !== announced) {
    throw new ImageError(
      `its manifest is of type ${JSON.stringify(typed.mediaType)} but comes as ${JSON.stringify(announced)}`,
    );
  }
  if (known) return announced;
  if (typed.mediaType !== undefined) return typed.mediaType;
  throw new ImageError(`the registry sends ${JSON.stringify(cleanText(announced))} where a manifest was asked for`);
}

/** Fetches a small blob into memory and verifies it. */
export async function fetchSmallBlob(
  client: RegistryClient,
  reference: ImageReference,
  blob: Pick<Descriptor, "digest" | "size">,
  signal?: AbortSignal,
): Promise<Buffer> {
  if (blob.size > MAX_JSON_BYTES) {
    throw new ImageError(
      `its blob ${blob.digest} has ${formatBytes(blob.size)}, more than ${formatBytes(MAX_JSON_BYTES)}`,
    );
  }
  const pieces: Buffer[] = [];
  for await (const piece of fetchBlob(client, reference, blob, { signal })) pieces.push(piece);
  const content = Buffer.concat(pieces);
  const digest = digestOf(content, blob.digest);
  if (digest !== blob.digest) throw new ImageError(`its blob ${blob.digest} comes with the digest ${digest}`);
  return content;
}

/**
 * Fetches a blob piece by piece: exactly `size` bytes, or it throws. The digest is the caller's to verify.
 *
 * Where a connection breaks, the next one goes on from there, on the next mirror if need be.
 *
 * @param options.direct Leaves out the mirrors.
 * @param options.offset Where to begin. @default 0
 * @throws {ImageError} If there is no such blob, or it has another size. @throws {RegistryError}
 */
export async function* fetchBlob(
  client: RegistryClient,
  reference: Pick<ImageReference, "registry" | "repository">,
  blob: Pick<Descriptor, "digest" | "size">,
  options: { readonly signal?: AbortSignal | undefined; readonly direct?: boolean; readonly offset?: number } = {},
): AsyncGenerator<Buffer, void> {
  const { signal } = options;
  const endpoints = options.direct === true ? [client.origin(reference)] : client.endpoints(reference);
  let endpoint = endpoints.shift() as Endpoint;
  let { offset = 0 } = options;
  let fruitless = 0;
  for (let tries = 1; offset < blob.size || tries === 1; tries++) {
    const before = offset;
    try {
      for await (const piece of readFrom(client, endpoint, { ...blob, offset }, signal)) {
        offset += piece.length;
        yield piece;
      }
    } catch (error) {
      signal?.throwIfAborted();
      fruitless = offset > before ? 1 : fruitless + 1;
      const passes = error instanceof RegistryError && error.transient;
      if (passes && fruitless < (endpoint.isMirror ? 2 : MAX_FRUITLESS_TRIES) && tries < MAX_TRIES) {
        await waitToRetry(error, { attempt: fruitless, baseMs: client.retryBaseMs, signal });
        continue;
      }
      const next = endpoints.shift();
      if (next === undefined) throw error;
      endpoint = next;
      fruitless = 0;
    }
  }
}

async function* readFrom(
  client: RegistryClient,
  endpoint: Endpoint,
  blob: { readonly digest: string; readonly size: number; readonly offset: number },
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer, void> {
  const { digest, size, offset } = blob;
  const response = await client.send(endpoint, {
    method: "GET",
    path: `blobs/${digest}`,
    headers: offset === 0 ? {} : { range: `bytes=${offset}-` },
    expect: offset === 0 ? [200] : [200, 206],
    signal,
  });
  const wrong = (what: string) => {
    response.destroy();
    return new ImageError(
      `registry "${endpoint.registry}" sends ${what} as the blob ${digest}, which has ${size} bytes`,
    );
  };
  const partial = response.statusCode === 206;
  if (
    partial &&
    !new RegExp(`^bytes ${offset}-${size - 1}/(${size}|\\*)$`).test(response.headers["content-range"] ?? "")
  ) {
    throw wrong("another range than was asked for");
  }
  const length = response.headers["content-length"];
  if (length !== undefined && Number(length) !== (partial ? size - offset : size)) throw wrong(`${length} bytes`);
  // A registry without ranges sends it all again.
  let skip = partial ? 0 : offset;
  let position = partial ? offset : 0;
  for await (const piece of client.pieces(response, endpoint, signal)) {
    position += piece.length;
    if (position > size) throw wrong("more bytes");
    const skipped = Math.min(skip, piece.length);
    skip -= skipped;
    if (skipped < piece.length) yield piece.subarray(skipped);
  }
  if (position < size) {
    throw new RegistryError(
      `registry "${endpoint.registry}" ends after ${position} of ${size} bytes of the blob ${digest}`,
      {
        transient: true,
      },
    );
  }
}

/** Asks one place after the other; what the last one, the registry itself, says holds. */
async function fromAny<T>(
  client: RegistryClient,
  reference: ImageReference,
  ask: (endpoint: Endpoint) => Promise<T>,
): Promise<T> {
  const endpoints = client.endpoints(reference);
  for (const [index, endpoint] of endpoints.entries()) {
    try {
      return await ask(endpoint);
    } catch (error) {
      const isLast = index === endpoints.length - 1;
      if (isLast || !(error instanceof ImageError || error instanceof RegistryError)) throw error;
    }
  }
  throw new Error("an image has at least its registry to be asked for it");
}
