/**
 * Finds the files that a COPY or ADD names: wildcards, .dockerignore, --exclude, --parents.
 *
 * Nothing outside the source's root is ever reached: links are followed as if the root were `/`, in what a source names
 * only; what is below it is walked descriptor by descriptor without following any.
 */
import { fileAt } from "../runtime/files.ts";
import { hasWildcards, matchComponent, type MatchState, type PathPatterns } from "./pattern.ts";

/** A tree that files are copied from. */
export interface SourceTree {
  /** Descriptor of its root directory. */
  readonly root: number;
  /** What of it is not there for a build. */
  readonly ignored?: PathPatterns | undefined;
  /** What messages call it: `the build context`. */
  readonly name: string;
}

export interface SelectOptions {
  /** Names keep the directories before them. */
  readonly parents: boolean;
  readonly excludes: PathPatterns;
  /** Called for every file, to give up when nobody waits any more. */
  readonly checkCanceled?: () => void;
}

/** One name of a selection; all strings are byte strings. */
export interface SelectedEntry {
  /** Relative to the selection's root; "" for the root itself. */
  readonly path: string;
  readonly stat: fileAt.FileStat;
  /** A directory that is only there for what is in it. */
  readonly isParent: boolean;
}

/** What one name of a source stands for. */
export interface Selection {
  /** Where it begins, relative to the source's root, without links. */
  readonly root: string;
  /** The name that a file gets in a directory: the last component as it was written or matched. */
  readonly name: string;
  /** The root first, parents before what is in them, in the order of names. */
  readonly entries: readonly SelectedEntry[];
}

/** A source that names nothing, or too much; the message says what is wrong with it. */
export class SelectError extends Error {
  override readonly name = "SelectError";
}

const MAX_ENTRIES = 1_000_000;
/** Of all paths together: a million of 4096 bytes each would be more than a thread may have. */
const MAX_PATH_BYTES = 256 * 2 ** 20;
const MAX_DEPTH = 500;

/**
 * Finds what a source names; nothing if it has wildcards and nothing matches.
 *
 * @param pattern As written: a path relative to the tree's root, whose leading slash and `..` at the top mean nothing.
 * @throws {SelectError} If there is no such file.
 */
export function selectFiles(tree: SourceTree, pattern: string, options: SelectOptions): Selection[] {
  const selector = new Selector(tree, options);
  return options.parents ? selector.withParents(pattern) : selector.each(pattern);
}

class Selector {
  readonly #tree: SourceTree;
  readonly #options: SelectOptions;
  #count = 0;
  #pathBytes = 0;

  constructor(tree: SourceTree, options: SelectOptions) {
    this.#tree = tree;
    this.#options = options;
  }

  each(pattern: string): Selection[] {
    const components = cleanComponents(pattern);
    const wild = components.findIndex(hasWildcards);
    if (wild === -1) {
      const path = fileAt.byteString(components.join("/"));
      const selection = this.#one(path);
      if (selection === undefined) throw this.#missing(pattern, path);
      return [selection];
    }
    const start = this.#resolve(fileAt.byteString(components.slice(0, wild).join("/")));
    if (start === undefined) return [];
    return this.#matches(start, components.slice(wild)).flatMap((path) => this.#one(path) ?? []);
  }

  /** `a/./b/c` copies `b/c` out of `a`, with the directory `b`. */
  withParents(pattern: string): Selection[] {
    const pivot = pattern.indexOf("/./");
    const base = cleanComponents(pivot === -1 ? "" : pattern.slice(0, pivot));
    const wanted = cleanComponents(pivot === -1 ? pattern : pattern.slice(pivot + 3)).map(fileAt.byteString);
    const wild = base.findIndex(hasWildcards);
    const start = this.#resolve(fileAt.byteString(base.slice(0, wild === -1 ? undefined : wild).join("/")));
    const roots = start === undefined ? [] : wild === -1 ? [start] : this.#matches(start, base.slice(wild));
    const isExact = wild === -1 && !wanted.some(hasWildcards);
    const selections = roots.map((root) => this.#walk(root, lastOf(root), wanted));
    if (isExact && selections.every(({ entries }) => entries.every(({ isParent }) => isParent))) {
      throw this.#missing(pattern, [...base.map(fileAt.byteString), ...wanted].join("/"));
    }
    return selections;
  }

  /** What a path names, links followed; undefined if it is not there. */
  #one(path: string): Selection | undefined {
    const resolved = this.#resolve(path);
    if (resolved === undefined) return undefined;
    const selection = this.#walk(resolved, lastOf(path), undefined);
    // A directory of which everything is ignored is not there, but the whole context may be empty.
    if (resolved !== "" && selection.entries.every(({ isParent }) => isParent)) return undefined;
    return selection;
  }

