/** Works on one attempt from the claim to its last report. */
import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Logger } from "pino";
import type { ClaimedJob } from "../queue/index.ts";
import type { Host, RegistryClient } from "../runtime/index.ts";
import { abortReason } from "./abort.ts";
import { AttemptReporter } from "./attempt-reporter.ts";
import { asError } from "./cause.ts";
import type { StepCeiling } from "./ceiling.ts";
import { checkout } from "./checkout.ts";
import { CheckoutError } from "./checkout-error.ts";
import { parseCloneUrl } from "./clone-url.ts";
import { isOfDefaultBranch } from "./default-branch.ts";
import { buildVariables } from "./environment.ts";
import { attemptPins } from "./image-pins.ts";
import { executeJob } from "./job.ts";
import type { GivenSecrets } from "./job-secrets.ts";
import { Lease } from "./lease.ts";
import { maskText, SecretIndex } from "./masker.ts";
import type { JobResult, StepResult } from "./report.ts";
import { secretForms } from "./secret-forms.ts";
import { FencedError, type ServerClient } from "./server-client.ts";
import type { AttemptShells, Shells } from "./shells.ts";
import type { StagedCaches } from "./staged-caches.ts";
import { StepLog } from "./step-log.ts";
import type { UntrustedPolicy } from "./untrusted.ts";

export interface AttemptOptions {
  readonly client: ServerClient;
  readonly host: Host;
  readonly registry: RegistryClient;
  readonly mirrorsDir: string;
  /** What jobs of untrusted builds get. */
  readonly untrusted: UntrustedPolicy;
  /** The most that each step gets. */
  readonly ceiling: StepCeiling;
  /** For this attempt's workspace and logs; made here, removed by the caller. */
  readonly dir: string;
  /** When the claim was sent, by `performance.now()`. */
  readonly claimedAtMs: number;
  readonly logger: Logger;
  readonly shells: Shells;
  /** Takes over what jobs leave for later builds; what is left of an attempt whose end is not accepted is ended here. */
  readonly caches: StagedCaches;
  /** Cancels the job; how it ended is still reported. */
  readonly job: AbortController;
  /** Gives up everything, reports included. */
  readonly giveUp: AbortSignal;
}

/**
 * Checks out, runs the steps and reports, until the server has accepted the end or says that the attempt is another's.
 *
 * Never throws. When it resolves no container of the attempt is left.
 */
export async function runAttempt(claimed: ClaimedJob, options: AttemptOptions): Promise<void> {
  const { client, job, logger, caches } = options;
  const reporter = new AttemptReporter({
    client,
    attempt: claimed,
    signal: options.giveUp,
    onFenced: (error) => job.abort(error),
    onProblem: (error) => logger.error({ err: error }, "a problem beside the job"),
  });
  using lease = new Lease({
    client,
    attempt: claimed,
    leaseMs: claimed.leaseMs,
    sinceMs: options.claimedAtMs,
    onEnd: (reason) => (reason instanceof FencedError ? reporter.fence(reason) : job.abort(reason)),
    onShells: (sessions) => options.shells.open(claimed, sessions),
  });
  using access = options.shells.attempt(claimed, {
    dir: options.dir,
    mayKeep: !isUntrusted(claimed) || options.untrusted.keepsFailed,
    renewNow: () => lease.renewNow(),
  });
  const result = await execute(claimed, { reporter, access }, options);
  await access.report();
  const accepted = await reporter.finish(result);
  lease[Symbol.dispose]();
  if (!accepted) await caches.end(claimed.attemptId, { succeeded: false });
  const { status, reason } = result;
  logger.info(
    { status, reason, accepted },
    accepted ? "attempt finished" : "attempt ended; the server no longer wants it",
  );
}

