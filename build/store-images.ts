/** Base images out of the agent's store, pulled from registries where they are not there. */
import {
  defaultLayerLimits,
  type ImageLease,
  type ImagePins,
  type ImageStore,
  parseReference,
  pullImage,
  type PullPolicy,
  type RegistryClient,
} from "../runtime/index.ts";
import type { BaseImage, BaseImages } from "./base-image.ts";
import { type Configuration, parseConfiguration, type Platform } from "./configuration.ts";

export interface StoreImagesOptions {
  readonly store: ImageStore;
  readonly client: RegistryClient;
  /** Holds what is found. */
  readonly lease: ImageLease;
  /** When the registry is asked. */
  readonly pull?: PullPolicy | undefined;
  /** Keeps the archives of layers, which an image made of them lists. */
  readonly keepArchives: boolean;
  /** What holds for a whole build of a pipeline. */
  readonly pins?: ImagePins | undefined;
  /** Nothing that registries do not give to anybody, see `PullOptions`. @default false */
  readonly publicOnly?: boolean | undefined;
  readonly onNote?: ((note: string) => void) | undefined;
}

export class StoreImages implements BaseImages {
  readonly #options: StoreImagesOptions;

  constructor(options: StoreImagesOptions) {
    this.#options = options;
  }

  async resolve(
    name: string,
    { platform, signal }: { readonly platform: Platform; readonly signal: AbortSignal },
  ): Promise<BaseImage> {
    const { store, client, lease, pull, keepArchives, pins, publicOnly, onNote } = this.#options;
    const { image, layers } = await pullImage(parseReference(name), {
      store,
      client,
      lease,
      limits: defaultLayerLimits,
      policy: pull,
      platform,
      keepArchives,
      pins,
      publicOnly,
      signal,
      onNote,
    });
    const configuration: Configuration = parseConfiguration(image.configContent);
    // The overlay's list leaves repetitions out.
    const directories = new Map<string, string>();
    const distinct = image.layers.filter(
      ({ diffId }, index) => image.layers.findLastIndex((each) => each.diffId === diffId) === index,
    );
    for (const [index, { diffId }] of distinct.entries()) directories.set(diffId, layers[index] as string);
    return {
      configuration,
      layers: image.layers.map(({ diffId, descriptor }) => ({
        diffId,
        descriptor,
        directory: directories.get(diffId) as string,
      })),
    };
  }
}
