/** SOURCE_DATE_EPOCH: when everything was made. @see {@link https://reproducible-builds.org/specs/source-date-epoch/} */
import type { NamedContext } from "./contexts.ts";
import type { FetchedFile, FetchedTree } from "./download.ts";
import type { CopyInstruction, Dockerfile, Stage, Word } from "./instruction.ts";
import { OperationError } from "./operation.ts";
import { BuildError } from "./report.ts";
import { expandWord, WordError } from "./word.ts";

const NAME = "SOURCE_DATE_EPOCH";

export interface EpochSources {
  /** When what is in the context was made, where that is known. */
  readonly contextSeconds: number | undefined;
  readonly contexts: ReadonlyMap<string, NamedContext> | undefined;
  /** Fetches what an ADD names. */
  readonly fetch: (url: string, checksum: string | undefined) => Promise<FetchedFile | FetchedTree>;
}

/** Seconds since 1970, undefined if there is no such time; and the build's arguments, with the number in place of a name. */
export interface Epoch {
  readonly seconds: number | undefined;
  readonly buildArgs: ReadonlyMap<string, string>;
}

/**
 * Finds the time that a build is given, or else the default that an ARG above the first FROM has for it. As in BuildKit it may be
 * the name of what has a time: `context`, a context by its name, or a stage that does nothing but ADD one URL.
 *
 * @throws {BuildError} If it is neither a number nor such a name.
 */
export async function resolveEpoch(
  dockerfile: Dockerfile,
  buildArgs: ReadonlyMap<string, string>,
  sources: EpochSources,
): Promise<Epoch> {
  const args = globalArgs(dockerfile, buildArgs);
  const text = args.get(NAME);
  // An empty one takes the default back.
  if (text === undefined || text === "") return { seconds: undefined, buildArgs };
  if (/^\d{1,11}$/.test(text)) return { seconds: Number(text), buildArgs };
  const seconds = await timeOf(text, { dockerfile, args, sources });
  return { seconds, buildArgs: new Map(buildArgs).set(NAME, seconds === undefined ? "" : `${seconds}`) };
}

async function timeOf(
  name: string,
  {
    dockerfile,
    args,
    sources,
  }: { readonly dockerfile: Dockerfile; readonly args: Map<string, string>; readonly sources: EpochSources },
): Promise<number | undefined> {
  // A directory's files are as old as its checkout: that says nothing.
  if (name === "context") return sources.contextSeconds;
  const context = sources.contexts?.get(name);
  if (context !== undefined) return context.kind === "directory" ? context.modifiedSeconds : undefined;
  const stage = dockerfile.stages.find(({ from }) => from.stageName === name.toLowerCase());
  if (stage === undefined) {
    throw new BuildError(
      `${NAME} is ${JSON.stringify(name)}, neither a number of seconds since 1970 nor the name of a context or stage`,
    );
  }
  args.delete(NAME);
  const { url, checksum } = addOf(stage, { args, escape: dockerfile.escape });
  try {
    return (await sources.fetch(url, checksum)).mtimeSeconds;
  } catch (error) {
    if (error instanceof OperationError) throw new BuildError(`${NAME}: ${error.message}`, { cause: error });
    throw error;
  }
}

/** What a stage adds that is FROM scratch and has one ADD of one URL beside ARGs. */
function addOf(
  { from, instructions }: Stage,
  { args, escape }: { readonly args: Map<string, string>; readonly escape: Dockerfile["escape"] },
): { readonly url: string; readonly checksum: string | undefined } {
  const expand = ({ text }: Word) => {
    try {
      return expandWord(text, (name) => args.get(name), { escape }).text;
    } catch (error) {
      if (error instanceof WordError) throw new BuildError(`${NAME}: ${error.message}`, { cause: error });
      throw error;
    }
  };
  const adds: CopyInstruction[] = [];
  let isOther = expand(from.base) !== "scratch";
  for (const instruction of instructions) {
    if (instruction.kind === "add") adds.push(instruction);
    else if (instruction.kind !== "arg") isOther = true;
    else {
      for (const { name, value } of instruction.args)
        if (value !== undefined && !args.has(name.text)) args.set(name.text, expand(value));
    }
  }
  const [add, ...more] = adds;
  const [source, ...others] = add?.sources ?? [];
  const url = source === undefined ? "" : expand(source);
  if (
    isOther ||
    add === undefined ||
    more.length + others.length + add.files.length > 0 ||
    !/^(?:https?|git):/.test(url)
  ) {
    throw new BuildError(
      `${NAME} is the name of the stage ${JSON.stringify(from.stageName)}, which must be FROM scratch and have nothing but one ADD of a URL`,
    );
  }
  return { url, checksum: add.checksum === undefined ? undefined : expand(add.checksum) };
}

function globalArgs(
  { globalArgs: instructions, escape }: Dockerfile,
  buildArgs: ReadonlyMap<string, string>,
): Map<string, string> {
  const args = new Map(buildArgs);
  for (const { name, value } of instructions.flatMap((instruction) => instruction.args)) {
    if (value === undefined || buildArgs.has(name.text)) continue;
    try {
      args.set(name.text, expandWord(value.text, (each) => args.get(each), { escape }).text);
    } catch (error) {
      // The build says it, and where.
      if (!(error instanceof WordError)) throw error;
    }
  }
  return args;
}
