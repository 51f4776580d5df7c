/** Runs one step that builds an image: its context out of the workspace, its layers, its names, where it goes. */
import {
  type BaseImage,
  type BaseImages,
  BuildError,
  buildImages,
  type BuiltImage,
  Contexts,
  type ContextSource,
  type FileWorkers,
  formatPlatform,
  hostPlatform,
  openedMachine,
  StoreImages,
  writeOutput,
} from "../build/index.ts";
import { type BuildSecret, formatBytes, formatDiagnostic, LIMITS } from "../pipelines/index.ts";
import {
  type Descriptor,
  exportArchive,
  exportFiles,
  formatReference,
  ImageError,
  ImageStore,
  parseReference,
  type RegistryClient,
  UnknownNameError,
} from "../runtime/index.ts";
import { abortReason } from "./abort.ts";
import { BuildLog } from "./build-log.ts";
import { type BuildStepSpec, type ResolvedBuild, resolveBuild } from "./build-spec.ts";
import { atDigest, type BuiltImages } from "./built-images.ts";
import { BuildUsage } from "./build-usage.ts";
import { asError } from "./cause.ts";
import { formatDuration } from "./duration.ts";
import type { JobContext } from "./job.ts";
import type { JobImages } from "./job-images.ts";
import { StepNetwork, takeRefused } from "./job-network.ts";
import { OpenWorkspace } from "./open-workspace.ts";
import type { StepResult } from "./report.ts";
import type { RunnableStep } from "./runnable-step.ts";
import type { Enterable } from "./step-access.ts";
import type { StepLog } from "./step-log.ts";

export interface BuildContext extends JobContext {
  readonly index: number;
  readonly log: StepLog;
  readonly images: JobImages;
  readonly built: BuiltImages;
  /** Do the work on files; the job's. */
  readonly workers: FileWorkers;
}

const maxDockerfileBytes = 4 * 2 ** 20;

/** What a build is done with. */
interface Use {
  readonly store: ImageStore;
  readonly client: RegistryClient;
  readonly workspace: OpenWorkspace;
  readonly signal: AbortSignal;
}

/** One of the step's own limits was reached. */
class StepLimit extends Error {
  override readonly name = "StepLimit";
}

/** One run of one step that builds. Nothing of it is done ahead: what is built may come from the step before. */
export class BuildRun implements RunnableStep {
  readonly log: StepLog;
  readonly hasBegun = false;
  readonly #step: BuildStepSpec;
  readonly #context: BuildContext;
  readonly #network: StepNetwork;
  readonly #usage = new BuildUsage();
  /** Aborted for a limit of the step. */
  readonly #limit = new AbortController();

