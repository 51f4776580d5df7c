/**
 * Builds an image from a Dockerfile: the stages that its target needs, side by side where they do not depend on each other.
 */
import { type Diagnostic, didYouMean, Problems, quote, type Source, type Span } from "../pipelines/index.ts";
import { ImageError } from "../runtime/files.ts";
import { formatReference, parseReference, RegistryError } from "../runtime/index.ts";
import type { BaseImages, BaseLayer } from "./base-image.ts";
import type { BuildCache } from "./build-cache.ts";
import type { Platform } from "./configuration.ts";
import type { Dockerfile, Stage, Word } from "./instruction.ts";
import { cacheKey } from "./key.ts";
import type { BuildContext, OperationPlanner } from "./operation.ts";
import { formatPlatform, platformArgs } from "./platform.ts";
import { BuildError, type BuildReporter } from "./report.ts";
import { buildStage } from "./stage-build.ts";
import { StageState, type StageStateOptions } from "./stage-state.ts";
import { expandWord, WordError } from "./word.ts";

export interface BuildOptions {
  readonly dockerfile: Dockerfile;
  /** The text it was parsed from, and what messages call it. */
  readonly source: Source;
  readonly file: string;
  /** The stage to build. @default the last */
  readonly target?: string | undefined;
  readonly platform: Platform;
  readonly buildArgs: ReadonlyMap<string, string>;
  /** What stands in place of stages and images, by `contextKey`. */
  readonly contexts?: ReadonlyMap<string, StageContext> | undefined;
  readonly images: BaseImages;
  readonly cache: BuildCache;
  readonly operations: OperationPlanner;
  /** Uses no layer of an earlier build. @default false */
  readonly noCache?: boolean | undefined;
  /** Stages that use none, by name or number; names in small letters. */
  readonly noCacheStages?: ReadonlySet<string> | undefined;
  /** When everything was made: SOURCE_DATE_EPOCH, in seconds since 1970. @default when each layer was made */
  readonly epochSeconds?: number | undefined;
  readonly reporter: BuildReporter;
  readonly signal: AbortSignal;
}

/** What is given a name for a build: files, or another image. */
export type StageContext =
  /** As it was given. */
  { readonly givenName: string } & (
    | { readonly kind: "directory"; readonly key: string; readonly context: BuildContext }
    | { readonly kind: "image"; readonly name: string }
  );

/** How a context is found: `alpine`, `alpine:latest` and `docker.io/library/alpine` are the same. */
export function contextKey(name: string): string {
  try {
    return formatReference(parseReference(name));
  } catch {
    return name.toLowerCase();
  }
}

/** A layer of a stage. */
export type StageLayer =
  | ({ readonly kind: "base" } & BaseLayer)
  | { readonly kind: "built"; readonly key: string; readonly directory: string };

/** What a stage, or an image, is. */
export interface StageResult {
  /** Names its files: the same key, the same files. */
  readonly key: string;
  /** Base layer first. */
  readonly layers: readonly StageLayer[];
  /** Where its files are as long as no layer holds them. */
  readonly context?: BuildContext | undefined;
  readonly state: StageState;
}

/** For an overlay, which takes no directory twice: what a layer contributes further down is covered by itself. */
export function directoriesOf(layers: readonly StageLayer[]): string[] {
  const all = layers.map(({ directory }) => directory);
  return all.filter((directory, index) => all.lastIndexOf(directory) === index);
}

export interface Failure {
  readonly suggestion?: string | undefined;
  readonly exitCode?: number | undefined;
  readonly cause?: unknown;
}

/**
 * Builds the target stage.
 *
 * @throws {BuildError} If the Dockerfile, the context or a command of it is at fault.
 */
export async function buildTarget(options: BuildOptions): Promise<StageResult> {
  const giveUp = new AbortController();
  const signal = AbortSignal.any([options.signal, giveUp.signal]);
  return await new Build({ ...options, signal }, (reason) => giveUp.abort(reason)).run();
}

/** Of everything in which variables stand, and of the history: about four times the largest Dockerfile. */
const MAX_CHARACTERS = 16 * 2 ** 20;

/** One build: what its stages share. */
export class Build {
  readonly options: BuildOptions;
  /** ARGs above the first FROM, and those that are always there. */
  readonly globalArgs: ReadonlyMap<string, string>;
  readonly #giveUp: (reason: unknown) => void;
  readonly #target: Stage;
  /** Stages and images that were asked for, each once. */
  readonly #results = new Map<string, Promise<StageResult>>();
  readonly #takenContexts = new Set<string>();
  readonly #warned = new Set<string>();
  #characters = 0;
  #failure: { readonly error: unknown } | undefined;

