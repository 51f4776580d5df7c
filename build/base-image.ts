/** Images that a build begins from. */
import type { Configuration, Platform } from "./configuration.ts";

/** A layer that was there before the build. */
export interface BaseLayer {
  /** Its files, as overlayfs mounts them. */
  readonly directory: string;
  /** Of its archive before compression. */
  readonly diffId: string;
  /** The archive that an image made of it lists. */
  readonly descriptor: { readonly mediaType: string; readonly digest: string; readonly size: number };
}

export interface BaseImage {
  readonly configuration: Configuration;
  /** Base layer first; one for each of its `diff_ids`. */
  readonly layers: readonly BaseLayer[];
}

/** Finds images by name; whatever it gives is held in the store as long as the build lasts. */
export interface BaseImages {
  /** @throws {ImageError} If there is none, saying why. */
  resolve(name: string, options: { readonly platform: Platform; readonly signal: AbortSignal }): Promise<BaseImage>;
}
