/** Parsers for JSON that somebody else wrote: each takes a value and where it stands, and answers a typed one or throws. */

/** What a configuration asks for is wrong or not supported; the message names the field. */
export class OciConfigError extends Error {
  override readonly name = "OciConfigError";
}

export type Parser<T> = (value: unknown, where: string) => T;
export type Parsed<P> = P extends Parser<infer T> ? T : never;

function wrong(where: string, expected: string, value: unknown): OciConfigError {
  const shown = JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? `${inner}` : inner)) ?? "nothing";
  return new OciConfigError(`${where === "" ? "config.json" : where} must be ${expected}, not ${shown.slice(0, 80)}`);
}

export const string: Parser<string> = (value, where) => {
  if (typeof value !== "string") throw wrong(where, "a string", value);
  if (value.includes("\0")) throw wrong(where, "a string without NUL", value);
  return value;
};

export const boolean: Parser<boolean> = (value, where) => {
  if (typeof value !== "boolean") throw wrong(where, "true or false", value);
  return value;
};

/** A path that begins with a slash. */
export const absolutePath: Parser<string> = (value, where) => {
  const path = string(value, where);
  if (!path.startsWith("/")) throw wrong(where, "an absolute path", value);
  return path;
};

/** A whole number in a range, inclusive. */
export function integer(least: number, most: number): Parser<number> {
  return (value, where) => {
    const number = typeof value === "bigint" ? Number(value) : value;
    if (typeof number !== "number" || !Number.isInteger(number) || number < least || number > most) {
      throw wrong(where, `a whole number from ${least} to ${most}`, value);
    }
    return number;
  };
}

/** A whole number in a range, inclusive, of more than 53 bits. */
export function bigInteger(least: bigint, most: bigint): Parser<bigint> {
  return (value, where) => {
    const isWhole = typeof value === "bigint" || (typeof value === "number" && Number.isInteger(value));
    const number = isWhole ? BigInt(value) : undefined;
    if (number === undefined || number < least || number > most) {
      throw wrong(where, `a whole number from ${least} to ${most}`, value);
    }
    return number;
  };
}

export const u32 = integer(0, 0xffff_ffff);
export const u64 = bigInteger(0n, (1n << 64n) - 1n);
export const i64 = bigInteger(-(1n << 63n), (1n << 63n) - 1n);

export function oneOf<const T extends string>(choices: readonly T[]): Parser<T> {
  return (value, where) => {
    const choice = choices.find((candidate) => candidate === value);
    if (choice === undefined) throw wrong(where, `one of ${choices.join(", ")}`, value);
    return choice;
  };
}

export function list<T>(item: Parser<T>): Parser<readonly T[]> {
  return (value, where) => {
    if (!Array.isArray(value)) throw wrong(where, "a list", value);
    return value.map((entry, i) => item(entry, `${where}[${i}]`));
  };
}

export function map<T>(item: Parser<T>): Parser<ReadonlyMap<string, T>> {
  return (value, where) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(where, "an object", value);
    return new Map(Object.entries(value).map(([key, entry]) => [key, item(entry, `${where}[${JSON.stringify(key)}]`)]));
  };
}

type Fields = Readonly<Record<string, Parser<unknown>>>;

/**
 * An object. Fields that nobody knows are skipped, as the specification demands; a field in `refused` that is there is an
 * error, with the reason given.
 */
export function object<R extends Fields, O extends Fields>(
  required: R,
  optional: O,
  refused: Readonly<Record<string, string>> = {},
): Parser<{ readonly [K in keyof R]: Parsed<R[K]> } & { readonly [K in keyof O]?: Parsed<O[K]> }> {
  return (value, where) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(where, "an object", value);
    const given = value as Readonly<Record<string, unknown>>;
    const at = (key: string) => (where === "" ? key : `${where}.${key}`);
    const result: Record<string, unknown> = {};
    for (const [key, parse] of Object.entries(required)) {
      if (isAbsent(given[key])) throw new OciConfigError(`${at(key)} is missing`);
      result[key] = parse(given[key], at(key));
    }
    for (const [key, parse] of Object.entries(optional)) {
      if (!isAbsent(given[key])) result[key] = parse(given[key], at(key));
    }
    for (const [key, reason] of Object.entries(refused)) {
      if (!isAbsent(given[key]) && !isEmpty(given[key]))
        throw new OciConfigError(`${at(key)} is not supported: ${reason}`);
    }
    return result as never;
  };
}

const isAbsent = (value: unknown) => value === undefined || value === null;

/** Go writes what was never set as an empty value. */
function isEmpty(value: unknown): boolean {
  return value === "" || value === false || (typeof value === "object" && Object.keys(value ?? {}).length === 0);
}

/** Parses JSON; whole numbers that a JavaScript number cannot say exactly become bigints. @throws {SyntaxError} */
export function parseJson(text: string): unknown {
  const revive = (_key: string, value: unknown, context?: { readonly source?: string }) => {
    const source = context?.source;
    const isInexact = typeof value === "number" && !Number.isSafeInteger(value) && source !== undefined;
    return isInexact && /^-?\d+$/.test(source) ? BigInt(source) : value;
  };
  return JSON.parse(text, revive);
}
