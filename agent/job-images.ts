/** The images of one job's steps. */
import type { StepSpec } from "../pipelines/index.ts";
import {
  type Host,
  type Image,
  ImageError,
  ImageLease,
  type ImagePins,
  type RegistryClient,
  resolveImage,
} from "../runtime/index.ts";

export interface JobImagesOptions {
  readonly host: Host;
  readonly workspace: { readonly dir: string };
  readonly registry?: RegistryClient;
  readonly pins?: ImagePins;
}

type NamedImage = Pick<StepSpec, "image" | "pull">;

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
  readonly #lease = new ImageLease();
  #holders = 1;
  readonly #options: JobImagesOptions;
  readonly #signal: AbortSignal;

  constructor(options: JobImagesOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = AbortSignal.any([signal, this.#unneeded.signal]);
  }

  prefetch(step: NamedImage): void {
    this.#entries.getOrInsertComputed(keyOf(step), () => this.#resolve(step));
  }

  /**
   * @param when "now": where there was no image at the job's beginning, an earlier step may have made one, or pulled what this one
   *   must not, and it is looked up once more. "ahead": an earlier step may still be at it.
   */
  async get(step: NamedImage, when: "ahead" | "now"): Promise<Image> {
    const key = keyOf(step);
    const entry = this.#entries.getOrInsertComputed(key, () => this.#resolve(step));
    try {
      return await entry.image;
    } catch (error) {
      const mayCome = step.image.startsWith("./") || step.pull === "never";
      if (when === "ahead" || !(error instanceof ImageError) || !mayCome) throw error;
      const again = this.#resolve(step);
      this.#entries.set(key, again);
      return await again.image;
    }
  }

  /** Whether a program of theirs runs as another user than root; waits until they are there, as far as they are to be had now. */
  async haveUsers(): Promise<boolean> {
    const images = await Promise.allSettled([...this.#entries.values()].map(({ image }) => image));
    return images.some((result) => result.status === "fulfilled" && result.value.user !== undefined);
  }

  /** What a person should know of the image: which one a tag stands for, what was pulled. Told once. */
  takeNotes(step: NamedImage): readonly string[] {
    return this.#entries.get(keyOf(step))?.notes.splice(0) ?? [];
  }

  #resolve({ image: reference, pull }: NamedImage): Entry {
    const { host, workspace, registry, pins } = this.#options;
    const notes: string[] = [];
    const image = resolveImage(reference, {
      baseDir: workspace.dir,
      storeDir: host.imageStoreDir,
      lease: this.#lease,
      pull,
      onNote: (note) => notes.push(note),
      signal: this.#signal,
      ...(registry !== undefined && { client: registry }),
      ...(pins !== undefined && { pins }),
    });
    image.catch(() => {}); // the step that runs in it says so
    return { image, notes };
  }

  /** Holds the images beyond the job, until the answer is disposed, too. */
  hold(): Disposable {
    this.#holders++;
    return { [Symbol.dispose]: () => this.#release() };
  }

  #release(): void {
    if (--this.#holders === 0) this.#lease[Symbol.dispose]();
  }

  /** Stops what no step came to need: the workspace may be deleted afterwards, and the images removed. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#unneeded.abort();
    await Promise.allSettled([...this.#entries.values()].map(({ image }) => image));
    this.#release();
  }
}

function keyOf({ image, pull }: NamedImage): string {
  return `${pull ?? ""} ${image}`;
}
