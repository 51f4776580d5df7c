/** Builds images: from a context and a Dockerfile to an image in the agent's store. */
import { chmodSync, mkdirSync } from "node:fs";
import type { Diagnostic } from "../pipelines/index.ts";
import {
  type Host,
  type ImageLease,
  type ImageStore,
  type ContainerNetwork,
  type RegistryClient,
  type StepResources,
  type UidRange,
} from "../runtime/index.ts";
import type { BaseImages } from "./base-image.ts";
import { BuildCache, type CachedLayer, type CacheImport } from "./build-cache.ts";
import { buildTarget, contextKey, type StageContext } from "./build.ts";
import { type CachePlace, exportCache, openCache } from "./cache-transfer.ts";
import { CacheMounts } from "./cache-mounts.ts";
import type { Platform } from "./configuration.ts";
import { type DockerfileSource, readDockerfile, readIgnored } from "./context-files.ts";
import type { NamedContext } from "./contexts.ts";
import { Downloads } from "./download.ts";
import { resolveEpoch } from "./epoch.ts";
import type { Compression } from "./file-tasks.ts";
import { FileWorkers } from "./file-workers.ts";
import { type FinishedImage, finishImage } from "./finish-image.ts";
import { cacheKey } from "./key.ts";
import { type BuildMachine, openedMachine } from "./machine.ts";
import { OperationPlanner, type SecretSource } from "./operation.ts";
import { parseDockerfile } from "./parse.ts";
import { hostPlatform } from "./platform.ts";
import { BuildError, type BuildReporter } from "./report.ts";
import { sweepSecrets } from "./run-mounts.ts";
import { Semaphore } from "./semaphore.ts";

