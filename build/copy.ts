/**
 * Copies selected files into a root file system, as BuildKit does (tonistiigi/fsutil, copy/copy.go).
 *
 * The root file system is a stranger's: its links are followed as if it were `/`, on the way to the destination only;
 * what is below that is made descriptor by descriptor without following any.
 */
import { fileAt } from "../runtime/files.ts";
import { fingerprintOf, openUnchanged, walkSelection } from "./content.ts";
import type { ModeChange } from "./mode.ts";
import { type SelectedEntry, SelectError, type Selection } from "./select.ts";

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

export interface CopyOptions {
  /** Of everything copied and of directories made on the way. @default what the source has; root for what is made */
  readonly owner?: Owner | undefined;
  /** Everything counts as root's where there is no owner. */
  readonly ignoreOwners: boolean;
  readonly mode?: ModeChange | undefined;
  /**
   * Files of an image that go to a host: they are this process's own, and may not bring privileges, set-user-id bits or
   * capabilities, with them.
   */
  readonly isPlain?: boolean;
  /** The time of all that is copied, in seconds since 1970. @default what the source has */
  readonly mtimeSeconds?: number | undefined;
  readonly checkCanceled?: () => void;
}

/** Files cannot be copied to where they should go; the message says why. */
export class CopyError extends Error {
  override readonly name = "CopyError";
}

const O_WRONLY = 1;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
const root: Owner = { uid: 0, gid: 0 };

/** A name in an open directory. */
interface Place {
  readonly parent: number;
  readonly name: string;
}

interface Attributes {
  readonly owner: Owner;
  readonly mode: number;
  readonly xattrs?: ReadonlyMap<string, Buffer>;
  readonly time: Pick<fileAt.FileStat, "mtimeSeconds" | "mtimeNanoseconds"> | undefined;
}

/** A directory of the copy that is being filled. */
interface OpenDirectory {
  readonly path: string;
  readonly fd: number;
  /** What it gets when everything is in it; undefined if it stays as it was. */
  readonly attributes: Attributes | undefined;
}

/** Where one instruction copies to. */
export class CopyTarget {
  readonly #root: number;
  readonly #options: CopyOptions;
  /** Without links, relative to the root. */
  readonly #path: string;
  readonly #isDirectory: boolean;
  #files = 0;

  /**
   * @param destination Absolute, a byte string. A slash at its end, or `/.`, says that it is a directory.
   * @throws {CopyError} If its links go in circles.
   */
  constructor(rootFd: number, destination: string, options: CopyOptions) {
    this.#root = rootFd;
    this.#options = options;
    this.#isDirectory = /\/\.?$/.test(destination);
    this.#path = resolveTarget(rootFd, destination);
  }

  /** Copies what one name of a source stands for. @throws {CopyError} @throws {SelectError} */
  copy(sourceRoot: number, selection: Selection): void {
    const [first] = selection.entries;
    if (first === undefined) return;
    // What is written as a directory is one that is made on the way, even if a directory is copied to it.
    if (this.#isDirectory) fileAt.closeFile(this.#makeDirectories(this.#path));
    const { path, name } = this.#place(first.stat.type === "directory" ? undefined : selection.name);
    const parent = this.#makeDirectories(path);
    /** The first copy of a file with several names, relative to `parent`. */
    const links = new Map<string, string>();
    const open: OpenDirectory[] = [];
    try {
      walkSelection(sourceRoot, selection, (entry, sourceParent, sourceName) => {
        this.#options.checkCanceled?.();
        const slash = entry.path.lastIndexOf("/");
        const above = entry.path === "" ? undefined : slash === -1 ? "" : entry.path.slice(0, slash);
        while (open.length > 0 && open.at(-1)?.path !== above) this.#close(open.pop() as OpenDirectory);
        const target = {
          parent: open.at(-1)?.fd ?? parent,
          name: entry.path === "" ? name : entry.path.slice(slash + 1),
        };
        const source = { parent: sourceParent, name: sourceName };
        if (entry.stat.type === "directory") open.push(this.#directory(source, target, entry));
        else this.#file(source, target, { entry, parent, name, links });
      });
      while (open.length > 0) this.#close(open.pop() as OpenDirectory);
    } finally {
      for (const { fd } of open) fileAt.closeFile(fd);
      fileAt.closeFile(parent);
    }
  }

  /** Writes a file that the Dockerfile itself holds, or that was downloaded. `fill` writes its content. */
  write(
    fileName: string,
    fill: (file: number) => void,
    attributes: { readonly mode: number; readonly mtimeSeconds?: number | undefined },
  ): void {
    const { path, name } = this.#place(fileName);
    const parent = this.#makeDirectories(path);
    try {
      const file = this.#create({ parent, name });
      try {
        fill(file);
        this.#finish({ parent, name }, file, {
          owner: this.#options.owner ?? root,
          mode: this.#options.mode?.apply(attributes.mode, false) ?? attributes.mode,
          time:
            attributes.mtimeSeconds === undefined
              ? undefined
              : { mtimeSeconds: attributes.mtimeSeconds, mtimeNanoseconds: 0 },
        });
      } finally {
        fileAt.closeFile(file);
      }
    } finally {
      fileAt.closeFile(parent);
    }
  }

