/** Directories that a build takes files from: there already, in an archive, or at a URL. */
import { mkdirSync } from "node:fs";
import type { ImageLease, ImageStore, StepResources } from "../runtime/index.ts";
import { fileAt } from "../runtime/files.ts";
import { CopyError } from "./copy.ts";
import { Downloads, type FetchedFile, type FetchedTree } from "./download.ts";
import type { FileWorkers } from "./file-workers.ts";
import type { BuildMachine } from "./machine.ts";
import { OperationError } from "./operation.ts";
import { BuildError, type BuildReporter } from "./report.ts";
import { scratchDirectory, sweepScratch } from "./scratch.ts";

/** Where files come from. */
export type ContextSource =
  /** Absolute. */
  | { readonly kind: "directory"; readonly directory: string }
  /** A tar archive, which may be compressed; `name` is what messages call it. */
  | { readonly kind: "archive"; readonly path: string; readonly name: string }
  /** A Git repository as ADD has it, or an archive. Of another file the name in the context is `context`. */
  | { readonly kind: "url"; readonly url: string }
  /** Its files and its configuration. */
  | { readonly kind: "image"; readonly name: string };

/** What stands for a name in FROM, COPY --from and RUN --mount. */
export type NamedContext =
  | {
      readonly kind: "directory";
      /** Absolute. */
      readonly directory: string;
      /** When what is in it was made, if whoever gave it says so: in seconds since 1970. */
      readonly modifiedSeconds?: number | undefined;
    }
  | { readonly kind: "image"; readonly name: string };

export interface ContextOptions {
  readonly machine: BuildMachine;
  readonly store: ImageStore;
  readonly lease: ImageLease;
  readonly workers: FileWorkers;
  readonly resources: StepResources;
  readonly reporter?: BuildReporter | undefined;
  readonly signal: AbortSignal;
}

/** A context's directory; `dockerfile` is what was at a URL that is no archive. */
export interface OpenedContext {
  readonly directory: string;
  readonly modifiedSeconds?: number | undefined;
  readonly dockerfile?: Buffer | undefined;
}

/** A Dockerfile that a URL gives. */
const MAX_DOCKERFILE_BYTES = 4 * 2 ** 20;

/** Makes contexts ready; what was made for that is gone when it is disposed. */
export class Contexts implements AsyncDisposable {
  readonly #options: ContextOptions;
  readonly #stack = new AsyncDisposableStack();
  readonly #downloads: Downloads;

  private constructor(options: ContextOptions) {
    const { store, machine, signal, resources } = options;
    this.#options = options;
    this.#downloads = this.#stack.use(
      new Downloads({ store, machine, signal, maxBytes: () => resources.diskBytes ?? Infinity }),
    );
  }

  static async open(options: ContextOptions): Promise<Contexts> {
    mkdirSync(`${options.machine.stateDir}/build`, { recursive: true });
    await sweepScratch(options.machine.stateDir);
    return new Contexts(options);
  }

  /** Makes the directory of the build itself ready. @throws {BuildError} If that is not possible. */
  async main(source: Exclude<ContextSource, { kind: "image" }>): Promise<OpenedContext> {
    if (source.kind === "directory") return { directory: source.directory };
    if (source.kind === "archive") {
      const { directory, isArchive } = await this.#unpack(source.path, source.name);
      if (isArchive) return { directory };
      throw new BuildError(`${source.name} is no tar archive with something in it`);
    }
    const { url } = source;
    const fetched = await this.#fetch(url);
    const modifiedSeconds = fetched.mtimeSeconds;
    if (fetched.kind === "tree") return { directory: this.#inside(url, fetched), modifiedSeconds };
    const { directory, isArchive } = await this.#unpack(fetched.path, url);
    // What is no archive is a Dockerfile that needs no files.
    return { directory, modifiedSeconds, ...(!isArchive && { dockerfile: readDockerfile(fetched, url) }) };
  }

  /** Makes what is given a name ready. @throws {BuildError} If that is not possible. */
  async named(sources: ReadonlyMap<string, ContextSource>): Promise<ReadonlyMap<string, NamedContext>> {
    const named = [...sources].map(async ([name, source]) => [name, await this.#one(source)] as const);
    await Promise.allSettled(named);
    return new Map(await Promise.all(named));
  }

  async #one(source: ContextSource): Promise<NamedContext> {
    if (source.kind === "image") return source;
    if (source.kind !== "url") return { kind: "directory", ...(await this.main(source)) };
    const { url } = source;
    const fetched = await this.#fetch(url);
    const modifiedSeconds = fetched.mtimeSeconds;
    if (fetched.kind === "tree") return { kind: "directory", directory: this.#inside(url, fetched), modifiedSeconds };
    const { directory } = await this.#unpack(fetched.path, url, "context");
    return { kind: "directory", directory, modifiedSeconds };
  }

  async #fetch(url: string): Promise<FetchedFile | FetchedTree> {
    const { machine, resources, signal, reporter = {}, lease } = this.#options;
    const context = { machine, resources, signal, reporter, cache: { lease } };
    return await located(() => this.#downloads.fetch(url, { checksum: undefined, keepGitDir: false, context }));
  }

  /** The directory that is asked for: the repository's links do not lead out of it. */
  #inside(url: string, { directory, inside }: FetchedTree): string {
    const root = fileAt.openRoot(directory);
    try {
      const { path } = fileAt.resolveInRoot(root, fileAt.byteString(inside));
      const fd = fileAt.openDirectoryBelow(root, path);
      this.#stack.defer(() => fileAt.closeFile(fd));
      // With a dot, for it is a link.
      return `/proc/self/fd/${fd}/.`;
    } catch (error) {
      throw new BuildError(`there is no directory ${JSON.stringify(inside)} in ${url}`, { cause: error });
    } finally {
      fileAt.closeFile(root);
    }
  }

  /** @param otherwise The name that a file gets in the directory if it is no archive; without one, the directory is empty. */
  async #unpack(path: string, name: string, otherwise?: string) {
    const { machine, workers, signal, resources } = this.#options;
    const directory = scratchDirectory(machine.stateDir, "context", this.#stack);
    const spec = { path, directory, maxBytes: resources.diskBytes ?? Infinity, otherwise };
    return { directory, isArchive: await located(() => workers.run("unpack", spec, signal), name) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** What is wrong with a context is no instruction's fault, but the user's to mend. */
async function located<T>(action: () => Promise<T>, name?: string): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof OperationError || error instanceof CopyError)) throw error;
    throw new BuildError(name === undefined ? error.message : `${name}: ${error.message}`, { cause: error });
  }
}

function readDockerfile({ path }: FetchedFile, url: string): Buffer {
  const file = fileAt.openFile(path);
  try {
    const size = fileAt.statAt(file, "")?.size ?? 0;
    if (size > MAX_DOCKERFILE_BYTES)
      throw new BuildError(`${url} is no archive, and too large for a Dockerfile (more than 4 MiB)`);
    const content = Buffer.alloc(size);
    let done = 0;
    for (let read = -1; read !== 0 && done < size; done += read) read = fileAt.readFile(file, content.subarray(done));
    return content.subarray(0, done);
  } finally {
    fileAt.closeFile(file);
  }
}
