/** Secrets of `slipway run`, which has no server: of its environment and of a file. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { GivenSecrets } from "../agent/index.ts";
import { UsageError } from "./arguments.ts";
import type { Context } from "./verb.ts";

export const secretOptions = {
  secret: {
    value: "NAME",
    multiple: true,
    help: "A secret that the pipeline may name: the variable NAME of this command's environment",
  },
  "secrets-file": { value: "FILE", help: "Secrets as lines NAME=value; of several lines with \\n in double quotes" },
} as const;

const name = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$/;

/** @throws {UsageError} If a variable is not there, or a line is none. */
export function findSecrets(
  values: { readonly secret: readonly string[]; readonly "secrets-file": string | undefined },
  { environment, directory }: Context,
): GivenSecrets {
  const found = new Map<string, Uint8Array>();
  const file = values["secrets-file"];
  if (file !== undefined) for (const [key, value] of readSecretsFile(resolve(directory, file))) found.set(key, value);
  for (const variable of values.secret) {
    const value = environment[variable];
    if (value === undefined) {
      const help = variable.includes("=") ? "write its name alone: values in arguments are seen by others" : "set it";
      // What stands behind "=" is not quoted.
      const [said = ""] = variable.split("=");
      throw new UsageError(`--secret ${JSON.stringify(said)}: there is no such variable in the environment; ${help}`);
    }
    found.set(variable, Buffer.from(value));
  }
  return {
    values: found,
    problems: [],
    help: (wanted) => `give it with --secret ${wanted} (from the environment) or --secrets-file`,
  };
}

/** Reads `NAME=value` lines. @throws {UsageError} Naming the line, not what is in it. */
function readSecretsFile(path: string): Map<string, Uint8Array> {
  const found = new Map<string, Uint8Array>();
  for (const [index, line] of readFileSync(path, "utf8").split(/\r?\n/).entries()) {
    if (/^\s*(?:#|$)/.test(line)) continue;
    const [, key = "", written = ""] = /^\s*(?:export\s+)?([^=\s]+)=(.*)$/.exec(line) ?? [];
    const value = unquote(written);
    if (!name.test(key) || value === undefined) {
      throw new UsageError(`Line ${index + 1} of "${path}" is no NAME=value, NAME='value' or NAME="value"`);
    }
    found.set(key, Buffer.from(value));
  }
  return found;
}

function unquote(text: string): string | undefined {
  if (text.startsWith("'")) return /^'([^']*)'\s*$/.exec(text)?.[1];
  if (!text.startsWith('"')) return text;
  const quoted = /^"((?:[^"\\]|\\.)*)"\s*$/.exec(text)?.[1];
  const meant: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" };
  return quoted?.replaceAll(/\\(.)/g, (_, character: string) => meant[character] ?? character);
}
