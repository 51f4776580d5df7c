/**
 * Parses a Dockerfile.
 *
 * The language is that of BuildKit 0.26 (Dockerfile frontend 1.21); all problems are found at once.
 */
import { type Diagnostic, didYouMean, Problems, quote, type Source, type Span } from "../pipelines/index.ts";
import { type FlagTable, type FlagValues, readFlags } from "./flags.ts";
import { readHealthcheck, healthcheckFlags } from "./healthcheck.ts";
import type {
  ArgInstruction,
  Assignment,
  CommandForm,
  CopyInstruction,
  Dockerfile,
  FromInstruction,
  InlineFile,
  Instruction,
  OnbuildInstruction,
  RunInstruction,
  Stage,
  StageInstruction,
  Word,
} from "./instruction.ts";
import { LIMITS } from "./limits.ts";
import { type HereDocument, type LogicalLine, parseHereDocument, readLines, readSource } from "./lines.ts";
import { checkMounts } from "./run-mount.ts";
import {
  readJson,
  splitBlanks,
  type SplitInstruction,
  splitInstruction,
  splitOnce,
  splitWords,
  type Text,
  wholeWord,
} from "./split.ts";
import type { EscapeCharacter } from "./word.ts";

export interface ParsedDockerfile {
  /** Absent if there is an error among the diagnostics. */
  readonly dockerfile?: Dockerfile;
  readonly diagnostics: readonly Diagnostic[];
  /** What the spans of the instructions point into. */
  readonly source: Source;
}

/**
 * Parses a Dockerfile. Never throws, on whatever input.
 *
 * @param options.file What messages call the file. @default "Dockerfile"
 */
export function parseDockerfile(
  input: string | Uint8Array,
  options: { readonly file?: string } = {},
): ParsedDockerfile {
  const { source, fault } = readSource(input);
  const problems = new Problems(source);
  const file = options.file ?? "Dockerfile";
  if (fault !== undefined) {
    problems.error({ start: 0, end: 1 }, fault);
    return { diagnostics: problems.toDiagnostics(file), source };
  }
  const { lines, directives } = readLines(source, problems, takesHereDocuments);
  const { escape, syntax } = directives;
  if (syntax !== undefined && !/^(docker\.io\/)?docker\/dockerfile(-upstream)?(:|@|$)/.test(syntax)) {
    problems.warning(
      { start: 0, end: 1 },
      `the frontend ${quote(syntax)} is not used: the file is read as a Dockerfile`,
    );
  }
  const parser = new Parser(escape, problems);
  const instructions = lines.flatMap((line) => parser.instruction(line) ?? []);
  const dockerfile = divide(instructions, escape, problems);
  const diagnostics = problems.toDiagnostics(file);
  return problems.failed || dockerfile === undefined ? { diagnostics, source } : { dockerfile, diagnostics, source };
}

/**
 * Parses what an image keeps of an ONBUILD.
 *
 * @param span Where the diagnostics of the Dockerfile that uses the image point: its FROM.
 * @returns The instruction, or what is wrong with it.
 */
export function parseTrigger(trigger: string, span: Span): StageInstruction | string {
  const { source, fault } = readSource(trigger);
  if (fault !== undefined) return fault;
  const problems = new Problems(source);
  const { lines } = readLines(source, problems, takesHereDocuments);
  const parser = new Parser("\\", problems);
  const instructions = lines.flatMap((line) => parser.instruction(line) ?? []);
  const [problem] = problems.toDiagnostics("").filter(({ severity }) => severity === "error");
  if (problem !== undefined) return problem.message;
  const [instruction, ...more] = instructions;
  if (instruction === undefined || more.length > 0) return "it is not one instruction";
  if (instruction.kind === "from" || instruction.kind === "maintainer" || instruction.kind === "onbuild") {
    return `${instruction.kind.toUpperCase()} is not allowed there`;
  }
  return { ...relocate(instruction, span), span, nameSpan: span };
}

