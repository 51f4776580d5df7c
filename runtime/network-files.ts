/** /etc/hosts and /etc/resolv.conf of jobs' networks: a layer over an image, the same for all containers of a job. */
import { chmodSync, chownSync, mkdirSync, writeFileSync } from "node:fs";
import { cloneMount, closeMounts } from "./mount.ts";
import type { ContainerNetwork } from "./network.ts";
import type { UidRange } from "./uid-range.ts";

/** One layer: a directory whose files belong to the root of the range on disk, too. */
export interface NetworkLayer {
  readonly directory: string;
  /** A detached mount of it. Open until the range is released. */
  readonly mount: number;
  /** Another for every other layer. */
  readonly key: string;
}

interface FilesHost {
  readonly stateDir: string;
  removeTree(path: string): Promise<void>;
  /** Waits for it when the host is closed. */
  track(promise: Promise<void>): void;
}

/** Makes layers, and keeps them as long as their uid range is claimed. */
export class NetworkFiles {
  readonly #host: FilesHost;
  readonly #layers = new Map<string, Map<string, NetworkLayer>>();
  #sequence = 0;

  constructor(host: FilesHost) {
    this.#host = host;
  }

  /** @throws {Error} If the files cannot be written. */
  get(
    network: ContainerNetwork,
    { hostname, range }: { readonly hostname: string; readonly range: UidRange },
  ): NetworkLayer {
    const hosts = network.hosts(hostname);
    const content = `${hosts}\0${network.resolvConf}`;
    let layers = this.#layers.get(range.key);
    if (layers === undefined) this.#layers.set(range.key, (layers = new Map()));
    const known = layers.get(content);
    if (known !== undefined) return known;
    const name = `files-${++this.#sequence}`;
    const directory = `${this.#host.stateDir}/roots/${name}`;
    try {
      const layer = {
        directory,
        mount: this.#make(directory, { hosts, resolvConf: network.resolvConf, range }),
        key: name,
      };
      layers.set(content, layer);
      return layer;
    } catch (error) {
      void this.#host.removeTree(directory);
      throw error;
    }
  }

  #make(
    directory: string,
    { hosts, resolvConf, range }: { readonly hosts: string; readonly resolvConf: string; readonly range: UidRange },
  ): number {
    const etc = `${directory}/etc`;
    mkdirSync(etc, { recursive: true, mode: 0o755 });
    writeFileSync(`${etc}/hosts`, hosts, { mode: 0o644 });
    writeFileSync(`${etc}/resolv.conf`, resolvConf, { mode: 0o644 });
    for (const path of [directory, etc, `${etc}/hosts`, `${etc}/resolv.conf`]) {
      chmodSync(path, path.endsWith("s") || path.endsWith("f") ? 0o644 : 0o755);
      chownSync(path, range.base, range.base);
    }
    return cloneMount(directory);
  }

  /** Removes those of a range whose containers are gone. */
  release({ key }: Pick<UidRange, "key">): void {
    const layers = [...(this.#layers.get(key)?.values() ?? [])];
    this.#host.track(closeMounts(layers.map(({ mount }) => mount)));
    for (const { directory } of layers) void this.#host.removeTree(directory);
    this.#layers.delete(key);
  }

  close(): void {
    for (const key of this.#layers.keys()) this.release({ key });
  }
}
