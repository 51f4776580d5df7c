/** The shape of `on`: which events of the repository start the pipeline. */
import { list } from "./collection.ts";
import { checkGlob } from "./glob.ts";
import { LIMITS } from "./limits.ts";
import type { RefFilter, Triggers } from "./pipeline.ts";
import {
  choice,
  describe,
  type Located,
  mapping,
  mismatch,
  type Place,
  readNode,
  refuse,
  type Shape,
  subject,
  type Table,
} from "./shape.ts";
import { quote } from "./suggestion.ts";
import type { YamlNode } from "./tree.ts";

const events = ["push", "tag", "pull_request"] as const;
type EventName = (typeof events)[number];

const eventSynonyms: Readonly<Record<string, EventName>> = {
  tags: "tag",
  pr: "pull_request",
  pull: "pull_request",
  pull_requests: "pull_request",
  pull_request_target: "pull_request",
  merge_request: "pull_request",
  merge_requests: "pull_request",
  commit: "push",
};

const eventHints: Readonly<Record<string, string>> = {
  manual: "every pipeline can be started by hand: leave this out",
  workflow_dispatch: "every pipeline can be started by hand: leave this out",
  schedule: "schedules are not supported yet",
  cron: "schedules are not supported yet",
  paths: "filters on changed files are not supported yet",
  "branches-ignore": 'write an exclusion: branches: ["!name"]',
  "tags-ignore": 'write an exclusion: tags: ["!name"]',
};

const everyName: RefFilter = { patterns: [] };

/** What a pipeline without `on` does. */
export const everyEvent: Triggers = { push: everyName, tag: everyName, pull_request: everyName };

const eventName = choice(events, eventSynonyms);

const pattern: Shape<string> = {
  expected: "a pattern on names",
  schema: { type: "string", minLength: 1, maxLength: LIMITS.patternLength },
  read(node, place) {
    if (node.kind !== "scalar" || node.value === null) return mismatch(node, place, "a pattern on names");
    const { text } = node;
    const fault = checkPattern(text);
    if (fault === undefined) return text;
    return refuse(node, place, fault.problem, fault.suggestion);
  },
};

function checkPattern(text: string): { problem: string; suggestion: string } | undefined {
  if (text.length > LIMITS.patternLength) {
    const problem = `it has ${text.length} characters; at most ${LIMITS.patternLength} are allowed`;
    return { problem, suggestion: 'shorten it with "*"' };
  }
  const full = /^!?refs\/(?:heads|tags)\//.exec(text)?.[0];
  if (full !== undefined) {
    const short = `${text.startsWith("!") ? "!" : ""}${text.slice(full.length)}`;
    return { problem: "names come without refs/…", suggestion: `write ${quote(short)}` };
  }
  return checkGlob(text.startsWith("!") ? text.slice(1) : text);
}

const patterns = list({
  expected: "a name, a pattern or a list of them",
  plural: "patterns",
  item: pattern,
  single: true,
  min: 1,
  max: LIMITS.patterns,
  suggestion: 'write a list: ["main", "release/*"]',
  emptySuggestion: "leave it out to mean every name",
});

const branchesField = {
  shape: patterns,
  summary: "Branch names or patterns (*, **, ?, [a-z]); one that begins with ! excludes. All branches if left out.",
};

const branchFilterTable = {
  noun: "a branch filter",
  fields: { branches: branchesField },
  synonyms: { branch: "branches", patterns: "branches" },
  hints: { ...eventHints, tags: 'write tags below "tag"' },
};

const tagFilterTable = {
  noun: "a tag filter",
  fields: {
    tags: {
      shape: patterns,
      summary: "Tag names or patterns (*, **, ?, [a-z]); one that begins with ! excludes. All tags if left out.",
    },
  },
  synonyms: { tag: "tags", patterns: "tags", names: "tags" },
  hints: { ...eventHints, branches: "a tag is on no branch: filter by tags" },
};

