/** What the steps of a job are called: unique, so that a name finds one log. */
import type { StepFields } from "./language.ts";
import type { Problems } from "./problems.ts";
import type { Located } from "./shape.ts";
import type { Source } from "./source.ts";
import { quote } from "./suggestion.ts";

const derivedLength = 60;

/**
 * Names every step of a job: as written, else by its script's first line or what it builds, numbered where that is taken.
 *
 * A name written twice is reported.
 */
export function nameSteps(
  job: string,
  steps: readonly Located<StepFields>[],
  source: Source,
  problems: Problems,
): string[] {
  const written = new Map<string, number>();
  for (const { value: step } of steps) {
    if (step.name === undefined) continue;
    const { value, span } = step.name;
    const earlier = written.get(value);
    if (earlier === undefined) {
      written.set(value, span.start);
      continue;
    }
    const { line, column } = source.position(earlier);
    problems.error(
      span,
      `job ${quote(job)} has two steps called ${quote(value)}; the first at line ${line}, column ${column}`,
      "give each step a name of its own",
    );
  }
  const taken = new Set(written.keys());
  return steps.map(({ value: step }, index) => step.name?.value ?? claim(deriveName(step, index), taken));
}

function deriveName(step: StepFields, index: number): string {
  if (step.build !== undefined)
    return shorten(`build ${step.build.value.tags?.value[0]?.value ?? step.build.value.context?.value ?? "."}`);
  const lines = (step.run?.value ?? "").split("\n").map((line) => line.trim());
  const first = lines.find((line) => line !== "" && !line.startsWith("#") && !/^set -[a-z]+$/.test(line));
  return first === undefined ? `step ${index + 1}` : shorten(first);
}

function shorten(first: string): string {
  // A line may have 100 KiB; only its beginning shows.
  const beginning = first.slice(0, 4 * derivedLength);
  const characters = Array.from(beginning.replaceAll(/[\0-\x1f\x7f-\x9f\u2028\u2029\s]+/g, " ").trim());
  if (characters.length <= derivedLength) return characters.join("");
  const shortened = characters.slice(0, derivedLength - 1).join("");
  return `${shortened.trimEnd()}…`;
}

function claim(name: string, taken: Set<string>): string {
  let unique = name;
  for (let count = 2; taken.has(unique); count += 1) unique = `${name} (${count})`;
  taken.add(unique);
  return unique;
}
