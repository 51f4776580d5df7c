/** From text to YAML nodes, with every syntax error in words a pipeline's author can act on. */
import { Composer, CST, Lexer, Parser, type Document, type YAMLError } from "yaml";
import { LIMITS } from "./limits.ts";
import type { Problems } from "./problems.ts";
import type { Source, Span } from "./source.ts";
import { quote } from "./suggestion.ts";

const emptyHelp = 'write at least a job: "jobs: { build: { steps: [{ run: make }] } }"';

/**
 * Parses one YAML 1.2 document with the core schema, so that `on`, `yes` and `1:30` stay text.
 *
 * Duplicate keys, aliases and merge keys are left to the tree, where they cost linear time (the library compares every
 * key with every other one). Undefined if there is nothing to look at.
 */
export function parseSyntax(source: Source, problems: Problems): Document.Parsed | undefined {
  const tokens = readTokens(source, problems);
  if (tokens === undefined) return undefined;
  const documents = tokens.filter((token) => token.type === "document");
  const [first, second] = documents;
  checkDirectives(tokens, problems);
  if (second !== undefined) {
    problems.error(
      wordAt(source, second.offset),
      "a second YAML document begins here; a pipeline file has one",
      "remove this line, or keep the other document in a file of its own",
    );
    problems.trustUntil(second.offset);
    tokens.splice(tokens.indexOf(second));
  }
  if (first === undefined) {
    const trailing = tokens.find((token) => token.type === "error");
    if (trailing === undefined) problems.error({ start: 0, end: 0 }, "the file is empty", emptyHelp);
  }
  for (const document of documents) reportOpenBrackets(document, problems);
  const composer = new Composer({
    version: "1.2",
    schema: "core",
    merge: false,
    resolveKnownTags: false,
    uniqueKeys: false,
  });
  const [document] = composer.compose(tokens, true, source.text.length);
  if (document === undefined) return undefined;
  reportErrors(document, source, problems);
  return first === undefined ? undefined : document;
}

/** Runs the lexer and the parser under the limits on nesting and tokens: both later stages recurse. */
function readTokens(source: Source, problems: Problems): CST.Token[] | undefined {
  const parser = new Parser();
  const tokens: CST.Token[] = [];
  let offset = 0;
  let count = 0;
  let scalar = false;
  for (const lexeme of new Lexer().lex(source.text)) {
    count += 1;
    if (count > LIMITS.yamlTokens) {
      problems.error(
        { start: offset, end: offset + 1 },
        `the file has more than ${LIMITS.yamlTokens.toLocaleString("en")} YAML tokens`,
        "divide it, or move scripts into files of the repository",
      );
      return undefined;
    }
    if (!scalar) checkClosed(lexeme, offset, problems);
    scalar = lexeme === CST.SCALAR;
    for (const token of parser.next(lexeme)) tokens.push(token);
    // The document itself is on the stack too.
    if (parser.stack.length > LIMITS.nesting + 1) {
      problems.error(
        { start: offset, end: offset + 1 },
        `lists and mappings are nested more than ${LIMITS.nesting} levels deep here`,
        "a pipeline needs fewer than 10",
      );
      return undefined;
    }
    if (!isMarker(lexeme)) offset += lexeme.length;
  }
  for (const token of parser.end()) tokens.push(token);
  return tokens;
}

/** Characters with which the lexer marks a scalar, a document or the end of a flow collection; not in the text. */
function isMarker(lexeme: string): boolean {
  return lexeme === CST.SCALAR || lexeme === CST.DOCUMENT || lexeme === CST.FLOW_END;
}

/** Reports an open quote where it opens; the parser would report it at the end of the file. */
function checkClosed(lexeme: string, offset: number, problems: Problems): void {
  const mark = lexeme[0];
  if (mark !== '"' && mark !== "'") return;
  if (lexeme.length > 1 && lexeme.endsWith(mark)) return;
  problems.error(
    { start: offset, end: offset + 1 },
    `this ${mark} is never closed`,
    `close the text with another ${mark}`,
  );
  problems.trustUntil(offset);
}

