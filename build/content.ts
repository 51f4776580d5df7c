/** Digests of selected files by what they are, not by when: the keys of the build cache. */
import { createHash } from "node:crypto";
import { fileAt } from "../runtime/files.ts";
import { type SelectedEntry, type Selection, SelectError } from "./select.ts";

export interface ContentOptions {
  /** Everything counts as root's: files of a build context have no owners that mean anything. */
  readonly ignoreOwners: boolean;
  readonly checkCanceled?: () => void;
}

/**
 * Digests of files by what the kernel says of them: a file whose change time is the same has not been changed, for nobody
 * but the kernel sets it. Kept as long as the process.
 */
const known = new Map<string, string>();
const MAX_KNOWN = 200_000;
/** Two changes within one tick of the kernel's clock look like one: what is as new as that is not remembered. */
const RACY_SECONDS = 2;

const buffer = Buffer.allocUnsafeSlow(1 << 20);

/**
 * Computes the digest of a source's selections.
 *
 * @throws {SelectError} If a file is gone or replaced meanwhile.
 */
export function digestContent(root: number, selections: readonly Selection[], options: ContentOptions): string {
  const content = createHash("sha256");
  for (const selection of selections) {
    // Where a selection begins does not matter, but what a single file is called does.
    const [first] = selection.entries;
    const name = first?.stat.type === "directory" ? "" : selection.name;
    content.update(`selection ${JSON.stringify(name)}\n`);
    const links = new Map<string, string>();
    walkSelection(root, selection, (entry, parent, base) => {
      options.checkCanceled?.();
      content.update(describe(entry, { parent, base, links, options }));
    });
  }
  return content.digest("hex");
}

/** Digests the kernel's own account of what is selected: the same as long as nobody has touched any of it. */
export function fingerprintSelections(selections: readonly Selection[]): string {
  const hash = createHash("sha256");
  for (const { root, entries } of selections) {
    for (const { path, stat } of entries) hash.update(`${root}\0${path}\0${fingerprintOf(stat)}\n`);
  }
  return hash.digest("hex");
}

/** The kernel's own account of a file. */
export function fingerprintOf(stat: fileAt.FileStat): string {
  return `${stat.identity} ${stat.size} ${stat.ctime} ${stat.mtimeSeconds}.${stat.mtimeNanoseconds}`;
}

/** One line that says what an entry is. */
function describe(
  { path, stat, isParent }: SelectedEntry,
  file: {
    readonly parent: number;
    readonly base: string;
    readonly links: Map<string, string>;
    readonly options: ContentOptions;
  },
): string {
  const owner = file.options.ignoreOwners ? "0:0" : `${stat.uid}:${stat.gid}`;
  const head = [stat.type, JSON.stringify(path), stat.mode.toString(8), owner, isParent ? "parent" : ""];
  if (stat.type === "symlink")
    return `${head.join(" ")} ${JSON.stringify(fileAt.readLinkAt(file.parent, file.base))}\n`;
  if (stat.type !== "file" && stat.type !== "directory") return `${head.join(" ")}\n`;
  if (stat.type === "file" && stat.links > 1) {
    const first = file.links.get(stat.identity);
    if (first !== undefined) return `${head.join(" ")} link ${JSON.stringify(first)}\n`;
    file.links.set(stat.identity, path);
  }
  const fd = openUnchanged(file.parent, file.base, stat);
  try {
    const xattrs = [...fileAt.readXattrs(fd, fileAt.isImageXattr)].map(
      ([name, value]) => `${JSON.stringify(name)}=${value.toString("base64")}`,
    );
    const content = stat.type === "file" ? hashFile(fd, stat, file.options.checkCanceled) : "";
    return `${[...head, ...xattrs].join(" ")} ${content}\n`;
  } finally {
    fileAt.closeFile(fd);
  }
}

/** Opens what a stat was made of, for reading. @throws {SelectError} If it is something else by now. */
export function openUnchanged(parent: number, base: string, stat: fileAt.FileStat): number {
  const fd = fileAt.openAt(parent, base === "" ? "." : base, O_RDONLY | O_NONBLOCK);
  const opened = fd === undefined ? undefined : fileAt.statAt(fd, "");
  if (fd !== undefined && opened?.identity === stat.identity) return fd;
  if (fd !== undefined) fileAt.closeFile(fd);
  throw new SelectError(`${JSON.stringify(fileAt.textOf(base))} changed while it was read`);
}

const O_RDONLY = 0;
const O_NONBLOCK = 0o4000;

function hashFile(fd: number, stat: fileAt.FileStat, checkCanceled: (() => void) | undefined): string {
  const key = fingerprintOf(stat);
  const remembered = known.get(key);
  if (remembered !== undefined) return remembered;
  const hash = createHash("sha256");
  let total = 0;
  // Somebody may write into it as fast as it is read: its digest is of no use then.
  for (let length = -1; length !== 0 && total <= stat.size; total += length) {
    checkCanceled?.();
    length = fileAt.readFile(fd, buffer);
    hash.update(buffer.subarray(0, length));
  }
  const digest = hash.digest("hex");
  const isSettled = Number(stat.ctime.split(".")[0]) + RACY_SECONDS < Date.now() / 1000;
  const after = fileAt.statAt(fd, "");
  if (isSettled && after !== undefined && fingerprintOf(after) === key) {
    if (known.size >= MAX_KNOWN) known.clear();
    known.set(key, digest);
  }
  return digest;
}

/**
 * Visits the entries of a selection with a descriptor of the directory that each is in.
 *
 * @param visit Receives the directory, valid during the call, and the entry's name in it ("" for the tree's own root).
 * @throws {SelectError} If a directory is not there any more.
 */
export function walkSelection(
  root: number,
  selection: Selection,
  visit: (entry: SelectedEntry, parent: number, base: string) => void,
): void {
  /** Open directories, from the one that holds the selection's root inwards. */
  const open: { readonly path: string | undefined; readonly fd: number }[] = [];
  const openDirectory = (parent: number, base: string): number => {
    try {
      return fileAt.openDirectoryAt(parent, base === "" ? "." : base);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "ENOENT" && code !== "ENOTDIR" && code !== "ELOOP") throw error;
      throw new SelectError(`${JSON.stringify(fileAt.textOf(base))} changed while it was read`, { cause: error });
    }
  };
  try {
    const slash = selection.root.lastIndexOf("/");
    const holder = slash === -1 ? "" : selection.root.slice(0, slash);
    open.push({ path: undefined, fd: fileAt.openDirectoryBelow(root, holder) });
    for (const entry of selection.entries) {
      const at = entry.path.lastIndexOf("/");
      const directory = entry.path === "" ? undefined : at === -1 ? "" : entry.path.slice(0, at);
      while (open.at(-1)?.path !== directory) {
        const last = open.pop();
        if (last === undefined) throw new Error(`No directory for "${entry.path}" in the selection`);
        fileAt.closeFile(last.fd);
      }
      const parent = (open.at(-1) as { fd: number }).fd;
      const base = entry.path === "" ? selection.root.slice(slash + 1) : entry.path.slice(at + 1);
      visit(entry, parent, base);
      if (entry.stat.type === "directory") open.push({ path: entry.path, fd: openDirectory(parent, base) });
    }
  } finally {
    for (const { fd } of open) fileAt.closeFile(fd);
  }
}