  /** The path without links; undefined if there is nothing. */
  #resolve(path: string): string | undefined {
    const resolved = resolve(this.#tree.root, path);
    const depth = resolved.path === "" ? 0 : resolved.path.split("/").length;
    return resolved.found === depth ? resolved.path : undefined;
  }

  #missing(pattern: string, path: string): SelectError {
    const shown = JSON.stringify(pattern);
    if (this.#resolve(path) === undefined) return new SelectError(`there is no ${shown} in ${this.#tree.name}`);
    return new SelectError(`${shown} is excluded from ${this.#tree.name} by .dockerignore or .containerignore`);
  }

  /** Paths that match components with wildcards, below a directory; links in between are not followed. */
  #matches(directory: string, components: readonly string[]): string[] {
    const [first, ...rest] = components;
    if (first === undefined) return [directory];
    const fd = this.#open(directory);
    if (fd === undefined) return [];
    let names: string[];
    try {
      names = hasWildcards(first) ? fileAt.namesOf(fd) : [fileAt.byteString(first)];
    } finally {
      fileAt.closeFile(fd);
    }
    const matching = names.filter((name) => !hasWildcards(first) || matchComponent(first, fileAt.textOf(name)));
    return matching
      .map((name) => (directory === "" ? name : `${directory}/${name}`))
      .filter((path) => rest.length > 0 || this.#isVisible(path))
      .flatMap((path) => this.#matches(path, rest));
  }

  /** Undefined if it is no directory. */
  #open(path: string): number | undefined {
    try {
      return fileAt.openDirectoryBelow(this.#tree.root, path);
    } catch (error) {
      if (["ENOENT", "ENOTDIR", "ELOOP"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
      throw error;
    }
  }

  /** Whether a name is there and not ignored, or may have something in it that is not. */
  #isVisible(path: string): boolean {
    const { ignored } = this.#tree;
    if (ignored === undefined || !ignored.match(fileAt.textOf(path)).matched) return true;
    return ignored.hasExceptions;
  }

  /** @param wanted Components that select what is below; byte strings, wildcards and `**` allowed. */
  #walk(root: string, name: string, wanted: readonly string[] | undefined): Selection {
    const slash = root.lastIndexOf("/");
    const parent = slash === -1 ? fileAt.openDirectoryBelow(this.#tree.root, "") : this.#open(root.slice(0, slash));
    if (parent === undefined) return { root, name, entries: [] };
    try {
      const base = root === "" ? "" : root.slice(slash + 1);
      const stat = fileAt.statAt(parent, base);
      if (stat === undefined) return { root, name, entries: [] };
      const entries: SelectedEntry[] = [];
      const include = wanted === undefined ? undefined : new IncludePattern(wanted);
      this.#entry({ parent, base, path: "", contextPath: root, stat, depth: 0 }, { entries, include }, {});
      return { root, name, entries };
    } finally {
      fileAt.closeFile(parent);
    }
  }

  #entry(
    file: {
      readonly parent: number;
      readonly base: string;
      readonly path: string;
      readonly contextPath: string;
      readonly stat: fileAt.FileStat;
      readonly depth: number;
    },
    into: { readonly entries: SelectedEntry[]; readonly include: IncludePattern | undefined },
    above: WalkState,
  ): void {
    this.#options.checkCanceled?.();
    const { path, stat } = file;
    // Nothing that an image could keep.
    if (stat.type === "socket" || stat.type === "character" || stat.type === "block") return;
    const state = this.#decide(file, into.include, above);
    if (stat.type !== "directory") {
      if (state.isSelected) this.#add(into.entries, { path, stat, isParent: false });
      return;
    }
    const at = into.entries.length;
    if (!state.isSelected && !state.mayHoldSelected) return;
    // A directory that is not selected itself is there if something in it is.
    this.#add(into.entries, { path, stat, isParent: !state.isSelected });
    if (file.depth > MAX_DEPTH) throw new SelectError(`it is more than ${MAX_DEPTH} directories deep`);
    const fd = fileAt.openDirectoryAt(file.parent, file.base === "" ? "." : file.base);
    try {
      for (const name of fileAt.namesOf(fd)) {
        const child = fileAt.statAt(fd, name);
        if (child === undefined) continue;
        const join = (directory: string) => (directory === "" ? name : `${directory}/${name}`);
        this.#entry(
          {
            parent: fd,
            base: name,
            path: join(path),
            contextPath: join(file.contextPath),
            stat: child,
            depth: file.depth + 1,
          },
          into,
          state,
        );
      }
    } finally {
      fileAt.closeFile(fd);
    }
    if (!state.isSelected && into.entries.length === at + 1 && path !== "") into.entries.pop();
  }

