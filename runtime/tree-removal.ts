/** Deletes what containers leave: any number of files, any depth, any name. */
import { randomBytes } from "node:crypto";
import { openDirectory, readEntries } from "./directory-entries.ts";
import { AT_FDCWD, AT_REMOVEDIR, EISDIR, ENOTEMPTY } from "./linux.ts";
import { close, cString, trySyscall } from "./syscall.ts";

/** Directories deeper than this are moved up before they are emptied: each level holds a descriptor. */
const mostLevels = 64;

interface Level {
  readonly fd: number;
  readonly name: Buffer;
  entries: ReturnType<typeof readEntries>;
  /** Something was deleted since the directory was read from its beginning. */
  changed: boolean;
}

/**
 * The removal of one tree, in as many pieces as whoever does it likes.
 *
 * Nobody else may change the tree meanwhile but by deleting; symbolic links are deleted, not followed.
 */
export class TreeRemoval implements Disposable {
  readonly #path: Buffer;
  readonly #levels: Level[] = [];
  #started = false;

  constructor(path: string) {
    this.#path = cString(path);
  }

  /** Deletes up to `most` entries. Returns whether it is done: the tree is gone, or cannot be deleted. */
  step(most: number): boolean {
    if (!this.#started) {
      this.#started = true;
      if (trySyscall("unlinkat", AT_FDCWD, this.#path, 0) === 0) return true; // a file
      if (!this.#enter(AT_FDCWD, this.#path)) return true;
    }
    for (let count = 0; count < most; count++) {
      const level = this.#levels.at(-1);
      if (level === undefined) return true;
      this.#advance(level);
    }
    return this.#levels.length === 0;
  }

  #enter(parent: number, name: Buffer): boolean {
    const fd = openDirectory(parent, name);
    if (fd < 0) return false;
    this.#levels.push({ fd, name: Buffer.from(name), entries: readEntries(fd), changed: false });
    return true;
  }

  #advance(level: Level): void {
    const next = level.entries.next();
    if (next.done) {
      this.#leave(level);
      return;
    }
    const { name, isDirectory } = next.value;
    if (isDirectory !== true) {
      const result = trySyscall("unlinkat", level.fd, name, 0);
      if (result === 0) level.changed = true;
      if (result !== -EISDIR) return;
    }
    if (trySyscall("unlinkat", level.fd, name, AT_REMOVEDIR) === 0) {
      level.changed = true;
      return;
    }
    if (this.#levels.length >= mostLevels && this.#moveUp(level, name)) level.changed = true;
    else this.#enter(level.fd, name);
  }

  /** Into the tree's root, where it is found later. */
  #moveUp(level: Level, name: Buffer): boolean {
    const [root] = this.#levels;
    if (root === undefined) return false;
    root.changed = true;
    const target = cString(`.slipway-${randomBytes(9).toString("hex")}`);
    return trySyscall("renameat", level.fd, name, root.fd, target) === 0;
  }

  #leave(level: Level): void {
    const parent = this.#levels.at(-2);
    const result = trySyscall("unlinkat", parent?.fd ?? AT_FDCWD, level.name, AT_REMOVEDIR);
    // A directory that changes while it is read may not show all of its entries.
    if (result === -ENOTEMPTY && level.changed) {
      trySyscall("lseek", level.fd, 0, 0);
      level.entries = readEntries(level.fd);
      level.changed = false;
      return;
    }
    if (parent !== undefined && result === 0) parent.changed = true;
    this.#levels.pop();
    close(level.fd);
  }

  /** Stops where it is. */
  [Symbol.dispose](): void {
    for (const { fd } of this.#levels.splice(0)) close(fd);
  }
}
