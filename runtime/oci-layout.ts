/**
 * Reads an image out of an OCI image layout.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/image-layout.md}
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { type FoundImage, type FoundLayer, MAX_JSON_BYTES, parseConfiguration, parseJson } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import { type ImageFiles, readSmallFile } from "./image-files.ts";
import { chooseManifest, type Descriptor, indexSchema, parseManifest } from "./image-manifest.ts";
import type { ByteRange } from "./unpack.ts";

const layoutSchema = z.object({ imageLayoutVersion: z.string() });

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
  const manifest = await chooseManifest(index.manifests, (descriptor) => readBlob(files, descriptor));
  return readImage(files, manifest);
}

async function readImage(files: ImageFiles, descriptor: Descriptor): Promise<FoundImage> {
  const manifestContent = await readBlob(files, descriptor);
  const manifest = parseManifest(manifestContent, descriptor.digest);
  const configContent = await readBlob(files, manifest.config);
  const configuration = parseConfiguration(configContent, manifest.config.digest);
  if (configuration.diffIds.length !== manifest.layers.length) {
    throw new ImageError(
      `its manifest has ${manifest.layers.length} layers but its configuration ${configuration.diffIds.length}`,
    );
  }
  const layers: FoundLayer[] = [];
  for (const [index, layer] of manifest.layers.entries()) {
    layers.push({
      source: await findBlob(files, layer),
      digest: layer.digest,
      mediaType: layer.mediaType,
      diffId: configuration.diffIds[index] as string,
    });
  }
  const name = descriptor.annotations?.["io.containerd.image.name"];
  return {
    digest: manifest.config.digest,
    config: configuration.config,
    configContent,
    manifestContent,
    names: name === undefined ? [] : [name],
    layers,
  };
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
