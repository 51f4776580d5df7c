/** A host that builds images, base images made on the spot, and a look at what was built. */
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { buildImage, type BuildReporter, FileWorkers, type ImageBuildOptions } from "../../build/index.ts";
import type { BaseImage, BaseImages } from "../../build/base-image.ts";
import { parseConfiguration } from "../../build/configuration.ts";
import type { FinishedImage } from "../../build/finish-image.ts";
import {
  Host,
  ImageError,
  ImageLease,
  ImageStore,
  mediaTypes,
  resolveImage,
  type UidRange,
} from "../../runtime/index.ts";
import { TarReader } from "../../runtime/tar-reader.ts";
import { type Member, tarArchive } from "../runtime/tar-archive.ts";

const busybox = "/usr/bin/busybox";
/** What the base image has of busybox, each a link to it. */
const applets = (
  "ash sh cat chgrp chmod chown cp cut date df dd echo env expr false find grep head hostname id install ip ln ls md5sum " +
  "mkdir mkfifo mknod mount mv nc od printf pwd readlink rm rmdir sed seq sha256sum sleep sort stat tail tar test touch " +
  "tr true tty umount uname uniq wc wget which whoami xargs"
).split(" ");

/** The layer of a small root file system whose shell is busybox. */
export function busyboxLayer(more: readonly Member[] = []): Buffer {
  const passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\napp:x:1000:1001:App:/home/app:/bin/sh\n";
  const group = "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\napp:x:1001:\n";
  return tarArchive([
    ...["bin/", "dev/", "etc/", "home/", "home/app/", "proc/", "root/", "run/", "sys/", "usr/", "usr/bin/", "var/"].map(
      (name) => ({
        name,
        mode: 0o755,
      }),
    ),
    { name: "tmp/", mode: 0o1777 },
    { name: "bin/busybox", mode: 0o755, content: readFileSync(busybox) },
    ...applets.map((name) => ({ name: `bin/${name}`, type: "2", linkName: "busybox", mode: 0o777 })),
    { name: "etc/passwd", content: passwd },
    { name: "etc/group", content: group },
    // What some builders would else leave behind, for they mount there.
    ...["hostname", "hosts", "resolv.conf"].map((name) => ({ name: `etc/${name}`, content: "" })),
    { name: "lib", type: "2", linkName: "usr/lib", mode: 0o777 },
    { name: "usr/lib/", mode: 0o755 },
    ...more,
  ]);
}

export interface LayoutOptions {
  readonly layers: readonly Buffer[];
  readonly config?: object;
}

