/**
 * Reads an image out of what `docker save` writes, and what skopeo, podman, buildah, crane, jib and Bazel write alike.
 *
 * manifest.json names the configuration and the layers by path: `ID/layer.tar` in archives of Docker before 25, `HEX.tar`
 * of skopeo, `blobs/sha256/HEX` since Docker 25, `HEX.tar.gz` of crane. Layers may be compressed.
 *
 * @see {@link https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format}
 */
import { z } from "zod";
import { type FoundImage, type FoundLayer, MAX_JSON_BYTES, parseConfiguration, parseJson } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import { type ImageFiles, readSmallFile } from "./image-files.ts";

const manifestSchema = z.array(
  z.object({
    Config: z.string(),
    Layers: z.array(z.string()).nullish(),
    RepoTags: z.array(z.string()).nullish(),
  }),
);

/**
 * Finds the one image of the archive.
 *
 * @throws {ImageError} If there is none or more than one, or something is missing, broken or not what its name or the
 *   configuration's diff ids say (the layers themselves are verified when they are unpacked).
 */
export async function readDockerArchive(files: ImageFiles): Promise<FoundImage> {
  const manifestRange = await files.find("manifest.json");
  if (manifestRange === undefined) throw new ImageError('its file "manifest.json" is missing');
  const manifests = parseJson(
    await readSmallFile(manifestRange, "manifest.json", MAX_JSON_BYTES),
    "manifest.json",
    manifestSchema,
  );
  const images = new Map(manifests.map((each) => [each.Config, each]));
  const [manifest] = images.values();
  if (manifest === undefined) throw new ImageError("its manifest.json lists no image");
  if (images.size > 1) {
    const names = [...images.values()].map(({ RepoTags, Config }) => RepoTags?.[0] ?? Config);
    throw new ImageError(`it holds ${images.size} images (${names.slice(0, 5).join(", ")}); save one alone`);
  }

  const configRange = await files.find(manifest.Config);
  if (configRange === undefined) throw new ImageError(`its file ${JSON.stringify(manifest.Config)} is missing`);
  const content = await readSmallFile(configRange, manifest.Config, MAX_JSON_BYTES);
  const configuration = parseConfiguration(content, manifest.Config);
  const named = digestOfName(manifest.Config);
  if (named !== undefined && named !== configuration.digest) {
    throw new ImageError(
      `its file ${JSON.stringify(manifest.Config)} has the digest ${configuration.digest}: it is damaged`,
    );
  }

  const paths = manifest.Layers ?? [];
  if (paths.length !== configuration.diffIds.length) {
    throw new ImageError(
      `its manifest.json has ${paths.length} layers but its configuration ${configuration.diffIds.length}`,
    );
  }
  const layers: FoundLayer[] = [];
  for (const [index, path] of paths.entries()) {
    const source = await files.find(path);
    if (source === undefined) throw new ImageError(`its layer ${JSON.stringify(path)} is missing`);
    // Only blobs/ are named by what they are; `HEX/layer.tar` is named by an id that is no digest of it.
    const digest = path.startsWith("blobs/") ? digestOfName(path) : undefined;
    layers.push({
      source,
      diffId: configuration.diffIds[index] as string,
      ...(digest === undefined ? {} : { digest }),
    });
  }
  return {
    digest: configuration.digest,
    config: configuration.config,
    configContent: content,
    names: manifest.RepoTags ?? [],
    layers,
  };
}

/** `HEX.json`, `sha256:HEX` and `blobs/sha256/HEX` carry their own digest. */
function digestOfName(path: string): string | undefined {
  const match = /(?:^|[/:])([0-9a-f]{64})(?:\.json)?$/.exec(path);
  return match === null ? undefined : `sha256:${match[1]}`;
}
