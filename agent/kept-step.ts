/** A failed step whose root file system, workspace and ids are kept, so that a person can look at it. */
import { execInContainer, type Host, openContainer, type PreparedConfig, type UidRange } from "../runtime/index.ts";
import { maskTerminal } from "./masked-terminal.ts";
import type { SecretIndex } from "./masker.ts";
import { type Enterable, type Entered, type EnterOptions, shellProcess } from "./step-access.ts";

export interface KeptStepOptions {
  readonly host: Host;
  /** As its container was made, with a `writableDir` that is removed with it. */
  readonly config: Omit<PreparedConfig, "network" | "output"> & { readonly writableDir: string };
  readonly env: Readonly<Record<string, string>>;
  /** What terminals do not show. */
  readonly masked: SecretIndex | undefined;
  /** Of the job, as long as it is not over. */
  readonly network: KeptNetwork;
  /** Resolves when the step's own container is gone. */
  readonly gone: Promise<void>;
}

/** How whoever enters the step gets its network. */
export interface KeptNetwork {
  enter(): Promise<{ readonly network: PreparedConfig["network"]; leave(): Promise<void> }>;
}

/** What a kept step needs when its job is over. */
export interface KeptRemains {
  readonly uidRange: UidRange;
  /** Holds the image's layers in the store. */
  readonly image: Disposable;
  /** A new one for each who enters: that of the job, and its services, are gone. */
  readonly network: KeptNetwork;
  /** Resolves when nothing else of the job uses the range. */
  readonly jobOver: Promise<void>;
}

/**
 * A failed step. One shell at a time may be open in it, each in a new container over what the step has left; with the shell
 * the container ends. Disposing it ends the shell and removes what is kept, the workspace excepted.
 */
export class KeptStep implements Enterable, AsyncDisposable {
  readonly ended: Promise<string>;
  readonly #options: KeptStepOptions;
  readonly #ended = Promise.withResolvers<string>();
  #remains: KeptRemains | undefined;
  #entered: Promise<Entered> | undefined;
  #isOver = false;
  #count = 0;

  constructor(options: KeptStepOptions) {
    this.#options = options;
    this.ended = this.#ended.promise;
  }

  /** Lets it outlast its job. Disposes of the remains when it is disposed. */
  adopt(remains: KeptRemains): void {
    this.#remains = remains;
  }

  /** Somebody is in it. */
  get isInUse(): boolean {
    return this.#entered !== undefined;
  }

  /** Where the container's changes are kept. */
  get writableDir(): string {
    return this.#options.config.writableDir;
  }

  async enter(options: EnterOptions): Promise<Entered> {
    if (this.#isOver) throw new Error("It is not kept any more");
    if (this.#entered !== undefined) throw new Error("Somebody has a shell in this step already");
    const entering = this.#open(options);
    this.#entered = entering;
    try {
      return await entering;
    } catch (error) {
      this.#entered = undefined;
      throw error;
    }
  }

  /** Ends the shell, if one is open, and removes everything. @param why Told to whoever is in it. */
  async dispose(why: string): Promise<void> {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#ended.resolve(why);
    const entered = await this.#entered?.catch(() => undefined);
    await entered?.[Symbol.asyncDispose]();
    const { host, gone } = this.#options;
    await gone;
    await host.removeTree(this.writableDir);
    await this.#remains?.jobOver;
    this.#remains?.image[Symbol.dispose]();
    this.#remains?.uidRange[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose("it is not kept any more");
  }

  async #open(asked: EnterOptions): Promise<Entered> {
    const { host, config, env, gone, masked } = this.#options;
    const { options, end } = maskTerminal(asked, masked);
    await gone;
    const entered = await (this.#remains ?? this.#options).network.enter();
    const { network } = entered;
    await using opening = new AsyncDisposableStack();
    opening.defer(async () => await entered.leave());
    const id = `${config.id}-shell-${++this.#count}`;
    const container = opening.use(openContainer(host, { ...config, id, network, output: () => undefined }));
    await container.created;
    const process = await execInContainer(container, shellProcess(options, env));
    void process.result.then(end);
    const close = opening.move();
    return {
      process,
      // Ended for one of its limits, it ends the shell.
      cut: Promise.race([this.ended, container.result.then(({ message }) => message ?? "its container has ended")]),
      // Its log is closed; the server writes there who enters it.
      left: () => {},
      [Symbol.asyncDispose]: async () => {
        process.hangUp();
        await close.disposeAsync();
        await process.result;
        this.#entered = undefined;
      },
    };
  }
}
