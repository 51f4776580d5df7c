/** What callers do to containers beyond the specification, as runc does it: pause, resume, update, ps. */
import { readFileSync } from "node:fs";
import { setLimits } from "./cgroup-limits.ts";
import { ownProcesses } from "./oci-container.ts";
import { cgroupProcesses, type OciCgroup } from "./oci-cgroup.ts";
import type { OciResources } from "./oci-config.ts";
import { freeze, thaw } from "./oci-freezer.ts";
import { OciConfigError } from "./oci-parser.ts";
import { type OciRecord, OciStore } from "./oci-state.ts";

/** Stops all processes of a container; its status is `paused` then. @throws {Error} If it does not run. */
export function pauseContainer(root: string, id: string): void {
  const record = recordIn(root, id, ["created", "running"], "pause");
  const cgroup = ownCgroup(record, "pause");
  try {
    freeze(cgroup);
  } catch (error) {
    throw new Error(`Cannot pause container "${id}": ${(error as Error).message}`, { cause: error });
  }
}

/** Lets them run on. @throws {Error} If it is not paused. */
export function resumeContainer(root: string, id: string): void {
  thaw(ownCgroup(recordIn(root, id, ["paused"], "resume"), "resume"));
}

/**
 * Changes a container's limits; what is not named stays as it is.
 *
 * @throws {OciConfigError} Naming what this host cannot set; what came before it has been set.
 */
export function updateContainer(root: string, id: string, resources: OciResources): void {
  const record = recordIn(root, id, ["created", "running", "paused"], "update");
  if (resources.devices?.length) throw new OciConfigError("linux.resources.devices cannot be changed by an update");
  const { directories } = record.cgroup;
  const limit = resources.memory?.limit;
  if (resources.memory?.checkBeforeUpdate && limit !== undefined && limit > 0n) {
    const used = memoryUsage(record.cgroup);
    // v1 refuses by itself; v2 would kill.
    if (used !== undefined && used > limit) {
      throw new OciConfigError(
        `linux.resources.memory.limit cannot be set to ${limit}: container "${id}" uses ${used} bytes`,
      );
    }
  }
  setLimits(directories, resources);
}

/** The processes of a container, as the caller numbers them. @throws {Error} If there is no such container. */
export function containerProcesses(root: string, id: string): readonly number[] {
  const record = new OciStore(root, id).read();
  return record.cgroup.directories.length > 0 ? cgroupProcesses(record.cgroup) : ownProcesses(record);
}

/** @throws {Error} If the container's status is another one. */
export function recordIn(root: string, id: string, statuses: readonly string[], verb: string): OciRecord {
  const store = new OciStore(root, id);
  const record = store.read();
  const status = store.status(record);
  if (!statuses.includes(status)) {
    throw new Error(`Cannot ${verb} container "${id}": it is ${status}, not ${statuses.join(" or ")}`);
  }
  return record;
}

/** Of those hierarchies only in which the container is alone. */
function ownCgroup({ id, cgroup }: OciRecord, verb: string): OciCgroup {
  const directories = cgroup.directories.filter(({ path }) => cgroup.made.includes(path));
  if (directories.length === 0) throw new Error(`Cannot ${verb} container "${id}": its cgroup is not its own`);
  return { directories, made: cgroup.made };
}

function memoryUsage({ directories }: OciCgroup): bigint | undefined {
  const directory = directories.find(({ controllers }) => controllers.includes("memory"));
  if (directory === undefined) return undefined;
  const file = directory.version === 2 ? "memory.current" : "memory.usage_in_bytes";
  return BigInt(readFileSync(`${directory.path}/${file}`, "utf8").trim());
}
