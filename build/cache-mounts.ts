/**
 * The directories of `RUN --mount=type=cache`, kept between builds.
 *
 *     NAMESPACE/HASH/files/      what commands see; HASH is that of the mount's id
 *     NAMESPACE/HASH/about.json  what it is called, and whose; its time of change is when it was used last
 *     NAMESPACE/HASH/making/     `new/` in it becomes `files/` when it holds what it begins with. Locked: shared by whoever uses
 *                                `files/`, exclusively by whoever makes or removes it
 *     NAMESPACE/HASH/removed-…   what is being deleted
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { promisify } from "node:util";
import { diskOwner, fileAt, removeTrees, tryLock, waitForLock } from "../runtime/index.ts";
import type { CacheSharing } from "./run-mount.ts";

/** A cache directory for one command; disposing it lets the next one have it. */
export interface CacheMount extends Disposable {
  readonly directory: string;
  /** Nobody has had it before. */
  readonly isNew: boolean;
}

/** How a command wants to have its directory. */
export interface CacheMountOptions {
  /** What lists call it. @default its id */
  readonly label?: string | undefined;
  readonly sharing: CacheSharing;
  /** Of a new one. */
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
  /** Puts what a new one begins with into it, before anybody sees it. @default it is empty */
  readonly seed?: ((directory: string) => Promise<void>) | undefined;
  /** Where one that is not kept may be made. */
  readonly scratch: (name: string) => string;
  readonly signal: AbortSignal;
}

export class CacheMounts {
  readonly #directory: string;
  readonly #namespace: string;
  readonly isKept: boolean;

  /**
   * @param stateDir Of the agent.
   * @param namespace What builds of other trust must not see: a hash or a plain name.
   * @param options.isKept `false`: every command has empty ones, which go with it: nothing counts what is in them later.
   */
  constructor(stateDir: string, namespace: string, options: { readonly isKept: boolean } = { isKept: true }) {
    this.isKept = options.isKept;
    this.#namespace = namespace;
    this.#directory = `${cachesOf(stateDir)}/${createHash("sha256").update(namespace).digest("hex").slice(0, 32)}`;
  }