  constructor(step: BuildStepSpec, context: BuildContext) {
    this.log = context.log;
    this.#step = step;
    this.#context = context;
    this.#network = new StepNetwork(context.network, step);
    const { logBytes } = step.resources;
    this.log.onFull = () => this.#limit.abort(new StepLimit(`it printed more than ${formatBytes(logBytes)}`));
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  prepareWithoutWorkspace(): undefined {
    return undefined;
  }

  begin(): void {}

  discard(): void {}

  keep(): undefined {
    return undefined;
  }

  forget(): void {}

  async run(on: { readonly running: (step: Enterable) => void }): Promise<StepResult> {
    const startedAtMs = Date.now();
    const { timeoutMs } = this.#step;
    const expire = () => this.#limit.abort(new StepLimit(`it ran for longer than ${formatDuration(timeoutMs)}`));
    const timer = setTimeout(expire, Math.min(timeoutMs, 2 ** 31 - 1));
    const ended = Promise.withResolvers<string>();
    on.running({
      ended: ended.promise,
      enter: () => Promise.reject(new Error("it builds an image, and has no container of its own to be entered")),
    });
    try {
      const result = await this.#build().then(
        ({ digest }) => ({ status: "success", exitCode: 0, imageDigest: digest }) as const,
        (error: unknown) => this.#describe(asError(error)),
      );
      const finishedAtMs = Date.now();
      const usage = this.#usage.total;
      return {
        ...result,
        startedAtMs,
        finishedAtMs,
        ...(usage && { usage }),
        ...(await takeRefused(this.#network, this.#context)),
      };
    } finally {
      clearTimeout(timer);
      ended.resolve("the step has ended");
    }
  }

  async #build(): Promise<{ readonly digest: string }> {
    const { host, images, built, registry: client, builds } = this.#context;
    const signal = AbortSignal.any([this.#context.signal, this.#limit.signal]);
    signal.throwIfAborted();
    const spec = resolveBuild(this.#step, this.#context.variables);
    const store = await ImageStore.open(host.imageStoreDir);
    const { lease } = images;
    using workspace = this.#openWorkspace();
    using _limit = this.#limitWorkspace();
    const image = await this.#buildImage(spec, { store, client, workspace, signal });
    const { digest } = image.descriptor;
    this.log.note(`built ${digest}`);
    // By its digest it is found whoever asks, and cannot be taken for what is not the build's.
    const manifest = ownManifest(image);
    for (const name of new Set([...spec.names, ...spec.pushNames].map((each) => atDigest(each, digest)))) {
      this.#context.made.names.add(name);
      await store.names.set(name, { manifest, resolved: digest }, { signal });
    }
    if (spec.output !== undefined) await this.#export(image, spec, { store, client, workspace, signal });
    const output = { store, lease, client, signal };
    for (const name of spec.pushNames) {
      await writeOutput(image, { kind: "registry", names: [name] }, output);
      this.log.note(`pushed ${name}`);
    }
    if (builds?.namesImages === true) {
      for (const name of spec.names) {
        await store.names.set(name, { manifest, resolved: digest, isLocal: true }, { signal });
      }
    }
    const platforms = image.images.map(
      ({ configuration, manifest: own }) => [formatPlatform(configuration), own.digest] as const,
    );
    await built.add([...spec.names, ...spec.pushNames], digest, new Map(platforms));
    return { digest };
  }

  async #buildImage(spec: ResolvedBuild, use: Use): Promise<BuiltImage> {
    const { host, uidRange, images, untrusted, builds, workers, made } = this.#context;
    const { resources } = this.#step;
    const { store, client, workspace, signal } = use;
    using directories = new DisposableStack();
    const openDirectory = (path: string) => directories.use(workspace.directory(path)).path;
    const contextDir = openDirectory(spec.context);
    const dockerfile = workspace.read(spec.dockerfile, maxDockerfileBytes);
    if (dockerfile === undefined) {
      throw new BuildError(
        `there is no Dockerfile ${JSON.stringify(spec.dockerfile)} in the workspace, or it is no readable file`,
      );
    }
    const network = await this.#network.container();
    await this.#network.begin();
    using layerRange = host.claimLayerRange(uidRange);
    const reporter = new BuildLog(this.log, this.#usage);
    using _end = { [Symbol.dispose]: () => reporter.end() };
    const where = {
      machine: openedMachine({ host, uidRange: layerRange, network }),
      store,
      lease: images.lease,
      workers,
      resources,
      reporter,
      signal,
    };
    await using contexts = await Contexts.open(where);
    return await buildImages({
      ...where,
      images: this.#baseImages(spec, { store, client, reporter }),
      contextDir,
      contexts: await contexts.named(contextSources(spec, openDirectory)),
      dockerfile: {
        content: dockerfile,
        name: spec.dockerfile,
        ignore: workspace.read(`${spec.dockerfile}.dockerignore`, maxDockerfileBytes)?.toString(),
      },
      target: spec.target,
      ...(spec.platforms.length > 0 && { platforms: spec.platforms }),
      buildArgs: new Map(Object.entries(spec.args)),
      secrets: this.#secrets(spec, workspace, reporter),
      labels: spec.labels,
      isKept: spec.names.length + spec.pushNames.length > 0,
      noCache: !spec.cache,
      cacheNamespace: builds?.cacheNamespace,
      usedLayers: made.layers,
      // Else strangers' steps would get their limits as often as they have stages, and disk without end.
      ...(untrusted !== undefined && { parallel: 1, keepsCacheMounts: false }),
    });
  }

  /** Writes it into the workspace: an archive, or a layout. */
  async #export({ stored }: BuiltImage, { output = "", names, pushNames }: ResolvedBuild, use: Use): Promise<void> {
    const { store, client, workspace, signal } = use;
    const options = {
      store,
      client,
      lease: this.#context.images.lease,
      names: [...new Set([...names, ...pushNames])],
      signal,
    };
    const content = output.endsWith(".tar") ? exportArchive(stored, options) : await exportFiles(stored, options);
    await workspace.write(output, content, { maxBytes: this.#step.resources.diskBytes, signal });
    this.log.note(`wrote ${output}`);
  }

  /** Images that steps of the build have made, and those of registries. */
  #baseImages(
    { pushNames, output }: ResolvedBuild,
    {
      store,
      client,
      reporter,
    }: { readonly store: ImageStore; readonly client: RegistryClient; readonly reporter: BuildLog },
  ): BaseImages {
    const { built, images, pins, index } = this.#context;
    const options = {
      store,
      client,
      lease: images.lease,
      pull: this.#step.pull,
      keepArchives: pushNames.length > 0 || output !== undefined,
      pins,
      onNote: (note: string) => reporter.noted(note),
    };
    const own = new StoreImages(options);
    const others = new StoreImages({ ...options, publicOnly: this.#context.publicOnly });
    return {
      resolve: async (name, options): Promise<BaseImage> => {
        const reference = parseReference(name);
        const found = reference.digest === undefined ? built.find(formatReference(reference), index) : undefined;
        const wanted = found && built.forPlatform(found, formatPlatform(options.platform));
        return wanted === undefined ? await others.resolve(name, options) : await own.resolve(wanted, options);
      },
    };
  }

  #secrets(
    { secrets }: ResolvedBuild,
    workspace: OpenWorkspace,
    log: BuildLog,
  ): Map<string, () => Promise<Uint8Array>> {
    const values = new Map<string, () => Promise<Uint8Array>>();
    for (const [id, secret] of Object.entries(secrets)) {
      values.set(id, () => {
        const value = this.#secretValue(secret, workspace);
        if (value === undefined) return Promise.reject(unreadableSecret(id, secret));
        log.hide(value);
        return Promise.resolve(value);
      });
    }
    return values;
  }

  #secretValue(secret: BuildSecret, workspace: OpenWorkspace): Uint8Array | undefined {
    if ("secret" in secret) return this.#context.secrets.value(secret.secret);
    return "env" in secret
      ? Buffer.from(this.#step.env[secret.env] ?? "")
      : workspace.read(secret.file, LIMITS.secretBytes);
  }

  #openWorkspace(): OpenWorkspace {
    const { host, workspace, uidRange } = this.#context;
    return new OpenWorkspace(host.workspaces.open(workspace, uidRange));
  }

  #limitWorkspace(): Disposable {
    const { host, workspace, uidRange } = this.#context;
    return host.workspaces.limit(workspace, uidRange, {
      bytes: this.#step.resources.diskBytes,
      exceeded: (message) => this.#limit.abort(new StepLimit(message)),
    });
  }

  #describe(error: Error): Pick<StepResult, "status" | "reason" | "exitCode"> {
    const { signal } = this.#context;
    const { log } = this;
    if (signal.aborted) {
      log.note(abortReason(signal));
      return { status: "canceled", reason: abortReason(signal) };
    }
    if (this.#limit.signal.aborted) {
      const { message } = this.#limit.signal.reason as StepLimit;
      log.note(message);
      return { status: "failure", reason: message };
    }
    if (error instanceof BuildError) {
      const { diagnostic, others, exitCode } = error;
      for (const each of diagnostic === undefined ? [] : [diagnostic, ...others]) log.note(formatDiagnostic(each));
      if (diagnostic === undefined) log.note(error.message);
      const where = diagnostic === undefined ? "" : `${diagnostic.file}:${diagnostic.line}: `;
      return { status: "failure", reason: `${where}${error.message}`, ...(exitCode !== undefined && { exitCode }) };
    }
    if (error instanceof ImageError || error instanceof UnknownNameError) {
      log.note(error.message);
      return { status: "failure", reason: error.message };
    }
    log.note(`error of the agent: ${error.message}`);
    return { status: "error", reason: error.message };
  }
}

function contextSources(
  { contexts }: ResolvedBuild,
  openDirectory: (path: string) => string,
): ReadonlyMap<string, ContextSource> {
  const sources = Object.entries(contexts).map(([name, context]): [string, ContextSource] => {
    if ("url" in context) return [name, { kind: "url", url: context.url }];
    if ("image" in context) return [name, { kind: "image", name: context.image }];
    return [name, { kind: "directory", directory: openDirectory(context.directory) }];
  });
  return new Map(sources);
}

function unreadableSecret(id: string, secret: BuildSecret): BuildError {
  const most = formatBytes(LIMITS.secretBytes);
  const why = `there is no file ${JSON.stringify("file" in secret ? secret.file : "")} in the workspace, or it has more than ${most}`;
  return new BuildError(`the secret ${JSON.stringify(id)} cannot be read: ${why}`);
}

/** Of this machine's platform, or the first one. */
function ownManifest({ images }: BuiltImage): Descriptor {
  const { architecture } = hostPlatform();
  const own = images.find(({ configuration }) => configuration.architecture === architecture) ?? images[0];
  if (own === undefined) throw new Error("Nothing was built");
  return own.manifest;
}
