/** What the container benchmarks run: `true` on a root directory of links into /usr, in a step with everything a step gets. */
import { chownSync, cpSync, lchownSync, mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { explainContainer, formatOciConfig, type Host, type Image, type PreparedConfig } from "../runtime/index.ts";

export const limits = { memoryBytes: 256 << 20, cpu: 1, pids: 64 };

export const trueProcess = { args: ["/usr/bin/true"], env: { PATH: "/usr/bin" } };

/** Links into /usr, which every contender mounts read-only, and the directories to mount on. */
export function makeRootDirectory(directory: string): string {
  const rootDir = `${directory}/rootfs`;
  for (const name of ["dev", "etc", "proc", "sys", "tmp", "usr"]) mkdirSync(`${rootDir}/${name}`, { recursive: true });
  for (const name of ["bin", "lib", "lib64", "sbin"]) symlinkSync(`usr/${name}`, `${rootDir}/${name}`);
  return rootDir;
}

/** Where a step runs: who its root is, and its job's network. */
export type Place = Pick<PreparedConfig, "uidRange" | "network">;

/** A step on the root directory, of 256 MiB, one CPU and 64 processes. */
export function stepOn(rootDir: string, id: string, place: Place): PreparedConfig {
  const image: Image = {
    reference: rootDir,
    layers: [rootDir],
    binds: [{ source: "/usr", target: "usr" }],
    config: { env: {} },
  };
  return { id, image, ...place, resources: limits, output: () => undefined };
}

/** As the specification's config.json has it; only what is changed for peers is named. */
interface Config {
  ociVersion: string;
  root: { path: string };
  mounts: { destination: string; options: string[] }[];
  linux: {
    namespaces: { type: string; path?: string }[];
    uidMappings?: object;
    gidMappings?: object;
  };
}

/**
 * The config.json of that step for another runtime, with a root directory in place of the overlay.
 *
 * @param options.bundle Receives the root directory, owned by the mapped root, for a user namespace only maps owners.
 * @param options.hasUserNamespace Without one a peer has less to do; runc 1.1 cannot combine it with a network that is there already.
 */
export function peerConfig(host: Host, { rootDir, bundle, place, hasUserNamespace }: PeerStep): string {
  const { config } = explainContainer(host, stepOn(rootDir, "peer", place), trueProcess);
  const peer = JSON.parse(formatOciConfig(config)) as Config;
  // crun 1.8 knows no later one; nothing in the configuration is newer.
  peer.ociVersion = "1.0.2";
  peer.root.path = `${bundle}/rootfs`;
  cpSync(rootDir, peer.root.path, { recursive: true, verbatimSymlinks: true });
  const idmap = hasUserNamespace ? ["idmap"] : [];
  for (const mount of peer.mounts) {
    if (mount.destination === "/usr") mount.options = ["rbind", "ro", "nosuid", "nodev", ...idmap];
  }
  if (hasUserNamespace) give(peer.root.path, place.uidRange.base);
  else {
    peer.linux.namespaces = peer.linux.namespaces.filter(({ type }) => type !== "user");
    delete peer.linux.uidMappings;
    delete peer.linux.gidMappings;
  }
  return JSON.stringify(peer);
}

export interface PeerStep {
  readonly rootDir: string;
  readonly bundle: string;
  readonly place: Place;
  readonly hasUserNamespace: boolean;
}

function give(directory: string, uid: number): void {
  chownSync(directory, uid, uid);
  for (const name of readdirSync(directory)) lchownSync(`${directory}/${name}`, uid, uid);
}
