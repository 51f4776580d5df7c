/** The command line of one verb: strict parsing over a table of options, and the help text made from the same table. */
import { parseArgs } from "node:util";
import { didYouMean } from "./did-you-mean.ts";

/** One option of a verb. With `value` it takes one and the word names it in the help; without, it is a switch. */
export interface Option {
  readonly short?: string;
  readonly value?: string;
  readonly multiple?: boolean;
  readonly help: string;
}

export type Options = Readonly<Record<string, Option>>;

/** What was given: a switch is a boolean, an option with a value a string (or undefined), a repeatable one an array. */
export type Values<O extends Options> = {
  readonly [K in keyof O]: O[K] extends { value: string; multiple: true }
    ? readonly string[]
    : O[K] extends { value: string }
      ? string | undefined
      : boolean;
};

/** Everything a person can read about a verb. */
export interface Usage<O extends Options = Options> {
  /** Without the program's name: `build log`. */
  readonly name: string;
  /** What follows the name and the options: `[FILE...]`. */
  readonly operands?: string;
  /** One line, begins with a verb, no full stop. */
  readonly summary: string;
  /** Paragraphs between the summary and the options. */
  readonly description?: string;
  readonly options: O;
  readonly examples: readonly (readonly [command: string, what: string])[];
  /** How many operands there may be. @default { least: 0, most: 0 } */
  readonly count?: { readonly least: number; readonly most: number };
}

/** The command line is wrong: reported with the way to the help, exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Asked for by every verb, listed last. */
const common = {
  help: { short: "h", help: "Show this text" },
} as const satisfies Options;

/** Whether `--help` or `-h` stands before any `--`; asked first, so that help is never refused for another mistake. */
export function wantsHelp(argv: readonly string[]): boolean {
  const end = argv.indexOf("--");
  return argv.slice(0, end === -1 ? argv.length : end).some((word) => word === "--help" || word === "-h");
}

/**
 * Parses the words after the verb.
 *
 * @throws {UsageError} Naming the word that is wrong and what was probably meant.
 */
export function parseArguments<O extends Options>(
  usage: Usage<O>,
  argv: readonly string[],
): { readonly values: Values<O>; readonly operands: readonly string[] } {
  const options: Options = { ...usage.options, ...common };
  const { tokens } = parseArgs({
    args: [...argv],
    strict: false,
    tokens: true,
    options: Object.fromEntries(
      Object.entries(options).map(([name, { short, value }]) => [
        name,
        { type: value === undefined ? "boolean" : "string", ...(short === undefined ? {} : { short }) },
      ]),
    ),
  });
  const values: Record<string, string | boolean | string[] | undefined> = {};
  for (const [name, { value, multiple }] of Object.entries(usage.options)) {
    values[name] = value === undefined ? false : multiple ? [] : undefined;
  }
  const operands: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") operands.push(token.value);
    if (token.kind !== "option") continue;
    const option = Object.hasOwn(options, token.name) ? options[token.name] : undefined;
    if (option === undefined) throw unknownOption(usage, token.rawName, options);
    if (option.value === undefined) {
      if (token.value !== undefined) throw new UsageError(`${token.rawName} takes no value`);
      values[token.name] = true;
      continue;
    }
    const { value, inlineValue } = token;
    if (value === undefined || (!inlineValue && value.length > 1 && value.startsWith("-") && !/^-\d+$/.test(value))) {
      throw new UsageError(`${token.rawName} needs a value: ${token.rawName} ${option.value}`);
    }
    const before = values[token.name];
    if (Array.isArray(before)) before.push(value);
    else values[token.name] = value;
  }
  checkCount(usage, operands);
  return { values: values as Values<O>, operands };
}

function unknownOption(usage: Usage, rawName: string, options: Options): UsageError {
  const names = Object.keys(options).map((name) => `--${name}`);
  return new UsageError(`slipway ${usage.name} has no option ${rawName}${didYouMean(rawName, names)}`);
}

function checkCount(usage: Usage, operands: readonly string[]): void {
  const { least, most } = usage.count ?? { least: 0, most: 0 };
  const extra = operands[most];
  if (extra !== undefined) {
    throw new UsageError(`slipway ${usage.name} does not know what to do with ${JSON.stringify(extra)}`);
  }
  if (operands.length < least) {
    throw new UsageError(`slipway ${usage.name} needs more: slipway ${usage.name} ${usage.operands ?? ""}`);
  }
}

/** Reads a whole number in a range, inclusive. @throws {UsageError} Quoting what was given. */
export function parseCount(
  option: string,
  text: string,
  range: { readonly least: number; readonly most: number },
): number {
  const count = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (count >= range.least && count <= range.most) return count;
  throw new UsageError(
    `${option} must be a whole number from ${range.least} to ${range.most}, not ${JSON.stringify(text)}`,
  );
}

/** Reads one of a few words. @throws {UsageError} Listing them. */
export function parseChoice<const T extends string>(option: string, text: string, choices: readonly T[]): T {
  const choice = choices.find((candidate) => candidate === text);
  if (choice !== undefined) return choice;
  throw new UsageError(
    `${option} must be one of ${choices.join(", ")}, not ${JSON.stringify(text)}${didYouMean(text, choices)}`,
  );
}

/** The text of `slipway VERB --help`. */
export function helpText(usage: Usage): string {
  const lines = [
    `Usage: slipway ${usage.name} [OPTIONS]${usage.operands === undefined ? "" : ` ${usage.operands}`}`,
    "",
  ];
  lines.push(`${usage.summary}.`, "");
  if (usage.description !== undefined) lines.push(usage.description.trim(), "");
  lines.push("Options:", ...table(Object.entries({ ...usage.options, ...common }).map(optionRow)), "");
  lines.push("Examples:", ...table(usage.examples), "");
  return lines.join("\n");
}

function optionRow([name, option]: readonly [string, Option]): readonly [string, string] {
  const short = option.short === undefined ? "    " : `-${option.short}, `;
  return [`${short}--${name}${option.value === undefined ? "" : ` ${option.value}`}`, option.help];
}

/** Left columns wider than this get a line of their own. */
const widestLeft = 56;

/** Rows of two columns, indented by two, the second one aligned and its further lines too. */
export function table(rows: readonly (readonly [string, string])[]): string[] {
  const width = Math.max(0, ...rows.map(([left]) => left.length).filter((length) => length <= widestLeft));
  const indent = `\n${" ".repeat(width + 4)}`;
  return rows.map(([left, right]) => {
    const gap = left.length > width ? indent : " ".repeat(width - left.length + 2);
    return `  ${left}${gap}${right.replaceAll("\n", indent)}`;
  });
}