  #add(entries: SelectedEntry[], entry: SelectedEntry): void {
    if (++this.#count > MAX_ENTRIES) throw new SelectError(`it has more than ${MAX_ENTRIES} files`);
    this.#pathBytes += entry.path.length;
    if (this.#pathBytes > MAX_PATH_BYTES) {
      throw new SelectError(`the paths of its files have more than ${MAX_PATH_BYTES / 2 ** 20} MiB together`);
    }
    entries.push(entry);
  }

  #decide(
    { path, contextPath, stat, base }: { path: string; contextPath: string; stat: fileAt.FileStat; base: string },
    include: IncludePattern | undefined,
    above: WalkState,
  ): WalkState & { readonly isSelected: boolean; readonly mayHoldSelected: boolean } {
    const { ignored } = this.#tree;
    const { excludes } = this.#options;
    const ignore = contextPath === "" ? undefined : ignored?.match(fileAt.textOf(contextPath), above.ignore);
    // Of a source that names a file, its name is asked for; directories that are named are never left out.
    const excludedName = path === "" && stat.type !== "directory" ? base : path;
    const exclude =
      excludedName === "" || excludes.isEmpty
        ? undefined
        : excludes.match(fileAt.textOf(excludedName), path === "" ? undefined : above.exclude);
    const isIncluded = include === undefined || above.isIncluded === true || include.matches(path);
    const isHidden = ignore?.matched === true || exclude?.matched === true;
    const exceptions =
      (ignore?.matched !== true || ignored?.hasExceptions === true) &&
      (exclude?.matched !== true || excludes.hasExceptions);
    return {
      ...(ignore !== undefined && { ignore: ignore.state }),
      ...(exclude !== undefined && { exclude: exclude.state }),
      isIncluded,
      isSelected: isIncluded && !isHidden,
      mayHoldSelected: exceptions && (isIncluded || include?.mayMatchBelow(path) === true),
    };
  }
}

/** Follows links. @throws {SelectError} If they go in circles. */
function resolve(root: number, path: string): { readonly path: string; readonly found: number } {
  try {
    return fileAt.resolveInRoot(root, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ELOOP") throw error;
    throw new SelectError(`${JSON.stringify(fileAt.textOf(path))} goes through too many links`, { cause: error });
  }
}

/** What is known of a directory, for what is in it. */
interface WalkState {
  readonly ignore?: MatchState;
  readonly exclude?: MatchState;
  readonly isIncluded?: boolean;
}

/** The path of `--parents`, component by component; `**` is any number of them. */
class IncludePattern {
  readonly #components: readonly string[];

  constructor(components: readonly string[]) {
    this.#components = components;
  }

  /** Whether a path matches; what is below it then belongs to it. */
  matches(path: string): boolean {
    if (this.#components.length === 0) return true;
    return path !== "" && this.#states(path).has(this.#components.length);
  }

  mayMatchBelow(path: string): boolean {
    return path === "" || this.#states(path).size > 0;
  }

  /** How many components of the pattern the path may have used up. */
  #states(path: string): Set<number> {
    let states = this.#skipStars(new Set([0]));
    for (const component of path.split("/")) {
      const next = new Set<number>();
      for (const state of states) {
        const pattern = this.#components[state];
        if (pattern === "**") next.add(state);
        else if (pattern !== undefined && matchComponent(fileAt.textOf(pattern), fileAt.textOf(component))) {
          next.add(state + 1);
        }
      }
      states = this.#skipStars(next);
    }
    return states;
  }

  #skipStars(states: Set<number>): Set<number> {
    for (const state of states) if (this.#components[state] === "**") states.add(state + 1);
    return states;
  }
}

/** Components without `.`; `..` goes up, but not out. */
function cleanComponents(path: string): string[] {
  const components: string[] = [];
  for (const component of path.split("/")) {
    if (component === "" || component === ".") continue;
    if (component === "..") components.pop();
    else components.push(component);
  }
  return components;
}

function lastOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
