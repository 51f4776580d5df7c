import type { PipelineEvent } from "../pipelines/index.ts";

/** Refs under which forges show the commits of pull and merge requests, forks' among them. */
const proposalRef = /^refs\/(?:pull|pull-requests|merge-requests|changes)\//;

/**
 * Whether a build's commit may be written by somebody who cannot write to the repository: pipeline file, scripts and all.
 *
 * Pull requests say themselves where they come from, in a webhook that the forge has signed. A build that somebody starts by hand
 * on a pull request's ref says nothing of the kind, so it counts as a stranger's.
 */
export function isUntrusted({ kind, ref, pullRequest }: Pick<PipelineEvent, "kind" | "ref" | "pullRequest">): boolean {
  if (kind === "pull_request") return pullRequest?.fromFork ?? true;
  return kind === "manual" && proposalRef.test(ref);
}