/** Reports an open bracket where it opens, for the same reason. Recursion is bounded by the limit on nesting. */
function reportOpenBrackets(token: CST.Token | null | undefined, problems: Problems): void {
  if (token?.type === "document") reportOpenBrackets(token.value, problems);
  if (!CST.isCollection(token)) return;
  if (
    token.type === "flow-collection" &&
    !token.end.some(({ type }) => type === "flow-seq-end" || type === "flow-map-end")
  ) {
    const [open, close] = token.start.type === "flow-map-start" ? ["{", "}"] : ["[", "]"];
    const start = token.start.offset;
    const help = `close it with "${close}", and indent the lines it continues on`;
    problems.error({ start, end: start + 1 }, `this "${open}" is never closed`, help);
    problems.trustUntil(start);
  }
  for (const item of token.items) {
    reportOpenBrackets("key" in item ? item.key : undefined, problems);
    reportOpenBrackets(item.value, problems);
  }
}

function checkDirectives(tokens: readonly CST.Token[], problems: Problems): void {
  for (const token of tokens) {
    if (token.type !== "directive" || /^%YAML[ \t]+1\.2[ \t]*(?:#.*)?$/.test(token.source)) continue;
    problems.error(
      { start: token.offset, end: token.offset + token.source.length },
      `the YAML directive ${quote(token.source)} is not supported`,
      "remove this line; pipelines are YAML 1.2",
    );
  }
}

function reportErrors(document: Document.Parsed, source: Source, problems: Problems): void {
  const errors = [...document.errors].sort((a, b) => a.pos[0] - b.pos[0]);
  let lastLine = 0;
  for (const error of errors) {
    // Reported where it opens.
    if (/^Missing closing |^Flow (?:map|sequence) .*end with/i.test(error.message)) continue;
    const span = wordAt(source, error.pos[0]);
    const { line } = source.position(span.start);
    // The first error of a line is the cause, the others are the parser finding its way again.
    if (line === lastLine) continue;
    lastLine = line;
    const [message, suggestion] = explain(error, source, span);
    problems.error(span, message, suggestion);
  }
  const [first] = errors;
  if (first !== undefined) {
    // A recovered tree is never run, even if the place that should have reported the error did not know it.
    if (!problems.failed) problems.error(wordAt(source, first.pos[0]), lower(first.message));
    problems.trustUntil(first.pos[0]);
  }
  for (const warning of document.warnings) reportWarning(warning, source, problems);
}

/** The library warns of tags it does not know; a tag nobody reads is a mistake. Its other warnings are about style. */
function reportWarning(warning: YAMLError, source: Source, problems: Problems): void {
  if (warning.code !== "TAG_RESOLVE_FAILED" && warning.code !== "BAD_COLLECTION_TYPE") return;
  const span = { start: warning.pos[0], end: warning.pos[1] };
  const tag = source.text.slice(span.start, span.end);
  problems.error(
    span,
    `the YAML tag ${quote(tag)} has no meaning in a pipeline`,
    /^![^!\s]/.test(tag) ? `remove it, or write '${tag}' in quotes if it is text` : "remove it",
  );
}

/** From the first character at or after `offset` that shows, to the end of its word. */
function wordAt(source: Source, offset: number): Span {
  const { text } = source;
  let start = Math.min(offset, text.length);
  while (start < text.length && /\s/.test(text[start] ?? "")) start += 1;
  if (start === text.length) start = text.slice(0, offset).trimEnd().length;
  let end = start;
  while (end < text.length && end - start < 60 && /\S/.test(text[end] ?? " ")) end += 1;
  return { start, end: Math.max(end, start + 1) };
}

const quoteHelp = 'put the whole value in quotes, or write it as a block: "run: |" and the text indented below';

const keyHelp = 'write "key: value", or indent the line more if it continues the text above';

function explain(error: YAMLError, source: Source, span: Span): [message: string, suggestion?: string] {
  const word = quote(source.text.slice(span.start, span.end));
  const tabbed = /^ *\t/.test(source.line(source.position(span.start).line));
  if (error.code === "TAB_AS_INDENT" || (tabbed && (error.code === "BAD_INDENT" || error.code === "MISSING_CHAR"))) {
    return ["a tab cannot indent YAML", "indent with spaces"];
  }
  switch (error.code) {
    case "BAD_INDENT":
      return explainIndent(error.message);
    case "BLOCK_AS_IMPLICIT_KEY":
      return error.message.startsWith("Nested")
        ? ['": " inside this value makes it a mapping', quoteHelp]
        : ["this list item is indented differently from the one before it", 'align the "-" of all items of a list'];
    case "MULTILINE_IMPLICIT_KEY":
      return [`there is no ":" after ${word}`, keyHelp];
    case "BAD_SCALAR_START":
      return [`a value cannot begin with ${quote(source.text[span.start] ?? "")}`, quoteHelp];
    case "BAD_DQ_ESCAPE":
      return [
        error.message.replace("Invalid escape sequence", "double quotes know no escape"),
        "write \\\\ for a backslash, or use single quotes",
      ];
    case "BAD_ALIAS":
      return error.message.startsWith("Alias")
        ? ['"*" begins an alias, and no name follows', 'write "*" in quotes if it is a pattern']
        : ['"&" begins an anchor, and no name follows', quoteHelp];
    case "MISSING_CHAR":
      return explainMissing(error.message, word);
    case "UNEXPECTED_TOKEN":
      return explainUnexpected(error.message, word, source.text[span.start - 1] === "'");
    case "MULTIPLE_ANCHORS":
    case "MULTIPLE_TAGS":
    case "ALIAS_PROPS":
    case "BAD_PROP_ORDER":
      return [lower(error.message), "remove one of them"];
    case "BLOCK_IN_FLOW":
      return ["an indented list or mapping cannot stand inside [ ] or { }", "write it inside the brackets too"];
    case "KEY_OVER_1024_CHARS":
      return ["a key is longer than 1024 characters"];
    case "BAD_COLLECTION_TYPE":
    case "BAD_DIRECTIVE":
    case "DUPLICATE_KEY":
    case "IMPOSSIBLE":
    case "MULTIPLE_DOCS":
    case "NON_STRING_KEY":
    case "RESOURCE_EXHAUSTION":
    case "TAG_RESOLVE_FAILED":
      break;
  }
  return [lower(error.message)];
}

function explainIndent(message: string): [string, string?] {
  if (message.startsWith("All mapping items")) {
    return [
      "this line is indented differently from the keys before it",
      "align the keys of one mapping, or indent the line more if it continues the text above",
    ];
  }
  if (message.startsWith("All sequence items")) {
    return ["this item is indented differently from the items before it", 'align the "-" of all items of a list'];
  }
  if (message.startsWith("Block scalar values")) {
    return ['the text after "|" or ">" is not indented', "indent every line of it with spaces, more than its key"];
  }
  return [lower(message)];
}

function explainMissing(message: string, word: string): [string, string?] {
  if (message.startsWith("Implicit map keys")) {
    return [`there is no ":" after ${word}`, keyHelp];
  }
  if (message.startsWith("Sequence item without")) {
    return ['this is neither an item ("- …") of the list nor indented under one', 'begin it with "- ", or indent it'];
  }
  if (message.startsWith("Comments must")) return ['a comment needs a space before "#"', 'write " #"'];
  return [lower(message)];
}

function explainUnexpected(message: string, word: string, afterQuote: boolean): [string, string?] {
  if (message.includes("on same line with key")) {
    return ["a list cannot begin on the line of its key", 'begin it on the next line, or write "[a, b]"'];
  }
  if (message.includes("Block scalar header")) {
    return [`${word} stands where the block of text is announced`, 'end the line after "|" or ">"'];
  }
  if (message.includes("at node end")) {
    const help = afterQuote ? "write '' for a quote inside single quotes" : quoteHelp;
    return [`${word} follows a value that is already complete`, help];
  }
  return [`${word} is unexpected here`, quoteHelp];
}

function lower(message: string): string {
  return message.slice(0, 1).toLowerCase() + message.slice(1);
}
