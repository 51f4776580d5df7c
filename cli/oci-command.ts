/** What the commands of `slipway oci` have in common. */
import type { Options } from "./arguments.ts";
import type { Context } from "./verb.ts";

/** What the options before the command say. */
export interface OciGlobal {
  readonly root: string;
  readonly systemdCgroup: boolean;
  readonly warn: (message: string) => void;
  readonly environment: Context["environment"];
}

export type OciCommand = (argv: readonly string[], context: Context, global: OciGlobal) => Promise<number>;

/** The operands of commands on one container. */
export const oneId = { operands: "ID", count: { least: 1, most: 1 } } as const;

/** Splits after the first operand; an option's value is none. What follows belongs to another program, options included. */
export function splitCommand(
  argv: readonly string[],
  options: Options,
): { readonly own: readonly string[]; readonly command: readonly string[] } {
  const takesValue = (word: string) =>
    Object.entries(options).some(
      ([name, { short, value }]) =>
        value !== undefined && (word === `--${name}` || (short !== undefined && word === `-${short}`)),
    );
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] ?? "";
    if (takesValue(word)) i++;
    else if (!word.startsWith("-")) {
      const rest = argv.slice(i + 1);
      return { own: argv.slice(0, i + 1), command: rest[0] === "--" ? rest.slice(1) : rest };
    }
  }
  return { own: argv, command: [] };
}
