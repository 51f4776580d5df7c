/** The directories that jobs work in, and what a job is shown of one that it must not change. */
import { execFile, execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { promisify } from "node:util";
import { filesFor } from "./disk-limit.ts";
import { isRootless } from "./file-owners.ts";
import type { Host } from "./host.ts";
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY } from "./linux.ts";
import { closeMounts } from "./mount.ts";
import { mountOverlay } from "./rootfs.ts";
import { cString, open, syscall } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/** A directory, as a job has it. */
export interface WorkspaceDir {
  readonly dir: string;
  /** What the job changes goes elsewhere, and with the job. @default false */
  readonly copyOnWrite?: boolean;
}

/** The workspaces of a host's jobs. */
export class Workspaces {
  readonly #host: Pick<Host, "stateDir" | "disk" | "layerMounts" | "mountsDetachedOverlays" | "removeTree" | "track">;
  /** The copy-on-write ones, by range and directory: one overlay for all containers of a job. */
  readonly #shown = new Map<string, { readonly shown: number | string; readonly directory: string }>();

  constructor(host: Host) {
    this.#host = host;
  }

  /**
   * What shows `dir` to a job without ever changing it: a detached overlay that belongs to the host, or on older kernels
   * the path of a copy.
   */
  copyOnWrite(dir: string, range: UidRange): number | string {
    const key = `${range.key} ${dir}`;
    const known = this.#shown.get(key);
    if (known !== undefined) return known.shown;
    const directory = this.#make(range);
    const shown =
      this.#host.mountsDetachedOverlays && !isRootless()
        ? mountOverlay(directory, [this.#host.layerMounts.get(dir, range).mount], range)
        : copyTree(dir, `${directory}/copy`);
    this.#shown.set(key, { shown, directory });
    return shown;
  }

  /**
   * Copies a directory to be a job's copy-on-write workspace, in place of an overlay: for jobs whose steps run as different
   * users, each of which is to own the workspace, which an overlay cannot be mounted for.
   */
  copy(dir: string, range: UidRange): void {
    const key = `${range.key} ${dir}`;
    if (isRootless() || this.#shown.has(key)) return;
    const directory = this.#make(range);
    this.#shown.set(key, { shown: copyTree(dir, `${directory}/copy`), directory });
  }

  /**
   * Gives a workspace to a job, before a step of it starts: where mounts map no ids, its files must have the owners that
   * the job sees. A copy-on-write workspace is copied then; any other one belongs to the job's range from now on.
   */
  async give({ dir, copyOnWrite = false }: WorkspaceDir, range: UidRange): Promise<void> {
    if (!isRootless()) return;
    const key = `${range.key} ${dir}`;
    if (copyOnWrite && this.#shown.has(key)) return;
    const target = copyOnWrite ? this.#make(range) : undefined;
    const shown = target === undefined ? dir : `${target}/copy`;
    const run = promisify(execFile);
    try {
      if (target !== undefined)
        await run("cp", ["--archive", "--no-preserve=ownership", "--reflink=auto", "--", dir, shown]);
      await run("chown", ["--recursive", "--no-dereference", `${range.base}:${range.base}`, "--", shown]);
    } catch (error) {
      if (target !== undefined) await this.#host.removeTree(target);
      const { stderr, message } = error as { readonly stderr?: string; readonly message: string };
      throw new Error(`Cannot give "${dir}" to a job: ${stderr?.trim().split("\n")[0] || message}`, { cause: error });
    }
    if (target !== undefined) this.#shown.set(key, { shown, directory: target });
  }

  #make(range: UidRange): string {
    const directory = `${this.#host.stateDir}/workspaces/${range.key}-${randomBytes(6).toString("hex")}`;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.#host.disk.adopt(directory);
    return directory;
  }

  /**
   * Has the file system count what jobs write into a directory, where it can: before anything is in there. Without, a step's
   * disk is measured when there is reason to.
   */
  adopt(dir: string): void {
    this.#host.disk.adopt(dir);
  }

  /** Where a job's writes to its workspace are kept. */
  store({ dir, copyOnWrite }: WorkspaceDir, range: UidRange): string {
    return copyOnWrite ? (this.#shown.get(`${range.key} ${dir}`)?.directory ?? dir) : dir;
  }

  /**
   * Opens a workspace as its job's steps see it, files and directories with the owners on disk; the caller closes the descriptor.
   * For reading, and for writing what belongs to the owner of the directory itself.
   */
  open({ dir, copyOnWrite }: WorkspaceDir, range: UidRange): number {
    const shown = copyOnWrite ? this.copyOnWrite(dir, range) : dir;
    if (typeof shown === "string") return open(shown, O_RDONLY | O_DIRECTORY);
    return syscall("openat", shown, cString("."), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  }

  /**
   * Limits what is added to a workspace while no step's container answers for it: a service may write there, too.
   *
   * @param options.exceeded Called with the reason when there is more.
   */
  limit(
    workspace: WorkspaceDir,
    range: UidRange,
    { bytes, exceeded }: { readonly bytes: number; readonly exceeded: (message: string) => void },
  ): Disposable {
    const { disk } = this.#host;
    const limit = disk.limit({
      limit: { bytes, files: filesFor(bytes) },
      directories: [{ path: this.store(workspace, range), isOwn: false }],
      startedAtMs: Date.now(),
      processes: () => [],
      kill: exceeded,
    });
    return { [Symbol.dispose]: () => disk.release(limit) };
  }

  /** Removes a job's copy-on-write workspaces, in the background. */
  release(range: UidRange): void {
    for (const key of this.#shown.keys()) if (key.startsWith(`${range.key} `)) this.#host.track(this.#end(key));
  }

  /** Removes all of them, in the background. */
  close(): void {
    for (const key of this.#shown.keys()) this.#host.track(this.#end(key));
  }

  async #end(key: string): Promise<void> {
    const workspace = this.#shown.get(key);
    this.#shown.delete(key);
    if (workspace === undefined) return;
    if (typeof workspace.shown === "number") await closeMounts([workspace.shown]);
    await this.#host.removeTree(workspace.directory);
  }
}

/** A copy that changes nothing about owners, modes and links; by reference where the file system can. */
function copyTree(source: string, target: string): string {
  try {
    execFileSync("cp", ["--archive", "--reflink=auto", "--", source, target], { stdio: ["ignore", "ignore", "pipe"] });
  } catch (error) {
    throw new Error(`Cannot copy "${source}" for a job`, { cause: error });
  }
  return target;
}
