/** The work on files that takes long, done in threads (file-worker.ts): plain data in, plain data out. */
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, writeSync } from "node:fs";
import { createGzip, createZstdCompress } from "node:zlib";
import {
  type Accounts,
  adoptUpper,
  defaultLayerLimits,
  fileAt,
  formatBytes,
  ImageError,
  isTarArchive,
  type LayerSummary,
  openLayerView,
  resolveOwner,
  resolveUser,
  type ResolvedUser,
  unpackOver,
  writeLayerArchive,
} from "../runtime/files.ts";
import { digestContent, fingerprintSelections, openUnchanged, walkSelection } from "./content.ts";
import { CopyError, CopyTarget, type Owner } from "./copy.ts";
import type { FetchedFile, FetchedTree } from "./download.ts";
import { parseMode } from "./mode.ts";
import { PathPatterns } from "./pattern.ts";
import { SelectError, selectFiles, type Selection, type SourceTree } from "./select.ts";
import { makeStubs, type MountTarget } from "./stubs.ts";

/** Where files come from. */
export type TreeSpec =
  | {
      readonly kind: "context";
      readonly directory: string;
      /** Patterns of .dockerignore. */
      readonly ignored: readonly string[];
      /** Its files have no times that mean anything: they get `contextTime`. */
      readonly hasFixedTimes?: boolean | undefined;
      /** What messages call it. @default the build context */
      readonly name?: string | undefined;
    }
  | { readonly kind: "layers"; readonly layers: readonly string[]; readonly name: string };

/** Files by what names them. */
export interface SelectionSpec {
  readonly tree: TreeSpec;
  readonly sources: readonly string[];
  readonly parents: boolean;
  readonly excludes: readonly string[];
}

/** How this kernel mounts overlays, and an empty directory for it. */
export interface ViewSpec {
  readonly emptyDir: string;
  readonly byPath: boolean;
}

/** A layer that is made on top of others; `upper` becomes it. */
export interface NewLayerSpec {
  /** Base first; none for a layer that does not depend on any. */
  readonly layers: readonly string[];
  readonly upper: string;
  readonly work: string;
}

export interface CopySpec {
  readonly selection: SelectionSpec;
  /** What `digest` said: if it is not the same any more, nothing is copied. */
  readonly fingerprint: string;
  readonly destination: string;
  /** Files that the Dockerfile itself holds. */
  readonly files: readonly { readonly name: string; readonly content: string }[];
  readonly fetched?: readonly (FetchedFile | FetchedTree)[];
  readonly owner?: Owner | undefined;
  readonly chmod?: string | undefined;
  /** Of the context's archives by default: what ADD does. */
  readonly isAdd?: boolean;
  readonly unpack?: boolean | undefined;
  /** Of what archives hold. */
  readonly maxBytes: number;
}

interface Task {
  digest: {
    readonly spec: {
      readonly selection: SelectionSpec;
      readonly view: ViewSpec;
      /** Of all files together; where more would be copied, not a byte is read. */
      readonly maxBytes: number;
    };
    readonly result: {
      readonly digest: string;
      readonly fingerprint: string;
      /** Of the first source. */
      readonly isDirectory: boolean;
    };
  };
  copy: {
    readonly spec: { readonly into: NewLayerSpec; readonly copy: CopySpec; readonly view: ViewSpec };
    readonly result: LayerSummary;
  };
  /** Makes a directory with those above it, if it is missing. */
  directory: {
    readonly spec: {
      readonly into: NewLayerSpec;
      readonly path: string;
      readonly owner: Owner;
      readonly view: ViewSpec;
    };
    readonly result: LayerSummary;
  };
  /** Whom --chown names. */
  owner: {
    readonly spec: { readonly layers: readonly string[]; readonly owner: string; readonly view: ViewSpec };
    readonly result: Owner;
  };
  /** Whom USER names, and mount points that the image lacks. */
  container: {
    readonly spec: {
      readonly layers: readonly string[];
      readonly user: string;
      readonly targets: readonly MountTarget[];
      /** Made; gets the mount points. */
      readonly directory: string;
      readonly view: ViewSpec;
    };
    readonly result: {
      readonly user: ResolvedUser;
      /** The targets without links. */
      readonly paths: readonly string[];
    };
  };
  adopt: {
    readonly spec: { readonly upper: string; readonly base: number; readonly size: number };
    readonly result: LayerSummary;
  };
  archive: {
    readonly spec: {
      readonly directory: string;
      /** Descriptor of the empty file that gets the archive. */
      readonly target: number;
      readonly compression: Compression;
      readonly newestSeconds: number | undefined;
    };
    readonly result: ArchiveResult;
  };
  /** Archives what layers amount to. */
  tar: {
    readonly spec: {
      readonly layers: readonly string[];
      readonly view: ViewSpec;
      /** Descriptor of the empty file that gets the archive. */
      readonly target: number;
      readonly newestSeconds: number | undefined;
    };
    readonly result: undefined;
  };
  /** Copies what layers amount to into a directory of the host's, as this process's own files. */
  export: {
    readonly spec: { readonly layers: readonly string[]; readonly directory: string; readonly view: ViewSpec };
    readonly result: undefined;
  };
  /** Unpacks an archive into an empty directory. */
  unpack: {
    readonly spec: {
      readonly path: string;
      readonly directory: string;
      readonly maxBytes: number;
      /** The name that a file gets there which is no archive; absent: it is left out. */
      readonly otherwise?: string | undefined;
    };
    /** Whether it is an archive with something in it. */
    readonly result: boolean;
  };
  /** The same layer under another name, without a copy of what its files hold. */
  link: { readonly spec: { readonly from: string; readonly to: string }; readonly result: LayerSummary };
}

