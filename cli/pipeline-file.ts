/** Finds the pipeline of a checkout. */
import { existsSync } from "node:fs";
import { dirname, join, relative } from "node:path";

/**
 * Looks for `.slipway.yml` in a directory and those above it, up to the root of the Git checkout.
 *
 * @returns The path relative to the directory.
 * @throws {Error} If there is none.
 */
export function findPipelineFile(directory: string): string {
  for (let dir = directory; ; dir = dirname(dir)) {
    const file = join(dir, ".slipway.yml");
    if (existsSync(file)) return relative(directory, file);
    if (existsSync(join(dir, ".git")) || dir === dirname(dir)) {
      throw new Error(`Cannot find .slipway.yml in ${directory} or above it; docs/pipeline.md shows a first one`);
    }
  }
}
