/** What a container's root file system is made of. */
import { constants, fstat as fstatCallback, close as closeCallback, type Stats } from "node:fs";
import { promisify } from "node:util";
import { readDockerArchive } from "./docker-archive.ts";
import { resolveHostImage } from "./host-image.ts";
import { defaultPath, type FoundImage, type ImageConfig } from "./image-config.ts";
import type { ResolvedUser } from "./accounts.ts";
import { formatBytes, ImageError } from "./image-error.ts";
import { DirectoryFiles, type ImageFiles, scanTar } from "./image-files.ts";
import { type ImagePins, MAX_LAYERS, pullImage, type PullPolicy } from "./image-pull.ts";
import type { ImageLease } from "./image-lease.ts";
import { ImageStore } from "./image-store.ts";
import { layerKey, type LayerStore } from "./layer-store.ts";
import { findImageUser } from "./image-user.ts";
import { defaultLayerLimits, type LayerLimits } from "./layer.ts";
import { LayerWorkers } from "./layer-workers.ts";
import { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS } from "./linux.ts";
import { readOciLayout } from "./oci-layout.ts";
import { RegistryClient } from "./registry-client.ts";
import { RegistryError } from "./registry-error.ts";
import { parseReference } from "./registry-reference.ts";
import { allOrNone } from "./parallel.ts";
import { close as closeDescriptor, open, openat2, SyscallError } from "./syscall.ts";
import { type ByteRange, detectCompression } from "./unpack.ts";

export type { ImageConfig } from "./image-config.ts";
export { ImageError } from "./image-error.ts";
export type { LayerLimits } from "./layer.ts";

export interface Image {
  /** What the pipeline wrote. */
  readonly reference: string;
  /** `sha256:…` of what the registry has under the name, of the image configuration or archive; absent for `host` and plain directories. */
  readonly digest?: string;
  /** Absolute directories, base layer first, owned by root on disk; whiteouts as overlayfs wants them. Never written to. */
  readonly layers: readonly string[];
  /** Host directories bound read-only over the layers, `/usr` for the image `host`. Targets are single top-level names. */
  readonly binds: readonly { readonly source: string; readonly target: string }[];
  readonly config: ImageConfig;
  /** Whom `config.user` means in the image's own /etc/passwd and /etc/group. @default root */
  readonly user?: ResolvedUser;
}

interface ResolveOptions {
  readonly baseDir: string;
  readonly storeDir: string;
  /** For images in registries. @default a client that knows no credentials and no settings */
  readonly client?: RegistryClient;
  readonly pull?: PullPolicy | undefined;
  readonly pins?: ImagePins | undefined;
  /**
   * Nothing that the registry does not give to anybody, see `PullOptions`; of an image in the workspace nothing that is not read there:
   * its configuration may name any layer of the store. @default false
   */
  readonly publicOnly?: boolean | undefined;
  /** Told what a person should know about the pull. */
  readonly onNote?: ((note: string) => void) | undefined;
  readonly lease?: ImageLease;
  readonly signal?: AbortSignal;
  readonly limits?: Partial<LayerLimits>;
}

/**
 * Finds what a pipeline's `image` names and unpacks it into the store if it must.
 *
 * Layers that are in the store already are not read again. Of calls for the same layer at the same time, in any process,
 * one unpacks. The work is done in threads of its own.
 *
 * @param reference `host`; a path that begins with `./`: a root directory, a root tar (plain, gzip, zstd), an OCI layout
 *   (directory or tar) or a `docker save` archive; or the name of an image in a registry.
 * @param options.baseDir The workspace; the path may not leave it, by symlinks neither (openat2 RESOLVE_BENEATH).
 * @param options.storeDir The agent's image store. Unpacked layers are kept there by digest, written beside and renamed.
 * @param options.lease Holds the layers in the store for as long as it lasts. @default for as long as the process lasts
 * @param options.limits What a layer may cost. @default 1000000 entries, 32 GiB, 200 times its compressed size
 * @throws {ImageError} If the image is missing, not an image, broken or hostile, or the registry denies access.
 * @throws {RegistryError} If the registry cannot be reached.
 */
export async function resolveImage(reference: string, options: ResolveOptions): Promise<Image> {
  options.signal?.throwIfAborted();
  await using workers = new LayerWorkers();
  const cancel = () => workers.cancel(options.signal?.reason);
  options.signal?.addEventListener("abort", cancel, { once: true });
  try {
    const store = await ImageStore.open(options.storeDir);
    const lease = options.lease ?? store.processLease;
    if (reference === "host") return await resolveHostImage(store, { lease, signal: options.signal });
    const limits = { ...defaultLayerLimits, ...options.limits };
    if (!reference.startsWith(".") && !reference.startsWith("/")) {
      return await resolveFromRegistry(reference, { ...options, store, lease, limits });
    }
    return await new Resolution(reference, { ...options, limits, store, lease, workers }).resolve();
  } finally {
    options.signal?.removeEventListener("abort", cancel);
  }
}

