/**
 * The thread that fetches what ADD names by HTTP. It lives in the network of the build's commands, so that a Dockerfile
 * reaches nothing through the agent that it may not reach itself.
 */
import { createHash } from "node:crypto";
import { writeSync } from "node:fs";
import { get as getHttp, type IncomingMessage } from "node:http";
import { get as getHttps } from "node:https";
import { parentPort, workerData } from "node:worker_threads";
import { enterNetwork } from "../runtime/index.ts";
import { lookupIn, type NameFiles } from "./name-lookup.ts";

export interface DownloadRequest {
  readonly id: number;
  readonly url: string;
  /** Descriptor of the empty file that gets the content. */
  readonly target: number;
  readonly maxBytes: number;
  /** Algorithms of the digests that are wanted. */
  readonly algorithm: string;
}

export type DownloadReply = { readonly id: number } & (
  | { readonly result: Downloaded }
  | {
      /** Of the server's or the address's making; what is ours has no text for the user. */
      readonly error: string;
    }
);

export interface Downloaded {
  readonly size: number;
  /** In hexadecimal. */
  readonly digest: string;
  /** Seconds since 1970, as the server says. */
  readonly mtimeSeconds: number | undefined;
}

/** Where it lives; the host's network if there is none. */
export interface DownloadNetwork extends NameFiles {
  readonly namespaceFd: number;
}

if (parentPort === null) throw new Error("download-worker.ts is the entry of a worker thread");
const port = parentPort;
const { network } = workerData as { network: DownloadNetwork | undefined };
if (network !== undefined) enterNetwork(network.namespaceFd);
const lookup = network === undefined ? undefined : lookupIn(network);

const MAX_REDIRECTS = 10;
/** A server that sends nothing for so long has gone. */
const STALL_MS = 60_000;

port.on("message", (request: DownloadRequest) => {
  void download(request).then(
    (result) => port.postMessage({ id: request.id, result } satisfies DownloadReply),
    (error: unknown) => port.postMessage({ id: request.id, error: (error as Error).message } satisfies DownloadReply),
  );
});

async function download({ url, target, maxBytes, algorithm }: DownloadRequest): Promise<Downloaded> {
  const response = await open(new URL(url), MAX_REDIRECTS);
  const hash = createHash(algorithm);
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`);
    hash.update(chunk);
    for (let done = 0; done < chunk.length; ) done += writeSync(target, chunk, done);
  }
  if (!response.complete) throw new Error("the connection ended before all of it was there");
  const modified = Date.parse(response.headers["last-modified"] ?? "");
  const mtimeSeconds = Number.isNaN(modified) ? undefined : Math.max(0, Math.floor(modified / 1000));
  return { size, digest: hash.digest("hex"), mtimeSeconds };
}

/** Asks for a file, following redirections. */
async function open(url: URL, redirects: number): Promise<IncomingMessage> {
  if (url.protocol !== "http:" && url.protocol !== "https:") throw new Error(`${url.protocol} is not supported`);
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const get = url.protocol === "https:" ? getHttps : getHttp;
  const headers = { "user-agent": "slipway", accept: "*/*", "accept-encoding": "identity" };
  const request = get(url, { headers, timeout: STALL_MS, ...(lookup !== undefined && { lookup }) }, resolve);
  request
    .once("timeout", () => request.destroy(new Error(`nothing came for ${STALL_MS / 1000} s`)))
    .once("error", reject);
  const response = await promise;
  const { statusCode = 0, headers: answered } = response;
  if (statusCode === 200) return response;
  response.destroy();
  const location = answered.location;
  if (![301, 302, 303, 307, 308].includes(statusCode) || location === undefined) {
    throw new Error(`the server answered ${statusCode} ${response.statusMessage ?? ""}`.trim());
  }
  if (redirects === 0) throw new Error(`it was redirected more than ${MAX_REDIRECTS} times`);
  const next = new URL(location, url);
  // What was asked for in private is not fetched in public.
  if (url.protocol === "https:" && next.protocol === "http:") throw new Error(`it is redirected to ${next.protocol}`);
  return await open(next, redirects - 1);
}