/** `push:` alone means every one; else a mapping with the one key of the filter. */
function filter<K extends "branches" | "tags">(
  key: K,
  table: Table<Readonly<Record<K, { shape: typeof patterns; summary: string }>>>,
): Shape<RefFilter> {
  const inner = mapping(table);
  return {
    expected: inner.expected,
    schema: { anyOf: [{ type: "null" }, inner.schema] },
    read(node, place) {
      if (node.kind === "scalar" && node.value === null) return everyName;
      if (node.kind !== "map") {
        const help =
          node.kind === "list" || (node.kind === "scalar" && typeof node.value === "string")
            ? `write ${key}: below it`
            : "write the event alone to mean every one";
        return mismatch(node, place, `empty or a mapping with "${key}"`, help);
      }
      const values: { readonly [P in "branches" | "tags"]?: Located<readonly Located<string>[]> } | undefined =
        inner.read(node, place);
      const found = values?.[key];
      return found === undefined ? everyName : toFilter(found);
    },
  };
}

function toFilter(found: Located<readonly Located<string>[]>): RefFilter {
  return { patterns: found.value.map((item) => item.value) };
}

const eventTable = {
  noun: "the filter of events",
  fields: {
    push: { shape: filter("branches", branchFilterTable), summary: "Commits pushed to a branch." },
    tag: { shape: filter("tags", tagFilterTable), summary: "A tag pushed." },
    pull_request: {
      shape: filter("branches", branchFilterTable),
      summary: "A pull request opened or updated; branches are those it wants to be merged into.",
    },
    branches: { ...branchesField, summary: `${branchesField.summary} For push and pull_request together.` },
  },
  synonyms: { ...eventSynonyms, branch: "branches" },
  hints: eventHints,
};

const eventMapping = mapping(eventTable);

/** `push`, `[push, tag]` or a mapping from events to filters. */
export const triggers: Shape<Triggers> = {
  expected: "events",
  schema: {
    anyOf: [eventName.schema, { type: "array", items: eventName.schema, minItems: 1 }, eventMapping.schema],
  },
  read(node, place) {
    if (node.kind === "map") return readMapping(node, place);
    if (node.kind === "scalar" && node.value === null) {
      return mismatch(node, place, "an event, a list or a mapping of them", 'leave "on" out to mean every event');
    }
    return readNames(node.kind === "list" ? node.items : [node], node, place);
  },
};

function readNames(items: readonly YamlNode[], node: YamlNode, place: Place): Triggers | undefined {
  if (items.length === 0) return reportNoEvent(node, place);
  const found: { -readonly [K in EventName]?: RefFilter } = {};
  for (const item of items) {
    const hint = item.kind === "scalar" && Object.hasOwn(eventHints, item.text) ? eventHints[item.text] : undefined;
    if (hint !== undefined) {
      place.problems.error(item.span, `${subject(place)} cannot be ${describe(item)}`, hint);
      continue;
    }
    const name = readNode(eventName, item, place);
    if (name === undefined) continue;
    if (found[name] !== undefined)
      place.problems.warning(item.span, `the event ${quote(name)} is listed twice`, "remove one");
    found[name] = everyName;
  }
  return found;
}

function readMapping(node: YamlNode, place: Place): Triggers | undefined {
  const values = eventMapping.read(node, place);
  if (values === undefined) return undefined;
  const { push, tag, pull_request: pullRequest, branches } = values;
  if (node.kind === "map" && node.entries.size === 0) return reportNoEvent(node, place);
  if (branches === undefined) {
    return {
      ...(push && { push: push.value }),
      ...(tag && { tag: tag.value }),
      ...(pullRequest && { pull_request: pullRequest.value }),
    };
  }
  for (const [name, event] of [
    ["push", push],
    ["pull_request", pullRequest],
  ] as const) {
    if (event === undefined || event.value.patterns.length === 0) continue;
    place.problems.error(
      branches.span,
      `"on" filters ${name} twice: by "branches" here and below "${name}"`,
      "keep one",
    );
  }
  const shared = toFilter(branches);
  // Beside neither of the two it stands for both.
  const both = push === undefined && pullRequest === undefined;
  return {
    ...((both || push !== undefined) && { push: shared }),
    ...(tag && { tag: tag.value }),
    ...((both || pullRequest !== undefined) && { pull_request: shared }),
  };
}

function reportNoEvent(node: YamlNode, place: Place): undefined {
  place.problems.error(
    node.span,
    `${subject(place)} names no event`,
    'write push, tag or pull_request, or leave "on" out',
  );
}
