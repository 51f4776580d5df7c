/** The shells of one agent: finds the steps that they are wanted in, dials the server, serves them. */
import type { Logger } from "pino";
import type { StepSpec } from "../pipelines/index.ts";
import type { ClaimedJob } from "../queue/index.ts";
import { asError } from "./cause.ts";
import { type KeepLimits, KeptSteps } from "./kept-steps.ts";
import type { KeptStep } from "./kept-step.ts";
import type { AttemptKey, ServerClient } from "./server-client.ts";
import { serveShell } from "./shell-session.ts";
import type { Enterable, StepAccess } from "./step-access.ts";

export interface ShellsOptions {
  readonly limits: KeepLimits;
  readonly client: ServerClient;
  readonly logger: Logger;
  /** Removes an attempt's directory. */
  readonly removeDir: (dir: string) => void;
}

/** All shells of an agent, in running and in kept steps. */
export class Shells {
  readonly #options: ShellsOptions;
  readonly #kept: KeptSteps;
  readonly #attempts = new Map<string, AttemptShells>();
  /** Sessions that have been dialed, for the server names them until it has heard of it. */
  readonly #sessions = new Map<string, Promise<void>>();
  readonly #stop = new AbortController();

  constructor(options: ShellsOptions) {
    this.#options = options;
    this.#kept = new KeptSteps({
      ...options,
      // A job that is just ending still reads its logs there; who runs it removes it then.
      removeDir: (dir, attemptId) => {
        if (!this.#attempts.has(attemptId)) options.removeDir(dir);
      },
      onShells: (attempt, sessions) => this.open(attempt, sessions),
    });
  }

  /**
   * Takes up an attempt that begins; disposed of when its job has ended.
   *
   * @param options.dir The attempt's directory, which stays if `isKept` says so.
   * @param options.mayKeep Whether failed steps may be kept at all.
   * @param options.renewNow Has the lease renewed at once, whose answer names sessions.
   */
  attempt(
    claimed: ClaimedJob,
    options: { readonly dir: string; readonly mayKeep: boolean; readonly renewNow: () => void },
  ): AttemptShells {
    const attempt = new AttemptShells(claimed, {
      ...options,
      mayKeep: options.mayKeep && this.#options.limits.steps > 0,
      kept: this.#kept,
      onOver: () => this.#attempts.delete(claimed.attemptId),
    });
    this.#attempts.set(claimed.attemptId, attempt);
    return attempt;
  }

  /** The server has something to say about an attempt. */
  wake(attemptId: string): void {
    const running = this.#attempts.get(attemptId);
    if (running !== undefined) running.renewNow();
    else void this.#kept.report(attemptId);
  }

  /** Whether a step of the attempt is kept, and with it the attempt's directory. */
  isKept(attemptId: string): boolean {
    return this.#kept.find(attemptId) !== undefined;
  }

  /** Dials in for sessions and serves them, each once. */
  open(attempt: AttemptKey, sessions: readonly string[]): void {
    for (const session of sessions) {
      if (this.#sessions.has(session) || this.#stop.signal.aborted) continue;
      const served = this.#serve(attempt, session).finally(() => this.#sessions.delete(session));
      this.#sessions.set(session, served);
    }
  }

  /** Removes what is kept and nobody is in. */
  async drain(): Promise<void> {
    await this.#kept.drain();
  }

  /** Ends all shells and removes what is kept; what runs is the agent's to end before. */
  async close(): Promise<void> {
    this.#stop.abort(new Error("the agent was stopped"));
    await this.#kept.close();
    await Promise.all(this.#sessions.values());
  }

  async #serve(attempt: AttemptKey, session: string): Promise<void> {
    const { client, logger } = this.#options;
    const { attemptId } = attempt;
    try {
      const socket = await client.dialShell(attempt, session, this.#stop.signal);
      logger.info({ attempt: attemptId }, "shell opened");
      await serveShell(socket, { attemptId, find: (step) => this.#find(attemptId, step) });
      logger.info({ attempt: attemptId }, "shell closed");
    } catch (error) {
      // Whoever wanted it may have given up meanwhile.
      logger.info({ attempt: attemptId }, `no shell was opened: ${asError(error).message}`);
    } finally {
      this.#kept.left(attemptId);
    }
  }

  async #find(attemptId: string, step: number): Promise<Enterable> {
    const running = this.#attempts.get(attemptId)?.find(step);
    if (running !== undefined) return await running;
    const kept = this.#kept.find(attemptId);
    if (kept?.index === step) return kept.step;
    throw new Error("The step has ended, and is not kept");
  }
}

/** What can be entered of one attempt. */
export class AttemptShells implements StepAccess, Disposable {
  readonly renewNow: () => void;
  readonly #claimed: ClaimedJob;
  readonly #options: {
    readonly dir: string;
    readonly mayKeep: boolean;
    readonly kept: KeptSteps;
    readonly onOver: () => void;
  };
  /** By index; undefined once it has ended. */
  readonly #steps = new Map<number, Enterable | undefined>();
  readonly #waiting = new Map<number, PromiseWithResolvers<Enterable>>();

  /** @internal */
  constructor(
    claimed: ClaimedJob,
    options: {
      readonly dir: string;
      readonly mayKeep: boolean;
      readonly renewNow: () => void;
      readonly kept: KeptSteps;
      readonly onOver: () => void;
    },
  ) {
    this.#claimed = claimed;
    this.#options = options;
    this.renewNow = options.renewNow;
  }

  keeps({ keepOnFailureMs }: StepSpec): boolean {
    return keepOnFailureMs !== undefined && this.#options.mayKeep;
  }

  running(index: number, step: Enterable): void {
    this.#steps.set(index, step);
    this.#waiting.get(index)?.resolve(step);
    void step.ended.then(() => this.#steps.set(index, undefined));
  }

  async failed(index: number, step: KeptStep): Promise<string | undefined> {
    const { attemptId, token, job, build, repository } = this.#claimed;
    const { kept, dir } = this.#options;
    const { name = "", keepOnFailureMs: keepMs = 0 } = job.steps[index] ?? {};
    const untilMs = kept.add({ attempt: { attemptId, token }, index, step, dir, keepMs });
    if (untilMs === undefined) return undefined;
    const until = new Date(untilMs).toISOString().slice(0, 16).replace("T", " ");
    const path = `${repository.name}#${build.number}/${job.name}/${isPlain(name) ? name : index}`;
    return `kept until ${until} UTC: slipway shell ${isPlain(path.replaceAll("/", "")) ? path : `'${path}'`}`;
  }

  /** Tells the server what is kept, before the attempt's end is reported. */
  async report(): Promise<void> {
    await this.#options.kept.report(this.#claimed.attemptId);
  }

  /** The step if it runs, undefined if it has; if it is about to, the server having heard of it earlier, waits for that. */
  find(index: number): Promise<Enterable> | undefined {
    const step = this.#steps.get(index);
    if (step !== undefined) return Promise.resolve(step);
    if (this.#steps.has(index)) return undefined;
    const waiting = this.#waiting.get(index) ?? Promise.withResolvers<Enterable>();
    waiting.promise.catch(() => {});
    this.#waiting.set(index, waiting);
    return waiting.promise;
  }

  [Symbol.dispose](): void {
    for (const { reject } of this.#waiting.values()) reject(new Error("The step never ran"));
    this.#options.onOver();
  }
}

/** Whether a shell takes it for one word as it is. */
function isPlain(text: string): boolean {
  return /^[\w.+@%:,=#-]+$/.test(text);
}
