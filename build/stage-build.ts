/** Builds one stage: its base, the triggers of that, its instructions in their order. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { quote, type Span } from "../pipelines/index.ts";
import { AccountError, ImageError } from "../runtime/files.ts";
import { type Build, directoriesOf, type StageLayer, type StageResult } from "./build.ts";
import type { CachedLayer } from "./build-cache.ts";
import type { Platform } from "./configuration.ts";
import { CopyError } from "./copy.ts";
import type { CopyInstruction, RunInstruction, Stage, StageInstruction, Word } from "./instruction.ts";
import { cacheKey } from "./key.ts";
import { ModeError } from "./mode.ts";
import { OperationError } from "./operation.ts";
import { parseTrigger } from "./parse.ts";
import { PathPatternError } from "./pattern.ts";
import { parsePlatform } from "./platform.ts";
import { BuildError } from "./report.ts";
import { mountSource } from "./run-mount.ts";
import { SelectError } from "./select.ts";
import { InstructionError, type Operation, StageState } from "./stage-state.ts";

/** So long nobody else has a turn of the event loop. */
const TURN_MS = 20;

/** Builds a stage. */
export async function buildStage(stage: Stage, build: Build): Promise<StageResult> {
  return await new StageBuild(stage, build).run();
}

class StageBuild {
  readonly #stage: Stage;
  readonly #build: Build;
  #platform: Platform;
  #steps = { done: 0, total: 0 };
  /** When the last layer was made, as RFC 3339 has it. */
  #created: string | undefined;

  constructor(stage: Stage, build: Build) {
    this.#stage = stage;
    this.#build = build;
    this.#platform = build.options.platform;
  }

