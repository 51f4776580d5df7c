/** Reads directories by descriptor: names as the bytes they are, however many there are. */
import { O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_RDONLY } from "./linux.ts";
import { trySyscall } from "./syscall.ts";

/** An entry; `name` is NUL-terminated and valid until the next one is asked for. */
export interface DirectoryEntry {
  readonly name: Buffer;
  /** Undefined where the file system does not tell. */
  readonly isDirectory: boolean | undefined;
}

const DT_UNKNOWN = 0;
const DT_DIR = 4;
const dot = 0x2e;
const nameOffset = 19;

/** Entries of a directory without `.` and `..`; ends early if it is deleted meanwhile. @see getdents64(2) */
export function* readEntries(fd: number): Generator<DirectoryEntry> {
  const buffer = Buffer.allocUnsafeSlow(32 << 10);
  for (;;) {
    const length = trySyscall("getdents64", fd, buffer, buffer.length);
    if (length <= 0) return;
    for (let at = 0; at < length; at += buffer.readUInt16LE(at + 16)) {
      const start = at + nameOffset;
      const end = buffer.indexOf(0, start);
      const isDots = buffer[start] === dot && (end === start + 1 || (buffer[start + 1] === dot && end === start + 2));
      if (isDots) continue;
      const type = buffer[at + 18];
      yield {
        name: buffer.subarray(start, end + 1),
        isDirectory: type === DT_UNKNOWN ? undefined : type === DT_DIR,
      };
    }
  }
}

/** Opens a directory, not what a symbolic link leads to; negative if it is none (any more). @param name NUL-terminated. */
export function openDirectory(parent: number, name: Uint8Array): number {
  return trySyscall("openat", parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}
