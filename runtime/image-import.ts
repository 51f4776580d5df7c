/** Takes an image archive, or a root file system, into the store under a name. */
import { close as closeCallback, constants, fstat as fstatCallback, read as readCallback } from "node:fs";
import { promisify } from "node:util";
import { readDockerArchive } from "./docker-archive.ts";
import { type FoundImage, type FoundLayer, hostPlatform } from "./image-config.ts";
import { ImageError } from "./image-error.ts";
import { DirectoryFiles, type ImageFiles, scanTar } from "./image-files.ts";
import type { ImageLease } from "./image-lease.ts";
import { type Descriptor, mediaTypes } from "./image-manifest.ts";
import type { ImageStore } from "./image-store.ts";
import { defaultLayerLimits, type LayerLimits } from "./layer.ts";
import { layerKey } from "./layer-store.ts";
import { LayerWorkers } from "./layer-workers.ts";
import { readOciLayout } from "./oci-layout.ts";
import { allOrNone } from "./parallel.ts";
import { formatReference, parseReference } from "./registry-reference.ts";
import { putImage, putManifest } from "./stored-image.ts";
import { open, SyscallError } from "./syscall.ts";
import { type ByteRange, detectCompression } from "./unpack.ts";

const close = promisify(closeCallback);
const fstat = promisify(fstatCallback);
const read = promisify(readCallback);
const CHUNK_BYTES = 1 << 20;

export interface ImportOptions {
  readonly store: ImageStore;
  readonly lease: ImageLease;
  /** In full. @default what the archive calls it */
  readonly names?: readonly string[];
  readonly limits?: Partial<LayerLimits>;
  readonly signal?: AbortSignal;
}

export interface ImportedImage {
  readonly manifest: Descriptor;
  readonly names: readonly string[];
}

/**
 * Imports what a path holds: an OCI layout (directory or tar), a `docker save` archive, or the tar archive of a root file
 * system, which becomes an image of one layer.
 *
 * @throws {ImageError} If it is none of these, broken or hostile, or has no name and none is given.
 */
export async function importImage(path: string, options: ImportOptions): Promise<ImportedImage> {
  await using workers = new LayerWorkers();
  const cancel = () => workers.cancel(options.signal?.reason);
  options.signal?.addEventListener("abort", cancel, { once: true });
  let fd: number | undefined;
  try {
    options.signal?.throwIfAborted();
    fd = open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    return await new Import(options, workers).run(fd);
  } catch (error) {
    if (error instanceof SyscallError && error.syscall === "open")
      throw new ImageError(error.message, { cause: error });
    if (!(error instanceof ImageError)) throw error;
    throw new ImageError(`Cannot import ${JSON.stringify(path)}: ${error.message}`, { cause: error });
  } finally {
    options.signal?.removeEventListener("abort", cancel);
    if (fd !== undefined) await close(fd);
  }
}

class Import {
  readonly #options: ImportOptions;
  readonly #workers: LayerWorkers;
  readonly #limits: LayerLimits;

  constructor(options: ImportOptions, workers: LayerWorkers) {
    this.#options = options;
    this.#workers = workers;
    this.#limits = { ...defaultLayerLimits, ...options.limits };
  }

  async run(fd: number): Promise<ImportedImage> {
    const stat = await fstat(fd);
    if (stat.isDirectory()) {
      await using files = new DirectoryFiles(fd);
      return await this.#image(await readImage(files));
    }
    if (!stat.isFile()) throw new ImageError("it is neither a file nor a directory");
    const source = { fd, offset: 0, length: stat.size };
    if (detectCompression(source) === "none") return await this.#tar(source, source);
    // The members are needed in another order than they come in.
    const scratch = await this.#options.store.scratchFile();
    try {
      const limits = this.#limits;
      const length = await this.#workers.run({ kind: "decompress", source, target: scratch, limits });
      return await this.#tar({ fd: scratch, offset: 0, length }, source);
    } finally {
      await close(scratch);
    }
  }

