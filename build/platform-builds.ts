/** Builds an image for several platforms: one build each, side by side, and an index of them. */
import {
  type Descriptor,
  ImageError,
  putIndex,
  readStoredImage,
  readStoredIndex,
  type StoredImage,
  type StoredIndex,
} from "../runtime/index.ts";
import { BuildCache, type CachedLayer } from "./build-cache.ts";
import type { Platform } from "./configuration.ts";
import type { FinishedImage } from "./finish-image.ts";
import { FileWorkers } from "./file-workers.ts";
import { buildImage, exportCaches, type ImageBuildOptions, semaphoreOf } from "./image-build.ts";
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
 * Builds an image for each platform, side by side, and gives the whole of it its names. What one of them does that another
 * needs, too, is done once: a stage FROM --platform=$BUILDPLATFORM whose commands do not ask for the target. All together have as
 * many commands at a time as one build has. The first that fails ends the others.
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
  await using own = options.workers === undefined ? new FileWorkers() : undefined;
  const workers = options.workers ?? (own as FileWorkers);
  const images = await buildEach([only, ...others], { ...options, workers });
  const manifests = images.map(({ manifest, configuration }) => ({ descriptor: manifest, platform: configuration }));
  const { annotations } = options;
  const descriptor = await putIndex(store, { manifests, annotations, names }, lease);
  const stored = await readStoredIndex(store, descriptor.digest, lease);
  if (stored === undefined) throw damaged(descriptor);
  return { descriptor, images, stored, names };
}

async function buildEach(
  platforms: readonly Platform[],
  options: PlatformBuildOptions & { readonly workers: FileWorkers },
): Promise<readonly FinishedImage[]> {
  const { store, lease, cacheNamespace: namespace, names = [], usedLayers = new Map<string, CachedLayer>() } = options;
  const giveUp = new AbortController();
  const signal = options.signal === undefined ? giveUp.signal : AbortSignal.any([options.signal, giveUp.signal]);
  const shared = {
    ...options,
    names: [],
    isKept: options.isKept ?? names.length > 0,
    parallel: semaphoreOf(options),
    exportCache: undefined,
    signal,
  };
  // In the order of the platforms, whoever is ready first.
  const used = platforms.map(() => new Map<string, CachedLayer>());
  const builds = platforms.map(async (platform, index) => {
    const reporter = withPlatform(options.reporter ?? {}, platform);
    return await buildImage({ ...shared, platform, reporter, usedLayers: used[index] }).catch((error: unknown) => {
      giveUp.abort(error);
      throw giveUp.signal.reason;
    });
  });
  // Nobody uses anything of the caller's when it is told.
  await Promise.allSettled(builds);
  for (const [key, layer] of used.flatMap((each) => [...each])) usedLayers.set(key, layer);
  const images = await Promise.all(builds);
  const cache = new BuildCache({ store, lease, namespace, used: usedLayers });
  await exportCaches(cache, { ...options, epochSeconds: images[0]?.epochSeconds, signal });
  return images;
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
