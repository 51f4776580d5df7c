/** Small files that a step gets in memory: its secrets. */
import { writeSync } from "node:fs";
import {
  AT_EMPTY_PATH,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  O_CLOEXEC,
  O_CREAT,
  O_EXCL,
  O_WRONLY,
} from "./linux.ts";
import { makeMount } from "./mount.ts";
import { close, cString, syscall } from "./syscall.ts";

/** What the mount of such files is called in a configuration, which does not have their contents. */
export const stepFilesSource = "slipway-files";

const pageBytes = 4096;

/** Files of one directory, by name. Contents are in no text that is made of a configuration. */
export class StepFiles {
  readonly #files: ReadonlyMap<string, Uint8Array>;

  /** @param files By plain names. */
  constructor(files: ReadonlyMap<string, Uint8Array>) {
    for (const name of files.keys()) {
      if (name === "" || name === "." || name === ".." || /[/\0]/.test(name)) {
        throw new Error(`Cannot make a file of the name ${JSON.stringify(name)}: it is not a plain one`);
      }
    }
    this.#files = files;
  }

  /** In whole pages. */
  get sizeBytes(): number {
    const pages = [...this.#files.values()].map(({ length }) => Math.ceil(length / pageBytes) + 1);
    return pages.reduce((sum, count) => sum + count, 2) * pageBytes;
  }

  /**
   * Makes a detached mount of them, read-only, in memory that no other container shares and that goes with the container.
   *
   * @param root Whose the directory is, @param owner whose the files are, mode 0400: ids of the host.
   * @throws {SyscallError}
   */
  mount(root: number, owner: { readonly uid: number; readonly gid: number }): number {
    const mount = makeMount(
      "tmpfs",
      [
        { key: "mode", value: "755" },
        { key: "size", value: `${this.sizeBytes}` },
        { key: "nr_inodes", value: `${this.#files.size + 1}` },
        { key: "uid", value: `${root}` },
        { key: "gid", value: `${root}` },
      ],
      MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
    );
    try {
      for (const [name, content] of this.#files) {
        const fd = syscall("openat", mount, cString(name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o400);
        try {
          for (let at = 0; at < content.length; ) at += writeSync(fd, content, at);
          syscall("fchown", fd, owner.uid, owner.gid);
        } finally {
          close(fd);
        }
      }
      const attributes = Buffer.alloc(32); // struct mount_attr: set, clear, propagation, userns_fd
      attributes.writeBigUInt64LE(BigInt(MOUNT_ATTR_RDONLY), 0);
      syscall("mount_setattr", mount, cString(""), AT_EMPTY_PATH, attributes, attributes.length);
      return mount;
    } catch (error) {
      close(mount);
      throw error;
    }
  }
}