async function execute(
  claimed: ClaimedJob,
  { reporter, access }: { readonly reporter: AttemptReporter; readonly access: AttemptShells },
  options: AttemptOptions,
): Promise<Pick<JobResult, "status" | "reason">> {
  const { host, dir, job, caches } = options;
  const { attemptId, build, repository } = claimed;
  const untrusted = isUntrusted(claimed) ? options.untrusted : undefined;
  const maskedValues = [...claimed.maskedValues, ...urlSecrets(repository.cloneUrl)];
  const logDir = join(dir, "log");
  const workspaceDir = join(dir, "workspace");
  try {
    for (const path of [logDir, workspaceDir])
      mkdirSync(path, { recursive: true, mode: path === logDir ? 0o700 : 0o755 });
    host.workspaces.adopt(workspaceDir);
    const ready = checkout({
      mirrorsDir: options.mirrorsDir,
      repositoryId: repository.id,
      cloneUrl: repository.cloneUrl,
      commit: build.commit,
      ref: build.ref,
      workspaceDir,
      untrusted: untrusted !== undefined,
      signal: job.signal,
    });
    // The first step's container is created while Git works; what `ready` rejects with comes out of here.
    return await executeJob(claimed.job, {
      host,
      id: containerName(attemptId),
      workspace: { dir: workspaceDir, ready },
      variables: buildVariables(claimed.job, build, repository),
      secrets: givenSecrets(claimed),
      maskedValues,
      logDir,
      untrusted,
      ceiling: options.ceiling,
      reporter,
      registry: options.registry,
      pins: attemptPins(claimed, options.client, job.signal),
      access,
      ...(untrusted === undefined && {
        cachePolicy: {
          namespace: `repository ${repository.id}`,
          mayKeep: () => isOfDefaultBranch(claimed, { directory: dir, signal: job.signal }),
          leave: (cache) => caches.add({ ...cache, attemptId, buildId: build.id, buildNumber: build.number }),
        },
      }),
      builds: { cacheNamespace: cacheNamespace(claimed, untrusted !== undefined), namesImages: false },
      signal: job.signal,
    });
  } catch (error) {
    return await reportCheckoutFailure(asError(error), claimed, { reporter, logDir, maskedValues, signal: job.signal });
  }
}

/** A server of another version may not say it in so many words. */
function isUntrusted({ build }: ClaimedJob): boolean {
  return build.untrusted === true || build.pullRequest?.fromFork === true;
}

/** Who shares layers: the builds of a repository; those of strangers only if they are of the same pull request. */
function cacheNamespace({ repository, build }: ClaimedJob, isStrangers: boolean): string {
  if (!isStrangers) return `repository ${repository.id}`;
  return `repository ${repository.id} stranger ${build.pullRequest?.number ?? build.ref}`;
}

interface CheckoutFailureContext {
  readonly reporter: AttemptReporter;
  readonly logDir: string;
  readonly maskedValues: readonly string[];
  readonly signal: AbortSignal;
}

/** No step of the job has run; the first one's log is where a person looks. */
async function reportCheckoutFailure(
  error: Error,
  { job }: ClaimedJob,
  { reporter, logDir, maskedValues, signal }: CheckoutFailureContext,
): Promise<Pick<JobResult, "status" | "reason">> {
  const forms = secretForms(maskedValues);
  const secrets = forms.length === 0 ? undefined : new SecretIndex(forms);
  const status = signal.aborted ? "canceled" : error instanceof CheckoutError ? error.status : "error";
  const reason = maskText(signal.aborted ? abortReason(signal) : error.message, secrets);
  const log = new StepLog({ path: join(logDir, "0.log"), secrets });
  const startedAtMs = Date.now();
  reporter.stepStarted(0, { startedAtMs, log });
  log.note(reason);
  await log.close().catch((thrown: unknown) => reporter.problem(asError(thrown)));
  const first: StepResult = { status, reason, startedAtMs, finishedAtMs: Date.now() };
  for (const index of job.steps.keys()) reporter.stepFinished(index, index === 0 ? first : { status: "skipped" });
  return { status, reason };
}

/** What the server has found out about the secrets of a job. */
function givenSecrets({ secrets = {}, secretProblems = [], repository }: ClaimedJob): GivenSecrets {
  return {
    values: new Map(Object.entries(secrets).map(([name, value]) => [name, Buffer.from(value, "base64")])),
    problems: secretProblems,
    help: (name) => `set it: slipway secret set ${JSON.stringify(repository.name)} ${name}`,
  };
}

/** The server has told them already; an agent does not rely on it. */
function urlSecrets(cloneUrl: string): readonly string[] {
  try {
    return parseCloneUrl(cloneUrl).secrets;
  } catch {
    return [];
  }
}

/** Attempt ids name directories, containers and cgroups, and come over the network. */
export function containerName(attemptId: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/.test(attemptId)) return attemptId;
  return createHash("sha256").update(attemptId).digest("hex").slice(0, 32);
}
