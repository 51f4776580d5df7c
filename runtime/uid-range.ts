/** Ranges of ids: every concurrently running job has one that nobody else has, as long as there are enough. */
import { mkdirSync } from "node:fs";
import { abortConnections } from "./fuse.ts";
import { ImageError } from "./image-error.ts";
import { EAGAIN, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from "./linux.ts";
import { agentId, containerId, findOwnIds, type OwnIds, planRanges, type RangePlan } from "./own-ids.ts";
import { close, open, SyscallError, trySyscall } from "./syscall.ts";
import { mapUserNamespace } from "./user-namespace.ts";

/**
 * Ids of the agent's user namespace for the containers of one job, uids and gids alike. Held until disposed; no other
 * agent on this host has it, unless there were not enough (`UidRanges.count`).
 */
export interface UidRange extends RangePlan, Disposable {
  /** Of all ranges in use now, also of two with the same ids. */
  readonly key: string;
  /** How many. */
  readonly size: number;
  /** A user namespace with exactly this mapping, for idmapped mounts. Open until disposed. */
  readonly userNamespaceFd: number;
}

/** Hands out ranges; locks in one directory keep the agents of a host apart, and end with the process that holds them. */
export class UidRanges {
  readonly #lockDir: string;
  readonly #plans: readonly RangePlan[];
  /** A root agent has as many as anybody wants: another that wants more is a mistake, not a small machine. */
  readonly #mayShare: boolean;
  /** User namespaces are kept for the next job: making one costs a process. */
  readonly #namespaces = new Map<number, number>();
  readonly #taken = new Set<number>();
  #sequence = 0;

  /**
   * @param lockDir The same for all agents that have the same ids to give.
   * @param ids What there is to give.
   */
  constructor(lockDir: string, ids: OwnIds = findOwnIds()) {
    this.#lockDir = lockDir;
    this.#plans = planRanges(ids);
    this.#mayShare = !ids.all;
    mkdirSync(lockDir, { recursive: true, mode: 0o755 });
  }

  /** The range that is taken first, and whose ids are on the image store's files where those cannot be mapped. */
  get first(): RangePlan {
    return this.#plans[0] as RangePlan;
  }

  /** How many jobs can have ids of their own at a time. */
  get count(): number {
    return this.#plans.length;
  }

  /** @throws {Error} If all are taken and none may be shared. */
  claim(): UidRange {
    for (let index = 0; index < this.#plans.length; index++) {
      if (this.#taken.has(index)) continue;
      const lock = this.#lock(index);
      if (lock === undefined) continue;
      this.#taken.add(index);
      const release = () => {
        if (this.#taken.delete(index)) close(lock);
      };
      try {
        return this.#range(index, release);
      } catch (error) {
        release();
        throw error;
      }
    }
    if (this.#mayShare) return this.#range(this.#sequence % this.#plans.length, () => {});
    throw new Error(`Cannot claim a uid range: all ${this.#plans.length} are taken by jobs on this host`);
  }

  /** The ids that layers have on disk where mounts map none, for containers whose changes become layers. Jobs may have them, too. */
  shareFirst(): UidRange {
    return this.#range(0, () => {});
  }

  #range(index: number, release: () => void): UidRange {
    const plan = this.#plans[index] as RangePlan;
    const known = this.#namespaces.get(index);
    // Nobody else has these ids: whatever still waits with them a killed agent left.
    if (known === undefined && !this.#mayShare) abortConnections(plan);
    const userNamespaceFd = known ?? mapUserNamespace(plan.mappings, plan.mappings);
    this.#namespaces.set(index, userNamespaceFd);
    return {
      ...plan,
      key: `${plan.base}-${++this.#sequence}`,
      size: plan.mappings.reduce((sum, { size }) => sum + size, 0),
      userNamespaceFd,
      [Symbol.dispose]: release,
    };
  }

  #lock(index: number): number | undefined {
    const fd = open(`${this.#lockDir}/${index}`, O_RDWR | O_CREAT, 0o600);
    const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
    if (result === 0) return fd;
    close(fd);
    if (result === -EAGAIN) return undefined;
    throw new SyscallError("flock", -result, `lock uid range ${index} in "${this.#lockDir}"`);
  }

  close(): void {
    for (const fd of this.#namespaces.values()) close(fd);
    this.#namespaces.clear();
  }
}

/**
 * Whose a process or file of a container is on the host.
 *
 * @throws {ImageError} If the range does not have the id: it is the image that names it.
 */
export function hostIdOf(range: UidRange, id: number, kind: "user" | "group"): number {
  const found = agentId(range, id);
  if (containerId(range, found) === id) return found;
  throw new ImageError(
    `Cannot run as ${kind} ${id}: a job has ${range.size} ids here, and this is not one of them; give the agent's user more subordinate ids (/etc/subuid and /etc/subgid)`,
  );
}
