/**
 * Mount points that an image lacks, as a layer of their own on top of it: what is mounted on them while a command runs is
 * in no layer, and neither are they.
 */
import { fileAt } from "../runtime/files.ts";
import { resolveTarget } from "./copy.ts";

/** A path on which something will be mounted. */
export interface MountTarget {
  /** Absolute. */
  readonly path: string;
  readonly isDirectory: boolean;
}

/** Mounted before, so that what is below is not the image's. */
const mounted = new Set(["dev", "proc", "sys"]);

/**
 * Makes what is missing in `directory`, which is empty; nothing if the image has all of it.
 *
 * @param root Of the image's layers.
 * @returns The targets' paths without links, as the image has them.
 */
export function makeStubs(root: number, targets: readonly MountTarget[], directory: number): string[] {
  return targets.map(({ path, isDirectory }) => {
    const bytes = fileAt.byteString(path);
    const first = bytes.split("/").find((component) => component !== "" && component !== ".") ?? "";
    // /dev/pipes/x is made in the /dev that is mounted; /proc itself must be there.
    if (mounted.has(first) && bytes.replace(/\/+$/, "").split("/").filter(Boolean).length > 1) return path;
    // A link there would lead the standard mounts away.
    const isStandard = mounted.has(bytes.replaceAll("/", ""));
    const resolved = isStandard ? first : resolveTarget(root, bytes);
    if (resolved !== "") makeStub(root, { path: resolved, isDirectory }, directory);
    return `/${fileAt.textOf(resolved)}`;
  });
}

function makeStub(root: number, { path, isDirectory }: MountTarget, directory: number): void {
  const components = path.split("/");
  let image: number | undefined = fileAt.openDirectoryAt(root, ".");
  let stub = fileAt.openDirectoryAt(directory, ".");
  /** Made only if something is missing: what stands above it must look as it does in the image. */
  const above: { readonly name: string; readonly stat: fileAt.FileStat }[] = [];
  try {
    for (const [index, name] of components.entries()) {
      const isLast = index === components.length - 1;
      const stat: fileAt.FileStat | undefined = image === undefined ? undefined : fileAt.statAt(image, name);
      const isThere: boolean = isLast && !isDirectory ? stat?.type === "file" : stat?.type === "directory";
      if (isThere && isLast) return;
      if (isThere && stat !== undefined) above.push({ name, stat });
      else {
        for (const each of above.splice(0)) stub = enter(stub, each.name, each.stat);
        if (isLast && !isDirectory) makeFile(stub, name);
        else stub = enter(stub, name, undefined);
      }
      const next: number | undefined = isThere && image !== undefined ? fileAt.openDirectoryAt(image, name) : undefined;
      if (image !== undefined) fileAt.closeFile(image);
      image = next;
    }
  } finally {
    if (image !== undefined) fileAt.closeFile(image);
    fileAt.closeFile(stub);
  }
}

/** Makes a directory, or finds the one that another stub has made, and opens it in the place of its parent. */
function enter(parent: number, name: string, like: fileAt.FileStat | undefined): number {
  if (fileAt.statAt(parent, name) === undefined) {
    fileAt.makeDirectoryAt(parent, name);
    fileAt.chownAt(parent, name, like ?? { uid: 0, gid: 0 });
    fileAt.chmodAt(parent, name, like?.mode ?? 0o755);
    if (like !== undefined) fileAt.setTimesAt(parent, name, like);
  }
  const fd = fileAt.openDirectoryAt(parent, name);
  fileAt.closeFile(parent);
  return fd;
}

function makeFile(parent: number, name: string): void {
  if (fileAt.statAt(parent, name) !== undefined) return;
  const fd = fileAt.openAt(parent, name, O_WRONLY | O_CREAT | O_EXCL, 0o644);
  if (fd !== undefined) fileAt.closeFile(fd);
}

const O_WRONLY = 1;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
