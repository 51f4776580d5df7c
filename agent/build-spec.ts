/** What a step is to build, with the values of its variables in place. */
import { BuildError, parsePlatform, type Platform } from "../build/index.ts";
import { type BuildContextSpec, expandVariables, type ImageBuildSpec, type StepSpec } from "../pipelines/index.ts";
import { formatReference, ImageError, parseReference } from "../runtime/index.ts";
import { pipelineVariables } from "./environment.ts";

/** A step that builds an image. */
export type BuildStepSpec = StepSpec & { readonly build: ImageBuildSpec };

/** Whether a step builds. */
export function isBuild(step: StepSpec): step is BuildStepSpec {
  return step.build !== undefined;
}

export interface ResolvedBuild extends Omit<ImageBuildSpec, "tags" | "push" | "platforms" | "target" | "contexts"> {
  readonly target: string | undefined;
  /** Names in full, `docker.io/library/app:1`, without those that it is only pushed to. */
  readonly names: readonly string[];
  /** Where it is pushed to, in full. */
  readonly pushNames: readonly string[];
  readonly contexts: Readonly<Record<string, BuildContextSpec>>;
  /** Empty: the agent's own. */
  readonly platforms: readonly Platform[];
}

/**
 * Puts the values of its variables into a build.
 *
 * @throws {BuildError} If a variable has no value for this event, or what comes of it is no name.
 */
export function resolveBuild(step: BuildStepSpec, variables: Readonly<Record<string, string>>): ResolvedBuild {
  const { tags, push, platforms, target, args, labels, contexts = {}, ...rest } = step.build;
  const all = pipelineVariables(step, variables);
  const fill = (text: string) => fillIn(text, all);
  const fillAll = (values: Readonly<Record<string, string>>) =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [name, fill(value)]));
  const names = tags.map((tag) => fullName(fill(tag)));
  const pushNames = push === undefined ? [] : tags.map((tag) => fullName(pushName(fill(tag), push, fill)));
  return {
    ...rest,
    target: target === undefined ? undefined : fill(target),
    args: fillAll(args),
    labels: fillAll(labels),
    contexts: Object.fromEntries(Object.entries(contexts).map(([name, context]) => [name, fillContext(context, fill)])),
    names: [...new Set(names)],
    pushNames: [...new Set(pushNames)],
    platforms: platforms.map((text) => readPlatform(text)),
  };
}

function fillContext(context: BuildContextSpec, fill: (text: string) => string): BuildContextSpec {
  if ("directory" in context) return context;
  if ("url" in context) return { url: fill(context.url) };
  const image = fill(context.image);
  try {
    return { image: formatReference(parseReference(image)) };
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    throw new BuildError(`${JSON.stringify(image)} names no image: ${error.message}`, { cause: error });
  }
}

function pushName(tag: string, push: true | string, fill: (text: string) => string): string {
  return push === true ? tag : `${fill(push).replace(/\/+$/, "")}/${tag}`;
}

/** @throws {BuildError} If a variable has no value. */
export function fillIn(text: string, variables: Readonly<Record<string, string>>): string {
  const filled = expandVariables(text, variables);
  if ("text" in filled) return filled.text;
  const missing = filled.missing.map((name) => `\${${name}}`).join(", ");
  throw new BuildError(
    `${JSON.stringify(text)}: ${missing} has no value here; write \${${filled.missing[0]}:-something} for when it has none`,
  );
}

function fullName(text: string): string {
  try {
    const reference = parseReference(text);
    if (reference.digest !== undefined) throw new ImageError("a digest is known when the image is built");
    return formatReference(reference);
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    throw new BuildError(`${JSON.stringify(text)} cannot name an image: ${error.message}`, { cause: error });
  }
}

function readPlatform(text: string): Platform {
  const platform = parsePlatform(text);
  if (platform === undefined) throw new BuildError(`${JSON.stringify(text)} is no platform`);
  return platform;
}