export type Compression = "gzip" | "zstd" | "none";

export interface ArchiveResult {
  /** Of the archive before compression. */
  readonly diffId: string;
  readonly digest: string;
  readonly size: number;
}

export type FileTaskKind = keyof Task;
export type FileTaskSpec<Kind extends FileTaskKind> = Task[Kind]["spec"];
export type FileTaskResult<Kind extends FileTaskKind> = Task[Kind]["result"];

type CheckCanceled = () => void;

const tasks: {
  readonly [Kind in FileTaskKind]: (
    spec: FileTaskSpec<Kind>,
    checkCanceled: CheckCanceled,
  ) => FileTaskResult<Kind> | Promise<FileTaskResult<Kind>>;
} = {
  digest: ({ selection, view, maxBytes }, checkCanceled) =>
    withSelections(selection, { view, checkCanceled }, (tree, selections) => ({
      digest: digestContent(tree.root, checkSize(selections, maxBytes), {
        ignoreOwners: isContext(selection),
        checkCanceled,
      }),
      // Layers do not change, and their names in an overlay are others in the next one.
      fingerprint: isContext(selection) ? fingerprintSelections(selections) : "",
      isDirectory: selections[0]?.entries[0]?.stat.type === "directory",
    })),
  copy({ into, copy, view }, checkCanceled) {
    return withNewLayer(into, { view, checkCanceled }, (root) => copyFiles(root, copy, { view, checkCanceled }));
  },
  directory({ into, path, owner, view }, checkCanceled) {
    return withNewLayer(into, { view, checkCanceled }, (root) => {
      const target = new CopyTarget(root, fileAt.byteString(path), { owner, ignoreOwners: true });
      fileAt.closeFile(target.openDirectory());
    });
  },
  owner: ({ layers, owner, view }) => withView(layers, view, (root) => resolveOwner(owner, readAccounts(root))),
  container: ({ layers, user, targets, directory, view }) =>
    withView(layers, view, (root) => {
      mkdirSync(directory);
      chmodSync(directory, 0o755); // it is the image's root for the command, whatever the umask says
      const fd = fileAt.openRoot(directory);
      try {
        fileAt.chownAt(fd, "", { uid: 0, gid: 0 });
        return { user: resolveUser(user, readAccounts(root)), paths: makeStubs(root, targets, fd) };
      } finally {
        fileAt.closeFile(fd);
      }
    }),
  adopt({ upper, base, size }, checkCanceled) {
    const fd = fileAt.openRoot(upper);
    try {
      const { entries, bytes } = adoptUpper(fd, { base, size }, checkCanceled);
      fileAt.chownAt(fd, "", { uid: 0, gid: 0 });
      return { entries, bytes, notes: [], rootNames: [] };
    } finally {
      fileAt.closeFile(fd);
    }
  },
  archive,
  tar: ({ layers, view, target, newestSeconds }, checkCanceled) =>
    withView(layers, view, (root) => {
      for (const piece of writeLayerArchive(root, { newestSeconds, replacedSeconds: contextTime, checkCanceled }))
        writeFully(target, piece);
      return undefined;
    }),
  export: ({ layers, directory, view }, checkCanceled) =>
    withView(layers, view, (root) => {
      const options = { ignoreOwners: true, isPlain: true, checkCanceled };
      const target = fileAt.openRoot(directory);
      try {
        const tree = { root, name: "the image" };
        const selections = selectFiles(tree, ".", { parents: false, excludes: new PathPatterns([]), checkCanceled });
        const copy = new CopyTarget(target, "/", options);
        for (const selection of selections) copy.copy(root, selection);
      } finally {
        fileAt.closeFile(target);
      }
      return undefined;
    }),
  async unpack({ path, directory, maxBytes, otherwise }, checkCanceled) {
    const root = fileAt.openRoot(directory);
    try {
      const target = new CopyTarget(root, "/", { ignoreOwners: true, checkCanceled });
      const archives = { target, owner: undefined, maxBytes, checkCanceled };
      if (await unpackFile(fileAt.openFile(path), archives)) return true;
      const file = { name: otherwise ?? "", path, mtimeSeconds: undefined };
      if (otherwise !== undefined) await copyFetched(file, { ...archives, unpack: false });
      return false;
    } finally {
      fileAt.closeFile(root);
    }
  },
  link({ from, to }, checkCanceled) {
    const source = fileAt.openRoot(from);
    try {
      mkdirSync(to);
      chmodSync(to, 0o755);
      const target = fileAt.openRoot(to);
      try {
        fileAt.chownAt(target, "", { uid: 0, gid: 0 });
        return { ...linkTree(source, target, checkCanceled), notes: [], rootNames: [] };
      } finally {
        fileAt.closeFile(target);
      }
    } finally {
      fileAt.closeFile(source);
    }
  },
};

