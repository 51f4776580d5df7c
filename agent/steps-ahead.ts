/** The steps of a job whose turn comes next: their containers are created while those before them run, or Git does. */
import type { RunnableStep } from "./runnable-step.ts";

/**
 * So many steps are prepared while one runs, or the workspace is filled: steps may take less time than creating a container does, and
 * one that waits costs some 60 KiB, and as much again of the kernel's.
 */
const MAX_AHEAD = 4;
/** Created at once: what the agent does for one goes on beside what the launcher does for another. */
const MAX_PREPARING = 2;

/** A queue that fills itself. */
export class StepsAhead {
  readonly #plan: (index: number) => RunnableStep | undefined;
  /** In their order; the first so many have been prepared, or are being. */
  readonly #queue: RunnableStep[] = [];
  #planned = 0;
  #prepared = 0;
  #preparing = 0;
  #mayPrepare = true;
  /** Steps are prepared without the workspace. */
  #isEarly = false;

  /** @param plan The job's step of that index, of which nothing has been done; undefined after the last. */
  constructor(plan: (index: number) => RunnableStep | undefined) {
    this.#plan = plan;
  }

  /** Begins while the workspace is still being filled, as far as that is possible: until `fill` is called. */
  fillEarly(): void {
    this.#isEarly = true;
    this.#fill();
  }

  /** Goes on with it, each time that a step has been taken. */
  fill(): void {
    this.#isEarly = false;
    this.#fill();
  }

  #fill(): void {
    while (this.#mayPrepare && this.#preparing < MAX_PREPARING) {
      const step = this.#queue[this.#prepared] ?? (this.#queue.length < MAX_AHEAD ? this.#next() : undefined);
      if (step === undefined) return;
      const prepared = this.#isEarly ? step.prepareWithoutWorkspace() : step.prepare();
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
    this.#mayPrepare = false;
    for (const step of this.#queue.splice(0)) step.discard();
    this.#prepared = 0;
  }
}
