/**
 * What a test needs of the kernel that only the root of the machine's first user namespace has. It is tried, not deduced: a
 * suite that runs in a container, or in a nested step of Slipway itself, leaves out what nobody can do there and says what it was.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "vitest";
import { cloneMount } from "../../runtime/mount.ts";
import { findMountedCgroups } from "../../runtime/cgroup-host.ts";
import { findCgroupMounts } from "../../runtime/oci-cgroup.ts";
import { close, cString, trySyscall } from "../../runtime/syscall.ts";
import { mapUserNamespace } from "../../runtime/user-namespace.ts";

const KEY_SPEC_THREAD_KEYRING = -1;

const rights = {
  "device nodes": () => inDirectory((directory) => succeeds("mknod", join(directory, "node"), "c", "1", "3")),
  "loop devices": () => succeeds("losetup", "--find"),
  "adding keys": () =>
    trySyscall("add_key", cString("user"), cString("slipway"), Buffer.from("x"), 1, KEY_SPEC_THREAD_KEYRING) > 0,
  "idmapped mounts of the machine's files": () =>
    inDirectory((directory) => {
      const ids = [{ containerID: 0, hostID: 65_536, size: 1 }];
      const idMapFd = mapUserNamespace(ids, ids);
      try {
        close(cloneMount(directory, { idMapFd }));
        return true;
      } catch {
        return false;
      } finally {
        close(idMapFd);
      }
    }),
  "files that others have mapped": () => {
    const [first = ""] = readdirSync("/proc/self/map_files");
    return existsSync(`/proc/self/map_files/${first}`);
  },
  freezers: () =>
    findMountedCgroups()?.version === 2 ||
    findCgroupMounts().some(({ controllers }) => controllers.includes("freezer")),
  "the list of FUSE connections": () =>
    inDirectory((directory) => succeeds("unshare", "--mount", "mount", "-t", "fusectl", "none", directory)),
} as const satisfies Record<string, () => boolean>;

export type HostRight = keyof typeof rights;

const known = new Map<HostRight, boolean>();

/** Whether this process has it. */
export function hasRight(right: HostRight): boolean {
  let found = known.get(right);
  if (found === undefined) known.set(right, (found = rights[right]()));
  return found;
}

/** Skips the rest of a test where the kernel gives this process something else only. */
export function needRight(right: HostRight, context: TestContext): void {
  if (!hasRight(right)) context.skip(`needs ${right}, which are the machine's root's alone`);
}

function succeeds(program: string, ...args: readonly string[]): boolean {
  return spawnSync(program, args, { stdio: "ignore" }).status === 0;
}

function inDirectory(action: (path: string) => boolean): boolean {
  const path = mkdtempSync(join(tmpdir(), "slipway-right-"));
  try {
    return action(path);
  } finally {
    rmSync(path, { recursive: true });
  }
}
