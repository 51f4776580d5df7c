/**
 * The HTTP messages between agent and server. Every request carries `Authorization: Bearer <agent token>`; every request
 * about an attempt carries the attempt's fencing token in `slipway-attempt-token`, and 409 means: stop, somebody else
 * owns this job now (or it was canceled).
 *
 * GET  /api/agent/hello                                        → 204: the server is there and knows the token
 * POST /api/agent/claim                                        ClaimRequest → 200 ClaimedJob | 409 { error }
 * POST /api/agent/attempts/:attemptId/renew                    → 200 RenewResponse | 409
 * POST /api/agent/attempts/:attemptId/steps/:index             StepReport → 204 | 409
 * PUT  /api/agent/attempts/:attemptId/steps/:index/log?offset= LogChunk body → 200 { offset } | 409 | 416 { offset }
 * POST /api/agent/attempts/:attemptId/images                   ImagePin → 200 ImagePin: the one that holds | 409
 * POST /api/agent/attempts/:attemptId/finish                   FinishReport → 204 | 409
 * POST /api/agent/attempts/:attemptId/kept                     KeptReport → 200 KeptResponse | 409; after the finish, too
 * GET  /api/agent/attempts/:attemptId/build                    → 200 BuildEnd | 409; after the finish, too
 *
 * Shells have a protocol of their own, shell-protocol.ts.
 */
import type { JobSpec } from "../pipelines/index.ts";
import { z } from "zod";

export const attemptTokenHeader = "slipway-attempt-token";

/** What a BullMQ job carries; its job id is the attempt id. */
export interface JobData {
  readonly attemptId: string;
}

export const claimRequestSchema = z.object({ attemptId: z.string(), agent: z.string().min(1).max(200) });
export type ClaimRequest = z.infer<typeof claimRequestSchema>;

export interface ClaimedJob {
  readonly attemptId: string;
  /** The fencing token of this attempt. */
  readonly token: string;
  /** The agent renews at a third of this and stops its containers once it has not renewed for all of it. */
  readonly leaseMs: number;
  readonly job: JobSpec;
  readonly build: BuildInfo;
  readonly repository: RepositoryInfo;
  /** The secrets that the job names and may have, base64; never part of any log, list or queue. */
  readonly secrets?: Readonly<Record<string, string>>;
  /** Why it may not have others that it names: the job is not run. Sentences for a person, without values. */
  readonly secretProblems?: readonly string[];
  /** Values to mask in logs; never part of any log, list or queue. */
  readonly maskedValues: readonly string[];
  /** What the build's jobs have agreed on so far: names of images in full (`docker.io/library/node:24`) to digests. */
  readonly images: Readonly<Record<string, string>>;
}

export interface BuildInfo {
  readonly id: string;
  readonly number: number;
  readonly event: "push" | "tag" | "pull_request" | "manual";
  readonly ref: string;
  readonly commit: string;
  readonly branch?: string;
  readonly tag?: string;
  readonly pullRequest?: { readonly number: number; readonly fromFork: boolean };
  /** The commit, its pipeline file included, may be a stranger's: the agent limits what it gets. */
  readonly untrusted?: true;
}

export interface RepositoryInfo {
  readonly id: string;
  /** As the forge shows it: `owner/name`. */
  readonly name: string;
  /** May carry a user and password: never print it. */
  readonly cloneUrl: string;
}

export interface RenewResponse {
  readonly canceled: boolean;
  readonly leaseMs: number;
  /** Sessions of shells in this attempt that wait for the agent to dial in. */
  readonly shells?: readonly string[];
}

/**
 * What the agent keeps of an attempt's failed steps, all of it; none once it is gone. Repeated within a third of the
 * answer's lease, or the server takes it for gone.
 */
export const keptReportSchema = z.object({
  steps: z
    .array(
      z.object({
        step: z.number().int().nonnegative(),
        /** When it will be removed. */
        untilMs: z.number(),
        /** What it takes on the agent's disk, once that is known. */
        bytes: z.number().nonnegative().optional(),
      }),
    )
    .max(1000),
});
export type KeptReport = z.infer<typeof keptReportSchema>;

export interface KeptResponse {
  readonly leaseMs: number;
  readonly shells: readonly string[];
  /** Steps that nobody wants kept any more. */
  readonly discard: readonly number[];
}

