/**
 * Manifests and indexes: what a registry, a layout and the store have in common.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/manifest.md}
 */
import { z } from "zod";
import { digestSchema, type HostPlatform, hostPlatform, parseJson } from "./image-config.ts";
import { ImageError } from "./image-error.ts";

const platformSchema = z.object({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().optional(),
  "os.version": z.string().optional(),
});

const descriptorSchema = z.object({
  mediaType: z.string().max(256),
  digest: digestSchema,
  size: z.int().nonnegative(),
  annotations: z.record(z.string(), z.string()).nullish(),
  platform: platformSchema.nullish(),
  urls: z.array(z.string()).nullish(),
});

/** Says what something is, and what it must be to be taken for that. */
export type Descriptor = z.infer<typeof descriptorSchema>;

/** Several images of one name, for several platforms. */
export const indexSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(descriptorSchema).max(2000),
});

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(10_000),
  annotations: z.record(z.string(), z.string()).nullish(),
});

/** One image for one platform. */
export type ImageManifest = z.infer<typeof manifestSchema>;

/** The media types by their names. Docker's mean the same. */
export const mediaTypes = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  layer: "application/vnd.oci.image.layer.v1.tar",
  gzipLayer: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstdLayer: "application/vnd.oci.image.layer.v1.tar+zstd",
  dockerIndex: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
} as const;

/** What is asked of registries, the best first. */
export const acceptedTypes: readonly string[] = [
  mediaTypes.index,
  mediaTypes.manifest,
  mediaTypes.dockerIndex,
  mediaTypes.dockerManifest,
];

const indexTypes: ReadonlySet<string> = new Set([mediaTypes.index, mediaTypes.dockerIndex]);
const manifestTypes: ReadonlySet<string> = new Set([mediaTypes.manifest, mediaTypes.dockerManifest]);
const configTypes: ReadonlySet<string> = new Set([mediaTypes.config, mediaTypes.dockerConfig]);
const layerType =
  /^application\/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+(gzip|zstd))?|docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?)$/;

/** An index may point at an index; what needs more than this is made to be followed forever. */
const MAX_INDEX_DEPTH = 4;
/** Indexes read for one image, whatever their nesting. */
const MAX_INDEXES = 20;

export function isIndexType(mediaType: string): boolean {
  return indexTypes.has(mediaType);
}

export function isManifestType(mediaType: string): boolean {
  return manifestTypes.has(mediaType);
}

/**
 * Parses and checks the manifest of an image.
 *
 * @throws {ImageError} If it is none, or of an artifact that is no image, or has layers of an unknown kind.
 */
export function parseManifest(content: Buffer, name: string): ImageManifest {
  const manifest = parseJson(content, name, manifestSchema);
  if (!configTypes.has(manifest.config.mediaType)) {
    throw new ImageError(`it is not an image but an artifact of type ${JSON.stringify(manifest.config.mediaType)}`);
  }
  for (const { mediaType, digest } of manifest.layers) {
    if (!layerType.test(mediaType)) {
      throw new ImageError(`its layer ${digest} is of type ${JSON.stringify(mediaType)}, which is not supported`);
    }
  }
  return manifest;
}

/**
 * Finds the one manifest for a platform among those an index lists, through indexes it points at.
 *
 * @param read Gives the content of a nested index, verified.
 * @throws {ImageError} If there is none or more than one, or indexes are nested too deep.
 */
export async function chooseManifest(
  descriptors: readonly Descriptor[],
  read: (descriptor: Descriptor) => Promise<Buffer>,
  platform: HostPlatform = hostPlatform(),
): Promise<Descriptor> {
  const candidates = new Map<string, Descriptor>();
  let indexes = 0;
  const collect = async (listed: readonly Descriptor[], depth: number): Promise<void> => {
    if (depth > MAX_INDEX_DEPTH) throw new ImageError(`its indexes are nested more than ${MAX_INDEX_DEPTH} deep`);
    for (const descriptor of listed) {
      // BuildKit's attestations stand beside the images they are about, for no platform.
      if (descriptor.annotations?.["vnd.docker.reference.type"] !== undefined) continue;
      if (isManifestType(descriptor.mediaType)) {
        candidates.set(descriptor.digest, descriptor);
      } else if (isIndexType(descriptor.mediaType) && rank(descriptor, platform) !== undefined) {
        if (++indexes > MAX_INDEXES) throw new ImageError(`it has more than ${MAX_INDEXES} indexes in its index`);
        const nested = parseJson(await read(descriptor), descriptor.digest, indexSchema);
        await collect(nested.manifests, depth + 1);
      }
    }
  };
  await collect(descriptors, 0);
  return best([...candidates.values()], platform);
}

function best(candidates: readonly Descriptor[], platform: HostPlatform): Descriptor {
  const ranked = candidates.flatMap((descriptor) => {
    const found = rank(descriptor, platform);
    return found === undefined ? [] : [{ descriptor, rank: found }];
  });
  const lowest = Math.min(...ranked.map((each) => each.rank));
  const matching = ranked.filter((each) => each.rank === lowest).map(({ descriptor }) => descriptor);
  const [first, second] = matching;
  if (first !== undefined && second === undefined) return first;
  const wanted = platformName(platform);
  if (first === undefined) {
    const platforms = new Set(candidates.map((each) => (each.platform ? platformName(each.platform) : "unknown")));
    throw new ImageError(
      candidates.length === 0
        ? "its index lists no image"
        : `it has no image for ${wanted}, only for ${[...platforms].slice(0, 20).join(", ")}`,
    );
  }
  const names = matching.map((each) => each.annotations?.["org.opencontainers.image.ref.name"] ?? each.digest);
  throw new ImageError(
    `it holds ${matching.length} images for ${wanted} (${names.slice(0, 5).join(", ")}); keep one in it`,
  );
}

/**
 * How well an image fits a platform: 0 is exact, more is worse, undefined not at all.
 *
 * A processor runs what was compiled for an older variant of its architecture (arm/v7 runs v6 and v5, amd64/v2 runs v1),
 * not the other way round.
 */
function rank({ platform }: Descriptor, wanted: HostPlatform): number | undefined {
  if (platform === undefined || platform === null) return 0;
  if (platform.os !== wanted.os || platform.architecture !== wanted.architecture) return undefined;
  const theirs = variantNumber(platform);
  const ours = variantNumber(wanted);
  return theirs > ours ? undefined : ours - theirs;
}

/** @see {@link https://github.com/opencontainers/image-spec/blob/main/image-index.md#platform-variants} */
function variantNumber({
  architecture,
  variant,
}: {
  readonly architecture: string;
  readonly variant?: string | undefined;
}): number {
  const number = /^v(\d)/.exec(variant ?? "")?.[1];
  if (number !== undefined) return Number(number);
  return architecture === "arm64" ? 8 : architecture === "arm" ? 7 : 1;
}

/** `linux/arm64`, `linux/arm/v7` */
export function platformName(platform: {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}): string {
  const { os, architecture, variant } = platform;
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}
