/** Stops and continues all processes of a cgroup at once. @see cgroup-v1/freezer-subsystem, cgroup-v2 "cgroup.freeze" */
import { readFileSync, writeFileSync } from "node:fs";
import type { OciCgroup } from "./oci-cgroup.ts";

/** Between two looks at a cgroup that is freezing, and for how long. */
const pauseMs = 5;
const limitMs = 10_000;
/** v1: a process that forks again and again may never be caught; thawing and freezing anew catches it. */
const anewAfter = 20;

/** Whether its processes do not run, or are about to stop. */
export function isFrozen(cgroup: OciCgroup): boolean {
  const freezer = findFreezer(cgroup);
  if (freezer === undefined) return false;
  try {
    if (freezer.version === 1) return readState(freezer) !== "THAWED";
    return readFileSync(`${freezer.path}/cgroup.freeze`, "utf8").trim() === "1";
  } catch {
    return false; // gone
  }
}

/** Returns when no process of it runs any more. @throws {Error} If that does not happen within 10 s; then all run on. */
export function freeze(cgroup: OciCgroup): void {
  const freezer = findFreezer(cgroup);
  if (freezer === undefined) throw new Error("this host has no freezer cgroup");
  const until = performance.now() + limitMs;
  for (let i = 0; ; i++) {
    if (i % anewAfter === 0) {
      if (i > 0 && freezer.version === 1) set(freezer, false);
      set(freezer, true);
    }
    if (hasStopped(freezer)) return;
    if (performance.now() > until) break;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pauseMs);
  }
  set(freezer, false);
  throw new Error(`its processes do not stop within ${limitMs / 1000} s`);
}

/** Lets its processes run on; one that they do not run in is left alone. */
export function thaw(cgroup: OciCgroup): void {
  const freezer = findFreezer(cgroup);
  if (freezer !== undefined && isFrozen(cgroup)) set(freezer, false);
}

/** On v1 whoever moved a process to a cgroup of his own that is frozen keeps it from dying; with us it runs on. */
export function takeBack(cgroup: OciCgroup, pid: number): void {
  const freezer = findFreezer(cgroup);
  if (freezer?.version !== 1) return;
  try {
    writeFileSync(`${freezer.path}/cgroup.procs`, `${pid}`);
  } catch {
    // It has ended.
  }
}

type Freezer = OciCgroup["directories"][number];

/** Hybrid hosts freeze in v1, where the controller is. */
function findFreezer({ directories }: OciCgroup): Freezer | undefined {
  return (
    directories.find(({ version, controllers }) => version === 1 && controllers.includes("freezer")) ??
    directories.find(({ version }) => version === 2)
  );
}

function set({ path, version }: Freezer, frozen: boolean): void {
  if (version === 1) writeFileSync(`${path}/freezer.state`, frozen ? "FROZEN" : "THAWED");
  else writeFileSync(`${path}/cgroup.freeze`, frozen ? "1" : "0");
}

function hasStopped(freezer: Freezer): boolean {
  if (freezer.version === 1) return readState(freezer) === "FROZEN";
  return /^frozen 1$/m.test(readFileSync(`${freezer.path}/cgroup.events`, "utf8"));
}

function readState({ path }: Freezer): string {
  return readFileSync(`${path}/freezer.state`, "utf8").trim();
}