/** Lets every word of a trigger stand where its FROM does. */
function relocate<T>(value: T, span: Span): T {
  if (Array.isArray(value)) return value.map((item: unknown) => relocate(item, span)) as T;
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, each]: [string, unknown]) => [
    key,
    key === "span" || key === "nameSpan" ? span : relocate(each, span),
  ]);
  return Object.fromEntries(entries) as T;
}

/** Divides instructions into what stands above the first FROM and the stages. */
function divide(
  instructions: readonly Instruction[],
  escape: EscapeCharacter,
  problems: Problems,
): Dockerfile | undefined {
  const globalArgs: ArgInstruction[] = [];
  const stages: { index: number; from: FromInstruction; instructions: StageInstruction[] }[] = [];
  for (const instruction of instructions) {
    const stage = stages.at(-1);
    if (instruction.kind === "from") {
      if (stages.length === LIMITS.stages) {
        problems.error(instruction.nameSpan, `the file has more than ${LIMITS.stages} stages`);
        return undefined;
      }
      stages.push({ index: stages.length, from: instruction, instructions: [] });
    } else if (stage !== undefined) stage.instructions.push(instruction);
    else if (instruction.kind === "arg") globalArgs.push(instruction);
    else {
      const name = instruction.kind.toUpperCase();
      problems.error(instruction.nameSpan, `${name} stands above the first FROM`, "only ARG may stand there");
    }
  }
  if (stages.length === 0 && !problems.failed) {
    problems.error({ start: 0, end: 1 }, "the file has no FROM", "write FROM and the image to build on, or scratch");
  }
  warnOfDoubles(stages, problems);
  return { escape, globalArgs, stages };
}

function warnOfDoubles(stages: readonly Stage[], problems: Problems): void {
  const names = new Set<string>();
  for (const { from } of stages) {
    if (from.stageName === undefined) continue;
    if (names.has(from.stageName)) problems.warning(from.nameSpan, `a second stage ${quote(from.stageName)}`);
    names.add(from.stageName);
  }
}

const heredocNames = new Set(["add", "copy", "run"]);

function takesHereDocuments(text: string): boolean {
  const line = { text, place: (at: number) => at };
  let { name, rest } = splitInstruction(line, "\\");
  if (name.text.toLowerCase() === "onbuild") ({ name, rest } = splitInstruction(rest, "\\"));
  return heredocNames.has(name.text.toLowerCase()) && readJson(rest.text) === undefined;
}

const noFlags = {} as const satisfies FlagTable;
const fromFlags = { platform: "text" } as const satisfies FlagTable;
const runFlags = { mount: "texts", network: "text", security: "text" } as const satisfies FlagTable;
const copyFlags = {
  from: "text",
  chown: "text",
  chmod: "text",
  link: "boolean",
  parents: "boolean",
  exclude: "texts",
} as const satisfies FlagTable;
const addFlags = {
  chown: "text",
  chmod: "text",
  link: "boolean",
  checksum: "text",
  exclude: "texts",
  unpack: "boolean",
  "keep-git-dir": "boolean",
} as const satisfies FlagTable;

/** What one instruction is read from. */
interface Context extends SplitInstruction {
  readonly hereDocuments: readonly HereDocument[];
  readonly common: { readonly text: string; readonly span: Span; readonly nameSpan: Span };
}

type Reader = (parser: Parser, context: Context) => Instruction | undefined;

/** Reads instructions one by one. */
class Parser {
  readonly escape: EscapeCharacter;
  readonly problems: Problems;

  constructor(escape: EscapeCharacter, problems: Problems) {
    this.escape = escape;
    this.problems = problems;
  }

  /** @returns undefined if it is reported. */
  instruction(line: LogicalLine): Instruction | undefined {
    return this.text(line, line);
  }

  /** @param text All of the line, or what stands behind its ONBUILD. */
  text(text: Text, line: LogicalLine): Instruction | undefined {
    const split = splitInstruction(text, this.escape);
    const name = split.name.text.toUpperCase();
    const reader = Object.hasOwn(readers, name) ? readers[name] : undefined;
    if (reader === undefined) {
      this.problems.error(split.name.span, `there is no instruction ${quote(split.name.text)}`, () =>
        didYouMean(name, Object.keys(readers)),
      );
      return undefined;
    }
    const common = { text: text.text.trim(), span: line.span, nameSpan: split.name.span };
    return reader(this, { ...split, hereDocuments: line.hereDocuments, common });
  }