  async run(): Promise<StageResult> {
    const { from, instructions } = this.#stage;
    if (from.platform !== undefined) this.#platform = this.#readPlatform(from.platform);
    // Side by side with the base, which this stage waits for.
    for (const instruction of instructions) this.#begin(instruction);
    const base = await this.#base();
    const state = this.#stateOn(base.state);
    const all = [...this.#triggers(base.state), ...instructions];
    this.#steps.total = all.filter(({ kind }) => ["run", "copy", "add", "workdir"].includes(kind)).length;
    const { epochSeconds } = this.#build.options;
    this.#created = epochSeconds === undefined ? state.history.at(-1)?.created : this.#timeOf(0);
    let { key } = base;
    const layers: StageLayer[] = [...base.layers];
    let turnAt = performance.now();
    for (const instruction of all) {
      this.#build.options.signal.throwIfAborted();
      // Instructions that only change the configuration wait for nothing: who else has something to do has a turn now and then.
      if (performance.now() - turnAt > TURN_MS) {
        await nextTurn();
        turnAt = performance.now();
      }
      const made = await this.#located(instruction, () => this.#apply(instruction, { state, key, layers }));
      if (made.layer !== undefined) layers.push(made.layer);
      key = made.key;
    }
    return { key, layers, state };
  }

  #readPlatform(word: Word): Platform {
    const text = this.#build.expand(word);
    const platform = parsePlatform(text);
    if (platform !== undefined) return platform;
    throw this.#build.fail(word.span, `${quote(text)} is no platform`, {
      suggestion: "write linux/amd64 or linux/arm64",
    });
  }

  /** What FROM names: nothing, a stage before this one, or an image. */
  async #base(): Promise<StageResult | { readonly key: string; readonly layers: []; readonly state: undefined }> {
    const { from, index } = this.#stage;
    const name = this.#build.expand(from.base);
    if (name === "") {
      throw this.#build.fail(from.base.span, "FROM names no image", {
        suggestion: "give the ARG a default, or --build-arg a value",
      });
    }
    if (name === "scratch") return { key: cacheKey("scratch", {}), layers: [], state: undefined };
    const before = this.#build.options.dockerfile.stages.slice(0, index);
    // By number as COPY --from has it: buildah does so, and no image is called that.
    const stage =
      before.findLast((each) => each.from.stageName === name) ??
      (/^\d{1,4}$/.test(name) ? before[Number(name)] : undefined);
    const base =
      stage === undefined
        ? this.#build.image(name, { platform: this.#platform, span: from.base.span })
        : this.#build.stage(stage);
    return await this.#build.based(await base);
  }

  #stateOn(base: StageState | undefined): StageState {
    const options = this.#build.stateOptions;
    return base === undefined ? StageState.empty(this.#platform, options) : StageState.onStage(base, options);
  }

  /** The ONBUILD triggers that the base leaves, which this stage begins with. */
  #triggers(base: StageState | undefined): StageInstruction[] {
    return (base?.triggers ?? []).map((trigger) => {
      const { span } = this.#stage.from.base;
      const instruction = parseTrigger(trigger, span);
      if (typeof instruction === "string") {
        throw this.#build.fail(
          span,
          `the image's trigger ${quote(`ONBUILD ${trigger}`)} cannot be used: ${instruction}`,
        );
      }
      this.#begin(instruction);
      return instruction;
    });
  }

  /** Starts what an instruction takes files from, so that it is there when the instruction's turn has come. */
  #begin(instruction: StageInstruction): void {
    for (const { name, span } of sourcesOf(instruction)) this.#source(name, span)?.catch(() => {});
  }

  /** A stage or image that files are taken from; undefined for an empty one. */
  #source(name: string, span: Span): Promise<StageResult> | undefined {
    if (name === "scratch") return undefined;
    const { stages } = this.#build.options.dockerfile;
    const { index } = this.#stage;
    const before = stages.slice(0, index);
    const stage =
      before.findLast(({ from }) => from.stageName === name.toLowerCase()) ??
      (/^\d{1,4}$/.test(name) ? before[Number(name)] : undefined);
    if (stage !== undefined) return this.#build.stage(stage);
    const isLater = stages.slice(index).some(({ from }) => from.stageName === name.toLowerCase());
    if (isLater || /^\d{1,4}$/.test(name)) {
      const problem = isLater
        ? `the stage ${quote(name)} does not stand before this one`
        : `there is no stage ${name} before this one`;
      return Promise.reject(this.#build.fail(span, problem));
    }
    return this.#build.image(name, { platform: this.#platform, span });
  }

  async #apply(
    instruction: StageInstruction,
    on: { readonly state: StageState; readonly key: string; readonly layers: readonly StageLayer[] },
  ): Promise<{ readonly key: string; readonly layer?: StageLayer }> {
    const { operation, createdBy } = on.state.apply(instruction);
    this.#build.spend(instruction.nameSpan, createdBy.length);
    if (operation === undefined) {
      if (instruction.kind === "workdir") this.#steps.done++;
      on.state.record(createdBy, { hasLayer: false, created: this.#created });
      return { key: on.key };
    }
    const { key, directory, madeAtMs } = await this.#perform(instruction, operation, on);
    if (directory !== undefined) this.#created = this.#timeOf(madeAtMs);
    on.state.record(createdBy, { hasLayer: directory !== undefined, created: this.#created });
    // Whoever changes nothing is not part of what stands below the next one.
    if (directory === undefined) return { key: on.key };
    return {
      key: operation.kind === "copy" && operation.link ? cacheKey(on.key, { link: key }) : key,
      layer: { kind: "built", key, directory },
    };
  }

  async #perform(
    instruction: StageInstruction,
    operation: Operation,
    { key: parentKey, layers }: { readonly key: string; readonly layers: readonly StageLayer[] },
  ): Promise<CachedLayer> {
    const { cache, operations, reporter, signal } = this.#build.options;
    const noCache = this.#isFresh();
    const step = { title: this.#title(instruction) };
    const startedAt = performance.now();
    const plan = await operations.plan(operation, {
      parentKey,
      layers: directoriesOf(layers),
      platform: this.#platform,
      step,
      source: async (name) => {
        const source = await this.#source(name, instruction.nameSpan);
        const { key = "scratch", layers: found = [], context } = source ?? {};
        return { key, layers: directoriesOf(found), context };
      },
    });
    const key = noCache ? await cache.forget(plan.key) : plan.key;
    const found = noCache ? undefined : await cache.find(key, signal);
    reporter.started?.(step);
    const layer = found ?? (await cache.make(key, plan.make, signal));
    cache.used.set(key, layer);
    reporter.ended?.(step, { cached: found !== undefined, durationMs: performance.now() - startedAt });
    return layer;
  }

  /** Whether nothing that an earlier build has made is used. */
  #isFresh(): boolean {
    const { noCache = false, noCacheStages } = this.#build.options;
    const { from, index } = this.#stage;
    return noCache || noCacheStages?.has(from.stageName ?? "") === true || noCacheStages?.has(String(index)) === true;
  }

  /** The time of an image that is found whole in the cache is that of its first build, so that it is the same image. */
  #timeOf(madeAtMs: number): string {
    const { epochSeconds } = this.#build.options;
    return new Date(epochSeconds === undefined ? madeAtMs : epochSeconds * 1000).toISOString().replace(".000Z", "Z");
  }

  #title({ text }: StageInstruction): string {
    const { from, index } = this.#stage;
    const { stages } = this.#build.options.dockerfile;
    const name = stages.length === 1 ? "" : `${from.stageName ?? `stage-${index}`} `;
    const { total } = this.#steps;
    const place = `${++this.#steps.done}`.padStart(`${total}`.length);
    const line = text.split("\n", 1)[0] as string;
    return `[${name}${place}/${total}] ${line.length > 200 ? `${line.slice(0, 199)}…` : line}`;
  }

  /** Lets whatever is wrong point at the instruction. */
  async #located<T>(instruction: StageInstruction, action: () => Promise<T>): Promise<T> {
    try {
      return await action();
    } catch (error) {
      if (error instanceof InstructionError) {
        const { suggestion } = error;
        throw this.#build.fail(error.span, error.message, { suggestion, cause: error });
      }
      if (error instanceof OperationError) {
        const { suggestion, exitCode } = error;
        throw this.#build.fail(instruction.nameSpan, error.message, { suggestion, exitCode, cause: error });
      }
      const word = wordAtFault(instruction, error);
      if (word === undefined || error instanceof BuildError) throw error;
      throw this.#build.fail(word.span, (error as Error).message, { cause: error });
    }
  }
}

