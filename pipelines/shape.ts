/**
 * Shapes: what a value of the language may be. One shape reads YAML nodes for the parser and describes itself as JSON
 * schema for editors, so that the two cannot disagree.
 */
import type { Problems } from "./problems.ts";
import type { Span } from "./source.ts";
import { enumerate, nearest, quote } from "./suggestion.ts";
import type { MapEntry, YamlNode } from "./tree.ts";

export type JsonSchema = Readonly<Record<string, unknown>>;

/** Where a value stands in the pipeline: `"resources.cpu" of step 2 of job "build"`. */
export interface Place {
  readonly problems: Problems;
  /** `step 2 of job "build"`, empty at the top. */
  readonly owner: string;
  /** Keys below the owner: `resources.cpu`. */
  readonly path: string;
  /** What to point at when something is missing. */
  readonly span: Span;
}

export interface Shape<T> {
  /** For messages: "a list of steps". */
  readonly expected: string;
  readonly schema: JsonSchema;
  /** Undefined if the node is not of this shape, which is then reported. Never called with a broken node. */
  read(node: YamlNode, place: Place): T | undefined;
}

/** A value and where it stands. */
export interface Located<T> {
  readonly value: T;
  readonly span: Span;
}

export interface Field<T> {
  readonly shape: Shape<T>;
  /** One sentence for editors. */
  readonly summary: string;
  /** Set on a key that must be there: what to write. */
  readonly required?: string;
  /** What holds without it, as the file would write it. */
  readonly default?: string | number | boolean;
}

/** The keys of one mapping: the table that drives the parser and the JSON schema. */
export interface Table<F extends Readonly<Record<string, Field<unknown>>>> {
  /** "a step" */
  readonly noun: string;
  readonly fields: F;
  /** Keys that begin with `x-` are nobody's business: a place for anchors. */
  readonly extensible?: boolean;
  /** Keys of which one must be there, and one only. */
  readonly alternatives?: { readonly keys: readonly string[]; readonly missing: string };
  /** Keys of other CI systems and what they are called here. */
  readonly synonyms?: Readonly<Record<string, string>>;
  /** Keys that mean something elsewhere, and what to do here. */
  readonly hints?: Readonly<Record<string, string>>;
}

export type FieldValues<F> = {
  readonly [K in keyof F]?: F[K] extends Field<infer T> ? Located<T> : never;
};

/** Names a place in a message. */
export function subject(place: Place): string {
  if (place.path === "") return place.owner === "" ? "the pipeline" : place.owner;
  return place.owner === "" ? quote(place.path) : `${quote(place.path)} of ${place.owner}`;
}

/** Says what a node is: `a list`, `the number 5`. */
export function describe(node: YamlNode): string {
  if (node.kind !== "scalar") return node.kind === "list" ? "a list" : "a mapping";
  if (node.value === null) return "empty";
  if (typeof node.value === "string") return node.value === "" ? "empty text" : `the text ${quote(node.text)}`;
  return `the ${typeof node.value} ${node.text}`;
}

/** Reports that a node is not what it should be. */
export function mismatch(node: YamlNode, place: Place, expected: string, suggestion?: string): undefined {
  // Nothing stands where an empty value is: point at its key.
  const absent = node.span.end === node.span.start;
  // Behind broken syntax it may only seem to be absent.
  if (absent && !place.problems.whole) return;
  const span = absent ? place.span : node.span;
  place.problems.error(span, `${subject(place)} must be ${expected}, not ${describe(node)}`, suggestion);
}

/** Reports that a text says nothing that can be meant here. */
export function refuse(node: YamlNode, place: Place, problem: string, suggestion?: string): undefined {
  const found = node.kind === "scalar" ? quote(node.text) : describe(node);
  place.problems.error(node.span, `${subject(place)} cannot be ${found}: ${problem}`, suggestion);
}

/** Reports that something has more than it may. */
export function exceed(
  node: YamlNode,
  place: Place,
  found: string,
  most: number | string,
  suggestion?: string,
): undefined {
  place.problems.error(node.span, `${subject(place)} has ${found}; at most ${most} are allowed`, suggestion);
}

/** What each shape made of a node. Aliases show one node in many places; it is read, and what is wrong with it said, once. */
const readings = new WeakMap<YamlNode, Map<Shape<unknown>, unknown>>();

/** Reads a node unless it is broken, which was reported where it broke. */
export function readNode<T>(shape: Shape<T>, node: YamlNode, place: Place): T | undefined {
  if (node.kind === "broken") return undefined;
  const known = readings.get(node);
  // The shape is the key, and the same shape put it there.
  if (known?.has(shape) === true) return known.get(shape) as T | undefined;
  const value = shape.read(node, place);
  if (known === undefined) readings.set(node, new Map([[shape, value]]));
  else known.set(shape, value);
  return value;
}

