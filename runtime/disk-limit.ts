/** How much one container has written, and whether that is too much. */
import { formatBytes } from "./bytes.ts";
import type { DiskGauge } from "./disk-gauge.ts";
import type { MeasuringThread } from "./measuring-thread.ts";
import type { ProjectQuota } from "./project-quota.ts";
import { type Measured, mostLevels, type TreeSize } from "./tree-size.ts";

/** A container, as far as its disk is concerned. */
export interface DiskSubject {
  readonly limit?: TreeSize;
  /** Where it writes. What is in it already is not the container's; of the container's own all is. */
  readonly directories: readonly { readonly path: string; readonly isOwn: boolean }[];
  /** By the clock of file systems. */
  readonly startedAtMs: number;
  /** Those that may hold deleted files open. */
  processes(): readonly number[];
  /** Ends it. @param message `wrote 2.1 GiB of 2 GiB disk` */
  kill(message: string): void;
}

/** A file for every 16 KiB, as ext4 is made for, and enough for what ordinary builds unpack. */
export function filesFor(bytes: number): number {
  return Math.max(250_000, Math.ceil(bytes / (16 << 10)));
}

/** What the kernel says when it grants a little more than the limit: who passes it is killed, for the same reason everywhere. */
const quotaSlack: TreeSize = { bytes: 4 << 20, files: 1000 };
/** Measuring may take this part of a core. */
const measuringShare = 0.1;

interface Counted {
  readonly project: number;
  readonly before: TreeSize;
}

/**
 * Keeps a container's disk limit: by project quotas where they count all of it, else by measuring when the file system has
 * lost so much that the container may be over its limit.
 */
export class DiskLimit implements Disposable {
  readonly #subject: DiskSubject;
  readonly #thread: MeasuringThread;
  readonly #quota: ProjectQuota | undefined;
  readonly #gauges: readonly DiskGauge[];
  readonly #owners: Map<number, DiskLimit>;
  readonly #counted: readonly Counted[];
  readonly #measuredTrees: readonly { readonly path: string; readonly sinceMs?: number }[];
  /** By measuring, and what the file systems had lost when that began. */
  #measured: { readonly size: TreeSize; readonly drained: TreeSize; readonly atMs: number } | undefined;
  /** Of files that were there before, when they were first measured. */
  #before: TreeSize | undefined;
  readonly #drainedBefore: TreeSize;
  #measuring = false;
  #notBeforeMs = 0;
  #ended = false;

