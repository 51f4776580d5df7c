/** YAML nodes with aliases and merge keys expanded, every value knowing its place in the file. */
import { type Document, isAlias, isMap, isNode, isScalar, isSeq, type Node as LibraryNode, type YAMLMap } from "yaml";
import { LIMITS } from "./limits.ts";
import type { Problems } from "./problems.ts";
import type { Source, Span } from "./source.ts";
import { didYouMean, quote } from "./suggestion.ts";

export type YamlNode = ScalarNode | ListNode | MapNode | BrokenNode;

interface Placed {
  readonly span: Span;
  /** How many values this is with every alias expanded; itself counts. */
  readonly size: number;
}

export interface ScalarNode extends Placed {
  readonly kind: "scalar";
  /** What YAML 1.2 makes of it. */
  readonly value: string | number | boolean | null;
  /** As it stands in the file, without quotes: `1.10` where `value` is 1.1. */
  readonly text: string;
}

/** Something already reported, an unknown alias for one: whoever reads it has nothing to add. */
export interface BrokenNode extends Placed {
  readonly kind: "broken";
}

export interface ListNode extends Placed {
  readonly kind: "list";
  readonly items: readonly YamlNode[];
}

export interface MapNode extends Placed {
  readonly kind: "map";
  /** In file order; a Map, so that `__proto__` is a key like any other. */
  readonly entries: ReadonlyMap<string, MapEntry>;
}

export interface MapEntry {
  readonly key: Span;
  readonly value: YamlNode;
}

/** The tags of YAML's core schema; the syntax stage has reported any other. */
const coreTags = /^(?:!|tag:yaml\.org,2002:(?:str|int|float|bool|null|map|seq))$/;

/** Builds the tree. Undefined if aliases expand past the limit, which is reported. */
export function buildTree(document: Document.Parsed, source: Source, problems: Problems): YamlNode | undefined {
  const builder = new TreeBuilder(source, problems);
  const node = builder.build(document.contents, { start: 0, end: 0 });
  return builder.exploded ? undefined : node;
}

class TreeBuilder {
  exploded = false;
  readonly #source: Source;
  readonly #problems: Problems;
  /** Undefined while the anchored value is still being built: an alias to it would contain itself. */
  readonly #anchors = new Map<string, YamlNode | undefined>();
  /** The sum over all aliases and merge keys of what they stand for: exactly what expansion adds to the file. */
  #expanded = 0;

  constructor(source: Source, problems: Problems) {
    this.#source = source;
    this.#problems = problems;
  }

  /** Recursion is bounded by the limit on nesting, which holds for the nodes as written. */
  build(node: LibraryNode | null, place: Span): YamlNode {
    if (isAlias(node)) return this.#resolve(node.source, spanOf(node, place));
    const anchor = isMap(node) || isSeq(node) || isScalar(node) ? node.anchor : undefined;
    if (anchor !== undefined) this.#anchors.set(anchor, undefined);
    const built = this.#buildValue(node, place);
    if (anchor !== undefined) this.#anchors.set(anchor, built);
    return built;
  }