/** Pulls, or finds in the store, what a registry has under a name. */
async function resolveFromRegistry(
  reference: string,
  options: ResolveOptions & { readonly store: ImageStore; readonly lease: ImageLease; readonly limits: LayerLimits },
): Promise<Image> {
  const parsed = parseReference(reference);
  using own = options.client === undefined ? new RegistryClient({}) : undefined;
  const client = options.client ?? (own as RegistryClient);
  const { store, lease, limits, pull: policy, pins, publicOnly, signal, onNote } = options;
  try {
    const received = new Map<string, number>();
    const startedAtMs = performance.now();
    const pulled = await pullImage(parsed, {
      store,
      client,
      lease,
      limits,
      policy,
      pins,
      publicOnly,
      signal,
      onNote,
      onProgress: ({ digest, receivedBytes }) => received.set(digest, receivedBytes),
    });
    const bytes = [...received.values()].reduce((sum, size) => sum + size, 0);
    const seconds = ((performance.now() - startedAtMs) / 1000).toFixed(1);
    const how = bytes === 0 ? "in the store" : `pulled ${formatBytes(bytes)} in ${seconds} s`;
    onNote?.(`image ${reference} is ${pulled.resolved}: ${how}`);
    const { config } = pulled.image;
    const user = await findImageUser(store, config.user, pulled.layers);
    const image = { reference, digest: pulled.resolved, layers: pulled.layers, binds: [], config };
    return user === undefined ? image : { ...image, user };
  } catch (error) {
    if (error instanceof ImageError) throw new ImageError(cannotUse(reference, error), { cause: error });
    if (error instanceof RegistryError) {
      const { status, transient } = error;
      throw new RegistryError(cannotUse(reference, error), { status, transient, cause: error });
    }
    throw error;
  }
}

function cannotUse(reference: string, { message }: Error): string {
  return `Cannot use the image ${JSON.stringify(reference)}: ${message}`;
}

const close = promisify(closeCallback);
const fstat = promisify(fstatCallback);

/** Hashes of archives by what fstat(2) says of them. */
const hashes = new Map<string, string>();
const MAX_HASHES = 1000;

/** One image on its way from a path to layers. */
class Resolution {
  readonly #reference: string;
  readonly #baseDir: string;
  readonly #store: ImageStore;
  readonly #workers: LayerWorkers;
  readonly #limits: LayerLimits;
  readonly #lease: ImageLease;
  readonly #signal: AbortSignal | undefined;
  /** Behind the names of layers that nobody else finds: these are unpacked anew. */
  readonly #suffix: string;

  constructor(
    reference: string,
    options: ResolveOptions & {
      readonly limits: LayerLimits;
      readonly store: ImageStore;
      readonly lease: ImageLease;
      readonly workers: LayerWorkers;
    },
  ) {
    this.#reference = reference;
    this.#baseDir = options.baseDir;
    this.#store = options.store;
    this.#workers = options.workers;
    this.#limits = options.limits;
    this.#lease = options.lease;
    this.#signal = options.signal;
    this.#suffix = options.publicOnly === true ? `-${crypto.randomUUID()}` : "";
  }

