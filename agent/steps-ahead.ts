/** The steps of a job whose turn comes next: their containers are created while those before them run, or Git does. */
import type { RunnableStep } from "./runnable-step.ts";

/**
 * So many steps are prepared while one runs, or the workspace is filled: steps may take less time than creating a container does, and
 * one that waits costs some 60 KiB, and as much again of the kernel's.
 */
const MAX_AHEAD = 8;
/** Of the processes that all steps may have together, those that wait, each with two, take no more than a small part. */
const PROCESSES_FOR_ONE = 64;
/** Created at once: what the agent does for one goes on beside what the launcher does for another. */
const MAX_PREPARING = 2;

type Phase = "early" | "first" | "all";

/** A queue that fills itself. */
export class StepsAhead {
  readonly #plan: (index: number) => RunnableStep | undefined;
  readonly #most: number;
  /** In their order; the first so many have been prepared, or are being. */
  readonly #queue: RunnableStep[] = [];
  #planned = 0;
  #prepared = 0;
  #preparing = 0;
  /** How far to go on: one at a time without the workspace, or only to the first of all, or all. */
  #phase: Phase | "over" = "first";

  /**
   * @param plan The job's step of that index, of which nothing has been done; undefined after the last.
   * @param options.pids How many processes all steps of the agent may have together. @default as many as the machine
   */
  constructor(plan: (index: number) => RunnableStep | undefined, { pids = Infinity }: { readonly pids?: number } = {}) {
    this.#plan = plan;
    this.#most = Math.max(1, Math.min(MAX_AHEAD, Math.floor(pids / PROCESSES_FOR_ONE)));
  }

  /** Begins while the workspace is still being filled, as far as that is possible: until `fillFirst` is called. */
  fillEarly(): void {
    this.#fill("early");
  }

  /** The workspace is there: has the first one ready, and nothing else begun until it runs, for somebody waits for it. */
  fillFirst(): void {
    this.#fill("first");
  }

  /** Goes on with it, each time that a step runs. */
  fill(): void {
    this.#fill("all");
  }

  #fill(phase: Phase | "over" = this.#phase): void {
    if (this.#phase === "over" || phase === "over") return;
    this.#phase = phase;
    const most = phase === "first" ? 1 : this.#most;
    while (this.#prepared < most && this.#preparing < (phase === "all" ? MAX_PREPARING : 1)) {
      const step = this.#queue[this.#prepared] ?? this.#next();
      if (step === undefined) return;
      const prepared = phase === "early" ? step.prepareWithoutWorkspace() : step.prepare();
      // One that needs the workspace, and those behind it, wait for it.
      if (prepared === undefined) return;
      this.#prepared++;
      this.#preparing++;
      void prepared.then(() => {
        this.#preparing--;
        this.#fill();
      });
    }
  }

  #next(): RunnableStep | undefined {
    const step = this.#plan(this.#planned);
    if (step === undefined) return undefined;
    this.#planned++;
    this.#queue.push(step);
    return step;
  }

  /** Takes the next one out; undefined after the last. */
  take(): RunnableStep | undefined {
    const step = this.#queue[0] ?? this.#next();
    this.#queue.shift();
    this.#prepared = Math.max(0, this.#prepared - 1);
    return step;
  }

  /** Starts the next one, see `RunnableStep.begin`. */
  begin(): void {
    this.#queue[0]?.begin();
  }

  /** Removes what was prepared and is not run; nothing is prepared any more. */
  discard(): void {
    this.#phase = "over";
    for (const step of this.#queue.splice(0)) step.discard();
    this.#prepared = 0;
  }
}
