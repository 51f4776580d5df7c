/** What an instruction does to the files of a stage: its key in the cache, and how its layer is made if it is not there. */
import type { LayerSummary, StepResources } from "../runtime/index.ts";
import type { BuildCache, CachedLayer, LayerDraft } from "./build-cache.ts";
import type { CacheMounts } from "./cache-mounts.ts";
import type { Platform } from "./configuration.ts";
import { planCopy } from "./copy-operation.ts";
import type { Downloads } from "./download.ts";
import type { FileWorkers } from "./file-workers.ts";
import type { TreeSpec, ViewSpec } from "./file-tasks.ts";
import { cacheKey } from "./key.ts";
import { layerOf } from "./selection-layer.ts";
import type { BuildReporter, BuildStep } from "./report.ts";
import type { BuildMachine } from "./machine.ts";
import { planRun } from "./run-operation.ts";
import type { Semaphore } from "./semaphore.ts";
import type { DirectoryOperation, Operation } from "./stage-state.ts";

/** What operations are done with; the same for a whole build. */
export interface OperationContext {
  readonly machine: BuildMachine;
  readonly workers: FileWorkers;
  readonly cache: BuildCache;
  readonly view: ViewSpec;
  readonly context: BuildContext;
  /** Limits of each command. */
  readonly resources: StepResources;
  /** Lines of /etc/hosts. */
  readonly extraHosts: readonly string[];
  readonly secrets: ReadonlyMap<string, SecretSource>;
  /** Sockets of ssh agents, by id. */
  readonly ssh: ReadonlyMap<string, string>;
  readonly cacheMounts: CacheMounts;
  readonly downloads: Downloads;
  /** How many commands run at the same time. */
  readonly commands: Semaphore;
  readonly reporter: BuildReporter;
  readonly signal: AbortSignal;
}

/** The directory that COPY and ADD take from. */
export interface BuildContext {
  /** What messages call one that is not the build's own. */
  readonly name?: string | undefined;
  /** Absolute. */
  readonly directory: string;
  /** Patterns of .dockerignore. */
  readonly ignored: readonly string[];
  /** When its files were written says nothing: SOURCE_DATE_EPOCH is set. */
  readonly hasFixedTimes?: boolean | undefined;
}

/** A secret's value, read when a command needs it. */
export type SecretSource = () => Promise<Uint8Array>;

/** Where an operation is done. */
export interface OperationPlace {
  readonly parentKey: string;
  /** Directories of what stands below, base first. */
  readonly layers: readonly string[];
  readonly platform: Platform;
  readonly step: BuildStep;
  /** The files of another stage or image. */
  readonly source: (name: string) => Promise<SourceFiles>;
}

export interface SourceFiles {
  readonly key: string;
  readonly layers: readonly string[];
  /** Where the files are instead, if they are not in layers. */
  readonly context?: BuildContext | undefined;
}

/** Where files of another stage, an image or a context are. */
export function treeOf({ layers, context }: SourceFiles, name: string): TreeSpec {
  if (context !== undefined) return { kind: "context", ...context };
  return { kind: "layers", layers, name: JSON.stringify(name) };
}

export interface OperationPlan {
  readonly key: string;
  readonly make: (draft: LayerDraft) => Promise<LayerSummary>;
}

/** An operation that failed; the message says why. */
export class OperationError extends Error {
  override readonly name = "OperationError";
  readonly exitCode: number | undefined;
  readonly suggestion: string | undefined;

  constructor(
    message: string,
    options: { readonly exitCode?: number; readonly suggestion?: string; readonly cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause });
    this.exitCode = options.exitCode;
    this.suggestion = options.suggestion;
  }
}

export class OperationPlanner {
  readonly #context: OperationContext;

  constructor(context: OperationContext) {
    this.#context = context;
  }

  /** All of a context as a layer: what a stage begins with that is FROM it. */
  async layerOf(tree: BuildContext): Promise<CachedLayer> {
    const { workers, view, signal, cache } = this.#context;
    const selection = { tree: { kind: "context", ...tree } as const, sources: ["."], parents: false, excludes: [] };
    const found = await workers.run("digest", { selection, view, maxBytes: cache.diskBytes }, signal);
    return await layerOf(selection, found, this.#context);
  }

  /** Finds out what names the layer, and how it would be made. */
  async plan(operation: Operation, place: OperationPlace): Promise<OperationPlan> {
    switch (operation.kind) {
      case "run":
        return await planRun(operation, place, this.#context);
      case "copy":
        return await planCopy(operation, place, this.#context);
      case "directory":
        return planDirectory(operation, place, this.#context);
    }
  }
}

function planDirectory(
  { path, user }: DirectoryOperation,
  { parentKey, layers }: OperationPlace,
  { workers, view, signal }: OperationContext,
): OperationPlan {
  return {
    key: cacheKey(parentKey, { directory: path, user }),
    async make(draft) {
      const owner =
        user === "" ? { uid: 0, gid: 0 } : await workers.run("owner", { layers, owner: user, view }, signal);
      const into = { layers, upper: draft.files, work: draft.scratch("work") };
      return await workers.run("directory", { into, path, owner, view }, signal);
    },
  };
}