/** Does one task. */
export async function doFileTask<Kind extends FileTaskKind>(
  kind: Kind,
  spec: FileTaskSpec<Kind>,
  checkCanceled: CheckCanceled,
): Promise<FileTaskResult<Kind>> {
  return await tasks[kind](spec, checkCanceled);
}

/**
 * The time of a context's files where SOURCE_DATE_EPOCH is set: when a checkout wrote them says nothing about the inputs. An
 * archive gives the epoch in its place. Not the epoch itself, which may be another one for every commit: then nothing that
 * comes after a COPY would ever be cached. As npm, which has it from 1985: some formats have no years before 1980.
 */
export const contextTime = 499_162_500;

function hasFixedTimes({ tree }: SelectionSpec): boolean {
  return tree.kind === "context" && tree.hasFixedTimes === true;
}

function isContext({ tree }: SelectionSpec): boolean {
  return tree.kind === "context";
}

function withView<T>(layers: readonly string[], view: ViewSpec, use: (root: number) => T): T {
  const root = openLayerView(layers, view);
  try {
    return use(root);
  } finally {
    fileAt.closeFile(root);
  }
}

async function withNewLayer(
  { layers, upper, work }: NewLayerSpec,
  context: { readonly view: ViewSpec; readonly checkCanceled: CheckCanceled },
  change: (root: number) => void | Promise<void>,
): Promise<LayerSummary> {
  const root = openLayerView(layers, { ...context.view, writable: { upper, work } });
  try {
    await change(root);
  } finally {
    fileAt.closeFile(root);
  }
  const fd = fileAt.openRoot(upper);
  try {
    // Nobody's ids are mapped here: this only counts, and removes what overlayfs noted down for itself.
    const { entries, bytes } = adoptUpper(fd, { base: 0, size: 2 ** 32 }, context.checkCanceled);
    return { entries, bytes, notes: [], rootNames: [] };
  } finally {
    fileAt.closeFile(fd);
  }
}

async function withSelections<T>(
  spec: SelectionSpec,
  { view, checkCanceled }: { readonly view: ViewSpec; readonly checkCanceled: CheckCanceled },
  use: (tree: SourceTree, selections: readonly Selection[]) => T | Promise<T>,
): Promise<T> {
  const { tree: source } = spec;
  const root = source.kind === "context" ? fileAt.openRoot(source.directory) : openLayerView(source.layers, view);
  try {
    const tree: SourceTree = {
      root,
      name: source.name ?? "the build context",
      ignored: source.kind === "context" ? new PathPatterns(source.ignored) : undefined,
    };
    const options = { parents: spec.parents, excludes: new PathPatterns(spec.excludes), checkCanceled };
    const selections = spec.sources.flatMap((pattern) => selectFiles(tree, pattern, options));
    return await use(tree, selections);
  } finally {
    fileAt.closeFile(root);
  }
}

