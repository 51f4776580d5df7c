/** ADD of URLs: files by HTTP, repositories by Git. */
import { createHash } from "node:crypto";
import { basename } from "node:path";
import type { Worker } from "node:worker_threads";
import { fileAt, startThread } from "../runtime/files.ts";
import type { ImageLease, ImageStore } from "../runtime/index.ts";
import type { Downloaded, DownloadNetwork, DownloadReply, DownloadRequest } from "./download-worker.ts";
import { cloneRepository, isGitUrl } from "./git-source.ts";
import { type BuildMachine, hostname, type OpenMachine } from "./machine.ts";
import { type OperationContext, OperationError } from "./operation.ts";

/** A file that was fetched. */
export interface FetchedFile {
  readonly kind: "file";
  /** Names its content and when the server says that it was made. */
  readonly key: string;
  readonly name: string;
  /** Where its content is: the path of an open file without a name. */
  readonly path: string;
  readonly mtimeSeconds: number | undefined;
}

/** A commit's files. */
export interface FetchedTree {
  readonly kind: "tree";
  readonly key: string;
  /** Of our own; what is in it is a stranger's. */
  readonly directory: string;
  /** What of it is wanted, relative; its links lead nowhere outside of `directory`. */
  readonly inside: string;
  /** When the commit was made. */
  readonly mtimeSeconds: number;
}

/** What fetching is done with. */
export interface FetchContext extends Pick<OperationContext, "machine" | "resources" | "signal" | "reporter"> {
  readonly cache: { readonly lease: ImageLease };
}

export interface FetchOptions {
  /** What it must have: `sha256:…`, or a commit. */
  readonly checksum: string | undefined;
  readonly keepGitDir: boolean;
}

/** More than anybody adds; less than fills a disk. */
const MAX_BYTES = 16 * 2 ** 30;

/** Fetches for one build; what is fetched is gone with it. */
export class Downloads implements AsyncDisposable {
  readonly #store: ImageStore;
  readonly #machine: BuildMachine;
  readonly #signal: AbortSignal;
  readonly #maxBytes: () => number;
  readonly #fetched = new Map<string, Promise<FetchedFile | FetchedTree>>();
  readonly #files = new Set<number>();
  readonly #stack = new AsyncDisposableStack();
  readonly #waiting = new Map<number, (reply: DownloadReply | Error) => void>();
  #worker: Worker | undefined;
  #id = 0;

  constructor(options: {
    readonly store: ImageStore;
    /** Downloads have the network of the build's commands. */
    readonly machine: BuildMachine;
    readonly signal: AbortSignal;
    /** Of the next file. */
    readonly maxBytes: () => number;
  }) {
    this.#store = options.store;
    this.#machine = options.machine;
    this.#signal = options.signal;
    this.#maxBytes = options.maxBytes;
  }

  /** Fetches what a URL names, once in a build. @throws {OperationError} */
  fetch(url: string, options: FetchOptions & { readonly context: FetchContext }): Promise<FetchedFile | FetchedTree> {
    const name = JSON.stringify([url, options.checksum, options.keepGitDir]);
    let fetched = this.#fetched.get(name);
    if (fetched === undefined) {
      if (this.#machine.networkKind === "none")
        throw new OperationError(`${url} cannot be fetched: this build has no network`);
      options.context.reporter.fetched?.(url);
      fetched = isGitUrl(url)
        ? cloneRepository(url, { ...options, stack: this.#stack })
        : this.#file(url, options.checksum);
      this.#fetched.set(name, fetched);
    }
    return fetched;
  }

  async #file(url: string, checksum: string | undefined): Promise<FetchedFile> {
    const [algorithm = "sha256", expected] = checksum === undefined || checksum === "" ? [] : checksum.split(":");
    const file = await this.#store.scratchFile();
    this.#files.add(file);
    const { digest, size, mtimeSeconds } = await this.#download({
      url,
      target: file,
      maxBytes: Math.min(MAX_BYTES, this.#maxBytes()),
      algorithm,
    });
    if (expected !== undefined && expected !== digest) {
      throw new OperationError(`${url} has the checksum ${algorithm}:${digest}`, {
        suggestion: `expected is ${checksum}: if that is an older version's, write the new one`,
      });
    }
    const path = URL.parse(url)?.pathname ?? "";
    const name = basename(decodeName(path)) || "__unnamed__";
    const key = createHash("sha256")
      .update(JSON.stringify([name, algorithm, digest, size, mtimeSeconds]))
      .digest("hex");
    return { kind: "file", key, name, path: `/proc/self/fd/${file}`, mtimeSeconds };
  }

  async #download(request: Omit<DownloadRequest, "id">): Promise<Downloaded> {
    this.#signal.throwIfAborted();
    const { networkKind } = this.#machine;
    const network = networkKind === "job" ? (await this.#machine.open()).network : networkKind;
    this.#worker ??= this.#start(network);
    const id = this.#id++;
    const { promise, resolve } = Promise.withResolvers<DownloadReply | Error>();
    this.#waiting.set(id, resolve);
    const abort = () => resolve(new Error("canceled"));
    this.#signal.addEventListener("abort", abort, { once: true });
    this.#worker.postMessage({ id, ...request } satisfies DownloadRequest);
    const reply = await promise;
    this.#signal.removeEventListener("abort", abort);
    this.#waiting.delete(id);
    this.#signal.throwIfAborted();
    if (reply instanceof Error) throw reply;
    if ("result" in reply) return reply.result;
    throw new OperationError(`${request.url} cannot be fetched: ${reply.error}`);
  }

  #start(network: OpenMachine["network"]): Worker {
    const own: DownloadNetwork | undefined =
      typeof network === "object"
        ? { namespaceFd: network.namespaceFd, hosts: network.hosts(hostname), resolvConf: network.resolvConf }
        : undefined;
    const worker = startThread(new URL("./download-worker.ts", import.meta.url), { workerData: { network: own } });
    worker.on("message", (reply: DownloadReply) => this.#waiting.get(reply.id)?.(reply));
    worker.on("error", (error) => {
      this.#worker = undefined;
      for (const settle of this.#waiting.values()) settle(error as Error);
    });
    return worker;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker?.terminate();
    await Promise.allSettled(this.#fetched.values());
    for (const file of this.#files) fileAt.closeFile(file);
    await this.#stack.disposeAsync();
  }
}

function decodeName(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}
