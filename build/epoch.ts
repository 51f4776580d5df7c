/** SOURCE_DATE_EPOCH: when everything was made. @see {@link https://reproducible-builds.org/specs/source-date-epoch/} */
import type { Dockerfile } from "./instruction.ts";
import { BuildError } from "./report.ts";
import { expandWord, WordError } from "./word.ts";

const NAME = "SOURCE_DATE_EPOCH";

/**
 * Finds the time that a build is given, or else the default that an ARG above the first FROM has for it.
 *
 * @returns Seconds since 1970; undefined if there is none: an empty one takes the default back.
 * @throws {BuildError} If it is no number. BuildKit's names of stages and contexts, whose time is to be taken, are none either.
 */
export function epochOf(dockerfile: Dockerfile, buildArgs: ReadonlyMap<string, string>): number | undefined {
  const text = buildArgs.get(NAME) ?? defaultOf(dockerfile, buildArgs);
  if (text === undefined || text === "") return undefined;
  if (/^\d{1,11}$/.test(text)) return Number(text);
  throw new BuildError(`${NAME} is ${JSON.stringify(text)}, not a number of seconds since 1970`);
}

function defaultOf({ globalArgs, escape }: Dockerfile, buildArgs: ReadonlyMap<string, string>): string | undefined {
  const args = new Map(buildArgs);
  for (const { name, value } of globalArgs.flatMap((instruction) => instruction.args)) {
    if (value === undefined || buildArgs.has(name.text)) continue;
    try {
      args.set(name.text, expandWord(value.text, (each) => args.get(each), { escape }).text);
    } catch (error) {
      // The build says it, and where.
      if (!(error instanceof WordError)) throw error;
    }
  }
  return args.get(NAME);
}
