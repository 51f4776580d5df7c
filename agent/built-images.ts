/** Images that steps of a build have made: their names mean them before any registry is asked. */
import { builtImagePin } from "../queue/index.ts";
import { ImageError, type ImagePins, parseReference } from "../runtime/index.ts";

/** A name whose image a step of the job is yet to make. */
export class NotBuiltError extends ImageError {
  /** What that step is called. */
  readonly step: string;

  constructor(name: string, step: string) {
    super(`Cannot use the image ${JSON.stringify(name)}: step "${step}" was to build it, and has not`);
    this.step = step;
  }
}

/** What a name means that a step of the build has given. */
export interface BuiltImageName {
  /** The same repository, at the digest. */
  readonly reference: string;
  /** Made by another job, maybe on another agent. */
  readonly isOthers: boolean;
}

/** Those of one job, and those that other jobs of the build have told of. */
export class BuiltImages {
  readonly #pins: ImagePins | undefined;
  readonly #announced = new Map<string, { readonly index: number; readonly step: string }>();
  readonly #made = new Map<string, string>();
  /** Of what has several platforms, by digest: the manifest of each. */
  readonly #platforms = new Map<string, ReadonlyMap<string, string>>();

  constructor(pins: ImagePins | undefined) {
    this.#pins = pins;
  }

  /** The step at `index` will make an image of this name: whoever comes later means that one. */
  announce(name: string, index: number, step: string): void {
    if (!this.#announced.has(name)) this.#announced.set(name, { index, step });
  }

  /**
   * From now on the names mean this image, here and in jobs that begin later.
   *
   * @param platforms The digest of each platform's manifest, by `formatPlatform`.
   */
  async add(names: readonly string[], digest: string, platforms: ReadonlyMap<string, string>): Promise<void> {
    this.#platforms.set(digest, platforms);
    for (const name of names) {
      this.#made.set(name, digest);
      await this.#pins?.agree(builtImagePin(name), digest);
    }
  }

  /** The reference of what `find` has found, for a platform: where it was made for several, that one's own. */
  forPlatform({ reference }: BuiltImageName, platform: string): string {
    const at = reference.indexOf("@");
    const manifest = this.#platforms.get(reference.slice(at + 1))?.get(platform);
    return manifest === undefined ? reference : `${reference.slice(0, at)}@${manifest}`;
  }

  /** Whether a step behind the one at some index wants what that makes. */
  isAnnounced(name: string, index: number): boolean {
    const announced = this.#announced.get(name);
    return announced !== undefined && announced.index < index;
  }

  /**
   * What a name in full means to the step at `index`; undefined if no step has made it.
   *
   * @throws {NotBuiltError} If an earlier step of the job has yet to, or has failed to.
   */
  find(name: string, index: number): BuiltImageName | undefined {
    const own = this.#made.get(name);
    if (own !== undefined) return { reference: atDigest(name, own), isOthers: false };
    const announced = this.#announced.get(name);
    if (announced !== undefined && announced.index < index) throw new NotBuiltError(name, announced.step);
    const others = this.#pins?.find(builtImagePin(name));
    return others === undefined ? undefined : { reference: atDigest(name, others), isOthers: true };
  }
}

/** `registry/repository@sha256:…` */
export function atDigest(name: string, digest: string): string {
  const { registry, repository } = parseReference(name);
  return `${registry}/${repository}@${digest}`;
}
