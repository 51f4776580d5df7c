/** The disks that containers write to: limits for each, for all together, and for the machine's sake. */
import { statSync } from "node:fs";
import { formatBytes } from "./bytes.ts";
import { DiskGauge } from "./disk-gauge.ts";
import { describeFree, DiskLimit, type DiskSubject } from "./disk-limit.ts";
import { MeasuringThread } from "./measuring-thread.ts";
import { ProjectQuota } from "./project-quota.ts";
import type { Watch } from "./watch.ts";

/** A step's end frees its space a while later. */
const recoveryMs = 3000;
/** Who has written less is not blamed for a full disk. */
const leastBlamedBytes = 64 << 20;

export class Disk implements AsyncDisposable {
  readonly #watch: Watch;
  readonly #ceilingBytes: number | undefined;
  readonly #quota: ProjectQuota | undefined;
  readonly #measuring = new MeasuringThread();
  readonly #limits = new Set<DiskLimit>();
  readonly #gauges = new Map<number, DiskGauge>();
  readonly #owners = new Map<number, DiskLimit>();
  #looking: Disposable | undefined;
  /** Since when something is full. */
  #lowSinceMs: number | undefined;
  #quietUntilMs = 0;

  /** @param options.ceilingBytes What all containers may have added at a time. */
  constructor(stateDir: string, options: { readonly watch: Watch; readonly ceilingBytes?: number }) {
    this.#watch = options.watch;
    this.#ceilingBytes = options.ceilingBytes;
    this.#quota = ProjectQuota.open(stateDir);
  }

  /** Whether the file system counts what containers write. */
  get isCounted(): boolean {
    return this.#quota !== undefined;
  }

  /** Has the file system count what is made below a directory, where it can; before anything is made there. */
  adopt(directory: string): void {
    this.#quota?.adopt(directory);
  }

  /** Limits a container that runs; disposing it ends that. */
  limit(subject: DiskSubject): DiskLimit {
    this.#looking ??= this.#watch.add(() => this.#look());
    const gauges = new Set(subject.directories.flatMap(({ path }) => this.#gaugeOf(path) ?? []));
    const means = { thread: this.#measuring, quota: this.#quota, gauges: [...gauges], owners: this.#owners };
    const limit = new DiskLimit(subject, means);
    this.#limits.add(limit);
    return limit;
  }

  /** Ends it. */
  release(limit: DiskLimit): void {
    this.#limits.delete(limit);
    limit[Symbol.dispose]();
    if (this.#limits.size > 0) return;
    this.#looking?.[Symbol.dispose]();
    this.#looking = undefined;
    this.#lowSinceMs = undefined;
  }

  #gaugeOf(path: string): DiskGauge | undefined {
    try {
      const { dev } = statSync(path);
      const known = this.#gauges.get(dev);
      if (known !== undefined) {
        if (this.#limits.size === 0) known.sample();
        return known;
      }
      const gauge = new DiskGauge(path);
      this.#gauges.set(dev, gauge);
      return gauge;
    } catch {
      return undefined; // gone: nothing can be written to it
    }
  }

  #look(): void {
    const nowMs = performance.now();
    for (const gauge of this.#gauges.values()) gauge.sample();
    for (const limit of this.#limits) limit.look(nowMs);
    if (nowMs >= this.#quietUntilMs) this.#lookAtAll(nowMs);
  }

  /** What is too much for all together ends the one that has the most. */
  #lookAtAll(nowMs: number): void {
    const low = [...this.#gauges.values()].find((gauge) => gauge.isLow);
    const isOver = this.#sum(({ possible }) => possible.bytes) > (this.#ceilingBytes ?? Infinity);
    if (low === undefined && !isOver) {
      this.#lowSinceMs = undefined;
      return;
    }
    const sinceMs = (this.#lowSinceMs ??= nowMs);
    const suspects = [...this.#limits].filter((limit) => !limit.isEnded && (low === undefined || limit.isOn(low)));
    for (const suspect of suspects) if (!suspect.isKnownSince(sinceMs)) suspect.measure(nowMs);
    if (suspects.length === 0 || suspects.some((suspect) => !suspect.isKnownSince(sinceMs))) return;
    const largest = suspects.reduce((a, b) => ((b.size?.bytes ?? 0) > (a.size?.bytes ?? 0) ? b : a));
    const bytes = largest.size?.bytes ?? 0;
    const sum = this.#sum(({ size }) => size?.bytes ?? 0);
    this.#lowSinceMs = undefined; // what is known gets old
    if (low !== undefined && bytes >= Math.min(leastBlamedBytes, low.reserveBytes / 4)) {
      largest.kill(
        `the agent's disk was nearly full (${describeFree(low)}), and this step had written ${formatBytes(bytes)}`,
      );
      this.#quietUntilMs = nowMs + recoveryMs;
    } else if (this.#ceilingBytes !== undefined && sum > this.#ceilingBytes) {
      const all = `${formatBytes(sum)} of ${formatBytes(this.#ceilingBytes)} disk`;
      largest.kill(`all steps of this agent together wrote ${all}, this one the most (${formatBytes(bytes)})`);
      this.#quietUntilMs = nowMs + recoveryMs;
    }
  }

  #sum(of: (limit: DiskLimit) => number): number {
    return [...this.#limits].reduce((sum, limit) => sum + of(limit), 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#looking?.[Symbol.dispose]();
    await this.#measuring[Symbol.asyncDispose]();
    for (const gauge of this.#gauges.values()) gauge[Symbol.dispose]();
    this.#gauges.clear();
    this.#quota?.[Symbol.dispose]();
  }
}