  /** @param source The archive as it is, compressed or not. */
  async #tar(plain: ByteRange, source: ByteRange): Promise<ImportedImage> {
    const { kind, files } = await scanTar(plain);
    if (files !== undefined) return await this.#image(await readImage(files));
    if (kind !== "root") {
      throw new ImageError(
        "it is no image: looked for oci-layout and index.json (an OCI layout), manifest.json (a `docker save`), and bin, usr or etc (a root file system)",
      );
    }
    return await this.#rootFileSystem(plain, source);
  }

  async #rootFileSystem(plain: ByteRange, source: ByteRange): Promise<ImportedImage> {
    const diffId = `sha256:${await this.#workers.run({ kind: "hash", source: plain })}`;
    const { os, architecture, variant } = hostPlatform();
    const config = {
      os,
      architecture,
      ...(variant === undefined ? {} : { variant }),
      config: {},
      rootfs: { type: "layers", diff_ids: [diffId] },
      // buildah takes no base image that has fewer entries than layers.
      history: [{ created_by: "slipway image import" }],
    };
    return await this.#image({
      digest: "",
      config: { env: {} },
      configContent: Buffer.from(JSON.stringify(config)),
      names: [],
      layers: [{ source, diffId }],
    });
  }

  async #image(image: FoundImage): Promise<ImportedImage> {
    const { store, lease } = this.#options;
    const names = this.#options.names ?? fullNames(image.names);
    if (names.length === 0 && this.#options.names === undefined)
      throw new ImageError("it does not say what it is called; give it a name");
    const layers = await allOrNone(
      image.layers.map((layer) => this.#layer(layer)),
      (error) => this.#workers.cancel(error),
    );
    const { manifestContent, configContent } = image;
    const manifest =
      manifestContent === undefined
        ? await putImage(store, { config: configContent, layers, names }, lease)
        : await putManifest(store, { manifestContent, configContent, names }, lease);
    return { manifest, names };
  }

  /** Keeps the archive, and unpacks it. */
  async #layer(layer: FoundLayer): Promise<Descriptor> {
    const { store, lease, signal } = this.#options;
    const { source, diffId } = layer;
    const blob = await this.#keep(layer);
    const mediaType = layer.mediaType ?? layerTypes[detectCompression(source)];
    await store.layers.produce(
      layerKey(diffId),
      (directory) =>
        this.#workers
          .run({
            kind: "unpack",
            request: {
              source,
              directory,
              digest: blob.digest,
              diffId,
              endMarker: "optional",
              mustBeRoot: false,
              limits: this.#limits,
            },
          })
          .catch((error: unknown) => {
            if (!(error instanceof ImageError)) throw error;
            throw new ImageError(`layer ${diffId}: ${error.message}`, { cause: error });
          }),
      { durable: true, lease, signal, blob: { mediaType, ...blob, repositories: [] } },
    );
    return { mediaType, ...blob };
  }

  async #keep({ source, digest }: FoundLayer): Promise<{ readonly digest: string; readonly size: number }> {
    const { store, lease, signal } = this.#options;
    if (digest !== undefined && (await store.blobs.has(digest, source.length))) {
      const known = await store.blobs.open(digest, { lease });
      if (known !== undefined) {
        await close(known.fd);
        return { digest, size: known.length };
      }
    }
    await using writer = store.blobs.create({ size: source.length, ...(digest === undefined ? {} : { digest }) });
    const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
    for (let done = 0; done < source.length; ) {
      signal?.throwIfAborted();
      const { bytesRead } = await read(
        source.fd,
        buffer,
        0,
        Math.min(buffer.length, source.length - done),
        source.offset + done,
      );
      if (bytesRead === 0) throw new ImageError("it is truncated");
      await writer.write(buffer.subarray(0, bytesRead));
      done += bytesRead;
    }
    return await writer.commit({ lease });
  }
}

const layerTypes = { none: mediaTypes.layer, gzip: mediaTypes.gzipLayer, zstd: mediaTypes.zstdLayer } as const;

async function readImage(files: ImageFiles): Promise<FoundImage> {
  // An OCI layout says what its layers are; manifest.json beside it is there for older tools.
  const isLayout = (await files.find("oci-layout")) !== undefined && (await files.find("index.json")) !== undefined;
  return isLayout ? await readOciLayout(files) : await readDockerArchive(files);
}

/** The names that can be used: an archive may say anything. */
function fullNames(names: readonly string[]): string[] {
  return names.flatMap((name) => {
    try {
      return [formatReference(parseReference(name))];
    } catch (error) {
      if (error instanceof ImageError) return [];
      throw error;
    }
  });
}
