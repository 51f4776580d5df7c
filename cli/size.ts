/** Sizes on the command line, as pipelines write them. Apart from the verbs: reading them needs all of the language. */
import { formatBytes, parseSize } from "../pipelines/index.ts";
import { UsageError } from "./arguments.ts";

export { formatBytes };

/** Reads a size of any amount. @throws {UsageError} */
export function parseBytes(option: string, text: string): number {
  const parsed = parseSize(text, { least: 0, most: 2 ** 50 });
  if (parsed.ok) return parsed.value;
  throw new UsageError(`${option} cannot be ${JSON.stringify(text)}: ${parsed.problem}; ${parsed.suggestion}`);
}