/** How the build of an attempt has ended. */
export type BuildEnd = { readonly ended: false } | { readonly ended: true; readonly succeeded: boolean };

/** What the tag of an image stands for in a build; a job proposes, and the first one's proposal holds for all. */
export const imagePinSchema = z.object({
  name: z.string().min(1).max(1024),
  digest: z.string().regex(/^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/, "is not a digest"),
});
export type ImagePin = z.infer<typeof imagePinSchema>;

const builtPrefix = "built:";

/**
 * The pin of an image that a job of the build has built: not what a registry has under the name. Of these the last one holds, for a
 * job that is run again builds again.
 */
export function builtImagePin(name: string): string {
  return `${builtPrefix}${name}`;
}

/** Whether a pin is one of `builtImagePin`. */
export function isBuiltImagePin(name: string): boolean {
  return name.startsWith(builtPrefix);
}

/** What was used, as the kernel counted it; `undefined` where the host cannot tell. */
export const usageSchema = z.object({
  cpuTimeMs: z.number().nonnegative(),
  /** How long the limit kept its processes from the CPU, summed over CPUs; and in how many periods of 0.1 s. */
  cpuThrottledMs: z.number().nonnegative().optional(),
  cpuThrottledPeriods: z.number().int().nonnegative().optional(),
  memoryPeakBytes: z.number().nonnegative().optional(),
  pidsPeak: z.number().int().nonnegative().optional(),
  /** What came from disks; and what was written to files on disks, whether it is there yet or not. */
  ioReadBytes: z.number().nonnegative().optional(),
  ioWriteBytes: z.number().nonnegative().optional(),
  /** What has gone to and from disks so far, on cgroup v1 without what is written back later. */
  ioReadOperations: z.number().int().nonnegative().optional(),
  ioWriteOperations: z.number().int().nonnegative().optional(),
  /** What the step has added to its root file system and the workspace. */
  diskBytes: z.number().nonnegative().optional(),
});
export type Usage = z.infer<typeof usageSchema>;

/** What a network has refused; the most frequent first, at most 100. */
export const refusedSchema = z.object({
  destinations: z
    .array(
      z.object({
        address: z.string().max(45),
        /** `tcp`, `udp`, `icmp` or a number. */
        protocol: z.string().max(10),
        /** 0 where the protocol has none. */
        port: z.number().int().min(0).max(65_535),
        /** Packets: connection attempts, as a rule. */
        count: z.number().int().nonnegative(),
      }),
    )
    .max(100)
    .readonly(),
  /** Packets to destinations that are not among them. */
  unlistedCount: z.number().int().nonnegative(),
});
export type Refused = z.infer<typeof refusedSchema>;

export const stepReportSchema = z.object({
  status: z.enum(["running", "success", "failure", "error", "canceled", "skipped"]),
  startedAtMs: z.number().optional(),
  finishedAtMs: z.number().optional(),
  exitCode: z.number().int().optional(),
  signal: z.string().max(20).optional(),
  /** One sentence for a person: `killed: used 512 MiB of 512 MiB of memory`. */
  reason: z.string().max(2000).optional(),
  allowedFailure: z.boolean().optional(),
  usage: usageSchema.optional(),
  refused: refusedSchema.optional(),
  /** Of the image that the step has built: its manifest, or the index of several platforms. */
  imageDigest: z
    .string()
    .regex(/^sha256:[0-9a-f]{64}$/, "is not a digest")
    .optional(),
});
export type StepReport = z.infer<typeof stepReportSchema>;

export const finishReportSchema = z.object({
  status: z.enum(["success", "failure", "error", "canceled"]),
  reason: z.string().max(2000).optional(),
});
export type FinishReport = z.infer<typeof finishReportSchema>;

/**
 * A log is raw bytes plus an index: one record per run of bytes that came from one stream at one time.
 *
 * The body of a log PUT is: u32le count; then `count` records of 16 bytes { u32le length, u32le stream (0 Slipway's own
 * words, 1 stdout, 2 stderr), f64le time in milliseconds since the epoch }; then
 * the bytes, exactly the sum of the lengths. `offset` in the query is the log's length before these bytes; a PUT at a
 * smaller offset whose end is not past the log's length is a repeat and answered 200; another mismatch is answered 416
 * with the offset that is wanted.
 */
export const logRecordBytes = 16;
export type LogStream = 0 | 1 | 2;