export interface ImageBuildOptions {
  /** Where commands run. Or `host`, `uidRange` and `network`, where they are open anyway. */
  readonly machine?: BuildMachine | undefined;
  readonly host?: Host | undefined;
  readonly uidRange?: UidRange | undefined;
  readonly network?: "none" | "host" | ContainerNetwork | undefined;
  readonly store: ImageStore;
  readonly images: BaseImages;
  /** Holds the image, and what it is made of, in the store. */
  readonly lease: ImageLease;
  /** Absolute. */
  readonly contextDir: string;
  /** When what is in it was made, if whoever gave it says so: in seconds since 1970. */
  readonly contextSeconds?: number | undefined;
  /** What stands for a name in FROM, COPY --from and RUN --mount, in place of a stage or an image. */
  readonly contexts?: ReadonlyMap<string, NamedContext> | undefined;
  /** In the context; or its content, and what messages call it. @default "Dockerfile", or "Containerfile" */
  readonly dockerfile?: DockerfileSource | undefined;
  readonly target?: string | undefined;
  /** @default this machine's */
  readonly platform?: Platform | undefined;
  readonly buildArgs?: ReadonlyMap<string, string> | undefined;
  readonly secrets?: ReadonlyMap<string, SecretSource> | undefined;
  readonly ssh?: ReadonlyMap<string, string> | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
  /** In full. */
  readonly names?: readonly string[] | undefined;
  /** Keeps the image's layers unpacked in the store, so that steps and builds start with it. @default whether it has names */
  readonly isKept?: boolean | undefined;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
  readonly compression?: Compression | undefined;
  readonly noCache?: boolean | undefined;
  /** Stages that use nothing of earlier builds, by name or number. */
  readonly noCacheStages?: readonly string[] | undefined;
  /** Lines of /etc/hosts beside those of the network, for commands: address, space, name. */
  readonly extraHosts?: readonly string[] | undefined;
  /** Caches of other machines, the best first. */
  readonly importCache?: readonly CachePlace[] | undefined;
  /** Where to export what this build has made or found, when it has succeeded. */
  readonly exportCache?: readonly CachePlace[] | undefined;
  /** Layers of the builds for other platforms, which are exported too. */
  readonly usedLayers?: Map<string, CachedLayer> | undefined;
  /** For caches in registries. */
  readonly client?: RegistryClient | undefined;
  /** What builds of other trust must not share caches with. @default "" */
  readonly cacheNamespace?: string | undefined;
  /** Whether directories of `RUN --mount=type=cache` stay for later commands. @default true */
  readonly keepsCacheMounts?: boolean | undefined;
  /** Limits of each command; `diskBytes` also of all layers that are made. */
  readonly resources: StepResources;
  /** Commands that run at the same time: how many, or whose turn they wait for together with other builds. @default 4 */
  readonly parallel?: number | Semaphore | undefined;
  /** Threads of the caller's. @default some for this build alone */
  readonly workers?: FileWorkers | undefined;
  readonly reporter?: BuildReporter | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Builds one image for one platform.
 *
 * @throws {BuildError} If the user's files or commands are at fault.
 */
export async function buildImage(options: ImageBuildOptions): Promise<FinishedImage> {
  const machine = machineOf(options);
  const { store, contextDir, lease, reporter = {}, platform = hostPlatform() } = options;
  const signal = options.signal ?? new AbortController().signal;
  const givenArgs = options.buildArgs ?? new Map<string, string>();
  const read = readDockerfile(contextDir, options.dockerfile);
  const { dockerfile, diagnostics, source } = parseDockerfile(read.content, { file: read.name });
  for (const diagnostic of diagnostics) if (diagnostic.severity === "warning") reporter.warned?.(diagnostic);
  if (dockerfile === undefined) throw unreadable(diagnostics);
  const directory = `${machine.stateDir}/build`;
  const emptyDir = `${directory}/empty`;
  sweepSecrets();
  mkdirSync(emptyDir, { recursive: true });
  chmodSync(emptyDir, 0o755);
  await using own = options.workers === undefined ? new FileWorkers() : undefined;
  const workers = options.workers ?? (own as FileWorkers);
  await using caches = new AsyncDisposableStack();
  const imports: CacheImport[] = [];
  for (const place of options.importCache ?? []) {
    const note = (text: string) => reporter.noted?.(text);
    const opened = await openCache(place, { store, lease, client: clientOf(options), signal, note });
    if (opened !== undefined) imports.push(caches.use(opened));
  }
  const cache = new BuildCache({
    store,
    lease,
    namespace: options.cacheNamespace,
    diskBytes: options.resources.diskBytes,
    imports,
    used: options.usedLayers,
    onNote: (note) => reporter.noted?.(note),
  });
  await using downloads = new Downloads({ store, machine, signal, maxBytes: () => cache.leftBytes });
  const { seconds: epochSeconds, buildArgs } = await resolveEpoch(dockerfile, givenArgs, {
    contextSeconds: options.contextSeconds,
    contexts: options.contexts,
    fetch: (url, checksum) => {
      const context = { machine, resources: options.resources, signal, reporter, cache };
      return downloads.fetch(url, { checksum, keepGitDir: false, context });
    },
  });
  const operations = new OperationPlanner({
    machine,
    workers,
    cache,
    view: { emptyDir, byPath: machine.overlaysByPath },
    context: { directory: contextDir, ignored: read.ignored, hasFixedTimes: epochSeconds !== undefined },
    resources: options.resources,
    extraHosts: options.extraHosts ?? [],
    secrets: options.secrets ?? new Map(),
    ssh: options.ssh ?? new Map(),
    cacheMounts: new CacheMounts(machine.stateDir, options.cacheNamespace ?? "", {
      isKept: options.keepsCacheMounts ?? true,
    }),
    downloads,
    commands: semaphoreOf(options),
    reporter,
    signal,
  });
  const result = await buildTarget({
    dockerfile,
    source,
    file: read.name,
    target: options.target,
    platform,
    buildArgs,
    contexts: stageContexts(options.contexts, epochSeconds !== undefined),
    images: options.images,
    cache,
    operations,
    noCache: options.noCache,
    noCacheStages: new Set(options.noCacheStages?.map((name) => name.toLowerCase())),
    epochSeconds,
    reporter,
    signal,
  });
  const { labels, annotations, names = [], isKept, compression } = options;
  const finished = await finishImage(result, {
    store,
    cache,
    workers,
    lease,
    compression,
    epochSeconds,
    labels,
    annotations,
    names,
    isKept,
    signal,
  });
  await exportCaches(cache, { ...options, workers, epochSeconds });
  return finished;
}

/** Exports what builds have made or found, to where it is asked for. */
export async function exportCaches(
  cache: BuildCache,
  options: Pick<ImageBuildOptions, "exportCache" | "client" | "store" | "lease" | "compression"> & {
    readonly workers: FileWorkers;
    readonly epochSeconds: number | undefined;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<void> {
  const { store, lease, workers, compression, epochSeconds, signal = new AbortController().signal } = options;
  for (const place of options.exportCache ?? []) {
    const transfer = { store, lease, client: clientOf(options), signal, workers, compression, epochSeconds };
    await exportCache(cache, place, transfer);
  }
}

/** Whose turn it is to run a command. */
export function semaphoreOf({ parallel = 4 }: Pick<ImageBuildOptions, "parallel">): Semaphore {
  return typeof parallel === "number" ? new Semaphore(parallel) : parallel;
}

function clientOf({ client }: Pick<ImageBuildOptions, "client">): RegistryClient {
  if (client === undefined) throw new Error("A cache of elsewhere needs a client for registries");
  return client;
}

function machineOf({ machine, host, uidRange, network }: ImageBuildOptions): BuildMachine {
  if (machine !== undefined) return machine;
  if (host !== undefined && uidRange !== undefined && network !== undefined)
    return openedMachine({ host, uidRange, network });
  throw new Error("A build needs a machine, or a host, a uid range and a network");
}

/** Files of a context count as those of the build's own do. */
function stageContexts(
  contexts: ReadonlyMap<string, NamedContext> = new Map(),
  hasFixedTimes: boolean,
): ReadonlyMap<string, StageContext> {
  const all = [...contexts].map(([name, context]): [string, StageContext] => {
    const key = contextKey(name);
    if (context.kind === "image") return [key, { ...context, givenName: name }];
    const { directory } = context;
    const files = {
      name: `the context ${JSON.stringify(name)}`,
      directory,
      ignored: readIgnored(directory),
      hasFixedTimes,
    };
    return [key, { kind: "directory", givenName: name, key: cacheKey("context", { name: key }), context: files }];
  });
  return new Map(all);
}

function unreadable(diagnostics: readonly Diagnostic[]): BuildError {
  const errors = diagnostics.filter(({ severity }) => severity === "error");
  const [first] = errors;
  return new BuildError(first?.message ?? "the Dockerfile cannot be read", {
    diagnostic: first,
    others: errors.slice(1),
  });
}
