/** Files that are there whole or not at all, whatever happens to the process or the machine. */
import { close as closeCallback, constants, fdatasync as fdatasyncCallback, write as writeCallback } from "node:fs";
import { mkdir, open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { isNamed, lockDescriptor } from "./file-lock.ts";
import { close, open as openDescriptor } from "./syscall.ts";

const closeFile = promisify(closeCallback);
const datasync = promisify(fdatasyncCallback);
const write = promisify(writeCallback);

/**
 * Creates an empty file of a new name, open for reading and writing and locked, so that whoever sweeps the directory leaves
 * it alone (`tryLock` tells it "held") as long as the descriptor is open.
 */
export function createTemporary(directory: string): { readonly fd: number; readonly path: string } {
  for (;;) {
    const path = join(directory, `file-${crypto.randomUUID()}`);
    const fd = openDescriptor(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
    // A sweep may have come between the two calls, and will have deleted it.
    if (lockDescriptor(fd, "exclusive") && isNamed(fd, path)) return { fd, path };
    close(fd);
  }
}

/** Writes all of a buffer at the descriptor's position. */
export async function writeAll(fd: number, content: Uint8Array): Promise<void> {
  for (let done = 0; done < content.length; ) {
    const { bytesWritten } = await write(fd, content, done, content.length - done);
    done += bytesWritten;
  }
}

/**
 * Writes a file beside its place, waits for the disk, and moves it there.
 *
 * A reader, of any process, sees the old content or the new; so does whoever looks after a power cut.
 *
 * @param options.temporaryDir On the same file system; must exist.
 * @param options.wait `false` does not wait for the disk: after a power cut the file may be missing, empty or cut off, which its
 *   reader must notice. @default true
 */
export async function writeDurably(
  path: string,
  content: string | Uint8Array,
  options: { readonly temporaryDir: string; readonly wait?: boolean },
): Promise<void> {
  const { fd, path: beside } = createTemporary(options.temporaryDir);
  try {
    await writeAll(fd, typeof content === "string" ? Buffer.from(content) : content);
    if (options.wait !== false) await datasync(fd);
    await moveDurably(beside, path, options);
  } catch (error) {
    await rm(beside, { force: true });
    throw error;
  } finally {
    await closeFile(fd);
  }
}

/**
 * Renames a file whose content is on disk already and waits until the name is; makes the directory if it is missing.
 *
 * @param options.wait `false` does not wait. @default true
 */
export async function moveDurably(
  from: string,
  to: string,
  options: { readonly wait?: boolean | undefined } = {},
): Promise<void> {
  const directory = dirname(to);
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await rename(from, to);
  }
  if (options.wait !== false) await syncDirectory(directory);
}

/** Waits until the names of a directory are on disk. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
