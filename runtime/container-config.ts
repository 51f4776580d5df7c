/** What a container is asked to be, and what became of it. */
import type { Image } from "./image.ts";
import type { CapabilityName } from "./linux.ts";
import type { ContainerNetwork } from "./network.ts";
import type { OciDevice } from "./oci-config.ts";
import type { StepMount, StepUser } from "./step-config.ts";
import type { StepResources } from "./step-resources.ts";
import type { UidRange } from "./uid-range.ts";

/**
 * Receives output as it comes. `chunk` is valid only during the call (copy what must stay); returning `false` stops reading
 * until `Container.resumeOutput()`.
 */
export type OutputSink = (stream: "stdout" | "stderr", chunk: Uint8Array) => boolean | void;

/** What runs in a container; may be known only when it starts. */
export interface ProcessConfig {
  /** argv; argv[0] is looked up in PATH of `env` when it has no slash. */
  readonly args: readonly string[];
  /** The whole environment; nothing is added. */
  readonly env: Readonly<Record<string, string>>;
}

/** What a container that has containers of its own is given beyond others: see docs/security.md. */
export interface NestedConfig {
  /** Of the user whose rootless builders keep their layers below it. */
  readonly home: string;
  /** Further directories to be on a real file system: the image's volumes. */
  readonly volumes?: readonly string[];
  /**
   * Where its builders keep their layers: a directory on the state directory's file system that is the caller's and outlives the
   * container. What is in it has ids of the container on disk. Not for a rootless agent. @default new ones, removed with it
   */
  readonly stores?: string;
}

/** What must be known when a container is created. */
export interface PreparedConfig {
  /** Names it in messages; [A-Za-z0-9_.-]. */
  readonly id: string;
  readonly image: Image;
  readonly uidRange: UidRange;
  /** @default "/workspace" if there is a workspace, else "/" */
  readonly cwd?: string;
  /** @default "slipway" */
  readonly hostname?: string;
  /**
   * Mounted read-write at /workspace. `copyOnWrite` shows the directory without ever changing it. `isOthers`: what is added to
   * it is on another container's account, for nobody can tell who of two at a time has written it.
   */
  readonly workspace?: { readonly dir: string; readonly copyOnWrite?: boolean; readonly isOthers?: boolean };
  /** As whom the program runs, in ids of the container. @default root */
  readonly user?: StepUser;
  /** Further mounts, made in their order after the standard ones and the workspace. */
  readonly mounts?: readonly StepMount[];
  /** Nodes in /dev beside the standard ones. */
  readonly devices?: readonly OciDevice[];
  /** Present: its programs may make containers of their own. A job's network must then have been claimed for `uidRange`. */
  readonly nested?: NestedConfig;
  /** Held in the container's own user namespace only. @default Docker's set, in a nested container all */
  readonly capabilities?: readonly CapabilityName[];
  /**
   * Where what the container writes is kept: a directory on the state directory's file system, in which `upper` and `work`
   * are made if they are missing (an overlay's, so whiteouts are character devices 0:0; owners are ids of `uidRange`).
   * It is the caller's; a later container can go on in it. @default one of the container's own, removed with it
   */
  readonly writableDir?: string;
  /**
   * A directory that is laid over the image in the place of the host's own mount points and /etc/hosts, hostname and
   * resolv.conf, which are then the caller's to bring, those of a job's network too: for who keeps what is written, and
   * wants nothing in it that is not the image's.
   */
  readonly topLayer?: string;
  readonly resources: StepResources;
  /** Loopback only, the host's, or a job's, which is the caller's to dispose. */
  readonly network: "none" | "host" | ContainerNetwork;
  readonly output: OutputSink;
  /**
   * Called as soon as no process of the container is left, before the rest of its output has been read and its result is put
   * together. Not called for one that was killed as a whole, or whose program was never executed.
   */
  readonly onExit?: (exit: { readonly succeeded: boolean }) => void;
  readonly timeoutMs?: number;
  /** Between SIGTERM and SIGKILL after a cancel or time-out. @default 10000 */
  readonly graceMs?: number;
  /** Asks the program alone to end, which knows what to do with its children. @default SIGTERM, to every process */
  readonly stopSignal?: number;
  /** Canceling; the reason is a string or an Error whose message says why. */
  readonly signal?: AbortSignal;
}

export type ContainerConfig = PreparedConfig & ProcessConfig;

/** Why the container ended. For `oom`, `disk` and `log` it was killed at once, or has failed before that. */
export type EndReason = "exited" | "signaled" | "oom" | "disk" | "log" | "timeout" | "canceled";

/** What it used, as the kernel counted it; a field is absent where this host does not count it. */
export interface ContainerUsage {
  readonly cpuTimeMs: number;
  /** How long its processes were kept from the CPU by the limit, summed over CPUs; and in how many periods of 0.1 s. */
  readonly cpuThrottledMs?: number;
  readonly cpuThrottledPeriods?: number;
  readonly memoryPeakBytes?: number;
  readonly pidsPeak?: number;
  /** What came from disks; and what was written to files on disks, whether it is there yet or not. */
  readonly ioReadBytes?: number;
  readonly ioWriteBytes?: number;
  /** What has gone to and from disks so far, on v1 without what is written back later. */
  readonly ioReadOperations?: number;
  readonly ioWriteOperations?: number;
  /** What it has added to its root file system and its workspace. */
  readonly diskBytes?: number;
}

export interface ContainerResult {
  readonly reason: EndReason;
  /** 0–255; 128 + signal number where a signal ended it; 137 if anything of it was killed for memory. */
  readonly exitCode: number;
  /** `SIGKILL`, where a signal ended it. */
  readonly signal?: string;
  readonly oomKilled: boolean;
  /** One sentence for a person, where there is more to say than the exit code. */
  readonly message?: string;
  /** When the program was executed and when it ended, by the kernel's clock; since the epoch, with a fraction. */
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
  readonly usage: ContainerUsage;
}

/** The program cannot be executed: it is missing, not executable or no program. The user's failure, not ours. */
export class ExecError extends Error {
  override readonly name = "ExecError";
  readonly code: string;

  constructor(code: string, program: string) {
    const reasons: Record<string, string> = {
      ENOENT: "there is no such program in the image (or its interpreter is missing)",
      EACCES: "it is not executable",
      ENOEXEC: "it is not a program for this machine",
      E2BIG: "its arguments and environment are too large",
    };
    super(`Cannot execute "${program}": ${reasons[code] ?? code}`);
    this.code = code;
  }
}