  /** Opens the destination as a directory, made if it is missing; the caller closes it. */
  openDirectory(): number {
    return this.#makeDirectories(this.#path);
  }

  /** The directory, as a path, and the name in it that a copy gets. @param file The name of a file, undefined for a directory. */
  #place(file: string | undefined): { readonly path: string; readonly name: string } {
    const path = this.#path;
    const slash = path.lastIndexOf("/");
    const itself = { path: path.slice(0, Math.max(0, slash)), name: path.slice(slash + 1) };
    if (file === undefined) {
      this.#files++;
      return path === "" ? { path: "", name: "." } : itself;
    }
    if (this.#isDirectory || this.#isThere(path)) return { path, name: file };
    if (this.#files++ > 0) {
      throw new CopyError(
        `several files cannot be copied to one: write ${JSON.stringify(`/${fileAt.textOf(path)}/`)}, with a slash at its end`,
      );
    }
    return itself;
  }

  /** Whether a directory is there. */
  #isThere(path: string): boolean {
    try {
      fileAt.closeFile(fileAt.openDirectoryBelow(this.#root, path));
      return true;
    } catch {
      return false;
    }
  }

  /** Opens a directory, made with those above it if it is missing; the caller closes it. */
  #makeDirectories(path: string): number {
    let fd = fileAt.openDirectoryAt(this.#root, ".");
    try {
      for (const name of path === "" ? [] : path.split("/")) {
        const stat = fileAt.statAt(fd, name);
        if (stat === undefined) this.#makeDirectory({ parent: fd, name });
        else if (stat.type !== "directory") throw notDirectory(path);
        const next = fileAt.openDirectoryAt(fd, name);
        fileAt.closeFile(fd);
        fd = next;
      }
      return fd;
    } catch (error) {
      fileAt.closeFile(fd);
      throw nameError(error, path);
    }
  }

  /** A directory on the way. `--chmod` does not hold for it: BuildKit makes directories of 0644 so that nobody can enter. */
  #makeDirectory({ parent, name }: Place): void {
    fileAt.makeDirectoryAt(parent, name);
    this.#chown(parent, name, this.#options.owner ?? root);
    fileAt.chmodAt(parent, name, 0o755);
  }

  #directory(source: Place, target: Place, { path, stat, isParent }: SelectedEntry): OpenDirectory {
    const { parent, name } = target;
    const existing = name === "." ? fileAt.statAt(parent, "") : fileAt.statAt(parent, name);
    if (existing !== undefined && existing.type !== "directory") throw notDirectory(name);
    if (existing === undefined) {
      try {
        fileAt.makeDirectoryAt(parent, name);
      } catch (error) {
        throw nameError(error, name);
      }
    }
    const fd = fileAt.openDirectoryAt(parent, name);
    const time = this.#timeOf(stat);
    // The destination is a directory of its own into which that of the source is emptied: whoever checked it out for himself
    // alone (0700) does not shut the image's users out.
    if (path === "" && existing === undefined) {
      return {
        path,
        fd,
        attributes: { owner: this.#options.owner ?? root, mode: this.#options.mode?.fixed ?? 0o755, time },
      };
    }
    // What was there keeps what it has if it is the destination itself, or only stands above what is copied.
    if (existing !== undefined && (path === "" || isParent)) return { path, fd, attributes: undefined };
    const from = openUnchanged(source.parent, source.name, stat);
    try {
      const xattrs = fileAt.readXattrs(from, fileAt.isImageXattr);
      return { path, fd, attributes: { owner: this.#ownerOf(stat), mode: this.#modeOf(stat), xattrs, time } };
    } finally {
      fileAt.closeFile(from);
    }
  }

  #close({ fd, attributes }: OpenDirectory): void {
    try {
      if (attributes !== undefined) this.#finish({ parent: fd, name: "" }, fd, attributes);
    } finally {
      fileAt.closeFile(fd);
    }
  }

  #file(
    source: Place,
    target: Place,
    copy: {
      readonly entry: SelectedEntry;
      readonly parent: number;
      readonly name: string;
      readonly links: Map<string, string>;
    },
  ): void {
    const { stat, path } = copy.entry;
    const { parent, name } = target;
    if (stat.type === "file") {
      const first = stat.links > 1 ? copy.links.get(stat.identity) : undefined;
      if (first !== undefined) {
        this.#makeRoom(target);
        fileAt.linkAt(copy.parent, first, parent, name);
        return;
      }
      this.#copyFile(source, target, stat);
      if (stat.links > 1) copy.links.set(stat.identity, path === "" ? copy.name : `${copy.name}/${path}`);
      return;
    }
    this.#makeRoom(target);
    try {
      if (stat.type === "symlink") fileAt.symlinkAt(parent, name, fileAt.readLinkAt(source.parent, source.name));
      else fileAt.makeFifoAt(parent, name);
    } catch (error) {
      throw nameError(error, name);
    }
    this.#chown(parent, name, this.#ownerOf(stat));
    if (stat.type === "fifo") fileAt.chmodAt(parent, name, this.#modeOf(stat));
    fileAt.setTimesAt(parent, name, this.#timeOf(stat));
  }

  #copyFile(source: Place, target: Place, stat: fileAt.FileStat): void {
    const from = openUnchanged(source.parent, source.name, stat);
    try {
      const to = this.#create(target);
      try {
        // One that grows meanwhile is found out below.
        fileAt.copyContent(from, to, { maxBytes: stat.size, checkCanceled: this.#options.checkCanceled });
        const after = fileAt.statAt(from, "");
        if (after === undefined || fingerprintOf(after) !== fingerprintOf(stat)) {
          throw new SelectError(`${JSON.stringify(fileAt.textOf(source.name))} changed while it was copied`);
        }
        const xattrs = fileAt.readXattrs(from, fileAt.isImageXattr);
        this.#finish(target, to, {
          owner: this.#ownerOf(stat),
          mode: this.#modeOf(stat),
          xattrs,
          time: this.#timeOf(stat),
        });
      } finally {
        fileAt.closeFile(to);
      }
    } finally {
      fileAt.closeFile(from);
    }
  }

  #create(target: Place): number {
    this.#makeRoom(target);
    try {
      const fd = fileAt.openAt(target.parent, target.name, O_WRONLY | O_CREAT | O_EXCL, 0o600);
      if (fd !== undefined) return fd;
    } catch (error) {
      throw nameError(error, target.name);
    }
    throw new CopyError(`the directory of ${JSON.stringify(fileAt.textOf(target.name))} is gone`);
  }

