/** For which builds and which of their steps a secret is. */
import { enumerate, type EventKind, matchGlob, type PipelineEvent, quote, type SecretUse } from "../pipelines/index.ts";
import { z } from "zod";

const patterns = z.array(z.string().min(1).max(255)).max(100);

/** What narrows a secret; what is absent narrows nothing. Strangers have none, whatever the rules say. */
export const secretRulesSchema = z.strictObject({
  events: z
    .array(z.enum(["push", "tag", "pull_request", "manual"]))
    .min(1)
    .optional(),
  /** Globs. A build is of a branch if that was pushed to, or it was started by hand on it. */
  branches: patterns.min(1).optional(),
  tags: patterns.min(1).optional(),
  /** Of images as pipelines write them. */
  images: patterns.min(1).optional(),
  /** It is a credential of this registry and nothing else. */
  registry: z.string().min(1).max(255).optional(),
});
export type SecretRules = z.infer<typeof secretRulesSchema>;

/** Why a build, or one who uses the secret in it, may not have it; undefined if they may. Continues "…, which". */
export function refuseUse(
  { events, branches, tags, images, registry }: SecretRules,
  event: PipelineEvent,
  use: SecretUse,
): string | undefined {
  if (events !== undefined && !events.includes(event.kind)) {
    return `is for ${enumerate(events.map(eventName))}, and this is ${eventName(event.kind)}`;
  }
  if (branches !== undefined || tags !== undefined) {
    const ofBranch = event.kind === "push" || event.kind === "manual" ? event.branch : undefined;
    const ofTag = event.kind === "tag" || event.kind === "manual" ? event.tag : undefined;
    const isOne = (name: string | undefined, all: readonly string[] = []) =>
      name !== undefined && all.some((pattern) => matchGlob(pattern, name));
    if (!isOne(ofBranch, branches) && !isOne(ofTag, tags)) {
      const wanted = [
        ...(branches === undefined ? [] : [`the branches ${enumerate(branches.map(quote))}`]),
        ...(tags === undefined ? [] : [`the tags ${enumerate(tags.map(quote))}`]),
      ];
      return `is for ${wanted.join(" and ")}, and this is ${whereOf(event)}`;
    }
  }
  if (registry !== undefined && (use.as !== "registry" || use.registry !== registry)) {
    return `is for the registry ${quote(registry)} and nothing else`;
  }
  if (images !== undefined && !images.some((pattern) => use.image !== undefined && matchGlob(pattern, use.image))) {
    const runs = use.image === undefined ? "that does not run in one" : `it runs in ${quote(use.image)}`;
    return `is for what runs in images ${enumerate(images.map(quote))}, and ${runs}`;
  }
  return undefined;
}

function eventName(kind: EventKind): string {
  const names = { push: "pushes", tag: "tags", pull_request: "pull requests", manual: "builds by hand" } as const;
  return names[kind];
}

function whereOf({ kind, branch, tag, ref }: PipelineEvent): string {
  if (kind === "pull_request") return "a pull request";
  if (tag !== undefined) return `the tag ${quote(tag)}`;
  return branch === undefined ? quote(ref) : `the branch ${quote(branch)}`;
}
