/**
 * What the agent makes ready for a step that has containers of its own: directories for their layers on a real file system,
 * and ranges of ids for its users. What such a step is allowed is in step-config.ts.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, fstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { posix } from "node:path";
import type { NestedConfig } from "./container-config.ts";
import { firstRange, isRootless, unshiftTree } from "./file-owners.ts";
import { AT_SYMLINK_NOFOLLOW, O_DIRECTORY, O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS } from "./linux.ts";
import { beneathRoot } from "./oci-file-system.ts";
import { containerId } from "./own-ids.ts";
import type { StepStore, StepUser } from "./step-config.ts";
import { hostIdOf, type UidRange } from "./uid-range.ts";
import { close, cString, open, openat2, trySyscall } from "./syscall.ts";

/** Where Debian's and everybody's podman, buildah, dockerd, BuildKit, containerd and we keep layers, as root and as a user. */
const systemStores = ["buildkit", "containerd", "containers", "docker", "slipway"].map((name) => `/var/lib/${name}`);
const userStores = ["buildkit", "containers", "docker", "slipway"].map((name) => `.local/share/${name}`);
/** Where whoever makes containers for a moment makes them: tests of such programs. */
const scratch: ReadonlySet<string> = new Set(["/tmp", "/var/tmp"]);

/**
 * Names the directories of a container that are on a real file system, outermost first.
 *
 * @param directory Below it they will be made.
 */
export function listStores({ home, volumes = [], stores }: NestedConfig, directory: string): StepStore[] {
  const clean = (target: string) => `/${beneathRoot(target)}`;
  const builders = new Set([...systemStores, ...userStores.map((name) => `${home}/${name}`)].map(clean));
  // Not the root itself, nor what the runtime mounts.
  const allowed = [...builders, ...scratch, ...volumes.map(clean)].filter(
    (target) => !/^\/(?:\.$|(?:dev|proc|sys|workspace)(?:\/|$))/.test(target),
  );
  return [...new Set(allowed)]
    .toSorted()
    .map((target, i) =>
      stores !== undefined && builders.has(target)
        ? { target, source: `${stores}/${encodeURIComponent(target)}`, mapped: true }
        : { target, source: `${directory}/stores/${i}` },
    );
}

/** Whose a nested container's directories are. */
export interface StoreOwners {
  readonly range: UidRange;
  readonly user: StepUser;
  readonly home: string;
}

/** Makes those that are missing, empty: those in the user's home are the user's. */
export function makeStores(stores: readonly StepStore[], { range, user, home }: StoreOwners): void {
  for (const { source, target, mapped } of stores) {
    if (mkdirSync(source, { recursive: true }) === undefined) continue;
    chmodSync(source, 0o755); // whatever the umask says
    const owner = target.startsWith(`${posix.resolve(home)}/`) ? user : root;
    const { uid, gid } = mapped ? owner : hostIds(range, owner);
    chownSync(source, uid, gid);
    if (scratch.has(target)) chmodSync(source, 0o1777);
  }
}

/**
 * Copies into them what the image has in their place, with owners and modes, as container managers do for volumes. Where
 * the image has nothing, what is missing above a directory of the user's becomes the user's.
 *
 * @param rootFd The image's file system as the container will see it; nothing runs in it yet.
 */
export function fillStores(stores: readonly StepStore[], rootFd: number, { range, user, home }: StoreOwners): void {
  // All of them first: a home in /tmp is copied with it.
  for (const { target } of stores) {
    if (user.uid !== 0 && target.startsWith(`${posix.resolve(home)}/`)) {
      makeDirectories(rootFd, target, hostIds(range, user));
    }
  }
  for (const { source, target, mapped } of stores) {
    let found: number;
    try {
      found = openat2(rootFd, beneathRoot(target), { flags: O_PATH | O_DIRECTORY, resolve: RESOLVE_IN_ROOT });
    } catch {
      continue; // nothing there, or nothing that could be a directory
    }
    try {
      // Of this process, not "self": cp is another one.
      const path = `/proc/${process.pid}/fd/${found}`;
      if (readdirSync(path).length === 0 || (mapped && readdirSync(source).length > 0)) continue;
      execFileSync("cp", ["--archive", "--reflink=auto", "--", `${path}/.`, source], {
        stdio: ["ignore", "ignore", "pipe"],
      });
      if (mapped) unshiftTree(source, range);
    } catch (error) {
      throw new Error(`Cannot copy "${target}" of the image to a volume`, { cause: error });
    } finally {
      close(found);
    }
  }
}

const root: StepUser = { uid: 0, gid: 0 };

function hostIds(range: UidRange, { uid, gid }: StepUser): { readonly uid: number; readonly gid: number } {
  return { uid: hostIdOf(range, uid, "user"), gid: hostIdOf(range, gid, "group") };
}

/** Beneath the root, whatever symbolic links the image has. What cannot be made is left to the container, which says so. */
function makeDirectories(rootFd: number, target: string, owner: { readonly uid: number; readonly gid: number }): void {
  const parts = beneathRoot(target).split("/");
  for (let i = 0; i < parts.length; i++) {
    let parent: number;
    try {
      const path = parts.slice(0, i).join("/") || ".";
      parent = openat2(rootFd, path, { flags: O_PATH | O_DIRECTORY, resolve: RESOLVE_IN_ROOT });
    } catch {
      return;
    }
    const name = cString(parts[i] ?? "");
    if (trySyscall("mkdirat", parent, name, 0o755) === 0) {
      trySyscall("fchownat", parent, name, owner.uid, owner.gid, AT_SYMLINK_NOFOLLOW);
    }
    close(parent);
  }
}

