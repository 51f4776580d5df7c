/** A store, a workspace and what is seen on disk, for the tests of images. */
import { createHash } from "node:crypto";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { imageCapability, imageOwner, overlayXattrs } from "../../runtime/file-owners.ts";
import { type Image, resolveImage } from "../../runtime/image.ts";
import { ImageLease } from "../../runtime/image-lease.ts";
import { ImageStore } from "../../runtime/image-store.ts";
import type { LayerLimits } from "../../runtime/layer.ts";
import { cString, trySyscall } from "../../runtime/syscall.ts";
import { type Member, tarArchive } from "./tar-archive.ts";

/** Unpacking makes device nodes, gives files away and sets trusted attributes. */
export const isRoot = process.getuid?.() === 0;

/** A temporary directory with a workspace and a store. */
export class ImageFixture implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "image-test-"));
  readonly workspace = join(this.directory, "workspace");
  readonly store = join(this.directory, "store");
  readonly lease = new ImageLease();

  constructor() {
    mkdirSync(this.workspace);
  }

  write(path: string, content: string | Buffer): string {
    const file = join(this.workspace, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
    return file;
  }

  resolve(
    reference: string,
    options: { signal?: AbortSignal; limits?: Partial<LayerLimits>; lease?: ImageLease } = {},
  ): Promise<Image> {
    return resolveImage(reference, { baseDir: this.workspace, storeDir: this.store, lease: this.lease, ...options });
  }

  /** Waits for what the store does in the background. */
  async settled(): Promise<void> {
    await (await ImageStore.open(this.store)).settled();
  }

  /** What resolving left behind that it should not have: half-written layers, locks, scratch files. */
  leftovers(): string[] {
    return readdirSync(join(this.store, "tmp"));
  }

  layers(): string[] {
    return readdirSync(join(this.store, "layers"));
  }

  [Symbol.dispose](): void {
    this.lease[Symbol.dispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export function sha256(content: Buffer): string {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}

/** An extended attribute of a file of an image itself, links not followed. */
export function getXattr(path: string | Buffer, name: string): Buffer | undefined {
  const value = Buffer.alloc(4096);
  const file = Buffer.concat([Buffer.from(path), Buffer.alloc(1)]);
  const length = trySyscall("lgetxattr", file, cString(name), value, value.length);
  if (length < 0) return undefined;
  const found = value.subarray(0, length);
  return name === "security.capability" ? imageCapability(found) : found;
}

/** `c 0`, `d 0:0 755 opaque`, `f 0:0 4755 content`, `l 0:0 target`: one line for what a name of an image is on disk. */
export function describeFile(path: string | Buffer): string {
  const stat = lstatSync(path);
  const owner = `${imageOwner(stat.uid)}:${imageOwner(stat.gid)}`;
  const mode = (stat.mode & 0o7777).toString(8);
  if (stat.isSymbolicLink()) return `l ${owner} ${readlinkSync(path)}`;
  if (stat.isDirectory()) {
    const opaque = getXattr(path, `${overlayXattrs()}opaque`)?.toString() === "y" ? " opaque" : "";
    return `d ${owner} ${mode}${opaque}`;
  }
  if (stat.isCharacterDevice()) return `c ${stat.rdev}`;
  if (stat.isFIFO()) return `p ${owner} ${mode}`;
  return `f ${owner} ${mode} ${readFileSync(path, "utf8").slice(0, 40)}`;
}

/** Every name under a directory with `describeFile` of it; names need not be UTF-8. */
export function describeTree(directory: string): Record<string, string> {
  const tree: Record<string, string> = {};
  const visit = (prefix: string) => {
    const at = (name: string) => Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(name, "latin1")]);
    for (const entry of readdirSync(at(prefix), { withFileTypes: true, encoding: "latin1" })) {
      const name = `${prefix}${entry.name}`;
      tree[Buffer.from(name, "latin1").toString()] = describeFile(at(name));
      if (entry.isDirectory()) visit(`${name}/`);
    }
  };
  visit("");
  return tree;
}

/** The members of an image in `docker save` form (Docker since 25 and skopeo name layers differently). */
export function dockerArchive(
  layers: readonly Buffer[],
  options: { readonly config?: object; readonly layerName?: (digest: string, index: number) => string } = {},
): Member[] {
  const digests = layers.map((layer) => sha256(layer));
  const config = Buffer.from(
    JSON.stringify({ os: "linux", rootfs: { type: "layers", diff_ids: digests }, ...options.config }),
  );
  const layerName = options.layerName ?? ((digest) => `blobs/sha256/${digest.slice(7)}`);
  const names = digests.map((digest, index) => layerName(digest, index));
  const configName = `${sha256(config).slice(7)}.json`;
  return [
    ...layers.map((content, index) => ({ name: names[index] as string, content })),
    { name: configName, content: config },
    { name: "manifest.json", content: JSON.stringify([{ Config: configName, RepoTags: ["t:1"], Layers: names }]) },
  ];
}

export interface OciLayer {
  /** As stored: compressed or not. */
  readonly blob: Buffer;
  /** Decompressed. */
  readonly tar: Buffer;
  readonly mediaType?: string;
}

/** The members of an OCI layout with one image. `change` may spoil what it wants before the layout is put together. */
export function ociLayout(
  layers: readonly OciLayer[],
  options: { readonly config?: object; readonly platform?: object; readonly manifest?: object } = {},
): Member[] {
  const members: Member[] = [];
  const blob = (content: Buffer, mediaType: string) => {
    members.push({ name: `blobs/sha256/${sha256(content).slice(7)}`, content });
    return { mediaType, digest: sha256(content), size: content.length };
  };
  const json = (value: object) => Buffer.from(JSON.stringify(value));
  const config = blob(
    json({
      os: "linux",
      rootfs: { type: "layers", diff_ids: layers.map(({ tar }) => sha256(tar)) },
      ...options.config,
    }),
    "application/vnd.oci.image.config.v1+json",
  );
  const manifest = blob(
    json({
      schemaVersion: 2,
      config,
      layers: layers.map((layer) => blob(layer.blob, layer.mediaType ?? "application/vnd.oci.image.layer.v1.tar")),
      ...options.manifest,
    }),
    "application/vnd.oci.image.manifest.v1+json",
  );
  const index = { schemaVersion: 2, manifests: [{ ...manifest, platform: options.platform }] };
  return [
    { name: "oci-layout", content: '{"imageLayoutVersion":"1.0.0"}' },
    { name: "index.json", content: json(index) },
    ...members,
  ];
}

/** Writes members as files instead of into an archive. */
export function writeMembers(fixture: ImageFixture, directory: string, members: readonly Member[]): void {
  for (const { name, content } of members) fixture.write(join(directory, name), Buffer.from(content ?? ""));
}

/** A layer with one file, in a tar archive. */
export function oneFileLayer(name: string, content = name): Buffer {
  return tarArchive([{ name, content }]);
}