/** A file with holes has as many bytes as it likes, and takes as long to be read as if it had them. */
function checkSize(selections: readonly Selection[], maxBytes: number): readonly Selection[] {
  let bytes = 0;
  for (const { entries } of selections) for (const { stat } of entries) if (stat.type === "file") bytes += stat.size;
  if (bytes <= maxBytes) return selections;
  throw new SelectError(`what is to be copied has more than ${formatBytes(maxBytes)}: ${formatBytes(bytes)}`);
}

async function copyFiles(
  root: number,
  spec: CopySpec,
  context: { readonly view: ViewSpec; readonly checkCanceled: CheckCanceled },
): Promise<void> {
  const { checkCanceled } = context;
  const options = {
    owner: spec.owner,
    ignoreOwners: isContext(spec.selection),
    mode: spec.chmod === undefined ? undefined : parseMode(spec.chmod),
    mtimeSeconds: hasFixedTimes(spec.selection) ? contextTime : undefined,
    checkCanceled,
  };
  const target = new CopyTarget(root, fileAt.byteString(spec.destination), options);
  const archives = { target, owner: spec.owner, maxBytes: spec.maxBytes, checkCanceled };
  if (spec.selection.sources.length > 0) {
    const isUnpacked = spec.unpack ?? spec.isAdd === true;
    await withSelections(spec.selection, context, async (tree, selections) => {
      if (isContext(spec.selection) && fingerprintSelections(selections) !== spec.fingerprint) {
        throw new SelectError("files of the build context changed while they were copied");
      }
      for (const selection of selections) {
        const file = isUnpacked ? openSelected(tree.root, selection) : undefined;
        if (file !== undefined && (await unpackFile(file, archives))) continue;
        target.copy(tree.root, selection);
      }
    });
  }
  for (const fetched of spec.fetched ?? []) {
    if (fetched.kind === "tree") copyTree(fetched, target, checkCanceled);
    else await copyFetched(fetched, { ...archives, unpack: spec.unpack === true });
  }
  for (const { name, content } of spec.files) {
    const bytes = Buffer.from(content);
    const fill = (file: number) => {
      for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
    };
    target.write(fileAt.byteString(name.replaceAll("/", "_")), fill, { mode: 0o644 });
  }
}

interface ArchiveTarget {
  readonly target: CopyTarget;
  readonly owner: Owner | undefined;
  readonly maxBytes: number;
  readonly checkCanceled: CheckCanceled;
}

/** The file that a selection is, opened; undefined if it is something else. */
function openSelected(root: number, selection: Selection): number | undefined {
  let file: number | undefined;
  walkSelection(root, selection, ({ path, stat }, parent, base) => {
    if (path === "" && stat.type === "file") file = openUnchanged(parent, base, stat);
  });
  return file;
}

/** Unpacks an archive into the destination, and closes it. @returns False if it is none. */
async function unpackFile(file: number, { target, owner, maxBytes, checkCanceled }: ArchiveTarget): Promise<boolean> {
  try {
    const source = { fd: file, offset: 0, length: fileAt.statAt(file, "")?.size ?? 0 };
    if (!(await isTarArchive(source, defaultLayerLimits))) return false;
    const into = target.openDirectory();
    try {
      const limits = { ...defaultLayerLimits, maxBytes: Math.min(defaultLayerLimits.maxBytes, maxBytes) };
      await unpackOver(into, source, { limits, owner, checkCanceled });
    } catch (error) {
      if (error instanceof ImageError)
        throw new CopyError(`the archive cannot be unpacked: ${error.message}`, { cause: error });
      throw error;
    } finally {
      fileAt.closeFile(into);
    }
    return true;
  } finally {
    fileAt.closeFile(file);
  }
}

async function copyFetched(
  { name, path, mtimeSeconds }: Pick<FetchedFile, "name" | "path" | "mtimeSeconds">,
  { unpack, ...archives }: ArchiveTarget & { readonly unpack: boolean },
): Promise<void> {
  if (unpack && (await unpackFile(fileAt.openFile(path), archives))) return;
  const source = fileAt.openFile(path);
  try {
    const fill = (file: number) => void fileAt.copyContent(source, file);
    archives.target.write(fileAt.byteString(name), fill, { mode: 0o600, mtimeSeconds });
  } finally {
    fileAt.closeFile(source);
  }
}

