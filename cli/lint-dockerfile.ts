/** The Dockerfiles that the `build:` steps of a pipeline name: what is wrong with them before an agent has to say so. */
import { existsSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { parseDockerfile } from "../build/index.ts";
import type { Diagnostic, Pipeline } from "../pipelines/index.ts";
import { fileAt } from "../runtime/index.ts";

/** More is no Dockerfile, and not read. */
const MAX_FILE_BYTES = 4 * 2 ** 20;

/** A Dockerfile that was read. */
export interface CheckedDockerfile {
  /** Relative to the directory of the command. */
  readonly file: string;
  readonly diagnostics: readonly Diagnostic[];
}

/**
 * Checks the Dockerfiles of a pipeline, each once, in the order of its steps.
 *
 * One that is not in the tree is no mistake: an earlier step may make it.
 *
 * @param options.above Absolute, a directory of the checkout: where the pipeline file is.
 * @param options.directory Absolute; names are shown relative to it.
 */
export function checkDockerfiles(
  pipeline: Pipeline,
  { above, directory }: { readonly above: string; readonly directory: string },
): readonly CheckedDockerfile[] {
  const builds = pipeline.jobs.flatMap(({ steps }) => steps.flatMap(({ build }) => build ?? []));
  const top = topOf(above);
  // As the agent does it, who does not follow a link out of the workspace.
  const root = fileAt.openRoot(top);
  try {
    return [...new Set(builds.map(({ dockerfile }) => dockerfile))].flatMap((path) => {
      const content = read(root, path);
      if (content === undefined) return [];
      const file = relative(directory, join(top, path));
      return [{ file, diagnostics: parseDockerfile(content, { file }).diagnostics }];
    });
  } finally {
    fileAt.closeFile(root);
  }
}

/** The root of the Git checkout, which paths of a pipeline are relative to; outside of one, the directory itself. */
function topOf(directory: string): string {
  for (let top = directory; ; top = dirname(top)) {
    if (existsSync(join(top, ".git"))) return top;
    if (top === dirname(top)) return directory;
  }
}

function read(root: number, path: string): Buffer | undefined {
  try {
    return fileAt.readInRoot(root, fileAt.byteString(path), MAX_FILE_BYTES);
  } catch {
    // A link in circles, a file of others: the build says it where it matters.
    return undefined;
  }
}
