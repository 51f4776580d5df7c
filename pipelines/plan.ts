/** Which jobs an event starts. */
import { matchGlob } from "./glob.ts";
import type { JobSpec, Pipeline, PipelineEvent, RefFilter, Triggers } from "./pipeline.ts";
import { enumerate, quote } from "./suggestion.ts";

export interface BuildPlan {
  /** False: there is nothing to build, for the reason given. */
  readonly matched: boolean;
  /** One clause for a person: `branch "dev" matches none of main and release/*`. */
  readonly reason: string;
  /** In file order; empty if not matched. */
  readonly jobs: readonly JobSpec[];
}

/**
 * Decides whether an event starts the pipeline. Pure.
 *
 * A build started by hand always matches. `[skip ci]`, `[ci skip]` or `[no ci]` in the head commit's message, in any case
 * of letters, keeps pushes and pull requests from building, never tags.
 */
export function planBuild(pipeline: Pipeline, event: PipelineEvent): BuildPlan {
  const { matched, reason } = matchEvent(pipeline.on, event);
  return { matched, reason, jobs: matched ? pipeline.jobs : [] };
}

interface Verdict {
  readonly matched: boolean;
  readonly reason: string;
}

function matchEvent(on: Triggers, event: PipelineEvent): Verdict {
  if (event.kind === "manual") return { matched: true, reason: "started by hand" };
  const filter = on[event.kind];
  if (filter === undefined) {
    const named = (["push", "tag", "pull_request"] as const).filter((kind) => on[kind] !== undefined);
    return { matched: false, reason: `the pipeline runs on ${enumerate(named)}, not on ${event.kind}` };
  }
  const skip = event.kind === "tag" ? undefined : /\[(?:skip ci|ci skip|no ci)\]/i.exec(event.message ?? "")?.[0];
  if (skip !== undefined) return { matched: false, reason: `the commit's message says ${skip}` };
  return event.kind === "tag"
    ? matchRef(filter, "tag", event.tag ?? nameOf(event.ref, "refs/tags/"))
    : matchRef(
        filter,
        event.kind === "push" ? "branch" : "base branch",
        event.branch ?? nameOf(event.ref, "refs/heads/"),
      );
}

function nameOf(ref: string, prefix: string): string | undefined {
  return ref.startsWith(prefix) ? ref.slice(prefix.length) : undefined;
}

/** A name passes if no `!` pattern matches it and some other one does; with only `!` patterns every other name passes. */
function matchRef(filter: RefFilter, noun: string, name: string | undefined): Verdict {
  if (filter.patterns.length === 0) return { matched: true, reason: `the pipeline runs for every ${noun}` };
  if (name === undefined) return { matched: false, reason: `the event names no ${noun}` };
  const what = `${noun} ${quote(name)}`;
  const exclusion = filter.patterns.find((pattern) => pattern.startsWith("!") && matchGlob(pattern.slice(1), name));
  if (exclusion !== undefined) return { matched: false, reason: `${what} is excluded by ${exclusion}` };
  const inclusions = filter.patterns.filter((pattern) => !pattern.startsWith("!"));
  if (inclusions.length === 0) return { matched: true, reason: `${what} is not excluded` };
  const inclusion = inclusions.find((pattern) => matchGlob(pattern, name));
  return inclusion === undefined
    ? { matched: false, reason: `${what} matches none of ${inclusions.join(", ")}` }
    : { matched: true, reason: inclusion === name ? `${what} is listed` : `${what} matches ${inclusion}` };
}
