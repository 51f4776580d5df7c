/** A workspace as a build sees it: paths do not lead out of it, whatever links steps make in it, and whenever they make them. */
import { constants, write as writeCallback } from "node:fs";
import { promisify } from "node:util";
import { BuildError } from "../build/index.ts";
import { formatBytes } from "../pipelines/index.ts";
import { fileAt } from "../runtime/index.ts";

/** A file that is to be written. */
export interface OutputFile {
  /** Relative, with slashes. */
  readonly name: string;
  readonly read: () => AsyncIterable<Buffer>;
}

const write = promisify(writeCallback);
const { O_CREAT, O_EXCL, O_WRONLY } = constants;

/** What is written belongs to whom the workspace itself belongs to. */
export class OpenWorkspace implements Disposable {
  readonly #root: number;

  /** @param root Descriptor of the directory, taken over. */
  constructor(root: number) {
    this.#root = root;
  }

  /** Opens a directory; its path is good until it is disposed. @throws {BuildError} If there is none. */
  directory(path: string): Disposable & { readonly path: string } {
    return this.#located(`the context ${JSON.stringify(path)} is no directory of the workspace`, () => {
      const { path: resolved } = fileAt.resolveInRoot(this.#root, fileAt.byteString(path));
      const fd = fileAt.openDirectoryBelow(this.#root, resolved);
      // Through the descriptor, for the name may come to lead elsewhere; with a dot, for it is a link.
      return { path: `/proc/self/fd/${fd}/.`, [Symbol.dispose]: () => fileAt.closeFile(fd) };
    });
  }

  /** Reads a file; undefined if there is none, or it is larger. */
  read(path: string, maxBytes: number): Buffer | undefined {
    return fileAt.readInRoot(this.#root, fileAt.byteString(path), maxBytes);
  }

  /**
   * Writes one file in place of what is there, or, if `files` says more names, a directory, which must be missing or empty.
   *
   * @param options.maxBytes Of all files together.
   * @throws {BuildError} If that is not possible, or they have more.
   */
  async write(
    path: string,
    files: AsyncIterable<Buffer> | readonly OutputFile[],
    options: { readonly maxBytes: number; readonly signal: AbortSignal },
  ): Promise<void> {
    const why = `the output ${JSON.stringify(path)} cannot be written`;
    const { path: resolved } = this.#located(why, () => fileAt.resolveInRoot(this.#root, fileAt.byteString(path)));
    const left = { bytes: options.maxBytes };
    const put = async (name: string, content: AsyncIterable<Buffer>) => {
      const file = this.#located(why, () => this.#create(name));
      try {
        for await (const chunk of content) {
          options.signal.throwIfAborted();
          left.bytes -= chunk.length;
          if (left.bytes < 0) throw new BuildError(`${why}: it has more than ${formatBytes(options.maxBytes)}`);
          for (let done = 0; done < chunk.length; ) done += (await write(file, chunk, done)).bytesWritten;
        }
      } finally {
        fileAt.closeFile(file);
      }
    };
    if (!Array.isArray(files)) {
      await put(resolved, files as AsyncIterable<Buffer>);
      return;
    }
    this.#located(why, () => {
      const directory = this.#make(resolved);
      const names = fileAt.namesOf(directory);
      fileAt.closeFile(directory);
      if (names.length > 0) throw new BuildError(`${why}: the directory is not empty`);
    });
    for (const { name, read } of files as readonly OutputFile[]) await put(`${resolved}/${name}`, read());
  }

  /** Makes a file in place of what is there, directories on the way to it too. */
  #create(path: string): number {
    const slash = path.lastIndexOf("/");
    const directory = this.#make(path.slice(0, Math.max(0, slash)));
    const name = path.slice(slash + 1);
    try {
      if (fileAt.statAt(directory, name) !== undefined) fileAt.unlinkAt(directory, name);
      const file = fileAt.openAt(directory, name, O_WRONLY | O_CREAT | O_EXCL, 0o644);
      if (file === undefined) throw new Error(`Cannot make "${path}"`);
      fileAt.copyOwnerAt(this.#root, file, "");
      return file;
    } finally {
      fileAt.closeFile(directory);
    }
  }

  /** Opens a directory by a path without links, made where it is missing. */
  #make(path: string): number {
    let fd = fileAt.openDirectoryAt(this.#root, ".");
    for (const name of path.split("/")) {
      if (name === "") continue;
      try {
        if (fileAt.statAt(fd, name) === undefined) {
          fileAt.makeDirectoryAt(fd, name);
          fileAt.copyOwnerAt(this.#root, fd, name);
        }
        const next = fileAt.openDirectoryAt(fd, name);
        fileAt.closeFile(fd);
        fd = next;
      } catch (error) {
        fileAt.closeFile(fd);
        throw error;
      }
    }
    return fd;
  }

  /** What the kernel refuses here is what steps have made. */
  #located<T>(what: string, action: () => T): T {
    try {
      return action();
    } catch (error) {
      const { code, syscall } = error as NodeJS.ErrnoException;
      if (code === undefined || syscall === undefined) throw error;
      throw new BuildError(`${what}: ${code}`, { cause: error });
    }
  }

  [Symbol.dispose](): void {
    fileAt.closeFile(this.#root);
  }
}
