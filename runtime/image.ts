/** What a container's root file system is made of. */

/** The part of an OCI image configuration that a step honours. */
export interface ImageConfig {
  readonly env: Readonly<Record<string, string>>;
  readonly workingDir?: string;
  readonly user?: string;
}

export interface Image {
  /** What the pipeline wrote. */
  readonly reference: string;
  /** `sha256:…` of the image configuration or archive; absent for `host` and plain directories. */
  readonly digest?: string;
  /** Absolute directories, base layer first, owned by root on disk; whiteouts as overlayfs wants them. Never written to. */
  readonly layers: readonly string[];
  /** Host directories bound read-only over the layers, `/usr` for the image `host`. Targets are single top-level names. */
  readonly binds: readonly { readonly source: string; readonly target: string }[];
  readonly config: ImageConfig;
}

/** The image cannot be used: missing, not an image, broken or hostile. The user's failure, not ours. */
export class ImageError extends Error {
  override readonly name = "ImageError";
}

/**
 * Finds what a pipeline's `image` names and unpacks it into the store if it must.
 *
 * @param reference `host`, or a path that begins with `./`: a root directory, a root tar (plain, gzip, zstd), an OCI
 *   layout (directory or tar) or a `docker save` archive.
 * @param options.baseDir The workspace; the path may not leave it, by symlinks neither (openat2 RESOLVE_BENEATH).
 * @param options.storeDir The agent's image store. Unpacked layers are kept there by digest, written beside and renamed.
 */
export async function resolveImage(
  reference: string,
  options: { readonly baseDir: string; readonly storeDir: string; readonly signal?: AbortSignal },
): Promise<Image> {
  throw new ImageError(`not written yet: ${reference} ${options.storeDir}`);
}
