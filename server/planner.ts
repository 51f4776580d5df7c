import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  DEFAULTS,
  LIMITS,
  type PipelineEvent,
  formatDiagnostic,
  parsePipeline,
  planBuild,
} from "../pipelines/index.ts";
import type { NewBuild } from "./builds.ts";
import type { Trigger } from "./deliveries.ts";
import { type Commit, type CommitFile, Mirror, MirrorError } from "./mirror.ts";
import type { Repository } from "./repositories.ts";
import { isUntrusted } from "./trust.ts";

const pipelineFile = DEFAULTS.file;

/** What comes of a trigger: nothing, with a reason, or a build (which may have failed already). */
export type Plan =
  | { readonly ignored: string }
  /** Nothing can be shown as a build, for not even the commit is known. */
  | { readonly failed: string }
  | { readonly build: Omit<NewBuild, "repositoryId" | "deliverySeq" | "trigger"> };

export interface PlannerOptions {
  readonly fetchTimeoutMs: number;
  /** Where jobs of untrusted builds go, whatever pool they name. @default the one they name */
  readonly untrustedPool?: string | undefined;
}

/** Finds out what a trigger means by the pipeline file of its own commit. Calls for one repository must not overlap. */
export class Planner implements Disposable {
  readonly #dir: string;
  readonly #options: PlannerOptions;
  readonly #mirrors = new Map<string, Mirror>();

  constructor(dir: string, options: PlannerOptions) {
    this.#dir = dir;
    this.#options = options;
  }

  /** Plans a build. Never throws for what a repository or a pipeline file holds. */
  async plan(repository: Repository, trigger: Trigger, signal?: AbortSignal): Promise<Plan> {
    let commit: Commit;
    let file: CommitFile;
    try {
      const mirror = this.#mirror(repository);
      commit = await mirror.find({ ref: trigger.ref, commit: trigger.commit }, signal);
      file = await mirror.readFile(commit.id, pipelineFile, { maxBytes: LIMITS.fileBytes });
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error;
      const reason = `Cannot fetch from the repository: ${error.message}`;
      if (!trigger.commit) return { failed: reason };
      const about = { commit: trigger.commit, title: trigger.title ?? "", author: trigger.author ?? "" };
      return { build: { ...about, jobs: [], outcome: { status: "error", reason } } };
    }
    if (!file) return { ignored: `commit ${commit.id.slice(0, 12)} has no ${pipelineFile}` };
    return planFile(file, trigger, { commit, untrustedPool: this.#options.untrustedPool });
  }

  /** Deletes what is kept of a repository. */
  async forget(repositoryId: string): Promise<void> {
    this.#mirrors.get(repositoryId)?.[Symbol.dispose]();
    this.#mirrors.delete(repositoryId);
    await rm(this.#mirrorDir(repositoryId), { recursive: true, force: true });
  }

  [Symbol.dispose](): void {
    for (const mirror of this.#mirrors.values()) mirror[Symbol.dispose]();
    this.#mirrors.clear();
  }

  #mirror({ id, cloneUrl }: Repository): Mirror {
    let mirror = this.#mirrors.get(id);
    if (!mirror) {
      mirror = new Mirror(this.#mirrorDir(id), { cloneUrl, timeoutMs: this.#options.fetchTimeoutMs });
      this.#mirrors.set(id, mirror);
    }
    return mirror;
  }

  #mirrorDir(repositoryId: string): string {
    return join(this.#dir, `${repositoryId}.git`);
  }
}

function planFile(
  file: NonNullable<CommitFile>,
  trigger: Trigger,
  { commit, untrustedPool }: { readonly commit: Commit; readonly untrustedPool: string | undefined },
): Plan {
  const about = { commit: commit.id, title: trigger.title ?? commit.title, author: trigger.author ?? commit.author };
  const failure = (reason: string) => ({ status: "failure", reason }) as const;
  if ("problem" in file) return { build: { ...about, jobs: [], outcome: failure(file.problem) } };
  const { pipeline, diagnostics: items } = parsePipeline(file.bytes, { file: pipelineFile });
  const formatted = items.map((item) => formatDiagnostic(item)).join("\n");
  const diagnostics = items.length > 0 ? { diagnostics: { formatted, items } } : {};
  if (!pipeline) {
    const count = items.filter((item) => item.severity === "error").length;
    const reason = `${pipelineFile} has ${count === 1 ? "an error" : `${count} errors`}`;
    return { build: { ...about, ...diagnostics, jobs: [], outcome: failure(reason) } };
  }
  const { kind, ref, byCommit, branch, tag, pullRequest } = trigger;
  const event: PipelineEvent = {
    kind,
    ref,
    commit: commit.id,
    message: commit.message,
    ...(byCommit && { byCommit }),
    ...(branch && { branch }),
    ...(tag && { tag }),
    ...(pullRequest && { pullRequest }),
  };
  const plan = planBuild(pipeline, event);
  if (!plan.matched) return { ignored: plan.reason };
  // The file is a stranger's, and so is what it says about pools.
  const pool = isUntrusted(trigger) ? untrustedPool : undefined;
  const jobs = pool === undefined ? plan.jobs : plan.jobs.map((job) => ({ ...job, pool }));
  return { build: { ...about, ...diagnostics, jobs } };
}
