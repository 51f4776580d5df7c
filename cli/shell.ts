/** `slipway shell`: a terminal in a step of a server's build. */
import type { BuildView, JobView, StepView } from "../server/index.ts";
import { Api, apiOptions } from "./api.ts";
import { parseArguments, parseCount, UsageError, type Usage } from "./arguments.ts";
import { findBuild } from "./build.ts";
import { didYouMean } from "./did-you-mean.ts";
import { listRepositories } from "./repo.ts";
import { plain } from "./terminal.ts";
import type { Context, Verb } from "./verb.ts";

const usage = {
  name: "shell",
  operands: "[BUILD[/STEP] [-- COMMAND [ARGUMENT...]]]",
  summary: "Open a terminal in a step that runs, or in a failed one that was kept",
  description: `
BUILD is a build's id, a repository's name and number (team/app#12), or a repository's name for its newest build; without
it, the newest of all. STEP is JOB/STEP, a job or a step, by name or position from 0, or a service by its name; without it,
the only one there is to enter: the step that runs, or the failed one that keep_on_failure has kept.

The shell runs beside the step's own program, in its container: same files, environment, user and limits, and it ends with
the step. In a kept step it runs in a new container over what the step has left. Who may change builds may open it (the
admin token); the step's log tells when and by whom. What is printed in it is not masked.

On a terminal, Enter ~ . breaks the connection off, and ~ ~ sends one ~. The exit code is the shell's or the command's.`,
  options: {
    tty: { short: "t", help: "Give it a terminal [default: if this is one]" },
    "no-tty": { short: "T", help: "Give it none: input, output and errors apart, as bytes" },
    attempt: { value: "N", help: "The job's N-th attempt, if it had several [default: the last]" },
    ...apiOptions,
  },
  examples: [
    ["slipway shell team/app", "in the step that runs now"],
    ["slipway shell 'team/app#12/test/unit tests'", "in a certain one"],
    ["slipway shell team/app#12/test -- cat build.log > build.log", "one command, its output here"],
  ],
  count: { least: 0, most: 10_000 },
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(usage, argv);
  if (values.tty && values["no-tty"]) throw new UsageError("Give --tty or --no-tty, not both");
  const [reference, ...args] = operands;
  const attempt =
    values.attempt === undefined
      ? {}
      : { attempt: String(parseCount("--attempt", values.attempt, { least: 1, most: 1000 })) };
  const api = Api.find(values, context);
  const { build, rest } = await findTarget(api, reference);
  const { job, step } = findStep(build, rest);
  const isTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const { connectShell } = await import("./shell-client.ts");
  return await connectShell(api, {
    buildId: build.id,
    query: { job: String(job), step: String(step), ...attempt },
    args: args.length === 0 ? undefined : args,
    hasTerminal: values.tty || (isTerminal && !values["no-tty"]),
    context,
  });
}

/** Takes a build off the front of a reference: names of repositories and steps both may hold slashes. */
export async function findTarget(
  api: Api,
  reference: string | undefined,
): Promise<{ readonly build: BuildView; readonly rest: string }> {
  const [, named, rest = ""] = /^([^#]+#\d+|b[0-9a-z]{18})(?:\/(.*))?$/s.exec(reference ?? "") ?? [];
  if (named !== undefined) return { build: await findBuild(api, named), rest };
  if (reference === undefined) return { build: await findBuild(api, undefined), rest: "" };
  const names = (await listRepositories(api)).map(({ name }) => name);
  const [repository] = names
    .filter((name) => reference === name || reference.startsWith(`${name}/`))
    .sort((a, b) => b.length - a.length);
  if (repository === undefined) {
    throw new UsageError(
      `${JSON.stringify(reference)} begins with no repository of this server${didYouMean(reference, names)}`,
    );
  }
  return { build: await findBuild(api, repository), rest: reference.slice(repository.length + 1) };
}

/** A step, or service, as it is listed. */
interface Candidate {
  readonly isService: boolean;
  readonly job: JobView;
  readonly position: number;
  readonly name: string;
  readonly state: StepView | undefined;
}

const isOpen = ({ state }: Candidate) => state?.status === "running" || state?.kept !== undefined;
const pathOf = ({ job, name }: Candidate) => `${plain(job.name)}/${plain(name)}`;

/** Finds the step that is meant. @throws {UsageError} Listing what there is. */
export function findStep(
  build: Pick<BuildView, "repository" | "number" | "jobs">,
  rest: string,
): { readonly job: number; readonly step: number } {
  const all = build.jobs.flatMap((job): Candidate[] => {
    const { steps = [], services = [] } = job.attempts.at(-1) ?? {};
    const states = [...steps, ...services];
    // Positions of services follow those of steps.
    return [...job.stepNames, ...job.serviceNames].map((name, position) => ({
      job,
      position,
      name,
      state: states[position],
      isService: position >= job.stepNames.length,
    }));
  });
  const { meant, isWhole } = matches(all, rest);
  const title = `${plain(build.repository.name)}#${build.number}`;
  const open = meant.filter(isOpen);
  // One that is named exactly is tried even if nothing can be done there: the server says why not.
  const [only, ...others] = open.length === 0 && isWhole ? meant : open;
  if (only !== undefined && others.length === 0) return { job: only.job.position, step: only.position };
  if (only !== undefined) {
    throw new UsageError(`Several steps of ${title} can be entered; name one: ${list([only, ...others])}`);
  }
  if (meant.length === 0) {
    const names = all.map((candidate) => `${candidate.job.name}/${candidate.name}`);
    throw new UsageError(
      `There is no step ${JSON.stringify(rest)} in ${title}${didYouMean(rest, names)}; there are ${list(all)}`,
    );
  }
  const where = rest === "" ? title : `${title}/${plain(rest)}`;
  throw new UsageError(
    `Nothing of ${where} can be entered: no step of it runs, and none is kept (keep_on_failure keeps a failed one)`,
  );
}

/** Which steps a text means; whole if it names a step and not only its job. */
function matches(
  all: readonly Candidate[],
  rest: string,
): { readonly meant: readonly Candidate[]; readonly isWhole: boolean } {
  // A service is meant only by its name.
  const steps = all.filter(({ isService }) => !isService);
  if (rest === "") return { meant: steps, isWhole: false };
  const is = (name: string, position: number, text: string) => text === name || text === String(position);
  const inJob = steps.filter(({ job }) => is(job.name, job.position, rest));
  if (inJob.length > 0) return { meant: inJob, isWhole: inJob.length === 1 };
  const byBoth = all.filter(({ job, name, position }) =>
    [job.name, String(job.position)].some(
      (prefix) => rest.startsWith(`${prefix}/`) && is(name, position, rest.slice(prefix.length + 1)),
    ),
  );
  if (byBoth.length > 0) return { meant: byBoth, isWhole: true };
  return { meant: all.filter(({ name }) => name === rest), isWhole: true };
}

function list(candidates: readonly Candidate[]): string {
  const shown = candidates.slice(0, 12).map((candidate) => {
    const state = candidate.state?.kept === undefined ? candidate.state?.status : "kept";
    return state === undefined ? pathOf(candidate) : `${pathOf(candidate)} (${state})`;
  });
  const more = candidates.length - shown.length;
  return `${shown.join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
}

export const verbs: Readonly<Record<string, Verb>> = { shell: { usage, run } };