/** Writes an image as an OCI layout. */
export function writeLayout(directory: string, { layers, config = {} }: LayoutOptions): void {
  mkdirSync(join(directory, "blobs/sha256"), { recursive: true });
  const put = (content: Buffer | object, mediaType: string) => {
    const bytes = Buffer.isBuffer(content) ? content : Buffer.from(JSON.stringify(content));
    const hash = createHash("sha256").update(bytes).digest("hex");
    writeFileSync(join(directory, "blobs/sha256", hash), bytes);
    return { mediaType, digest: `sha256:${hash}`, size: bytes.length };
  };
  const descriptors = layers.map((layer) => put(layer, mediaTypes.layer));
  const created = "2020-01-01T00:00:00Z";
  const configuration = {
    created,
    architecture: process.arch === "arm64" ? "arm64" : "amd64",
    os: "linux",
    config: { Env: ["PATH=/bin:/usr/bin"], Cmd: ["sh"], ...config },
    rootfs: { type: "layers", diff_ids: descriptors.map(({ digest }) => digest) },
    history: layers.map(() => ({ created, created_by: "base" })),
  };
  const manifest = {
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    config: put(configuration, mediaTypes.config),
    layers: descriptors,
  };
  const index = { schemaVersion: 2, manifests: [put(manifest, mediaTypes.manifest)] };
  writeFileSync(join(directory, "index.json"), JSON.stringify(index));
  writeFileSync(join(directory, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
}

/** What a build gave. */
export interface Built extends FinishedImage {
  readonly steps: readonly { readonly title: string; readonly cached: boolean }[];
  readonly output: string;
  readonly warnings: readonly string[];
}

export class BuildFixture implements AsyncDisposable {
  readonly directory: string;
  readonly host: Host;
  readonly range: UidRange;
  readonly store: ImageStore;
  readonly lease = new ImageLease();
  readonly workers = new FileWorkers({ max: 2 });
  readonly #images = new Map<string, string>();
  #contexts = 0;

  private constructor(directory: string, host: Host, store: ImageStore) {
    this.directory = directory;
    this.host = host;
    this.range = host.claimLayerRange();
    this.store = store;
  }

  static async open(options: { readonly overlaysByPath?: boolean } = {}): Promise<BuildFixture> {
    const directory = mkdtempSync(join(tmpdir(), "slipway-build-"));
    const host = await Host.open({ stateDir: join(directory, "state"), ...options });
    const fixture = new BuildFixture(directory, host, await ImageStore.open(host.imageStoreDir));
    fixture.addImage("base", { layers: [busyboxLayer()] });
    return fixture;
  }

  /** Adds an image that FROM can name. */
  addImage(name: string, options: LayoutOptions): string {
    const directory = join(this.directory, "layouts", name);
    writeLayout(directory, options);
    this.#images.set(name, directory);
    return directory;
  }

  /** A context with these files; a name that ends with a slash is a directory. */
  context(files: Readonly<Record<string, string | Buffer>>): string {
    const directory = join(this.directory, `context-${++this.#contexts}`);
    mkdirSync(directory);
    for (const [name, content] of Object.entries(files)) {
      const path = join(directory, name);
      mkdirSync(name.endsWith("/") ? path : dirname(path), { recursive: true });
      if (!name.endsWith("/")) writeFileSync(path, content);
    }
    return directory;
  }

  readonly images: BaseImages = {
    resolve: async (name): Promise<BaseImage> => {
      const directory = this.#images.get(name);
      if (directory === undefined) throw new ImageError(`there is no image "${name}" in the test`);
      const { layers } = await resolveImage("./.", {
        baseDir: directory,
        storeDir: this.host.imageStoreDir,
        lease: this.lease,
      });
      const blob = (digest: string) => readFileSync(join(directory, "blobs", digest.replace(":", "/")));
      const index = JSON.parse(readFileSync(join(directory, "index.json"), "utf8")) as {
        manifests: { digest: string }[];
      };
      const manifest = JSON.parse(blob(index.manifests[0]?.digest as string).toString()) as {
        config: { digest: string };
        layers: { mediaType: string; digest: string; size: number }[];
      };
      const configuration = parseConfiguration(blob(manifest.config.digest));
      const described = await Promise.all(
        manifest.layers.map(async (descriptor, at) => {
          await this.store.blobs.put(blob(descriptor.digest), { lease: this.lease });
          const diffId = configuration.rootfs.diff_ids[at] as string;
          return { descriptor, diffId, directory: layers[at] as string };
        }),
      );
      return { configuration, layers: described };
    },
  };

  /** Builds a Dockerfile in a context of these files. */
  async build(
    dockerfile: string,
    files: Readonly<Record<string, string | Buffer>> = {},
    options: Partial<ImageBuildOptions> = {},
  ): Promise<Built> {
    const contextDir = options.contextDir ?? this.context({ ...files });
    const steps: { title: string; cached: boolean }[] = [];
    const warnings: string[] = [];
    let output = "";
    const reporter: BuildReporter = {
      ended: ({ title }, { cached }) => void steps.push({ title, cached }),
      output: (_step, { bytes }) => void (output += Buffer.from(bytes).toString()),
      warned: ({ message }) => void warnings.push(message),
      noted: (note) => void warnings.push(note),
    };
    const finished = await buildImage({
      host: this.host,
      uidRange: this.range,
      store: this.store,
      images: this.images,
      lease: this.lease,
      contextDir,
      dockerfile: { content: Buffer.from(dockerfile), name: "Dockerfile" },
      resources: { memoryBytes: 256 << 20, cpu: 2, pids: 128 },
      network: "none",
      workers: this.workers,
      reporter,
      ...options,
    });
    return { ...finished, steps, output, warnings };
  }

  /** The archives of an image's layers, decompressed, base first. */
  async layers({ manifest }: FinishedImage): Promise<Buffer[]> {
    const content = await this.store.blobs.read(manifest.digest);
    const { layers } = JSON.parse(String(content)) as { layers: { digest: string; mediaType: string }[] };
    return layers.map(({ digest, mediaType }) => {
      const bytes = readFileSync(this.store.blobs.path(digest));
      if (mediaType.endsWith("gzip")) return gunzipSync(bytes);
      return mediaType.endsWith("zstd") ? zstdDecompressSync(bytes) : bytes;
    });
  }

  /** What is in the last layer, or the one `fromTop` above… `tar tv`, one line a name. */
  async listing(image: FinishedImage): Promise<Record<string, string>> {
    const layers = await this.layers(image);
    return listArchive(layers.at(-1) as Buffer);
  }

  /** Waits for what the store does in the background. */
  settled(): Promise<void> {
    return this.store.settled();
  }

  /** What builds left behind that they should not have: half-written layers, scratch files, containers. */
  leftovers(): string[] {
    const { stateDir } = this.host;
    const build = readdirSync(join(stateDir, "build")).filter((name) => name !== "caches" && name !== "empty");
    return [
      ...readdirSync(join(this.host.imageStoreDir, "tmp")),
      ...readdirSync(join(stateDir, "containers")),
      ...build,
    ];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.workers[Symbol.asyncDispose]();
    this.lease[Symbol.dispose]();
    await this.store.settled();
    this.range[Symbol.dispose]();
    await this.host[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Every name of an archive and what it is: `f 0:0 644 content`, `d 0:0 755`, `l target`, `h name`. */
export function listArchive(archive: Buffer): Record<string, string> {
  const names: Record<string, string> = {};
  let current: { readonly name: string; text: string } | undefined;
  const reader = new TarReader(
    {
      entry(entry) {
        const owner = `${entry.uid}:${entry.gid} ${entry.mode.toString(8)}`;
        const kinds: Readonly<Record<string, string>> = {
          directory: `d ${owner}`,
          symlink: `l ${entry.linkName}`,
          link: `h ${entry.linkName}`,
          fifo: `p ${owner}`,
        };
        const name = Buffer.from(entry.name, "latin1").toString().replace(/\/$/, "");
        const xattrs = [...(entry.xattrs ?? [])].map(([key, value]) => ` ${key}=${value.toString("hex")}`).join("");
        current = { name, text: `${kinds[entry.type] ?? `f ${owner}${xattrs} `}` };
      },
      data(chunk) {
        if (current !== undefined && current.text.length < 120) current.text += chunk.toString("utf8", 0, 60);
      },
      end() {
        if (current !== undefined) names[current.name] = current.text;
      },
    },
    { endMarker: "required" },
  );
  reader.write(archive);
  reader.end();
  return names;
}
