/** Builds an image for several platforms: one build each, and an index of them. */
import {
  type Descriptor,
  ImageError,
  putIndex,
  readStoredImage,
  readStoredIndex,
  type StoredImage,
  type StoredIndex,
} from "../runtime/index.ts";
import type { CachedLayer } from "./build-cache.ts";
import type { Platform } from "./configuration.ts";
import type { FinishedImage } from "./finish-image.ts";
import { buildImage, type ImageBuildOptions } from "./image-build.ts";
import { formatPlatform, hostPlatform } from "./platform.ts";
import type { BuildReporter } from "./report.ts";

/** What was built, in the store, held by the build's lease. */
export interface BuiltImage {
  /** Of the manifest, or of the index of several platforms: what a registry calls it. */
  readonly descriptor: Descriptor;
  /** In the order of the platforms. */
  readonly images: readonly FinishedImage[];
  /** What `writeOutput` writes. */
  readonly stored: StoredImage | StoredIndex;
  /** In full. */
  readonly names: readonly string[];
}

export interface PlatformBuildOptions extends Omit<ImageBuildOptions, "platform"> {
  /** Each once. Several make an index. @default this machine's */
  readonly platforms?: readonly Platform[] | undefined;
}

/**
 * Builds an image for each platform, one after the other, and gives the whole of it its names.
 *
 * @throws {BuildError} If the user's files or commands are at fault.
 */
export async function buildImages(options: PlatformBuildOptions): Promise<BuiltImage> {
  const { platforms = [hostPlatform()], store, lease, names = [], ...rest } = options;
  const [only, ...others] = distinct(platforms);
  if (only === undefined) throw new Error("No platform to build for");
  if (others.length === 0) {
    const image = await buildImage({ ...rest, store, lease, names, platform: only });
    const stored = await readStoredImage(store, image.manifest.digest, lease, { platform: "any" });
    if (stored === undefined) throw damaged(image.manifest);
    return { descriptor: image.manifest, images: [image], stored, names };
  }
  const images: FinishedImage[] = [];
  const isKept = options.isKept ?? names.length > 0;
  const usedLayers = options.usedLayers ?? new Map<string, CachedLayer>();
  for (const platform of [only, ...others]) {
    const reporter = withPlatform(options.reporter ?? {}, platform);
    // The last one exports what all have used.
    const exportCache = platform === others.at(-1) ? options.exportCache : undefined;
    const own = { names: [], isKept, platform, reporter, usedLayers, exportCache };
    images.push(await buildImage({ ...rest, ...own, store, lease }));
  }
  const manifests = images.map(({ manifest, configuration }) => ({ descriptor: manifest, platform: configuration }));
  const { annotations } = options;
  const descriptor = await putIndex(store, { manifests, annotations, names }, lease);
  const stored = await readStoredIndex(store, descriptor.digest, lease);
  if (stored === undefined) throw damaged(descriptor);
  return { descriptor, images, stored, names };
}

function distinct(platforms: readonly Platform[]): readonly Platform[] {
  return [...new Map(platforms.map((platform) => [formatPlatform(platform), platform])).values()];
}

function damaged({ digest }: Descriptor): ImageError {
  return new ImageError(`Cannot read ${digest}, which was put into the store just now: the disk is damaged`);
}

/** Steps of several platforms tell theirs. */
function withPlatform(reporter: BuildReporter, platform: Platform): BuildReporter {
  const prefix = `${formatPlatform(platform)} `;
  const steps = new WeakMap<object, { readonly title: string }>();
  const named = (step: { readonly title: string }) => {
    let known = steps.get(step);
    if (known === undefined) {
      known = { ...step, title: step.title.replace("[", `[${prefix}`) };
      steps.set(step, known);
    }
    return known;
  };
  return {
    started: (step) => reporter.started?.(named(step)),
    command: (command) => reporter.command?.(command),
    output: (step, chunk) => reporter.output?.(named(step), chunk),
    used: (step, usage) => reporter.used?.(named(step), usage),
    ended: (step, end) => reporter.ended?.(named(step), end),
    fetched: (url) => reporter.fetched?.(url),
    warned: (diagnostic) => reporter.warned?.(diagnostic),
    noted: (note) => reporter.noted?.(note),
  };
}
