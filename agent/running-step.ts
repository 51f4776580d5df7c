/** A step or service that runs, as a person can enter it. */
import { type Container, execInContainer } from "../runtime/index.ts";
import { maskTerminal } from "./masked-terminal.ts";
import type { SecretIndex } from "./masker.ts";
import { type Enterable, type Entered, type EnterOptions, shellProcess } from "./step-access.ts";
import type { StepLog } from "./step-log.ts";

/** Its log tells who was in it, and when. */
export class RunningStep implements Enterable {
  readonly ended: Promise<string>;
  readonly #container: Container;
  readonly #env: Readonly<Record<string, string>>;
  readonly #log: StepLog;
  readonly #masked: SecretIndex | undefined;
  readonly #ended = Promise.withResolvers<string>();
  /** How those who are in it say that they have left. */
  readonly #shells = new Set<(how: string) => void>();

  constructor(
    container: Container,
    {
      env,
      log,
      masked,
    }: {
      readonly env: Readonly<Record<string, string>>;
      readonly log: StepLog;
      /** What terminals do not show. */
      readonly masked: SecretIndex | undefined;
    },
  ) {
    this.#container = container;
    this.#env = env;
    this.#log = log;
    this.#masked = masked;
    this.ended = this.#ended.promise;
  }

  async enter(asked: EnterOptions): Promise<Entered> {
    const { options, end } = maskTerminal(asked, this.#masked);
    const process = await execInContainer(this.#container, shellProcess(options, this.#env));
    void process.result.then(end);
    const startedAtMs = performance.now();
    this.#log.note(`shell opened by ${options.by}`);
    const left = (how: string) => {
      if (!this.#shells.delete(left)) return;
      this.#log.note(`shell closed after ${Math.round((performance.now() - startedAtMs) / 1000)} s: ${how}`);
    };
    this.#shells.add(left);
    return { process, cut: this.ended, left, [Symbol.asyncDispose]: async () => await process[Symbol.asyncDispose]() };
  }

  /** Nothing of it runs any more. To be called before its log is closed. */
  end(): void {
    const why = "the step has ended";
    this.#ended.resolve(why);
    for (const left of this.#shells) left(why);
  }
}
