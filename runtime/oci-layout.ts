/**
 * Reads an image out of an OCI image layout.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/image-layout.md}
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import {
  digestSchema,
  type FoundImage,
  type FoundLayer,
  hostPlatform,
  MAX_JSON_BYTES,
  parseConfiguration,
  parseJson,
} from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import { type ImageFiles, readSmallFile } from "./image-files.ts";
import type { ByteRange } from "./unpack.ts";

const layoutSchema = z.object({ imageLayoutVersion: z.string() });

const descriptorSchema = z.object({
  mediaType: z.string(),
  digest: digestSchema,
  size: z.int().nonnegative(),
  annotations: z.record(z.string(), z.string()).nullish(),
  platform: z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() }).nullish(),
});
type Descriptor = z.infer<typeof descriptorSchema>;

const indexSchema = z.object({ schemaVersion: z.literal(2), manifests: z.array(descriptorSchema) });

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  config: descriptorSchema,
  layers: z.array(descriptorSchema),
});

const INDEX_TYPES: ReadonlySet<string> = new Set([
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
]);
const MANIFEST_TYPES: ReadonlySet<string> = new Set([
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
]);
const CONFIG_TYPES: ReadonlySet<string> = new Set([
  "application/vnd.oci.image.config.v1+json",
  "application/vnd.docker.container.image.v1+json",
]);
const LAYER_TYPE =
  /^application\/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+(gzip|zstd))?|docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?)$/;

/** An index may point at an index; a layout that needs more than this is made to be followed forever. */
const MAX_INDEX_DEPTH = 4;

/**
 * Finds the one image of a layout for this machine's platform.
 *
 * @throws {ImageError} If there is none or more than one, or something is missing, broken or not what its digest says.
 */
export async function readOciLayout(files: ImageFiles): Promise<FoundImage> {
  const layout = await readNamed(files, "oci-layout");
  const { imageLayoutVersion } = parseJson(layout, "oci-layout", layoutSchema);
  if (!imageLayoutVersion.startsWith("1.")) {
    throw new ImageError(`it is an OCI layout of version ${imageLayoutVersion}; supported is 1.0.0`);
  }
  const index = parseJson(await readNamed(files, "index.json"), "index.json", indexSchema);
  const candidates = await collectManifests(files, index.manifests, 0);
  const manifest = chooseManifest(candidates);
  return readImage(files, manifest);
}

/** The manifests of an index and of those it points at; one per digest. */
async function collectManifests(
  files: ImageFiles,
  descriptors: readonly Descriptor[],
  depth: number,
): Promise<Descriptor[]> {
  if (depth > MAX_INDEX_DEPTH) throw new ImageError(`its indexes are nested more than ${MAX_INDEX_DEPTH} deep`);
  const found = new Map<string, Descriptor>();
  for (const descriptor of descriptors) {
    // BuildKit's attestations stand beside the images they are about, for no platform.
    if (descriptor.annotations?.["vnd.docker.reference.type"] !== undefined) continue;
    if (MANIFEST_TYPES.has(descriptor.mediaType)) {
      found.set(descriptor.digest, descriptor);
    } else if (INDEX_TYPES.has(descriptor.mediaType) && matchesPlatform(descriptor)) {
      const nested = parseJson(await readBlob(files, descriptor), descriptor.digest, indexSchema);
      for (const inner of await collectManifests(files, nested.manifests, depth + 1)) found.set(inner.digest, inner);
    }
  }
  return [...found.values()];
}

function matchesPlatform({ platform }: Descriptor): boolean {
  const host = hostPlatform();
  return (
    platform === undefined ||
    platform === null ||
    (platform.os === host.os && platform.architecture === host.architecture)
  );
}

function chooseManifest(candidates: readonly Descriptor[]): Descriptor {
  const matching = candidates.filter(matchesPlatform);
  const [first, second] = matching;
  if (first !== undefined && second === undefined) return first;
  const { os, architecture } = hostPlatform();
  if (first === undefined) {
    const platforms = candidates.map(({ platform }) => `${platform?.os}/${platform?.architecture}`);
    throw new ImageError(
      candidates.length === 0
        ? "its index.json lists no image"
        : `it has no image for ${os}/${architecture}, only for ${[...new Set(platforms)].join(", ")}`,
    );
  }
  const names = matching.map((each) => each.annotations?.["org.opencontainers.image.ref.name"] ?? each.digest);
  throw new ImageError(
    `it holds ${matching.length} images for ${os}/${architecture} (${names.slice(0, 5).join(", ")}); keep one in it`,
  );
}

async function readImage(files: ImageFiles, descriptor: Descriptor): Promise<FoundImage> {
  const manifest = parseJson(await readBlob(files, descriptor), descriptor.digest, manifestSchema);
  if (!CONFIG_TYPES.has(manifest.config.mediaType)) {
    throw new ImageError(`it is not an image but an artifact of type ${JSON.stringify(manifest.config.mediaType)}`);
  }
  const configuration = parseConfiguration(await readBlob(files, manifest.config), manifest.config.digest);
  if (configuration.diffIds.length !== manifest.layers.length) {
    throw new ImageError(
      `its manifest has ${manifest.layers.length} layers but its configuration ${configuration.diffIds.length}`,
    );
  }
  const layers: FoundLayer[] = [];
  for (const [index, layer] of manifest.layers.entries()) {
    if (!LAYER_TYPE.test(layer.mediaType)) {
      throw new ImageError(
        `its layer ${layer.digest} is of type ${JSON.stringify(layer.mediaType)}, which is not supported`,
      );
    }
    layers.push({
      source: await findBlob(files, layer),
      digest: layer.digest,
      diffId: configuration.diffIds[index] as string,
    });
  }
  return { digest: manifest.config.digest, config: configuration.config, layers };
}

async function findBlob(files: ImageFiles, { digest, size }: Descriptor): Promise<ByteRange> {
  const source = await files.find(`blobs/${digest.replace(":", "/")}`);
  if (source === undefined) throw new ImageError(`its blob ${digest} is missing`);
  if (source.length !== size) {
    throw new ImageError(`its blob ${digest} has ${source.length} bytes, expected are ${size} bytes`);
  }
  return source;
}

/** A small blob, verified. */
async function readBlob(files: ImageFiles, descriptor: Descriptor): Promise<Buffer> {
  const content = await readSmallFile(await findBlob(files, descriptor), descriptor.digest, MAX_JSON_BYTES);
  const algorithm = descriptor.digest.slice(0, descriptor.digest.indexOf(":"));
  const computed = `${algorithm}:${createHash(algorithm).update(content).digest("hex")}`;
  if (computed !== descriptor.digest) {
    throw new ImageError(`its blob ${descriptor.digest} has the digest ${computed}: it is damaged`);
  }
  return content;
}

async function readNamed(files: ImageFiles, name: string): Promise<Buffer> {
  const range = await files.find(name);
  if (range === undefined) throw new ImageError(`its file "${name}" is missing`);
  return readSmallFile(range, name, MAX_JSON_BYTES);
}