  flags<const Table extends FlagTable>(context: Context, table: Table): FlagValues<Table> {
    return readFlags(context.name.text.toUpperCase(), context.flags, { table, problems: this.problems });
  }

  /** The one argument there must be. */
  value(context: Context): Word | undefined {
    this.flags(context, noFlags);
    const value = wholeWord(context.rest);
    if (value.text !== "") return value;
    this.problems.error(context.name.span, `${context.name.text.toUpperCase()} needs an argument`);
    return undefined;
  }

  command(context: Context): CommandForm | undefined {
    const json = this.json(context);
    if (json === "not strings") return undefined;
    return json === undefined ? { form: "shell", text: context.rest.text } : { form: "exec", args: json };
  }

  /** A JSON array; undefined if it is none. One that holds anything but strings is reported. */
  json(context: Context): readonly string[] | "not strings" | undefined {
    const json = readJson(context.rest.text);
    if (json === "not strings") {
      const { span } = wholeWord(context.rest);
      this.problems.error(
        span,
        "the JSON array holds something that is no string, or a NUL",
        "write every item in double quotes",
      );
    }
    return json;
  }

  /** A JSON array or words between blanks. */
  list(context: Context): Word[] | undefined {
    const json = this.json(context);
    if (json === "not strings") return undefined;
    const { span } = wholeWord(context.rest);
    const words = json?.map((text) => ({ text, span })) ?? splitBlanks(context.rest);
    if (words.length <= LIMITS.words) return words;
    this.problems.error(context.name.span, `it has more than ${LIMITS.words} arguments`);
    return undefined;
  }
}

const readers: Readonly<Record<string, Reader>> = {
  ADD: readCopy,
  ARG: readArg,
  CMD: readCommand,
  COPY: readCopy,
  ENTRYPOINT: readCommand,
  ENV: readAssignments,
  EXPOSE: readList,
  FROM: readFrom,
  HEALTHCHECK(parser, context) {
    const flags = parser.flags(context, healthcheckFlags);
    const healthcheck = readHealthcheck(context, flags, parser.problems);
    return healthcheck && { kind: "healthcheck", healthcheck, ...context.common };
  },
  LABEL: readAssignments,
  MAINTAINER(parser, context) {
    parser.problems.warning(
      context.name.span,
      "MAINTAINER is deprecated",
      "write LABEL org.opencontainers.image.authors=…",
    );
    return readValue(parser, context);
  },
  ONBUILD: readOnbuild,
  RUN: readRun,
  SHELL: readShell,
  STOPSIGNAL: readValue,
  USER: readValue,
  VOLUME: readList,
  WORKDIR: readValue,
};

function readFrom(parser: Parser, context: Context): FromInstruction | undefined {
  const { platform } = parser.flags(context, fromFlags);
  const [base, as, stageName, more] = splitBlanks(context.rest);
  const { problems } = parser;
  if (base === undefined || more !== undefined || (as !== undefined && stageName === undefined)) {
    problems.error(more?.span ?? context.name.span, "FROM takes an image, or an image, AS and a name");
    return undefined;
  }
  if (as !== undefined && as.text.toLowerCase() !== "as") {
    problems.error(as.span, `expected AS, found ${quote(as.text)}`, "write FROM image AS name");
    return undefined;
  }
  const name = stageName?.text.toLowerCase();
  if (stageName !== undefined && !/^[a-z][a-z0-9\-_.]*$/.test(name ?? "")) {
    problems.error(
      stageName.span,
      `${quote(stageName.text)} is no name of a stage`,
      "begin with a letter; letters, digits, -, _ and . may follow",
    );
    return undefined;
  }
  if (stageName !== undefined && (name === "scratch" || name === "context")) {
    problems.warning(stageName.span, `the stage's name ${quote(name)} is reserved`);
  }
  return {
    kind: "from",
    base,
    ...(platform && { platform }),
    ...(name !== undefined && { stageName: name }),
    ...context.common,
  };
}