  async resolve(): Promise<Image> {
    try {
      checkReference(this.#reference);
      const base = open(this.#baseDir, O_PATH | O_DIRECTORY);
      try {
        const fd = await this.#open(base);
        try {
          const stat = await fstat(fd);
          return stat.isDirectory()
            ? await this.#directory(fd)
            : await this.#archive({ fd, offset: 0, length: stat.size });
        } finally {
          await close(fd);
        }
      } finally {
        await close(base);
      }
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      throw new ImageError(cannotUse(this.#reference, error), { cause: error });
    }
  }

  /** Opens a file or directory beneath the base; anything else is refused before it is opened for reading. */
  async #open(base: number): Promise<number> {
    const path = this.#reference;
    const resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    try {
      // Opening a device or a FIFO for reading does things; O_PATH does not.
      const handle = openat2(base, path, { flags: O_PATH, resolve });
      try {
        const stat = await fstat(handle);
        if (!stat.isFile() && !stat.isDirectory()) throw new ImageError(`it is ${describe(stat)}`);
        // Through the handle: what was looked at is what is opened, whatever the path is by now.
        return open(`/proc/self/fd/${handle}`, constants.O_RDONLY | O_NONBLOCK);
      } finally {
        await close(handle);
      }
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      switch (error.code) {
        case "ENOENT":
          throw new ImageError("there is no such file or directory in the workspace", { cause: error });
        case "ENOTDIR":
          throw new ImageError("a component of its path is not a directory", { cause: error });
        case "EXDEV":
          throw new ImageError("it leads out of the workspace", { cause: error });
        case "ELOOP":
          throw new ImageError("its path is a loop of symbolic links, or one through /proc", { cause: error });
        case "ENAMETOOLONG":
          throw new ImageError("its path is too long", { cause: error });
        default:
          throw error;
      }
    }
  }

  async #directory(fd: number): Promise<Image> {
    await using files = new DirectoryFiles(fd);
    if ((await files.find("oci-layout")) !== undefined) return await this.#image(await readOciLayout(files));
    if ((await files.find("manifest.json")) !== undefined && !hasRootNames(fd)) {
      return await this.#image(await readDockerArchive(files));
    }
    if (!hasRootNames(fd)) {
      throw new ImageError(
        "it is a directory but not an image: looked for oci-layout and index.json (an OCI layout), manifest.json (an unpacked `docker save`), and bin, usr or etc (a root file system)",
      );
    }
    return this.#tree(fd);
  }

  /**
   * A root directory is copied into the store: steps can write to the workspace, and what a lower layer of an overlay
   * shows after it changed is undefined (overlayfs.rst, "Changes to underlying filesystems").
   */
  async #tree(fd: number): Promise<Image> {
    const request = { fd, limits: this.#limits };
    const { hash } = await this.#workers.run({ kind: "tree", request });
    const layer = await this.#produce(
      `tree-${hash}`,
      async (directory) => {
        const copied = await this.#workers.run({ kind: "tree", request: { ...request, directory } });
        if (copied.hash !== hash || copied.summary === undefined) {
          await this.#workers.run({ kind: "remove", path: directory });
          throw new ImageError("it changed while it was copied; no process may write there");
        }
        return copied.summary;
      },
      { durable: false },
    );
    return { reference: this.#reference, layers: [layer], binds: [], config: { env: { PATH: defaultPath } } };
  }

  async #archive(source: ByteRange): Promise<Image> {
    if (source.length === 0) throw new ImageError("it is an empty file");
    if (detectCompression(source) !== "none") return this.#compressedArchive(source);
    const { kind, files } = await scanTar(source).catch((error: unknown): never => notAnArchive(error));
    if (files !== undefined) return this.#image(await readImageFiles(files));
    return kind === "root" ? this.#rootArchive(source) : notAnImage();
  }

  async #compressedArchive(source: ByteRange): Promise<Image> {
    const hash = await this.#hash(source);
    const found = await this.#recallArchive(hash);
    if (found !== undefined) return found;
    const limits = this.#limits;
    const kind = await this.#workers
      .run({ kind: "detect", source, limits })
      .catch((error: unknown): never => notAnArchive(error));
    if (kind === "neither") return notAnImage();
    if (kind === "root") return this.#rootArchive(source, hash);
    // The members are needed in another order than they come in.
    const target = await this.#store.scratchFile();
    try {
      const length = await this.#workers.run({ kind: "decompress", source, target, limits });
      const { files } = await scanTar({ fd: target, offset: 0, length });
      if (files === undefined) return await this.#rootArchive(source, hash);
      const image = await readImageFiles(files);
      const resolved = await this.#image(image);
      const { digest, config } = image;
      if (this.#suffix !== "") return resolved;
      await this.#store.remember(hash, { digest, config, keys: layerKeys(image) } satisfies ArchiveRecord);
      return resolved;
    } finally {
      await close(target);
    }
  }

  /** The sha256 of a file; read once as long as it does not change (nobody but root can set a ctime). */
  async #hash(source: ByteRange): Promise<string> {
    const { dev, ino, size, mtimeNs, ctimeNs } = await fstat(source.fd, { bigint: true });
    const version = `${dev}:${ino}:${size}:${mtimeNs}:${ctimeNs}`;
    const known = hashes.get(version);
    if (known !== undefined) return known;
    const hash = await this.#workers.run({ kind: "hash", source });
    if (hashes.size >= MAX_HASHES) hashes.clear();
    hashes.set(version, hash);
    return hash;
  }

