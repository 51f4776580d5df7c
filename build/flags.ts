/** The flags of an instruction, `COPY --from=build --link`, checked against those it has. */
import { didYouMean, type Problems, quote } from "../pipelines/index.ts";
import type { Word } from "./instruction.ts";

/** What a flag takes: nothing or true/false; a value, once; values, each time it is written. */
export type FlagKind = "boolean" | "text" | "texts";
export type FlagTable = Readonly<Record<string, FlagKind>>;

type FlagValue<Kind> = Kind extends "boolean" ? boolean | undefined : Kind extends "text" ? Word | undefined : Word[];
export type FlagValues<Table extends FlagTable> = { readonly [Name in keyof Table]: FlagValue<Table[Name]> };

/** Reads flags; unknown, doubled and incomplete ones are reported and left out. */
export function readFlags<const Table extends FlagTable>(
  instruction: string,
  flags: readonly Word[],
  options: { readonly table: Table; readonly problems: Problems },
): FlagValues<Table> {
  const { table, problems } = options;
  const values: Record<string, boolean | Word | Word[] | undefined> = {};
  for (const name of Object.keys(table)) values[name] = table[name] === "texts" ? [] : undefined;
  for (const flag of flags) {
    const equals = flag.text.indexOf("=");
    const name = flag.text.slice(2, equals === -1 ? undefined : equals);
    const kind = Object.hasOwn(table, name) ? table[name] : undefined;
    if (kind === undefined) {
      problems.error(flag.span, `${instruction} has no flag ${quote(`--${name}`)}`, () => suggest(name, table));
      continue;
    }
    const value = equals === -1 ? undefined : { text: flag.text.slice(equals + 1), span: flag.span };
    if (kind === "texts") {
      if (value === undefined) problems.error(flag.span, `--${name} needs a value`, `write --${name}=…`);
      else (values[name] as Word[]).push(value);
    } else if (values[name] !== undefined) {
      problems.error(flag.span, `--${name} is written twice`);
    } else if (kind === "text") {
      if (value === undefined) problems.error(flag.span, `--${name} needs a value`, `write --${name}=…`);
      else values[name] = value;
    } else {
      const text = value?.text.toLowerCase() ?? "true";
      if (text === "true" || text === "false") values[name] = text === "true";
      else problems.error(flag.span, `--${name} is true or false, not ${quote(value?.text ?? "")}`);
    }
  }
  return values as FlagValues<Table>;
}

function suggest(name: string, table: FlagTable): string {
  const names = Object.keys(table);
  if (names.length === 0) return "it has no flags";
  return didYouMean(name, names) ?? `it has ${names.map((each) => `--${each}`).join(", ")}`;
}
