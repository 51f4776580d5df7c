import type { Host } from "./host.ts";
import type { Image } from "./image.ts";
import type { UidRange } from "./uid-range.ts";

/**
 * Receives output as it comes. `chunk` is valid only during the call (copy what must stay); returning `false` stops reading
 * until `Container.resumeOutput()`.
 */
export type OutputSink = (stream: "stdout" | "stderr", chunk: Uint8Array) => boolean | void;

export interface ContainerConfig {
  /** Names the cgroup and directories; [A-Za-z0-9_.-], unique on this host while it runs. */
  readonly id: string;
  readonly image: Image;
  readonly uidRange: UidRange;
  /** argv; argv[0] is looked up in PATH of `env` when it has no slash. */
  readonly args: readonly string[];
  /** The whole environment; nothing is added. */
  readonly env: Readonly<Record<string, string>>;
  /** @default "/workspace" if there is a workspace, else "/" */
  readonly cwd?: string;
  readonly hostname?: string;
  /** Mounted read-write at /workspace. `copyOnWrite` shows the directory without ever changing it. */
  readonly workspace?: { readonly dir: string; readonly copyOnWrite?: boolean };
  readonly resources: { readonly memoryBytes: number; readonly cpu: number; readonly pids: number };
  readonly network: "none" | "host";
  readonly output: OutputSink;
  readonly timeoutMs?: number;
  /** Between SIGTERM and SIGKILL after a cancel or time-out. @default 10000 */
  readonly graceMs?: number;
  /** Canceling; the reason is a string or an Error whose message says why. */
  readonly signal?: AbortSignal;
}

/** Why the container ended. */
export type EndReason = "exited" | "signaled" | "oom" | "timeout" | "canceled";

export interface ContainerResult {
  readonly reason: EndReason;
  /** 0–255; 128 + signal number where a signal ended it. */
  readonly exitCode: number;
  /** `SIGKILL`, where a signal ended it. */
  readonly signal?: string;
  readonly oomKilled: boolean;
  /** One sentence for a person, where `reason` is not "exited". */
  readonly message?: string;
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
  readonly cpuTimeMs: number;
  readonly memoryPeakBytes?: number;
  readonly pidsPeak?: number;
}

/** One running container. Disposing it kills what still runs and removes every trace. */
export class Container implements AsyncDisposable {
  /** The init process on the host. */
  readonly pid: number = 0;
  /** Resolves once everything is reaped and both outputs are at their end; never rejects for what the step did. */
  readonly result: Promise<ContainerResult> = Promise.reject(new Error("not written yet"));
  resumeOutput(): void {}
  async [Symbol.asyncDispose](): Promise<void> {}
}

/**
 * Creates a container and starts its process.
 *
 * @throws {Error} If the container cannot be created (our failure) or its program cannot be executed (`code` ENOENT, EACCES,
 *   ENOEXEC: the user's, `name` is "ExecError").
 */
export async function runContainer(host: Host, config: ContainerConfig): Promise<Container> {
  throw new Error(`not written yet: ${host.stateDir} ${config.id}`);
}