/**
 * Makes what is missing above the directories in the user's home the user's, where the root file system is put together
 * later: in what the container will have written, with the owners and modes of what the image has.
 *
 * @param options.layers The image's, base first. Where one has a symbolic link in the way, it is left to the container.
 * @param options.upper The directory of what the container writes.
 */
export function makeHomeDirectories(
  stores: readonly StepStore[],
  options: StoreOwners & { readonly layers: readonly string[]; readonly upper: string },
): void {
  const { layers, upper, range, user, home } = options;
  if (user.uid === 0) return;
  for (const { target } of stores.filter((store) => store.target.startsWith(`${posix.resolve(home)}/`))) {
    const parts = beneathRoot(target).split("/");
    for (let i = 1; i <= parts.length; i++) {
      const path = parts.slice(0, i).join("/");
      const found = findDirectory(layers, path);
      if (found === "link") break;
      const { uid, gid } = hostIds(range, found ?? user);
      if (mkdirSync(`${upper}/${path}`, { recursive: true }) === undefined) continue; // made for another store
      chownSync(`${upper}/${path}`, uid, gid);
      chmodSync(`${upper}/${path}`, found?.mode ?? 0o755);
    }
  }
}

/** A directory as the topmost layer that has it has it, with owners of the container; undefined if none has. */
function findDirectory(
  layers: readonly string[],
  path: string,
): (StepUser & { readonly mode: number }) | "link" | undefined {
  const inside = (id: number) => (isRootless() ? (containerId(firstRange(), id) ?? 0) : id);
  for (const layer of layers.toReversed()) {
    const root = open(layer, O_PATH | O_DIRECTORY);
    try {
      const resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS;
      const fd = openat2(root, path, { flags: O_PATH | O_DIRECTORY, resolve });
      const { uid, gid, mode } = fstatSync(fd);
      close(fd);
      return { uid: inside(uid), gid: inside(gid), mode: mode & 0o7777 };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ELOOP") return "link";
    } finally {
      close(root);
    }
  }
  return undefined;
}

const idFiles = ["subuid", "subgid"] as const;
/** What useradd gives the first user; where a job has fewer ids, the upper half of them. */
function subordinateIds({ mappings }: UidRange): string {
  const has = (first: number, count: number) =>
    mappings.some(({ containerID, size }) => containerID <= first && containerID + size >= first + count);
  if (has(100_000, 65_536)) return "100000:65536";
  const largest = mappings.toSorted((a, b) => b.size - a.size)[0];
  const half = Math.floor((largest?.size ?? 0) / 2);
  return `${(largest?.containerID ?? 0) + half}:${half}`;
}

/**
 * Gives root and the step's user a range in /etc/subuid and /etc/subgid if the image gives them none.
 *
 * @param options.layers The image's, base first.
 * @param options.upper The directory of what the container writes.
 */
export function writeIdRanges(options: {
  readonly layers: readonly string[];
  readonly upper: string;
  readonly range: UidRange;
  readonly uids: readonly number[];
}): void {
  const { layers, upper, range, uids } = options;
  const owner = hostIds(range, root);
  const users = passwdNames(readFromLayers(layers, "etc/passwd") ?? "");
  for (const file of idFiles) {
    const given = readFromLayers(layers, `etc/${file}`) ?? "";
    const known = new Set(given.split("\n").map((line) => line.split(":")[0]));
    const missing = [...new Set(uids)].filter(
      (uid) => !known.has(`${uid}`) && !(users.get(uid) ?? []).some((name) => known.has(name)),
    );
    if (missing.length === 0) continue;
    const lines = missing.map((uid) => `${users.get(uid)?.[0] ?? uid}:${subordinateIds(range)}\n`);
    const separator = given === "" || given.endsWith("\n") ? "" : "\n";
    mkdirSync(`${upper}/etc`, { recursive: true, mode: 0o755 });
    writeFileSync(`${upper}/etc/${file}`, `${given}${separator}${lines.join("")}`, { mode: 0o644 });
    // Whatever the umask says.
    chmodSync(`${upper}/etc`, 0o755);
    chmodSync(`${upper}/etc/${file}`, 0o644);
    for (const path of [`${upper}/etc`, `${upper}/etc/${file}`]) chownSync(path, owner.uid, owner.gid);
  }
}

function passwdNames(passwd: string): Map<number, string[]> {
  const names = new Map<number, string[]>();
  for (const line of passwd.split("\n")) {
    const [name = "", , uid = ""] = line.split(":");
    if (name === "" || !/^\d{1,10}$/.test(uid)) continue;
    names.set(Number(uid), [...(names.get(Number(uid)) ?? []), name]);
  }
  return names;
}

const maxFileBytes = 1 << 20;

/** A small file of the topmost layer that has it; symbolic links are followed within the layer. */
function readFromLayers(layers: readonly string[], path: string): string | undefined {
  for (const layer of layers.toReversed()) {
    const root = open(layer, O_PATH | O_DIRECTORY);
    try {
      // Not opened before it is known to be a file: an image may have a device there.
      const fd = openat2(root, path, { flags: O_PATH, resolve: RESOLVE_IN_ROOT });
      try {
        const stat = fstatSync(fd);
        if (!stat.isFile() || stat.size > maxFileBytes) return undefined;
        return readFileSync(`/proc/self/fd/${fd}`, "utf8");
      } finally {
        close(fd);
      }
    } catch {
      // not in this one
    } finally {
      close(root);
    }
  }
  return undefined;
}
