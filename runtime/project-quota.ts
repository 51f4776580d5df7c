/**
 * Project quotas: what is below a directory, counted by the file system itself (ext4 and XFS with prjquota).
 *
 * A directory's project is its inode's number in the upper half of the ids, so that agents which share a file system need
 * not agree on anything. A step can neither change the project of its files nor write beyond the limit: overlay checks
 * quotas although the agent, which has mounted it, could ignore them.
 *
 * @see quotactl(2), ioctl_xfs_fsgetxattr(2), ovl_fill_super() of Linux
 */
import { fstatSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } from "./linux.ts";
import { close, open, trySyscall } from "./syscall.ts";
import type { TreeSize } from "./tree-size.ts";

const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_IOC_FSSETXATTR = 0x401c5820;
const FS_XFLAG_PROJINHERIT = 0x200;
const PRJQUOTA = 2;
const Q_GETQUOTA = 0x80_0007;
const Q_SETQUOTA = 0x80_0008;
const QIF_LIMITS = 5;
/** Below are those of the machine's administrator. */
const firstProject = 2 ** 31;

/** The quotas of one file system. */
export class ProjectQuota implements Disposable {
  readonly #fd: number;
  readonly #device: number;

  private constructor(fd: number) {
    this.#fd = fd;
    this.#device = fstatSync(fd).dev;
  }

  /** Tries it out; undefined where the file system of `directory` does not count projects, or this process may not ask. */
  static open(directory: string): ProjectQuota | undefined {
    const quota = new ProjectQuota(open(directory, O_RDONLY | O_DIRECTORY));
    let works = false;
    if (quota.#read(firstProject) !== undefined) {
      const tried = mkdtempSync(`${directory}/quota-`);
      const project = quota.adopt(tried);
      writeFileSync(`${tried}/file`, Buffer.alloc(16 << 10));
      works = project !== undefined && (quota.usage(project)?.bytes ?? 0) >= 16 << 10;
      rmSync(tried, { recursive: true });
      if (project !== undefined) quota.limit(project, undefined);
    }
    if (works) return quota;
    quota[Symbol.dispose]();
    return undefined;
  }

  /**
   * Counts from now on what is made below a directory. What is there already is not counted.
   *
   * @returns The project; undefined if the directory is on another file system, or not to be had.
   */
  adopt(directory: string): number | undefined {
    return this.#withAttributes(directory, (fd, attributes) => {
      const project = firstProject + (fstatSync(fd).ino % firstProject);
      attributes.writeUInt32LE(attributes.readUInt32LE(0) | FS_XFLAG_PROJINHERIT, 0);
      attributes.writeUInt32LE(project, 12);
      return trySyscall("ioctl", fd, FS_IOC_FSSETXATTR, attributes) < 0 ? undefined : project;
    });
  }

  /** The project that a directory was given by `adopt`. */
  projectOf(directory: string): number | undefined {
    return this.#withAttributes(directory, (_, attributes) => {
      const project = attributes.readUInt32LE(12);
      return project >= firstProject && (attributes.readUInt32LE(0) & FS_XFLAG_PROJINHERIT) !== 0 ? project : undefined;
    });
  }

  /** struct fsxattr: xflags, extsize, nextents, projid, cowextsize, 8 bytes to spare. */
  #withAttributes(
    directory: string,
    action: (fd: number, attributes: Buffer) => number | undefined,
  ): number | undefined {
    let fd: number;
    try {
      fd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    } catch {
      return undefined;
    }
    try {
      const attributes = Buffer.alloc(28);
      if (fstatSync(fd).dev !== this.#device || trySyscall("ioctl", fd, FS_IOC_FSGETXATTR, attributes) < 0) {
        return undefined;
      }
      return action(fd, attributes);
    } finally {
      close(fd);
    }
  }

  /** What a project has now, deleted files that are still open included. Takes a microsecond. */
  usage(project: number): TreeSize | undefined {
    const block = this.#read(project);
    if (block === undefined) return undefined;
    return { bytes: Number(block.readBigUInt64LE(16)), files: Number(block.readBigUInt64LE(40)) };
  }

  /** Sets what a project may have at most, as far as the file system was mounted to enforce that; undefined: no limit. */
  limit(project: number, most: TreeSize | undefined): void {
    // struct if_dqblk: bhardlimit, bsoftlimit (KiB), curspace, ihardlimit, isoftlimit, curinodes, btime, itime, valid
    const block = Buffer.alloc(72);
    block.writeBigUInt64LE(BigInt(Math.ceil((most?.bytes ?? 0) / 1024)), 0);
    block.writeBigUInt64LE(BigInt(most?.files ?? 0), 24);
    block.writeUInt32LE(QIF_LIMITS, 64);
    trySyscall("quotactl_fd", this.#fd, command(Q_SETQUOTA), project, block);
  }

  #read(project: number): Buffer | undefined {
    const block = Buffer.alloc(72);
    return trySyscall("quotactl_fd", this.#fd, command(Q_GETQUOTA), project, block) < 0 ? undefined : block;
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}

function command(number: number): number {
  return ((number << 8) | PRJQUOTA) >>> 0;
}
