/** The images of one job's steps. */
import { BuildError } from "../build/index.ts";
import type { StepSpec } from "../pipelines/index.ts";
import {
  formatReference,
  type Host,
  type Image,
  ImageError,
  ImageLease,
  type ImagePins,
  parseReference,
  type RegistryClient,
  RegistryError,
  resolveImage,
} from "../runtime/index.ts";
import { fillIn } from "./build-spec.ts";
import { type BuiltImages, NotBuiltError } from "./built-images.ts";
import { pipelineVariables } from "./environment.ts";

export interface JobImagesOptions {
  readonly host: Host;
  readonly workspace: { readonly dir: string };
  readonly registry?: RegistryClient;
  readonly pins?: ImagePins;
  readonly variables: Readonly<Record<string, string>>;
  readonly built: BuiltImages;
  /** Nothing of registries that they do not give to anybody; what the build has made is its own. @default false */
  readonly publicOnly?: boolean;
}

/** Who wants an image. `index` is a step's; what is no step wants it before all of them. */
export type NamedImage = Pick<StepSpec, "name" | "image" | "pull" | "env"> & { readonly index?: number };

/** What a step's `image` means. */
interface Meaning {
  /** As the pipeline has it, the values of variables in place. */
  readonly name: string;
  readonly reference: string;
  /** It was made by another job of the build. */
  readonly isOthers: boolean;
  readonly isBuilt: boolean;
}

interface Entry {
  readonly image: Promise<Image>;
  /** For the log of the first step that runs in it. */
  readonly notes: string[];
}

/**
 * Looks up all of a job's images at its beginning, so that no step waits for one, and holds them in the store until it is
 * disposed.
 */
export class JobImages implements AsyncDisposable {
  readonly #unneeded = new AbortController();
  readonly #entries = new Map<string, Entry>();
  /** Holds them; what the job builds, too. */
  readonly lease = new ImageLease();
  /** A step runs in an image that is yet to be built. */
  #isToBeBuilt = false;
  #holders = 1;
  readonly #options: JobImagesOptions;
  readonly #signal: AbortSignal;

  constructor(options: JobImagesOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = AbortSignal.any([signal, this.#unneeded.signal]);
  }

  prefetch(step: NamedImage): void {
    try {
      const meaning = this.#meaning(step);
      this.#entries.getOrInsertComputed(keyOf(step, meaning), () => this.#resolve(step, meaning));
    } catch (error) {
      // The step says so, if its image is not there by then.
      this.#isToBeBuilt ||= error instanceof NotBuiltError;
    }
  }

  /**
   * @param when "now": where there was no image at the job's beginning, an earlier step may have made one, or pulled what this one
   *   must not, and it is looked up once more. "ahead": an earlier step may still be at it.
   */
  async get(step: NamedImage, when: "ahead" | "now"): Promise<Image> {
    const meaning = this.#meaning(step);
    const key = keyOf(step, meaning);
    const entry = this.#entries.getOrInsertComputed(key, () => this.#resolve(step, meaning));
    try {
      return await entry.image;
    } catch (error) {
      const mayCome = step.image.startsWith("./") || step.pull === "never";
      if (when === "ahead" || !(error instanceof ImageError) || !mayCome) throw error;
      const again = this.#resolve(step, meaning);
      this.#entries.set(key, again);
      return await again.image;
    }
  }

  /** What a name means in the store or a registry. @throws {ImageError} If nothing, or nothing yet. */
  #meaning(step: NamedImage): Meaning {
    const { variables, built } = this.#options;
    if (step.image === "host" || step.image.startsWith("./"))
      return { name: step.image, reference: step.image, isOthers: false, isBuilt: false };
    try {
      const name = fillIn(step.image, pipelineVariables(step, variables));
      // A digest says what it is.
      const reference = parseReference(name);
      const found = reference.digest === undefined && built.find(formatReference(reference), step.index ?? -1);
      return found ? { name, ...found, isBuilt: true } : { name, reference: name, isOthers: false, isBuilt: false };
    } catch (error) {
      if (!(error instanceof BuildError)) throw error;
      throw new ImageError(`Cannot use the image ${error.message}`, { cause: error });
    }
  }

  /** Whether a program of theirs runs as another user than root; waits until they are there, as far as they are to be had now. */
  async haveUsers(): Promise<boolean> {
    // Nobody knows the user of an image that is yet to be built.
    if (this.#isToBeBuilt) return true;
    const images = await Promise.allSettled([...this.#entries.values()].map(({ image }) => image));
    return images.some((result) => result.status === "fulfilled" && result.value.user !== undefined);
  }

  /** What a person should know of the image: which one a tag stands for, what was pulled. Told once. */
  takeNotes(step: NamedImage): readonly string[] {
    try {
      return this.#entries.get(keyOf(step, this.#meaning(step)))?.notes.splice(0) ?? [];
    } catch {
      return [];
    }
  }

  #resolve({ pull }: NamedImage, { name, reference, isOthers, isBuilt }: Meaning): Entry {
    const { host, workspace, registry, pins, publicOnly = false } = this.#options;
    const notes: string[] = [];
    const image = resolveImage(reference, {
      baseDir: workspace.dir,
      storeDir: host.imageStoreDir,
      lease: this.lease,
      pull,
      publicOnly: publicOnly && !isBuilt,
      // Under the name that the pipeline has for it.
      onNote: (note) => notes.push(note.replace(`image ${reference} is`, `image ${name} is`)),
      signal: this.#signal,
      ...(registry !== undefined && { client: registry }),
      ...(pins !== undefined && { pins }),
    });
    const told = isOthers ? image.catch((error: unknown) => Promise.reject(explainMissing(name, error))) : image;
    told.catch(() => {}); // the step that runs in it says so
    return { image: told, notes };
  }

  /** Holds the images beyond the job, until the answer is disposed, too. */
  hold(): Disposable {
    this.#holders++;
    return { [Symbol.dispose]: () => this.#release() };
  }

  #release(): void {
    if (--this.#holders === 0) this.lease[Symbol.dispose]();
  }

  /** Stops what no step came to need: the workspace may be deleted afterwards, and the images removed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#unneeded.abort();
    await Promise.allSettled([...this.#entries.values()].map(({ image }) => image));
    this.#release();
  }
}

function keyOf({ pull }: NamedImage, { reference, isBuilt }: Meaning): string {
  return `${pull ?? ""} ${isBuilt} ${reference}`;
}

/** It was built, but not here. */
function explainMissing(name: string, error: unknown): unknown {
  if (!(error instanceof ImageError) && !(error instanceof RegistryError)) return error;
  const where = "another job of this build has made it, on another agent: push it there, or do both in one job";
  return new ImageError(`Cannot use the image ${JSON.stringify(name)}: ${where} (${error.message})`, { cause: error });
}
