/** `${NAME}` in the values of a build: no shell reads them, so the step's variables are put in here. */
import type { Suggestion } from "./problems.ts";
import { didYouMean, quote } from "./suggestion.ts";

interface Fault {
  readonly problem: string;
  readonly suggestion?: Suggestion;
}

/** What Slipway sets for every step; those that are not there for every event are marked. */
const ownVariables: ReadonlyMap<string, "always" | "sometimes"> = new Map([
  ["CI", "always"],
  ["SLIPWAY", "always"],
  ["SLIPWAY_REPOSITORY", "always"],
  ["SLIPWAY_BUILD_NUMBER", "always"],
  ["SLIPWAY_EVENT", "always"],
  ["SLIPWAY_COMMIT", "always"],
  ["SLIPWAY_REF", "always"],
  ["SLIPWAY_JOB", "always"],
  ["SLIPWAY_STEP", "always"],
  ["SLIPWAY_WORKSPACE", "always"],
  ["SLIPWAY_BRANCH", "sometimes"],
  ["SLIPWAY_TAG", "sometimes"],
  ["SLIPWAY_PULL_REQUEST", "sometimes"],
  ["SLIPWAY_UNTRUSTED", "sometimes"],
]);

/** `$${` is a `${` that stands for itself. */
const reference = /\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}/g;

/** Why a text cannot be meant, if so. */
export function checkVariables(text: string): { readonly problem: string; readonly suggestion: string } | undefined {
  const rest = text.replaceAll(reference, "");
  const at = rest.indexOf("${");
  if (at === -1) return undefined;
  const wrong = /^\$\{[^}]*\}?/.exec(rest.slice(at, at + 200))?.[0] ?? "${";
  return {
    problem: `${quote(wrong)} is no variable`,
    suggestion: "write ${NAME} or ${NAME:-what holds without it}; $${ stands for ${ itself",
  };
}

/** The variables of a text. Pure, linear in its length. */
export function findVariables(text: string): {
  /** The text with each variable replaced. @param valueOf Of a variable that is not there: undefined. */
  readonly fill: (valueOf: (name: string) => string | undefined) => string;
  /** Those that no step has which has these variables of the pipeline. */
  readonly unknown: (env: Readonly<Record<string, string>>) => Fault[];
} {
  return {
    fill: (valueOf) =>
      text.replaceAll(reference, (_whole, name: string | undefined, otherwise: string | undefined) => {
        if (name === undefined) return "${";
        const value = valueOf(name);
        // As in a shell, `:-` holds for an empty value, too.
        return otherwise === undefined || (value !== undefined && value !== "") ? (value ?? "") : otherwise;
      }),
    unknown: (env) =>
      [...text.matchAll(reference)].flatMap(([, name, otherwise]) => {
        if (name === undefined || otherwise !== undefined || name in env || ownVariables.has(name)) return [];
        const suggestion = () =>
          didYouMean(name, [...Object.keys(env), ...ownVariables.keys()]) ?? "write it below env";
        return [{ problem: `the step has no variable ${quote(name)}`, suggestion }];
      }),
  };
}

/**
 * Puts the values of variables into a text: `${NAME}`, `${NAME:-default}`; `$${` becomes `${`. Pure.
 *
 * @returns The text, or the names of variables that are not there.
 */
export function expandVariables(
  text: string,
  variables: Readonly<Record<string, string>>,
): { readonly text: string } | { readonly missing: readonly string[] } {
  const missing = new Set<string>();
  for (const [, name, otherwise] of text.matchAll(reference)) {
    if (name !== undefined && otherwise === undefined && !Object.hasOwn(variables, name)) missing.add(name);
  }
  if (missing.size > 0) return { missing: [...missing] };
  return { text: findVariables(text).fill((name) => (Object.hasOwn(variables, name) ? variables[name] : undefined)) };
}