  /** @param giveUp Aborts everything that is under way. */
  constructor(options: BuildOptions, giveUp: (reason: unknown) => void) {
    this.options = options;
    this.#giveUp = giveUp;
    this.#target = this.#findTarget();
    this.globalArgs = this.#readGlobalArgs();
  }

  async run(): Promise<StageResult> {
    try {
      const result = await this.based(await this.stage(this.#target));
      this.#noteUnusedArgs();
      this.#noteUnusedContexts();
      return result;
    } catch (error) {
      // The first failure is the reason, whoever noticed it first.
      throw this.#failure?.error ?? error;
    } finally {
      // Nobody uses anything of the caller's when it is told.
      await Promise.allSettled(this.#results.values());
    }
  }

  /** The result of a stage, built if it has not been asked for yet. */
  stage(stage: Stage): Promise<StageResult> {
    const { base, stageName } = stage.from;
    const replaced =
      stageName === undefined
        ? undefined
        : this.#named(stageName, { platform: this.options.platform, span: base.span });
    return replaced ?? this.#once(`stage ${stage.index}`, () => buildStage(stage, this));
  }

  /** An image as a stage that no instruction has changed. */
  image(name: string, options: { readonly platform: Platform; readonly span: Span }): Promise<StageResult> {
    return this.#named(name, options) ?? this.#image(name, options);
  }

  /** The same with all its files in layers, as a stage needs it that begins with it. */
  async based(result: StageResult): Promise<StageResult> {
    const { context, key, state } = result;
    if (context === undefined) return result;
    return await this.#once(`layer ${formatPlatform(state.platform)} ${key}`, async () => {
      // Named by what is in it: what a stage makes of it is made of that.
      const layer = await this.options.operations.layerOf(context);
      const layers: StageLayer[] =
        layer.directory === undefined ? [] : [{ kind: "built", key: layer.key, directory: layer.directory }];
      return { key: layer.key, layers, state };
    });
  }

  #image(name: string, options: { readonly platform: Platform; readonly span: Span }): Promise<StageResult> {
    return this.#once(`image ${formatPlatform(options.platform)} ${name}`, () => this.#resolveImage(name, options));
  }