  #buildValue(node: LibraryNode | null, place: Span): YamlNode {
    const span = spanOf(node, place);
    if ((isMap(node) || isSeq(node) || isScalar(node)) && !coreTags.test(node.tag ?? "!")) return brokenNode(span);
    if (isMap(node)) return this.#buildMap(node, span);
    if (isSeq(node)) {
      const items = node.items.map((item) => this.build(isNode(item) ? item : null, span));
      return { kind: "list", items, span, size: items.reduce((sum, item) => sum + item.size, 1) };
    }
    if (!isScalar(node)) return { kind: "scalar", value: null, text: "", span, size: 1 };
    const { value } = node;
    const text = typeof value === "string" ? value : (node.source ?? "");
    if (text.includes("\0") || !text.isWellFormed()) {
      const found = text.includes("\0") ? "a NUL character" : "half of a surrogate pair";
      this.#problems.error(
        span,
        `this text contains ${found}`,
        "programs cannot be given such text: remove the escape",
      );
      return brokenNode(span);
    }
    const known = typeof value === "string" || typeof value === "number" || typeof value === "boolean";
    return { kind: "scalar", value: known ? value : null, text, span, size: 1 };
  }

  #buildMap(node: YAMLMap, span: Span): MapNode {
    const entries = new Map<string, MapEntry>();
    const explicit = new Set<string>();
    let mergedAt: Span | undefined;
    for (const pair of node.items) {
      const keyNode = isNode(pair.key) ? pair.key : null;
      const valueNode = isNode(pair.value) ? pair.value : null;
      const key = spanOf(keyNode, span);
      if (isScalar(keyNode) && keyNode.value === "<<" && keyNode.type === "PLAIN") {
        if (mergedAt !== undefined) this.#reportDuplicate("<<", key, mergedAt);
        else this.#merge(this.build(valueNode, key), key, entries, explicit);
        mergedAt ??= key;
        continue;
      }
      const name = this.#readKey(keyNode, key);
      const value = this.build(valueNode, { start: key.end, end: key.end });
      if (name === undefined) continue;
      const earlier = entries.get(name);
      if (explicit.has(name) && earlier !== undefined) this.#reportDuplicate(name, key, earlier.key);
      else entries.set(name, { key, value });
      explicit.add(name);
    }
    let size = 1;
    for (const { value } of entries.values()) size += 1 + value.size;
    return { kind: "map", entries, span, size };
  }

  /** Adds the keys of `<<: *base` or `<<: [*a, *b]` that the mapping does not have; earlier bases win. */
  #merge(bases: YamlNode, key: Span, entries: Map<string, MapEntry>, explicit: ReadonlySet<string>): void {
    for (const base of bases.kind === "list" ? bases.items : [bases]) {
      if (base.kind === "broken") continue;
      if (base.kind !== "map") {
        this.#problems.error(
          base.span,
          '"<<" merges mappings, and this is none',
          "write <<: *anchor, where &anchor marks a mapping",
        );
        continue;
      }
      this.#spend(base.size, key);
      if (this.exploded) return;
      for (const [name, entry] of base.entries) {
        if (!entries.has(name) && !explicit.has(name)) entries.set(name, entry);
      }
    }
  }

  #readKey(node: LibraryNode | null, span: Span): string | undefined {
    if (isScalar(node)) {
      if (node.anchor !== undefined) this.#anchors.set(node.anchor, this.#buildValue(node, span));
      if (typeof node.value === "string" && node.value !== "") return node.value;
      const written = node.source ?? "";
      if (written === "") this.#problems.error(span, "this key is empty");
      else {
        const type = node.value === null ? "YAML's null" : `a ${typeof node.value}`;
        this.#problems.error(span, `the key ${written} is ${type}, not text`, `write "${written}" in quotes`);
      }
      return undefined;
    }
    this.#problems.error(span, "a key must be plain text", "aliases, lists and mappings cannot be keys");
    return undefined;
  }

  #resolve(name: string, span: Span): YamlNode {
    const target = this.#anchors.get(name);
    if (target !== undefined) {
      this.#spend(target.size, span);
      return this.exploded ? brokenNode(span) : target;
    }
    if (this.#anchors.has(name)) this.#problems.error(span, `the alias *${name} is inside the value it stands for`);
    else if (name !== "") {
      this.#problems.error(
        span,
        `the alias ${quote(`*${name}`)} has no anchor "&${name}" before it`,
        () =>
          didYouMean(name, this.#anchors.keys()) ??
          `write ${quote(this.#source.text.slice(span.start, span.end))} in quotes if it is text`,
      );
    }
    return brokenNode(span);
  }

  #spend(size: number, span: Span): void {
    this.#expanded += size;
    if (this.#expanded <= LIMITS.expandedValues || this.exploded) return;
    this.exploded = true;
    this.#problems.error(
      span,
      `aliases expand to more than ${LIMITS.expandedValues.toLocaleString("en")} values here`,
      "repeat less by aliases of aliases",
    );
  }

  #reportDuplicate(name: string, key: Span, earlier: Span): void {
    const { line, column } = this.#source.position(earlier.start);
    this.#problems.error(
      key,
      `the key ${quote(name)} is written twice; first at line ${line}, column ${column}`,
      name === "<<" ? "merge several mappings with <<: [*a, *b]" : "remove one of them",
    );
  }
}

function brokenNode(span: Span): BrokenNode {
  return { kind: "broken", span, size: 1 };
}

function spanOf(node: LibraryNode | null, place: Span): Span {
  const range = node?.range;
  return range === undefined || range === null ? place : { start: range[0], end: range[1] };
}