  /** What an earlier run found out about the compressed archive, if all its layers are still there. */
  async #recallArchive(hash: string): Promise<Image | undefined> {
    const tree = await this.#store.layers.find(`tar-${hash}`, this.#lease);
    if (tree !== undefined) return this.#rootImage(tree, hash);
    const record = (await this.#store.recall(hash)) as ArchiveRecord | undefined;
    if (record === undefined) return undefined;
    const layers = await Promise.all(record.keys.map((key) => this.#store.layers.find(key, this.#lease)));
    if (!layers.every((layer) => layer !== undefined)) return undefined;
    return await this.#withUser(record, layers);
  }

  /** A root file system in a tar archive: one layer, named by the archive's own digest. */
  async #rootArchive(source: ByteRange, knownHash?: string): Promise<Image> {
    const hash = knownHash ?? (await this.#hash(source));
    const digest = `sha256:${hash}`;
    const layer = await this.#produce(`tar-${hash}`, (directory) =>
      this.#workers.run({
        kind: "unpack",
        // The digest again: the file may have changed since it was hashed.
        request: { source, directory, digest, endMarker: "required", mustBeRoot: true, limits: this.#limits },
      }),
    );
    return this.#rootImage(layer, hash);
  }

  #rootImage(layer: string, hash: string): Image {
    const config = { env: { PATH: defaultPath } };
    return { reference: this.#reference, digest: `sha256:${hash}`, layers: [layer], binds: [], config };
  }

  async #image(image: FoundImage): Promise<Image> {
    const distinct = distinctLayers(image);
    if (distinct.length === 0) throw new ImageError("it has no layers");
    if (distinct.length > MAX_LAYERS) throw new ImageError(`it has ${distinct.length} layers, more than ${MAX_LAYERS}`);
    const layers = await allOrNone(
      distinct.map((layer) =>
        this.#produce(`${layerKey(layer.diffId)}${this.#suffix}`, (directory) =>
          this.#workers
            .run({
              kind: "unpack",
              request: {
                ...layer,
                directory,
                endMarker: "optional",
                mustBeRoot: false,
                limits: this.#limits,
              },
            })
            .catch((error: unknown) => {
              if (error instanceof ImageError)
                throw new ImageError(`layer ${layer.diffId}: ${error.message}`, { cause: error });
              throw error;
            }),
        ),
      ),
      (error) => this.#workers.cancel(error),
    );
    return await this.#withUser(image, layers);
  }

  async #withUser(
    { digest, config }: { readonly digest: string; readonly config: ImageConfig },
    layers: readonly string[],
  ): Promise<Image> {
    const user = await findImageUser(this.#store, config.user, layers);
    const image = { reference: this.#reference, digest, layers, binds: [], config };
    return user === undefined ? image : { ...image, user };
  }

  #produce(
    key: string,
    write: Parameters<LayerStore["produce"]>[1],
    options: { readonly durable: boolean } = { durable: true },
  ): Promise<string> {
    return this.#store.layers.produce(key, write, { lease: this.#lease, signal: this.#signal, ...options });
  }
}

interface ArchiveRecord {
  readonly digest: string;
  readonly config: ImageConfig;
  readonly keys: readonly string[];
}

function layerKeys(image: FoundImage): string[] {
  return distinctLayers(image).map(({ diffId }) => layerKey(diffId));
}

/** The layers without repetitions, of which the last counts (see `distinctLast`). */
function distinctLayers({ layers }: FoundImage): FoundImage["layers"] {
  return layers.filter((layer, index) => layers.findLastIndex((each) => each.diffId === layer.diffId) === index);
}

/** Docker's archives since version 25 are OCI layouts too; their manifest.json names what is really in them. */
async function readImageFiles(files: ImageFiles): Promise<FoundImage> {
  if ((await files.find("manifest.json")) !== undefined) return readDockerArchive(files);
  return readOciLayout(files);
}

function checkReference(reference: string): void {
  if (reference.includes("\0")) throw new ImageError("it contains a NUL");
  if (!reference.startsWith("./")) {
    throw new ImageError('a path in the workspace begins with "./"');
  }
}

/** Whether it looks like a root file system; links count, as /bin is one on most. */
function hasRootNames(directory: number): boolean {
  return ["bin", "usr", "etc"].some((name) => {
    try {
      closeDescriptor(openat2(directory, name, { flags: O_PATH | O_NOFOLLOW, resolve: RESOLVE_BENEATH }));
      return true;
    } catch {
      return false;
    }
  });
}

/** A file that does not even begin like a tar archive is not a damaged one. */
function notAnArchive(error: unknown): never {
  if (error instanceof ImageError && error.message.includes("the header at byte 0 ")) notAnImage(error);
  throw error;
}

function notAnImage(cause?: unknown): never {
  throw new ImageError(
    "it is a file but not an image: looked for a tar archive (plain, gzip, zstd) of an OCI layout (oci-layout, index.json), of a `docker save` (manifest.json) or of a root file system (bin, usr, etc, …)",
    { cause },
  );
}

function describe(stat: Stats): string {
  if (stat.isSocket()) return "a socket";
  if (stat.isFIFO()) return "a FIFO";
  if (stat.isCharacterDevice() || stat.isBlockDevice()) return "a device";
  return "neither a file nor a directory";
}
