/**
 * What a container is made of, and one of each kept ready: the next container of a job most often looks like the last.
 *
 * Making overlay and /dev takes as long as starting a process; made while a container runs, it costs nobody anything.
 */
import { mkdirSync } from "node:fs";
import type { Host } from "./host.ts";
import { mountDev, mountOverlay } from "./rootfs.ts";
import { close } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/** A root file system that no container has used; whoever takes it owns it. */
export interface Parts {
  readonly directory: string;
  /** Detached mounts. */
  readonly rootfs: number;
  readonly dev: number;
}

export class SpareParts {
  readonly #host: Host;
  /** By uid range and layers. */
  readonly #spares = new Map<string, Parts>();
  /** Ranges that are in use: a spare is not made for a job that is over. */
  readonly #ranges = new Set<number>();
  #sequence = 0;

  constructor(host: Host) {
    this.#host = host;
  }

  /** Takes a spare or makes the parts, and has the next spare made once the agent has nothing better to do. */
  take(layers: readonly string[], range: UidRange): Parts {
    const key = [range.base, ...layers].join("\0");
    const spare = this.#spares.get(key);
    this.#spares.delete(key);
    this.#ranges.add(range.base);
    return spare ?? this.#make(layers, range);
  }

  /** Makes a spare for the next container with these layers; call it when a container has been started. */
  replenish(layers: readonly string[], range: UidRange): void {
    setImmediate(() => {
      const key = [range.base, ...layers].join("\0");
      if (!this.#ranges.has(range.base) || this.#spares.has(key)) return;
      try {
        this.#spares.set(key, this.#make(layers, range));
      } catch {
        // Whoever needs the parts makes them, and gets the error.
      }
    });
  }

  /** Ends the spares of a job's range. */
  drop(range: UidRange): void {
    this.#ranges.delete(range.base);
    for (const [key, parts] of this.#spares) {
      if (!key.startsWith(`${range.base}\0`)) continue;
      this.#spares.delete(key);
      void this.discard(parts);
    }
  }

  /** Ends parts that were never used. */
  async discard(parts: Parts): Promise<void> {
    close(parts.rootfs);
    close(parts.dev);
    await this.#host.removeTree(parts.directory);
  }

  async close(): Promise<void> {
    this.#ranges.clear();
    const spares = [...this.#spares.values()];
    this.#spares.clear();
    await Promise.all(spares.map((parts) => this.discard(parts)));
  }

  #make(layers: readonly string[], range: UidRange): Parts {
    const name = `c${++this.#sequence}`;
    const directory = `${this.#host.stateDir}/containers/${name}`;
    mkdirSync(directory, { mode: 0o700 });
    const opened: number[] = [];
    try {
      const mounts = layers.map((layer) => this.#host.layerMounts.get(layer, range));
      const rootfs = mountOverlay(directory, mounts, range);
      opened.push(rootfs);
      const dev = mountDev(range);
      opened.push(dev);
      return { directory, rootfs, dev };
    } catch (error) {
      for (const fd of opened) close(fd);
      void this.#host.removeTree(directory);
      throw error;
    }
  }
}