  /** What a context gives in place of a stage or an image. */
  #named(
    name: string,
    options: { readonly platform: Platform; readonly span: Span },
  ): Promise<StageResult> | undefined {
    const key = contextKey(name);
    const context = this.options.contexts?.get(key);
    if (context === undefined) return undefined;
    this.#takenContexts.add(key);
    if (context.kind === "image") return this.#image(context.name, options);
    const state = StageState.empty(options.platform, this.stateOptions);
    return Promise.resolve({ key: context.key, layers: [], context: context.context, state });
  }

  get stateOptions(): StageStateOptions {
    const { dockerfile, buildArgs } = this.options;
    return {
      escape: dockerfile.escape,
      globalArgs: this.globalArgs,
      buildArgs,
      warn: (span, text) => this.warn(span, text),
      spend: (span, characters) => this.spend(span, characters),
    };
  }

  /** An error that points at a place in the Dockerfile. */
  fail(span: Span, message: string, { suggestion, exitCode, cause }: Failure = {}): BuildError {
    const diagnostic = this.#diagnose("error", span, message, suggestion);
    return new BuildError(message, { diagnostic, exitCode, cause });
  }

  warn(span: Span, message: string): void {
    const place = `${span.start} ${message}`;
    if (this.#warned.has(place)) return;
    this.#warned.add(place);
    this.options.reporter.warned?.(this.#diagnose("warning", span, message));
  }

  /** Few lines can become gigabytes, of history, too. @throws {BuildError} If all together is more than any image needs. */
  spend(span: Span, characters: number): void {
    this.#characters += characters;
    if (this.#characters <= MAX_CHARACTERS) return;
    throw this.fail(span, `with its variables replaced, the Dockerfile has more than ${MAX_CHARACTERS} characters`);
  }

  /** Replaces variables outside of stages. */
  expand({ text, span }: Word, args: ReadonlyMap<string, string> = this.globalArgs): string {
    try {
      const expanded = expandWord(text, (name) => args.get(name), { escape: this.options.dockerfile.escape }).text;
      this.spend(span, expanded.length);
      return expanded;
    } catch (error) {
      if (error instanceof WordError) throw this.fail(span, error.message, { cause: error });
      throw error;
    }
  }

  #findTarget(): Stage {
    const { dockerfile, target } = this.options;
    const { stages } = dockerfile;
    if (target === undefined || target === "") return stages.at(-1) as Stage;
    const found =
      stages.findLast(({ from }) => from.stageName === target.toLowerCase()) ??
      (/^\d{1,4}$/.test(target) ? stages[Number(target)] : undefined);
    if (found !== undefined) return found;
    const names = stages.flatMap(({ from }) => from.stageName ?? []);
    const help = didYouMean(target, names);
    throw new BuildError(`there is no stage ${quote(target)}${help === undefined ? "" : `; ${help}`}`);
  }

  #readGlobalArgs(): ReadonlyMap<string, string> {
    const { dockerfile, buildArgs, platform } = this.options;
    const args = platformArgs(platform, this.#target.from.stageName ?? "default");
    for (const [name, value] of args) args.set(name, buildArgs.get(name) ?? value);
    for (const instruction of dockerfile.globalArgs) {
      for (const { name, value } of instruction.args) {
        const resolved = buildArgs.get(name.text) ?? (value === undefined ? undefined : this.expand(value, args));
        if (resolved !== undefined) args.set(name.text, resolved);
      }
    }
    return args;
  }

  #diagnose(severity: Diagnostic["severity"], span: Span, message: string, suggestion?: string): Diagnostic {
    const problems = new Problems(this.options.source);
    problems[severity](span, message, suggestion);
    return problems.toDiagnostics(this.options.file)[0] as Diagnostic;
  }

  #once(name: string, make: () => Promise<StageResult>): Promise<StageResult> {
    const known = this.#results.get(name);
    if (known !== undefined) return known;
    const result = make().catch((error: unknown) => {
      this.#failure ??= { error };
      this.#giveUp(error);
      throw error;
    });
    // Whoever needs it will be told; until then it is nobody's error.
    result.catch(() => {});
    this.#results.set(name, result);
    return result;
  }

  async #resolveImage(
    name: string,
    { platform, span }: { readonly platform: Platform; readonly span: Span },
  ): Promise<StageResult> {
    const { images, signal, dockerfile } = this.options;
    try {
      const { configuration, layers } = await images.resolve(name, { platform, signal });
      return {
        key: cacheKey("image", { diffIds: layers.map(({ diffId }) => diffId) }),
        layers: layers.map((layer) => ({ kind: "base" as const, ...layer })),
        state: StageState.onImage(configuration, this.stateOptions),
      };
    } catch (error) {
      if (error instanceof RegistryError) throw this.#notReached(error, name, span);
      if (!(error instanceof ImageError)) throw error;
      const names = dockerfile.stages.flatMap(({ from }) => from.stageName ?? []);
      throw this.fail(span, error.message, { suggestion: didYouMean(name, names), cause: error });
    }
  }

  /** No fault of the Dockerfile, but one of its lines is why the registry was asked. */
  #notReached({ message, transient, status, cause }: RegistryError, name: string, span: Span): RegistryError {
    const { file, line } = this.#diagnose("error", span, message);
    return new RegistryError(`${file}:${line}: cannot get the image ${quote(name)}: ${message}`, {
      transient,
      status,
      cause,
    });
  }

  #noteUnusedContexts(): void {
    const { contexts, reporter } = this.options;
    const unused = [...(contexts ?? [])]
      .filter(([key]) => !this.#takenContexts.has(key))
      .map(([, { givenName }]) => givenName);
    if (unused.length > 0)
      reporter.noted?.(`no FROM, COPY --from or RUN --mount takes the context ${unused.map(quote).join(", ")}`);
  }

  #noteUnusedArgs(): void {
    const { dockerfile, buildArgs, reporter } = this.options;
    const instructions = [...dockerfile.globalArgs, ...dockerfile.stages.flatMap((stage) => stage.instructions)];
    const declared = new Set(
      instructions.flatMap((each) => (each.kind === "arg" ? each.args.map(({ name }) => name.text) : [])),
    );
    const unused = [...buildArgs.keys()].filter(
      (name) =>
        !declared.has(name) && !this.globalArgs.has(name) && !/_proxy$/i.test(name) && name !== "SOURCE_DATE_EPOCH",
    );
    if (unused.length > 0) reporter.noted?.(`no ARG takes ${unused.map(quote).join(", ")}`);
  }
}