function readRun(parser: Parser, context: Context): RunInstruction | undefined {
  const flags = parser.flags(context, runFlags);
  checkMounts(flags.mount, parser.problems);
  const command = parser.command(context);
  if (command === undefined) return undefined;
  if (command.form === "shell" ? command.text === "" : command.args.length === 0) {
    parser.problems.error(context.name.span, "RUN needs a command");
    return undefined;
  }
  return {
    kind: "run",
    command,
    hereDocuments: context.hereDocuments,
    mounts: flags.mount,
    ...(flags.network && { network: flags.network }),
    ...(flags.security && { security: flags.security }),
    ...context.common,
  };
}

function readCopy(parser: Parser, context: Context): CopyInstruction | undefined {
  const kind = context.name.text.toUpperCase() === "COPY" ? "copy" : "add";
  const flags: Partial<FlagValues<typeof copyFlags & typeof addFlags>> =
    kind === "copy" ? parser.flags(context, copyFlags) : parser.flags(context, addFlags);
  const words = parser.list(context);
  if (words === undefined) return undefined;
  const destination = words.at(-1);
  if (destination === undefined || words.length < 2) {
    const name = context.name.text.toUpperCase();
    parser.problems.error(destination?.span ?? context.name.span, `${name} needs a source and a destination`);
    return undefined;
  }
  if (parseHereDocument(destination.text) !== undefined) {
    parser.problems.error(destination.span, "a here-document cannot be the destination");
    return undefined;
  }
  const { sources, files } = divideSources(words.slice(0, -1), context.hereDocuments);
  return {
    kind,
    sources,
    files,
    destination,
    excludes: flags.exclude ?? [],
    link: flags.link ?? false,
    parents: flags.parents ?? false,
    ...(flags.from && { from: flags.from }),
    ...(flags.chown && { chown: flags.chown }),
    ...(flags.chmod && { chmod: flags.chmod }),
    ...(flags.checksum && { checksum: flags.checksum }),
    ...(flags["keep-git-dir"] !== undefined && { keepGitDir: flags["keep-git-dir"] }),
    ...(flags.unpack !== undefined && { unpack: flags.unpack }),
    ...context.common,
  };
}

/** Here-documents stand among the sources; a name that is used twice names its last content. */
function divideSources(
  words: readonly Word[],
  documents: readonly HereDocument[],
): { sources: Word[]; files: InlineFile[] } {
  const contents = new Map(documents.map((document) => [document.name, document]));
  const sources: Word[] = [];
  const files: InlineFile[] = [];
  for (const word of words) {
    const document = contents.get(parseHereDocument(word.text)?.name ?? "");
    if (document === undefined) sources.push(word);
    else files.push({ name: document.name, content: chomped(document), expand: document.expand });
  }
  return { sources, files };
}

/** The content of a here-document, without the tabs that `<<-` takes off. */
export function chomped({ content, chomp }: HereDocument): string {
  return chomp ? content.replaceAll(/^\t+/gm, "") : content;
}

function readArg(parser: Parser, context: Context): ArgInstruction | undefined {
  parser.flags(context, noFlags);
  const words = splitWords(context.rest, parser.escape);
  if (words.length === 0) parser.problems.error(context.name.span, "ARG needs a name");
  const args = words.slice(0, LIMITS.words).flatMap((word) => {
    const equals = word.text.indexOf("=");
    if (equals === 0) parser.problems.error(word.span, "an ARG without a name");
    if (equals === 0) return [];
    const name = { text: equals === -1 ? word.text : word.text.slice(0, equals), span: word.span };
    return [equals === -1 ? { name } : { name, value: { text: word.text.slice(equals + 1), span: word.span } }];
  });
  return args.length === 0 ? undefined : { kind: "arg", args, ...context.common };
}

function readAssignments(parser: Parser, context: Context): Instruction | undefined {
  parser.flags(context, noFlags);
  const name = context.name.text.toUpperCase();
  const assignments = parseAssignments(parser, context, name);
  if (assignments === undefined) return undefined;
  return { kind: name === "ENV" ? "env" : "label", assignments, ...context.common };
}

