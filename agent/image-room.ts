/** Keeps an agent's image store within its budget. */
import { statfs } from "node:fs/promises";
import { collectImages, ImageStore } from "../runtime/index.ts";
import { asError } from "./cause.ts";

export interface ImageRoomOptions {
  readonly storeDir: string;
  /** What the store may have. @default a third of its file system */
  readonly budgetBytes?: number | undefined;
  readonly onCollected?: (freedBytes: number, keptBytes: number) => void;
  readonly onProblem: (error: Error) => void;
}

/** Less than that between two looks: what jobs pull comes in tens of seconds. */
const betweenMs = 30_000;

/**
 * Removes what was used longest ago once the store has more than its budget, never what runs: see `collectImages`.
 *
 * Looking reads one small file a layer; deleting is a thread's. One look at a time, whoever asks.
 */
export class ImageRoom implements AsyncDisposable {
  readonly #options: ImageRoomOptions;
  readonly #ended = new AbortController();
  #looking: Promise<void> | undefined;
  #lookedAtMs = -Infinity;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: ImageRoomOptions) {
    this.#options = options;
  }

  /** Looks now, or soon if it has only just been looked: something may have come. */
  check(): void {
    if (this.#ended.signal.aborted || this.#timer !== undefined || this.#looking !== undefined) return;
    const waitMs = Math.max(0, this.#lookedAtMs + betweenMs - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.look();
    }, waitMs);
    this.#timer.unref();
  }

  /** Resolves when the store has been looked at, and is within its budget as far as that can be. Never rejects. */
  look(): Promise<void> {
    this.#looking ??= this.#look()
      .catch((error: unknown) => {
        if (!this.#ended.signal.aborted) this.#options.onProblem(asError(error));
      })
      .finally(() => {
        this.#looking = undefined;
        this.#lookedAtMs = performance.now();
      });
    return this.#looking;
  }

  async #look(): Promise<void> {
    const { storeDir, onCollected } = this.#options;
    const store = await ImageStore.open(storeDir);
    const budgetBytes = this.#options.budgetBytes ?? (await thirdOfDisk(storeDir));
    const { freedBytes, keptBytes } = await collectImages(store, { budgetBytes, signal: this.#ended.signal });
    if (freedBytes > 0) onCollected?.(freedBytes, keptBytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended.abort(new Error("The agent ends"));
    clearTimeout(this.#timer);
    await this.#looking;
  }
}

async function thirdOfDisk(path: string): Promise<number> {
  const { blocks, bsize } = await statfs(path);
  return Math.floor((blocks * bsize) / 3);
}