/** Copies what is in a directory of a repository. */
function copyTree({ directory, inside }: FetchedTree, target: CopyTarget, checkCanceled: CheckCanceled): void {
  const repository = fileAt.openRoot(directory);
  let root: number;
  try {
    // A repository may have a link to a directory of this machine.
    root = fileAt.openDirectoryBelow(repository, fileAt.resolveInRoot(repository, fileAt.byteString(inside)).path);
  } catch (error) {
    throw new SelectError(`there is no directory ${JSON.stringify(inside)} in the repository`, { cause: error });
  } finally {
    fileAt.closeFile(repository);
  }
  try {
    const tree = { root, name: "the repository" };
    const options = { parents: false, excludes: new PathPatterns([]), checkCanceled };
    for (const selection of selectFiles(tree, ".", options)) target.copy(root, selection);
  } finally {
    fileAt.closeFile(root);
  }
}

/** More than any real one; both are a stranger's. */
const MAX_ACCOUNTS_BYTES = 4 << 20;

function readAccounts(root: number): Accounts {
  const read = (path: string) => fileAt.readTextInRoot(root, path, MAX_ACCOUNTS_BYTES) ?? "";
  return { passwd: read("etc/passwd"), group: read("etc/group") };
}

async function archive(
  { directory, target, compression, newestSeconds }: FileTaskSpec<"archive">,
  checkCanceled: CheckCanceled,
): Promise<ArchiveResult> {
  const diffId = createHash("sha256");
  const digest = createHash("sha256");
  let size = 0;
  const write = (chunk: Uint8Array) => {
    digest.update(chunk);
    size += chunk.length;
    writeFully(target, chunk);
  };
  const fd = fileAt.openRoot(directory);
  try {
    const pieces = writeLayerArchive(fd, { newestSeconds, replacedSeconds: contextTime, checkCanceled });
    if (compression === "none") {
      for (const piece of pieces) {
        diffId.update(piece);
        write(piece);
      }
    } else {
      const compressor = compression === "gzip" ? createGzip({ level: 6 }) : createZstdCompress();
      compressor.on("data", write);
      const ended = new Promise<void>((resolve, reject) => compressor.once("end", resolve).once("error", reject));
      for (const piece of pieces) {
        diffId.update(piece);
        // What is compressed is read in another thread until it is taken.
        if (!compressor.write(Buffer.from(piece))) await new Promise((resolve) => compressor.once("drain", resolve));
      }
      compressor.end();
      await ended;
    }
  } finally {
    fileAt.closeFile(fd);
  }
  return { diffId: `sha256:${diffId.digest("hex")}`, digest: `sha256:${digest.digest("hex")}`, size };
}

function writeFully(file: number, chunk: Uint8Array): void {
  for (let done = 0; done < chunk.length; ) done += writeSync(file, chunk, done);
}

/** Copies directories, and gives everything else a second name. */
function linkTree(
  source: number,
  target: number,
  checkCanceled: CheckCanceled,
): { readonly entries: number; readonly bytes: number } {
  let entries = 0;
  let bytes = 0;
  for (const name of fileAt.namesOf(source)) {
    checkCanceled();
    const stat = fileAt.statAt(source, name);
    if (stat === undefined) continue;
    // An archive has none of these, and what has its digest for a name has what it has.
    if (["socket", "block"].includes(stat.type) || (stat.type === "character" && !fileAt.isWhiteout(stat))) continue;
    entries++;
    if (stat.type !== "directory") {
      bytes += stat.type === "file" ? stat.size : 0;
      fileAt.linkAt(source, name, target, name);
      continue;
    }
    fileAt.makeDirectoryAt(target, name);
    const from = fileAt.openDirectoryAt(source, name);
    const to = fileAt.openDirectoryAt(target, name);
    try {
      const below = linkTree(from, to, checkCanceled);
      entries += below.entries;
      bytes += below.bytes;
      fileAt.chownAt(to, "", stat);
      for (const [key, value] of fileAt.readXattrs(from, () => true)) fileAt.setXattr(to, key, value);
      fileAt.chmodOpen(to, stat.mode);
      fileAt.setTimesAt(target, name, stat);
    } finally {
      fileAt.closeFile(from);
      fileAt.closeFile(to);
    }
  }
  return { entries, bytes };
}