  /** Removes what has the name, unless it is a directory. */
  #makeRoom({ parent, name }: Place): void {
    const existing = fileAt.statAt(parent, name);
    if (existing === undefined) return;
    if (existing.type === "directory") {
      throw new CopyError(`the directory ${JSON.stringify(fileAt.textOf(name))} cannot be replaced by a file`);
    }
    fileAt.unlinkAt(parent, name);
  }

  /** chown(2) and write(2) remove set-user-id bits and capabilities, so these come after; times are last. */
  #finish(place: Place, file: number, attributes: Attributes): void {
    this.#chown(file, "", attributes.owner);
    const { isPlain = false } = this.#options;
    if (!isPlain) for (const [name, value] of attributes.xattrs ?? []) fileAt.setXattr(file, name, value);
    fileAt.chmodOpen(file, isPlain ? attributes.mode & 0o1777 : attributes.mode);
    if (attributes.time !== undefined) fileAt.setTimesAt(place.parent, place.name, attributes.time);
  }

  #chown(directory: number, name: string, owner: Owner): void {
    if (this.#options.isPlain !== true) fileAt.chownAt(directory, name, owner);
  }

  #ownerOf(stat: fileAt.FileStat): Owner {
    if (this.#options.owner !== undefined) return this.#options.owner;
    return this.#options.ignoreOwners ? root : { uid: stat.uid, gid: stat.gid };
  }

  #timeOf(stat: fileAt.FileStat): Pick<fileAt.FileStat, "mtimeSeconds" | "mtimeNanoseconds"> {
    const { mtimeSeconds } = this.#options;
    return mtimeSeconds === undefined ? stat : { mtimeSeconds, mtimeNanoseconds: 0 };
  }

  #modeOf(stat: fileAt.FileStat): number {
    return this.#options.mode?.apply(stat.mode, stat.type === "directory") ?? stat.mode;
  }
}

/** Where a path of the image leads, links followed. @throws {CopyError} If they go in circles. */
export function resolveTarget(rootFd: number, path: string): string {
  try {
    return fileAt.resolveInRoot(rootFd, path).path;
  } catch (error) {
    throw nameError(error, path);
  }
}

function notDirectory(path: string): CopyError {
  return new CopyError(`${JSON.stringify(fileAt.textOf(path))} is not a directory in the image`);
}

/** What only the name can cause is the user's to mend. */
function nameError(error: unknown, path: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ENAMETOOLONG")
    return new CopyError(`the name ${JSON.stringify(fileAt.textOf(path).slice(0, 100))} is too long`);
  if (code === "EINVAL" || code === "ENOTDIR" || code === "ELOOP") {
    return new CopyError(`${JSON.stringify(fileAt.textOf(path).slice(0, 100))} cannot be made: ${code}`, {
      cause: error,
    });
  }
  return error;
}