/** A mapping with the keys of a table. Every unknown, missing and wrong one is reported. */
export function mapping<F extends Readonly<Record<string, Field<unknown>>>>(table: Table<F>): Shape<FieldValues<F>> {
  const keys = Object.keys(table.fields);
  const required = keys.filter((key) => table.fields[key]?.required !== undefined);
  const expected = `${table.noun} with ${enumerate(keys.slice(0, 12).map(quote))}`;
  return {
    expected,
    schema: describeTable(table),
    read(node, place) {
      if (node.kind !== "map") {
        const help =
          node.kind === "scalar" && /^[\w-]+:\S/.test(node.text) ? "write a space after the colon" : undefined;
        return mismatch(node, place, `a mapping with ${enumerate(keys.map(quote), "or")}`, help);
      }
      const values: Record<string, Located<unknown>> = {};
      const meant = new Set<string | undefined>();
      for (const [key, entry] of node.entries) {
        const field = Object.hasOwn(table.fields, key) ? table.fields[key] : undefined;
        if (field === undefined) {
          if (table.extensible === true && key.startsWith("x-")) continue;
          meant.add(reportUnknownKey(key, entry, table, place));
          continue;
        }
        const path = place.path === "" ? key : `${place.path}.${key}`;
        const value = readNode(field.shape, entry.value, { ...place, path, span: entry.key });
        if (value !== undefined) values[key] = { value, span: entry.value.span };
      }
      for (const key of required) {
        if (node.entries.has(key) || meant.has(key) || !place.problems.whole) continue;
        place.problems.error(place.span, `${subject(place)} has no ${quote(key)}`, table.fields[key]?.required);
      }
      checkAlternatives(node.entries, meant, table, place);
      // Every value came from the shape of its own key.
      return values as FieldValues<F>;
    },
  };
}

function describeTable(table: Table<Readonly<Record<string, Field<unknown>>>>): JsonSchema {
  const { fields, alternatives, extensible } = table;
  const required = Object.keys(fields).filter((key) => fields[key]?.required !== undefined);
  const without = (left: readonly string[], needed: readonly string[]): JsonSchema => ({
    type: "object",
    additionalProperties: false,
    properties: Object.fromEntries(
      Object.entries(fields).flatMap(([key, field]) => (left.includes(key) ? [] : [[key, describeField(field)]])),
    ),
    ...(extensible === true && { patternProperties: { "^x-": {} } }),
    ...(needed.length > 0 && { required: needed }),
  });
  if (alternatives === undefined) return without([], required);
  const { keys } = alternatives;
  const variant = (key: string) =>
    without(
      keys.filter((other) => other !== key),
      [...required, key],
    );
  return { anyOf: keys.map((key) => variant(key)) };
}

function checkAlternatives(
  entries: ReadonlyMap<string, MapEntry>,
  meant: ReadonlySet<string | undefined>,
  { alternatives }: Table<Readonly<Record<string, Field<unknown>>>>,
  place: Place,
): void {
  if (alternatives === undefined) return;
  const { keys, missing } = alternatives;
  const [first, second] = keys.filter((key) => entries.has(key));
  const entry = second === undefined ? undefined : entries.get(second);
  if (first !== undefined && second !== undefined && entry !== undefined) {
    place.problems.error(
      entry.key,
      `${subject(place)} has both ${quote(first)} and ${quote(second)}`,
      "write one of them",
    );
  }
  if (first !== undefined || keys.some((key) => meant.has(key)) || !place.problems.whole) return;
  place.problems.error(
    place.span,
    `${subject(place)} has neither ${enumerate(keys.map(quote)).replace(" and ", " nor ")}`,
    missing,
  );
}

function describeField(field: Field<unknown>): JsonSchema {
  return {
    description: field.summary,
    ...field.shape.schema,
    ...(field.default !== undefined && { default: field.default }),
  };
}

/** Merge keys show one entry in many mappings. */
const reportedKeys = new WeakSet<MapEntry>();

/** Returns the key that was probably meant, which is then not missing. */
function reportUnknownKey(
  key: string,
  entry: MapEntry,
  table: Table<Readonly<Record<string, Field<unknown>>>>,
  place: Place,
): string | undefined {
  const { synonyms = {}, hints = {} } = table;
  const keys = Object.keys(table.fields);
  const hint = key.startsWith("-") ? 'write a space after "-"' : Object.hasOwn(hints, key) ? hints[key] : undefined;
  const meant =
    hint === undefined ? ((Object.hasOwn(synonyms, key) ? synonyms[key] : undefined) ?? nearest(key, keys)) : undefined;
  const help =
    meant === undefined ? `${table.noun} has ${enumerate(keys.map(quote))}` : `did you mean ${quote(meant)}?`;
  if (!reportedKeys.has(entry)) {
    place.problems.error(entry.key, `unknown key ${quote(key)} in ${subject(place)}`, hint ?? help);
  }
  reportedKeys.add(entry);
  return meant;
}

/** One of a few words. */
export function choice<const T extends string>(
  words: readonly T[],
  synonyms: Readonly<Record<string, T>> = {},
): Shape<T> {
  const expected = enumerate(words.map(quote), "or");
  return {
    expected,
    schema: { enum: words },
    read(node, place) {
      const word = node.kind === "scalar" && node.value !== null ? node.text : undefined;
      if (word === undefined) return mismatch(node, place, expected);
      const found = words.find((candidate) => candidate === word);
      if (found !== undefined) return found;
      const meant = (Object.hasOwn(synonyms, word) ? synonyms[word] : undefined) ?? nearest(word, words);
      return mismatch(node, place, expected, meant === undefined ? undefined : `did you mean ${quote(meant)}?`);
    },
  };
}

/** `true` or `false`. */
export const flag: Shape<boolean> = {
  expected: "true or false",
  schema: { type: "boolean" },
  read(node, place) {
    if (node.kind !== "scalar" || typeof node.value !== "boolean") {
      const word = node.kind === "scalar" ? node.text.toLowerCase() : "";
      if (/^(?:true|yes|on|y|1)$/.test(word))
        return mismatch(node, place, "true or false", "write true, without quotes");
      if (/^(?:false|no|off|n|0)$/.test(word))
        return mismatch(node, place, "true or false", "write false, without quotes");
      return mismatch(node, place, "true or false");
    }
    return node.value;
  },
};