  /** Gives the directory of an id, made if there is none. @throws {Error} What `seed` throws; the next command begins anew. */
  async take(id: string, options: CacheMountOptions): Promise<CacheMount> {
    const about = { name: options.label ?? id, namespace: this.#namespace };
    if (!this.isKept) return await use(options.scratch(`cache-${crypto.randomUUID()}`), { ...options, about });
    const path = `${this.#directory}/${createHash("sha256").update(id).digest("hex")}`;
    if (options.sharing === "private") return await takePrivate(path, { ...options, about });
    if (options.sharing === "shared") return await use(path, { ...options, about });
    // Other builds, in whatever process, wait too.
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const lock = await waitForLock(path, "exclusive", options.signal);
    return await locked(lock, () => use(path, { ...options, about }));
  }
}

/** Whose a directory is, and what the mount calls it. */
interface About {
  readonly name: string;
  readonly namespace: string;
}

type UseOptions = CacheMountOptions & { readonly about: About };

/** One that no other command has at the moment; a second command at the same time gets a second directory. */
async function takePrivate(path: string, options: UseOptions): Promise<CacheMount> {
  for (let copy = 0; ; copy++) {
    const own = `${path}-${copy}`;
    mkdirSync(own, { recursive: true, mode: 0o700 });
    const lock = tryLock(own, "exclusive");
    if (typeof lock === "number") return await locked(lock, () => use(own, options));
  }
}

/** Holds a lock for as long as the directory is used. */
async function locked(lock: number, take: () => Promise<CacheMount>): Promise<CacheMount> {
  try {
    const mount = await take();
    const dispose = () => {
      mount[Symbol.dispose]();
      fileAt.closeFile(lock);
    };
    return { ...mount, [Symbol.dispose]: dispose };
  } catch (error) {
    fileAt.closeFile(lock);
    throw error;
  }
}

/** The directory below `path`, which appears whole: who shares it never sees half of what it begins with. */
async function use(path: string, options: UseOptions): Promise<CacheMount> {
  const { signal, about } = options;
  const directory = `${path}/files`;
  const making = `${path}/making`;
  mkdirSync(making, { recursive: true, mode: 0o700 });
  for (let isNew = false; ; ) {
    const lock = await waitForLock(making, "shared", signal);
    if (isThere(directory)) {
      tell(path, about);
      return { directory, isNew, [Symbol.dispose]: () => fileAt.closeFile(lock) };
    }
    fileAt.closeFile(lock);
    isNew = await make(path, options);
  }
}

/** @returns Whether it was not there. */
async function make(path: string, { uid, gid, mode, seed, signal }: UseOptions): Promise<boolean> {
  const directory = `${path}/files`;
  const making = `${path}/making`;
  const lock = await waitForLock(making, "exclusive", signal);
  try {
    if (isThere(directory)) return false;
    const made = `${making}/new`;
    // Whoever was killed while filling it, or failed, leaves it.
    rmSync(made, { recursive: true, force: true });
    mkdirSync(made);
    chownSync(made, diskOwner(uid), diskOwner(gid));
    chmodSync(made, mode);
    await seed?.(made);
    renameSync(made, directory);
    return true;
  } finally {
    fileAt.closeFile(lock);
  }
}

/** Says what a directory is, and that it is used. */
function tell(path: string, about: About): void {
  const file = `${path}/about.json`;
  const now = new Date();
  try {
    utimesSync(file, now, now);
  } catch {
    writeFileSync(file, JSON.stringify(about), { mode: 0o600 });
  }
}

/** A directory that is kept. */
export interface KeptCacheMount extends About {
  /** Absolute: what `removeCacheMount` takes. */
  readonly path: string;
  readonly bytes: number;
  readonly usedAtMs: number;
}

/** All that the builds of a state directory have kept, the last used first. */
export async function listCacheMounts(stateDir: string): Promise<readonly KeptCacheMount[]> {
  const found: KeptCacheMount[] = [];
  for (const namespace of namesIn(cachesOf(stateDir))) {
    for (const name of namesIn(`${cachesOf(stateDir)}/${namespace}`)) {
      const path = `${cachesOf(stateDir)}/${namespace}/${name}`;
      const files = statSync(`${path}/files`, { throwIfNoEntry: false });
      if (files === undefined) continue;
      const usedAtMs = statSync(`${path}/about.json`, { throwIfNoEntry: false })?.mtimeMs ?? files.mtimeMs;
      found.push({ ...readAbout(path, name), path, bytes: await sizeOf(`${path}/files`), usedAtMs });
    }
  }
  return found.toSorted((a, b) => b.usedAtMs - a.usedAtMs);
}

/** @returns Whether it is removed: not while a command uses it, in whatever process. */
export async function removeCacheMount(path: string): Promise<boolean> {
  const lock = tryLock(`${path}/making`, "exclusive");
  if (lock === "held") return false;
  try {
    if (isThere(`${path}/files`)) renameSync(`${path}/files`, `${path}/removed-${crypto.randomUUID()}`);
    rmSync(`${path}/about.json`, { force: true });
  } finally {
    if (typeof lock === "number") fileAt.closeFile(lock);
  }
  await removeTrees(namesIn(path).flatMap((name) => (name.startsWith("removed-") ? [`${path}/${name}`] : [])));
  return true;
}

function cachesOf(stateDir: string): string {
  return `${stateDir}/build/caches`;
}

function readAbout(path: string, name: string): About {
  try {
    return JSON.parse(readFileSync(`${path}/about.json`, "utf8")) as About;
  } catch {
    return { name, namespace: "" };
  }
}

async function sizeOf(directory: string): Promise<number> {
  const args = ["--summarize", "--one-file-system", "--block-size=1", "--", directory];
  // It may change while it is read: what is gone by then is nothing.
  const { stdout } = await promisify(execFile)("du", args).catch(
    (error: unknown) => error as { readonly stdout: string },
  );
  return Number(/^\d+/.exec(stdout)?.[0] ?? 0);
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}