/** The part of an instruction that an error is about; undefined for one that is no error of the instruction. */
function wordAtFault(instruction: StageInstruction, error: unknown): { readonly span: Span } | undefined {
  const whole = { span: instruction.nameSpan };
  if (error instanceof ModeError) return (instruction as CopyInstruction).chmod ?? whole;
  if (error instanceof AccountError) return (instruction as CopyInstruction).chown ?? whole;
  if (error instanceof PathPatternError) return (instruction as CopyInstruction).excludes?.[0] ?? whole;
  if (error instanceof SelectError || error instanceof CopyError || error instanceof ImageError) return whole;
  return undefined;
}

/** The stages and images that an instruction takes files from. */
function sourcesOf(instruction: StageInstruction): { readonly name: string; readonly span: Span }[] {
  if (instruction.kind === "run") return mountSources(instruction);
  if (instruction.kind !== "copy" || instruction.from === undefined || instruction.from.text.includes("$")) return [];
  return [{ name: instruction.from.text, span: instruction.from.span }];
}

function mountSources({ mounts }: RunInstruction): { readonly name: string; readonly span: Span }[] {
  return mounts.flatMap(({ text, span }) => {
    const name = mountSource(text);
    return name === undefined || name === "" ? [] : [{ name, span }];
  });
}
