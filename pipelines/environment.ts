/** Environment variables: their shape in the file and how levels merge. */
import { dictionary, type DictionaryEntry } from "./collection.ts";
import { LIMITS } from "./limits.ts";
import type { Place } from "./shape.ts";
import type { Span } from "./source.ts";
import { quote } from "./suggestion.ts";
import { variable } from "./value.ts";

type Environment = readonly DictionaryEntry<string>[];

const variableName = /^[A-Za-z_][A-Za-z0-9_]*$/;
const variableNameLength = 255;
const reservedVariables = "SLIPWAY_";

/** `env`: a mapping from names of variables to their values. */
export const environment = dictionary({
  expected: "a mapping from names to values",
  plural: "variables",
  value: variable,
  namePattern: `^(?!${reservedVariables})[A-Za-z_][A-Za-z0-9_]*$`,
  checkName: checkVariable,
  max: LIMITS.envVariables,
});

/** Whether a step may have a variable of this name; says so if not. @param otherwise What else could be written. */
export function checkVariable(name: string, span: Span, place: Place, otherwise?: string): boolean {
  const or = otherwise === undefined ? "" : `, ${otherwise}`;
  if (!variableName.test(name) || name.length > variableNameLength) {
    const mended = name.replaceAll(/[^A-Za-z0-9_]/g, "_").replace(/^(?=\d)/, "_");
    const long = name.length > variableNameLength;
    place.problems.error(
      span,
      `the name ${quote(name)} cannot be used: ${long ? `it has more than ${variableNameLength} characters` : "a variable has letters, digits and _, no digit first"}`,
      `${long ? "shorten it" : `write ${quote(mended)}`}${or}`,
    );
    return false;
  }
  if (!name.startsWith(reservedVariables)) return true;
  place.problems.error(
    span,
    `the name ${quote(name)} cannot be used: Slipway sets variables that begin with ${reservedVariables} itself`,
    name.length > reservedVariables.length ? `write ${quote(name.slice(reservedVariables.length))}${or}` : otherwise,
  );
  return false;
}

/**
 * Merges variables; those of `own` hold against those of `base`.
 *
 * Without a prototype, so that a variable may be called `__proto__` or `constructor`.
 */
export function mergeEnvironments(
  base: Environment | Readonly<Record<string, string>> | undefined,
  own: Environment | undefined,
): Readonly<Record<string, string>> {
  const merged: Record<string, string> = Object.setPrototypeOf({}, null);
  for (const variables of [base, own]) {
    if (variables === undefined) continue;
    if (isEnvironment(variables)) {
      for (const { name, value } of variables) if (value !== undefined) merged[name] = value;
    } else {
      for (const name in variables) merged[name] = variables[name] ?? "";
    }
  }
  return merged;
}

function isEnvironment(value: Environment | Readonly<Record<string, string>>): value is Environment {
  return Array.isArray(value);
}
