/**
 * Root file systems that serve one container after the other of a job.
 *
 * A container's root file system is an overlay with an empty upper directory. Making and deleting one costs more than
 * everything else about a short container, and many steps change nothing outside of their workspace and /dev/shm, which
 * are mounts of their own. Whatever a step changes in its root file system shows in the upper directory itself: a first
 * entry, or another change time. Where neither is there, the next container of the job gets the same overlay, and cannot
 * tell. The same holds for its /dev, a file system in memory.
 */
import { mkdirSync, readdirSync, statfsSync, statSync } from "node:fs";
import type { Disk } from "./disk.ts";
import { cloneMount, closeMounts } from "./mount.ts";
import type { LayerMounts } from "./rootfs.ts";
import { devState, mountDev, mountOverlay } from "./rootfs.ts";
import type { UidRange } from "./uid-range.ts";

/** One container's, until it is given back. */
export interface RootFileSystem {
  /** Has its upper and work directory, and whatever else is the container's own. */
  readonly directory: string;
  /** A detached mount, the caller's to close. @throws {SyscallError} */
  open(): number;
  /** One of a /dev with the standard devices; the caller's to close. @throws {SyscallError} */
  openDev(): number;
}

/** Layers of a root file system beside those of the image: detached mounts that somebody else closes, and what tells them apart. */
export interface OwnLayer {
  readonly mount: number;
  readonly key: string;
}

interface PooledRoot extends RootFileSystem {
  readonly range: string;
  readonly key: string;
  readonly mount: number;
  /** Of the upper directory, when nobody had used it. */
  readonly untouched: string;
  dev: { readonly mount: number; readonly untouched: string } | undefined;
}

interface PoolHost {
  readonly stateDir: string;
  readonly disk: Disk;
  readonly layerMounts: LayerMounts;
  removeTree(path: string): Promise<void>;
  /** Waits for it when the host is closed. */
  track(promise: Promise<void>): void;
}

/** Keeps what is free, by uid range: nothing of one job comes to another. */
export class RootPool {
  readonly #host: PoolHost;
  readonly #free = new Map<string, PooledRoot[]>();
  /** Ranges that were claimed and not released: others keep nothing. */
  readonly #isKept: boolean;

  constructor(host: PoolHost) {
    this.#host = host;
    this.#isKept = hasPreciseChangeTimes(host.stateDir);
  }

  /**
   * Takes a root file system out of the layers, one that nobody has changed.
   *
   * @param layers Directories, base first, ids mapped to the range.
   * @param top Laid over them.
   * @param name Of its directory, if it has to be made.
   * @throws {Error} If it cannot be made.
   */
  take(
    layers: readonly string[],
    top: readonly OwnLayer[],
    { range, name }: { readonly range: UidRange; readonly name: string },
  ): RootFileSystem {
    const shared = layers.map((layer) => this.#host.layerMounts.get(layer, range));
    const key = [...shared, ...top].map(({ key }) => key).join("\0");
    const free = this.#free.get(range.key);
    const index = free?.findLastIndex((root) => root.key === key) ?? -1;
    const [known] = index < 0 ? [] : (free?.splice(index, 1) ?? []);
    if (known !== undefined) return known;
    const mounts = [...shared, ...top].map(({ mount }) => mount);
    const directory = `${this.#host.stateDir}/roots/${name}`;
    mkdirSync(directory, { mode: 0o700 });
    try {
      this.#host.disk.adopt(directory);
      const mount = mountOverlay(directory, mounts, range);
      const root: PooledRoot = {
        directory,
        open: () => cloneMount(mount),
        openDev: () => {
          root.dev ??= makeDev(range);
          return cloneMount(root.dev.mount);
        },
        range: range.key,
        key,
        mount,
        untouched: stateOf(directory),
        dev: undefined,
      };
      return root;
    } catch (error) {
      void this.#host.removeTree(directory);
      throw error;
    }
  }

  /** Takes it back from a container whose processes are gone. Resolves when what nobody wants is deleted; never rejects. */
  async giveBack(root: RootFileSystem): Promise<void> {
    const pooled = root as PooledRoot;
    const free = this.#free.get(pooled.range);
    if (free !== undefined && free.length < maxFree && this.#isUntouched(pooled)) {
      free.push(pooled);
      const { dev } = pooled;
      if (dev === undefined || devState(dev.mount) === dev.untouched) return;
      pooled.dev = undefined;
      await closeMounts([dev.mount]);
      return;
    }
    await this.discard(pooled);
  }

  /** Deletes one that has been taken; never rejects. */
  async discard(root: RootFileSystem): Promise<void> {
    const { mount, dev } = root as PooledRoot;
    await closeMounts(dev === undefined ? [mount] : [mount, dev.mount]);
    await this.#host.removeTree(root.directory);
  }

  /** From now on the range's are kept for the next container. */
  begin({ key }: Pick<UidRange, "key">): void {
    if (this.#isKept) this.#free.set(key, []);
  }

  /** Deletes those of a range whose job is over. */
  release({ key }: Pick<UidRange, "key">): void {
    const free = this.#free.get(key);
    this.#free.delete(key);
    for (const root of free ?? []) this.#host.track(this.discard(root));
  }

  close(): void {
    for (const key of this.#free.keys()) this.release({ key });
  }

  #isUntouched({ directory, untouched }: PooledRoot): boolean {
    try {
      return stateOf(directory) === untouched;
    } catch {
      return false;
    }
  }
}

function makeDev(range: UidRange): { readonly mount: number; readonly untouched: string } {
  const mount = mountDev(range);
  return { mount, untouched: devState(mount) };
}

/** As many containers of a job as there are at a time: one that runs, those created ahead, a service. */
const maxFree = 10;

/** Everything about an upper directory that changes when somebody changes it. */
function stateOf(directory: string): string {
  const upper = `${directory}/upper`;
  const { dev, ino, mode, uid, gid, nlink, mtimeNs, ctimeNs } = statSync(upper, { bigint: true });
  return [dev, ino, mode, uid, gid, nlink, mtimeNs, ctimeNs, ...readdirSync(upper)].join(" ");
}

/**
 * Whether a change always shows in the change time, however soon after the last one: since Linux 6.13 on file systems that
 * say so (FS_MGTIME), which are these. Overlays by descriptor, which this is about, need a later kernel anyway.
 */
function hasPreciseChangeTimes(directory: string): boolean {
  const [ext4, xfs, btrfs, tmpfs] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
  return [ext4, xfs, btrfs, tmpfs].includes(statfsSync(directory).type);
}
