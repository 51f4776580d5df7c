/** The shapes of collections: mappings from free names to values, and lists. */
import { exceed, type JsonSchema, type Located, mismatch, type Place, readNode, type Shape, subject } from "./shape.ts";
import type { Span } from "./source.ts";

export interface DictionaryEntry<T> {
  readonly name: string;
  readonly nameSpan: Span;
  /** Undefined if it was reported. */
  readonly value: T | undefined;
  readonly valueSpan: Span;
}

/** A mapping from names to values of one shape, in file order. */
export function dictionary<T>(options: {
  readonly expected: string;
  /** "jobs", for the limit's message. */
  readonly plural: string;
  readonly value: Shape<T>;
  readonly namePattern: string;
  readonly checkName: (name: string, span: Span, place: Place) => boolean;
  /** Makes each entry the owner of what is below it. */
  readonly owner?: (name: string) => string;
  readonly min?: number;
  readonly max: number;
  /** For what is no mapping. */
  readonly suggestion?: string;
  /** For a mapping with fewer than `min` entries. */
  readonly emptySuggestion?: string;
}): Shape<readonly DictionaryEntry<T>[]> {
  const { min = 0 } = options;
  return {
    expected: options.expected,
    schema: {
      type: "object",
      propertyNames: { pattern: options.namePattern },
      additionalProperties: options.value.schema,
      ...(min > 0 && { minProperties: min }),
      maxProperties: options.max,
    },
    read(node, place) {
      if (node.kind !== "map") return mismatch(node, place, options.expected, options.suggestion);
      if (node.entries.size < min) {
        place.problems.error(node.span, `${subject(place)} is an empty mapping`, options.emptySuggestion);
        return undefined;
      }
      const found: DictionaryEntry<T>[] = [];
      for (const [name, entry] of node.entries) {
        if (found.length === options.max) {
          exceed({ ...entry.value, span: entry.key }, place, `${node.entries.size} ${options.plural}`, options.max);
          break;
        }
        if (!options.checkName(name, entry.key, place)) continue;
        const below =
          options.owner === undefined
            ? { ...place, path: `${place.path}.${name}`, span: entry.key }
            : { ...place, owner: options.owner(name), path: "", span: entry.key };
        const value = readNode(options.value, entry.value, below);
        found.push({ name, nameSpan: entry.key, value, valueSpan: entry.value.span });
      }
      return found;
    },
  };
}

/** A list of values of one shape; `single` accepts one value without the list around it. */
export function list<T>(options: {
  readonly expected: string;
  /** "steps", for the limit's message. */
  readonly plural: string;
  readonly item: Shape<T>;
  readonly single?: boolean;
  /** Makes each item the owner of what is below it: `step 2`. */
  readonly owner?: (index: number) => string;
  readonly min?: number;
  readonly max: number;
  /** For what is not a list. */
  readonly suggestion?: string;
  /** For a list with fewer than `min` items. */
  readonly emptySuggestion?: string;
}): Shape<readonly Located<T>[]> {
  const { min = 0 } = options;
  const many: JsonSchema = {
    type: "array",
    items: options.item.schema,
    ...(min > 0 && { minItems: min }),
    maxItems: options.max,
  };
  return {
    expected: options.expected,
    schema: options.single === true ? { anyOf: [options.item.schema, many] } : many,
    read(node, place) {
      const single = options.single === true && node.kind === "scalar" && node.value !== null;
      if (node.kind !== "list" && !single) {
        const dashed = node.kind === "map" && [...node.entries.keys()].every((key) => key.startsWith("-"));
        return mismatch(node, place, options.expected, dashed ? 'write a space after each "-"' : options.suggestion);
      }
      const items = node.kind === "list" ? node.items : [node];
      if (items.length < min) {
        place.problems.error(node.span, `${subject(place)} is an empty list`, options.emptySuggestion);
        return undefined;
      }
      const found: Located<T>[] = [];
      for (const [index, item] of items.entries()) {
        if (index === options.max) {
          exceed(item, place, `${items.length} ${options.plural}`, options.max);
          break;
        }
        const owner = options.owner?.(index);
        // Nothing stands where an empty item is: point at its dash.
        const { start, end } = item.span;
        const span = start === end ? { start: start - 1, end } : item.span;
        const below =
          owner === undefined
            ? { ...place, span }
            : { ...place, owner: place.owner === "" ? owner : `${owner} of ${place.owner}`, path: "", span: item.span };
        const value = readNode(options.item, item, below);
        if (value !== undefined) found.push({ value, span: item.span });
      }
      return found;
    },
  };
}