function parseAssignments(parser: Parser, context: Context, instruction: string): Assignment[] | undefined {
  const { problems } = parser;
  const words = splitWords(context.rest, parser.escape);
  const [first] = words;
  if (first === undefined || words.length > LIMITS.words) {
    problems.error(context.name.span, `${instruction} needs from one to ${LIMITS.words} assignments name=value`);
    return undefined;
  }
  if (!first.text.includes("=")) {
    const split = splitOnce(context.rest);
    if (split.rest === undefined) {
      problems.error(
        split.first.span,
        `${instruction} needs a value`,
        `write ${instruction} ${split.first.text}=value`,
      );
      return undefined;
    }
    const value = wholeWord(split.rest);
    problems.warning(
      context.name.span,
      `the form "${instruction} name value" is old`,
      `write ${instruction} name=value`,
    );
    return [{ name: split.first, value, legacy: true }];
  }
  const assignments: Assignment[] = [];
  for (const word of words) {
    const equals = word.text.indexOf("=");
    if (equals < 1) {
      const message = equals === 0 ? "an assignment without a name" : `expected name=value, found ${quote(word.text)}`;
      problems.error(word.span, message, equals === 0 ? undefined : "put values with spaces in quotes");
      continue;
    }
    assignments.push({
      name: { text: word.text.slice(0, equals), span: word.span },
      value: { text: word.text.slice(equals + 1), span: word.span },
      legacy: false,
    });
  }
  return assignments;
}

function readValue(parser: Parser, context: Context): Instruction | undefined {
  const value = parser.value(context);
  const kind = context.name.text.toLowerCase() as "workdir" | "user" | "stopsignal" | "maintainer";
  return value && { kind, value, ...context.common };
}

function readList(parser: Parser, context: Context): Instruction | undefined {
  parser.flags(context, noFlags);
  const name = context.name.text.toUpperCase();
  const words = name === "EXPOSE" ? splitBlanks(context.rest) : parser.list(context);
  if (words === undefined) return undefined;
  const values = words.map(({ text, span }) => ({ text: text.trim(), span }));
  const empty = values.find(({ text }) => text === "");
  if (values.length === 0 || empty !== undefined) {
    parser.problems.error(
      empty?.span ?? context.name.span,
      `${name} needs ${empty ? "names that are not empty" : "an argument"}`,
    );
    return undefined;
  }
  return { kind: name === "EXPOSE" ? "expose" : "volume", values, ...context.common };
}

function readCommand(parser: Parser, context: Context): Instruction | undefined {
  parser.flags(context, noFlags);
  const command = parser.command(context);
  const kind = context.name.text.toLowerCase() as "cmd" | "entrypoint";
  return command && { kind, command, ...context.common };
}

function readShell(parser: Parser, context: Context): Instruction | undefined {
  parser.flags(context, noFlags);
  const shell = parser.json(context);
  if (shell === "not strings") return undefined;
  if (shell === undefined || shell.length === 0) {
    parser.problems.error(context.name.span, "SHELL needs a JSON array", 'write SHELL ["/bin/sh", "-c"]');
    return undefined;
  }
  return { kind: "shell", shell, ...context.common };
}

function readOnbuild(parser: Parser, context: Context): OnbuildInstruction | undefined {
  const { problems } = parser;
  parser.flags(context, noFlags);
  if (context.rest.text === "") {
    problems.error(context.name.span, "ONBUILD needs an instruction");
    return undefined;
  }
  const { name } = splitInstruction(context.rest, parser.escape);
  const forbidden = name.text.toUpperCase();
  if (forbidden === "ONBUILD" || forbidden === "FROM" || forbidden === "MAINTAINER") {
    problems.error(name.span, `${forbidden} cannot be an ONBUILD trigger`);
    return undefined;
  }
  const line = { ...context.rest, span: context.common.span, hereDocuments: context.hereDocuments };
  if (parser.text(context.rest, line) === undefined) return undefined;
  const documents = context.hereDocuments.map(({ name: end, content }) => `\n${content}${end}`);
  return { kind: "onbuild", trigger: context.rest.text + documents.join(""), ...context.common };
}