  constructor(
    subject: DiskSubject,
    means: {
      readonly thread: MeasuringThread;
      readonly quota: ProjectQuota | undefined;
      readonly gauges: readonly DiskGauge[];
      /** Whose limits projects have now: the next step of a job begins before the last one's accounts are closed. */
      readonly owners: Map<number, DiskLimit>;
    },
  ) {
    this.#subject = subject;
    this.#thread = means.thread;
    this.#quota = means.quota;
    this.#gauges = means.gauges;
    this.#owners = means.owners;
    const parts = subject.directories.map((directory) => ({ directory, counted: this.#count(directory) }));
    this.#counted = parts.flatMap(({ counted }) => counted ?? []);
    this.#measuredTrees = parts
      .filter(({ counted }) => counted === undefined)
      .map(({ directory: { path, isOwn } }) => ({
        path,
        // The clock of file systems is a tick behind.
        ...(!isOwn && { sinceMs: subject.startedAtMs - 20 }),
      }));
    this.#drainedBefore = this.#drained();
  }

  #count({ path, isOwn }: DiskSubject["directories"][number]): Counted | undefined {
    const project = this.#quota?.projectOf(path);
    const now = project === undefined ? undefined : this.#quota?.usage(project);
    if (project === undefined || now === undefined) return undefined;
    const before = isOwn ? { bytes: 0, files: 0 } : now;
    const { limit } = this.#subject;
    this.#quota?.limit(project, limit && add(add(before, limit), quotaSlack));
    this.#owners.set(project, this);
    return { project, before };
  }

  /** What it has added, as far as that is known now; undefined where it has not been measured. */
  get size(): TreeSize | undefined {
    const counted = this.#countedSize();
    if (this.#measuredTrees.length === 0) return counted;
    return this.#measured === undefined ? undefined : add(counted, this.#measured.size);
  }

  /** The most that it can have added. */
  get possible(): TreeSize {
    const counted = this.#countedSize();
    if (this.#measuredTrees.length === 0) return counted;
    const since = subtract(this.#drained(), this.#measured?.drained ?? this.#drainedBefore);
    return add(counted, add(this.#measured?.size ?? { bytes: 0, files: 0 }, since));
  }

  isOn(gauge: DiskGauge): boolean {
    return this.#gauges.includes(gauge);
  }

  /** Whether `size` is not older than this. */
  isKnownSince(atMs: number): boolean {
    return this.#measuredTrees.length === 0 || (this.#measured?.atMs ?? -Infinity) >= atMs;
  }

  /** Ends the container. */
  kill(message: string): void {
    this.#ended = true;
    this.#subject.kill(message);
  }

  get isEnded(): boolean {
    return this.#ended;
  }

  /** Keeps the limit; called often. */
  look(nowMs: number): void {
    const { limit } = this.#subject;
    if (this.#ended || limit === undefined) return;
    if (this.#measuredTrees.length === 0) {
      this.#judge(limit);
      return;
    }
    // The first time early: what was there before cannot be told from what was added to it later.
    const part = this.#before === undefined ? 1 / 8 : 1;
    const { bytes, files } = this.possible;
    if (bytes > limit.bytes * part || files > limit.files * part) this.measure(nowMs);
  }

  /** Has it measured, unless that was just done. */
  measure(nowMs: number): void {
    if (this.#ended || this.#measuring || nowMs < this.#notBeforeMs || this.#measuredTrees.length === 0) return;
    this.#measuring = true;
    void this.#measure(nowMs).finally(() => (this.#measuring = false));
  }

  async #measure(startedMs: number): Promise<void> {
    const { limit } = this.#subject;
    const drained = this.#drained();
    const request = {
      trees: this.#measuredTrees,
      pids: this.#subject.processes(),
      thoroughly: this.#measured !== undefined,
      mostFiles: limit?.files ?? Infinity,
    };
    const measured = await this.#thread.measure(request).catch(() => undefined);
    const endedMs = performance.now();
    this.#notBeforeMs = endedMs + (endedMs - startedMs) * (1 / measuringShare - 1);
    if (measured === undefined || this.#ended) return;
    this.#before ??= measured.old;
    this.#measured = { size: this.#added(measured), drained, atMs: startedMs };
    if (measured.tooDeep) this.kill(`nested directories deeper than ${mostLevels} levels`);
    else if (limit !== undefined) this.#judge(limit);
  }

  /** What is new, and what was added to files that are not. */
  #added({ made, old }: Measured): TreeSize {
    return add(made, subtract(old, this.#before ?? old));
  }

  #judge(limit: TreeSize): void {
    const excess = this.#ended ? undefined : excessOf(this.size, limit);
    if (excess !== undefined) this.kill(excess);
  }

  /** Why a program may have failed for its disk; undefined if it was not that. */
  explainFailure(): string | undefined {
    const { limit } = this.#subject;
    const excess = limit && excessOf(this.size, limit);
    if (excess !== undefined) return excess;
    for (const gauge of this.#gauges) {
      gauge.sample();
      if (gauge.isLow) return `the agent's disk was nearly full: ${describeFree(gauge)}`;
    }
    return undefined;
  }

  #countedSize(): TreeSize {
    let sum: TreeSize = { bytes: 0, files: 0 };
    for (const { project, before } of this.#counted) {
      sum = add(sum, subtract(this.#quota?.usage(project) ?? before, before));
    }
    return sum;
  }

  #drained(): TreeSize {
    return this.#gauges.reduce((sum, gauge) => add(sum, gauge.drained), { bytes: 0, files: 0 });
  }

  /** Lifts the limits of what others go on using. */
  [Symbol.dispose](): void {
    this.#ended = true;
    for (const { project } of this.#counted) {
      if (this.#owners.get(project) !== this) continue;
      this.#owners.delete(project);
      this.#quota?.limit(project, undefined);
    }
  }
}

function excessOf(size: TreeSize | undefined, limit: TreeSize): string | undefined {
  if (size === undefined) return undefined;
  const disk = `${formatBytes(limit.bytes)} disk`;
  if (size.bytes > limit.bytes) return `wrote ${formatBytes(size.bytes)} of ${disk}`;
  return size.files > limit.files ? `wrote ${size.files} files, of ${limit.files} that ${disk} allow` : undefined;
}

/** `0.4 GiB of 20 GiB free` */
export function describeFree({ freeBytes, sizeBytes }: DiskGauge): string {
  return `${formatBytes(freeBytes)} of ${formatBytes(sizeBytes)} free`;
}

function add(a: TreeSize, b: TreeSize): TreeSize {
  return { bytes: a.bytes + b.bytes, files: a.files + b.files };
}

function subtract(a: TreeSize, b: TreeSize): TreeSize {
  return { bytes: a.bytes - b.bytes, files: a.files - b.files };
}
