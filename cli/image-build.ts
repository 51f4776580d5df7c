/**
 * `slipway image build`: what is asked for, and the answer where nothing has changed since it was last asked; the build itself
 * is in image-build-run.ts, for which most of Slipway is loaded.
 */
import { existsSync, lstatSync, readFileSync, readSync, realpathSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { BuildOutput } from "../build/index.ts";
import { parseArguments, parseChoice, type Usage, UsageError, type Values } from "./arguments.ts";
import { BuildMemos, fingerprintContext, type Memo, memoKey } from "./build-memo.ts";
import {
  parseBuildArgs,
  isRemoteContext,
  parseCaches,
  parseContexts,
  parseHosts,
  parseOutputs,
  parsePairs,
  parseSecrets,
  parseSsh,
  remoteUrl,
} from "./image-build-options.ts";
import { registriesOption } from "./registries.ts";
import { duration, painter, plain } from "./terminal.ts";
import { type Context, dataDirOption, exitCodes, findDataDir, type Verb } from "./verb.ts";

export const usage = {
  name: "image build",
  operands: "[CONTEXT]",
  summary: "Build an image from a Dockerfile",
  description: `
Each RUN is one of our containers, its changes a layer in the store; what an earlier build has made of the same is taken from
there. CONTEXT is the directory that COPY and ADD take from [default: the current one], a Git repository (URL.git#REF:DIRECTORY) or an
archive (URL); - is an archive, or a Dockerfile alone, from standard input. Stages side by side where they do not need each other, without those that the target does not need.

Prints the image's digest: of its manifest, or of the index of several platforms. The exit code is 1 if the build failed.`,
  options: {
    file: {
      short: "f",
      value: "FILE",
      help: "The Dockerfile, - for standard input\n[default: Dockerfile or Containerfile in the context]",
    },
    tag: { short: "t", value: "NAME", multiple: true, help: "What the store is to call the image; may be repeated" },
    "build-context": {
      value: "NAME=PLACE",
      multiple: true,
      help: "What FROM NAME and --from=NAME mean: a directory, a URL, docker-image://IMAGE or\noci-layout://PATH; may be repeated",
    },
    target: { value: "STAGE", help: "The stage to build [default: the last]" },
    "build-arg": {
      value: "NAME[=VALUE]",
      multiple: true,
      help: "The value of an ARG; without VALUE, the environment's",
    },
    secret: {
      value: "id=ID,src=FILE",
      multiple: true,
      help: "For RUN --mount=type=secret: a file, or a variable (id=ID,env=NAME)",
    },
    ssh: {
      value: "ID[=SOCKET]",
      multiple: true,
      help: "For RUN --mount=type=ssh: an ssh agent [default: SSH_AUTH_SOCK]",
    },
    platform: { value: "OS/ARCH,…", multiple: true, help: "For these platforms; several make an index" },
    label: { value: "KEY=VALUE", multiple: true, help: "A label of the image" },
    annotation: { value: "KEY=VALUE", multiple: true, help: "An annotation of its manifest" },
    "no-cache": { help: "Use nothing that an earlier build has made" },
    "no-cache-filter": {
      value: "STAGE,…",
      multiple: true,
      help: "Use nothing that an earlier build has made of these stages",
    },
    "cache-from": {
      value: "PLACE",
      multiple: true,
      help: "Take layers from there, too, which another machine has exported: a name in a\nregistry, or a directory (./cache); may be repeated",
    },
    "cache-to": { value: "PLACE", multiple: true, help: "Export what this build has made or found there" },
    pull: { help: "Ask registries for base images that the store has, too" },
    network: { value: "KIND", help: "Of RUN and remote ADD: default, none or host" },
    "add-host": { value: "NAME:ADDRESS", multiple: true, help: "A line of /etc/hosts for RUN; may be repeated" },
    output: {
      short: "o",
      value: "OUTPUT",
      multiple: true,
      help: "type=image, or type=oci|docker|tar|local,dest=PATH; a path alone is type=local,\ncompression=gzip|zstd|uncompressed holds for all; may be repeated",
    },
    load: { help: "Nothing: the image is in the store anyway" },
    provenance: { value: "false", help: "Attestations are not made: nothing but false" },
    sbom: { value: "false", help: "The same" },
    push: { help: "Push the image to the registries that its names name" },
    iidfile: { value: "FILE", help: "Write the digest there" },
    "metadata-file": { value: "FILE", help: "Write what was built there, as JSON" },
    progress: { value: "KIND", help: "plain or quiet [default: plain]" },
    quiet: { short: "q", help: "Print the digest only, like --progress quiet" },
    memory: { value: "SIZE", help: "Memory of all steps together, like 8GiB [default: the machine's but a tenth]" },
    cpus: { value: "N", help: "CPU cores of all steps together, like 3.5 [default: all]" },
    registries: registriesOption,
    "data-dir": dataDirOption,
  },
  examples: [
    ["slipway image build -t app:1 .", "for slipway run (image: app:1) and image push"],
    ["slipway image build -t registry.example/team/app:1 --push .", "and push it"],
    ["slipway image build -o type=docker,dest=- . | docker load", "for another runtime"],
    ["slipway image build --target test --no-cache .", "up to a stage, everything anew"],
  ],
  count: { least: 0, most: 1 },
} as const satisfies Usage;

/** The first that is there, as the build has it, which is not loaded for an answer from a memo. */
const contextIgnores = [".containerignore", ".dockerignore"] as const;

/** Of a Dockerfile or ignore file, as the build has it. */
const MAX_FILE_BYTES = 4 * 2 ** 20;

export type BuildValues = Values<typeof usage.options>;

/** What is asked for, read from the command line. */
export type BuildRequest = ReturnType<typeof readCommandLine> & {
  /** Where the command's memo is, and what it must be about; absent if it can have none. */
  readonly memo: { readonly key: string; readonly context: string } | undefined;
};

async function build(argv: readonly string[], context: Context): Promise<number> {
  const startedAtMs = performance.now();
  const given = readCommandLine(argv, context);
  const request: BuildRequest = { ...given, memo: findMemo(given) };
  const { memos, values, isQuiet } = request;
  const memo = request.memo && memos.find(request.memo.key, request.memo.context);
  if (memo === undefined) return await (await import("./image-build-run.ts")).runBuild(request, context);
  if (!isQuiet) {
    for (const title of memo.titles) context.writeError(`${cachedLine(title, context)}\n`);
    const { imageNames, titles } = memo;
    const total = { steps: titles.length, cached: titles.length, durationMs: performance.now() - startedAtMs };
    context.writeError(`${summary(imageNames, total)}\n`);
  }
  writeReports(memo, values, context);
  context.print(`${memo.digest}\n`);
  return exitCodes.success;
}

function readCommandLine(argv: readonly string[], context: Context) {
  const { values, operands } = parseArguments(usage, argv);
  const progressKind = parseChoice("--progress", values.progress ?? "plain", ["plain", "quiet", "auto"]);
  for (const option of ["provenance", "sbom"] as const) {
    if (values[option] !== undefined && values[option] !== "false")
      throw new UsageError(`--${option} must be false: attestations are not supported`);
  }
  const given = parseOutputs(values.output, context);
  const outputs: readonly BuildOutput[] = values.push ? [...given.outputs, { kind: "registry" }] : given.outputs;
  const what = {
    ...findSource(operands[0] ?? ".", values.file, context),
    contexts: parseContexts(values["build-context"], context),
    noCacheStages: values["no-cache-filter"].flatMap((text) => text.split(",")),
    extraHosts: parseHosts(values["add-host"]),
    target: values.target,
    buildArgs: withEpoch(parseBuildArgs(values["build-arg"], context), context),
    secrets: parseSecrets(values.secret, context),
    ssh: parseSsh(values.ssh, context),
    labels: parsePairs("--label", values.label),
    annotations: parsePairs("--annotation", values.annotation),
    compression: given.compression,
  };
  return {
    values,
    what,
    names: [...values.tag, ...given.names],
    platforms: values.platform.flatMap((text) => text.split(",")),
    networkKind: parseNetwork(values.network),
    outputs,
    importCache: parseCaches("--cache-from", values["cache-from"], context),
    exportCache: parseCaches("--cache-to", values["cache-to"], context),
    isQuiet: values.quiet || progressKind === "quiet",
    memos: new BuildMemos(findDataDir(values, context)),
  };
}

function findMemo({ what, values, ...request }: ReturnType<typeof readCommandLine>): BuildRequest["memo"] {
  const { source: place, contexts, dockerfile, buildArgs, secrets, ssh, ...rest } = what;
  if (
    values["no-cache"] ||
    what.noCacheStages.length > 0 ||
    values.pull ||
    request.outputs.length > 0 ||
    request.exportCache.length > 0 ||
    place.kind !== "directory" ||
    dockerfile === undefined ||
    contexts.size > 0
  )
    return undefined;
  const contextDir = place.directory;
  const { names, platforms, networkKind } = request;
  const isInContext = typeof dockerfile === "string";
  const read = [...contextIgnores, ...(isInContext ? [dockerfile, `${dockerfile}.dockerignore`] : [])];
  if (!read.every((name) => isPlainOrMissing(join(contextDir, name)))) return undefined;
  const ignored = isInContext ? readIfThere(join(contextDir, `${dockerfile}.dockerignore`)) : dockerfile.ignore;
  const found = contextIgnores.map((name) => readIfThere(join(contextDir, name)));
  const ignore = ignored ?? found.find((text) => text !== undefined) ?? "";
  const directory = realpathSync(contextDir);
  const context = fingerprintContext(directory, ignore);
  if (context === undefined) return undefined;
  const source = isInContext
    ? { name: dockerfile, content: readIfThere(join(contextDir, dockerfile)) }
    : { name: dockerfile.name, content: Buffer.from(dockerfile.content).toString("latin1") };
  const given = { args: [...buildArgs], secrets: [...secrets.keys()], agents: [...ssh.keys()] };
  return { key: memoKey({ ...rest, ...given, source, ignore, names, platforms, networkKind, directory }), context };
}

/** Whoever made the context may have put a link to a device or a pipe there, which the build refuses to read. */
function isPlainOrMissing(path: string): boolean {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  return stat === undefined || (stat.isFile() && stat.size <= MAX_FILE_BYTES);
}

function readIfThere(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, "latin1") : undefined;
}

/** How a step is shown that an earlier build has done: `[1/2] CACHED RUN make`. */
export function cachedLine(title: string, { errorColours }: Context): string {
  const paint = painter(errorColours);
  const label = stepLabel(title);
  return `${paint("cyan", plain(label))} ${paint("green", "CACHED")}${plain(title.slice(label.length))}`;
}

/** `[build 2/5]` of a step's title. */
export function stepLabel(title: string): string {
  return /^\[[^\]]*\]/.exec(title)?.[0] ?? "";
}

/** The last line of a build that has succeeded. */
export function summary(
  names: readonly string[],
  total: { readonly steps: number; readonly cached: number; readonly durationMs: number },
): string {
  const steps = total.steps === 1 ? "1 step" : `${total.steps} steps`;
  return [...names, steps, `${total.cached} cached`, duration(total.durationMs)].join(", ");
}

/** Writes the files that scripts read. */
export function writeReports(
  { digest, metadata }: Pick<Memo, "digest" | "metadata">,
  values: BuildValues,
  context: Context,
): void {
  const write = (path: string, content: string) => {
    try {
      writeFileSync(resolve(context.directory, path), content);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw new Error(`The image is built, but ${JSON.stringify(path)} cannot be written: ${code}`, { cause: error });
    }
  };
  if (values.iidfile !== undefined) write(values.iidfile, digest);
  if (values["metadata-file"] !== undefined)
    write(values["metadata-file"], `${JSON.stringify(metadata, undefined, 2)}\n`);
}

function parseNetwork(text: string | undefined): "job" | "none" | "host" {
  const kind = parseChoice("--network", text ?? "default", ["default", "none", "host"]);
  return kind === "default" ? "job" : kind;
}

function withEpoch(args: Map<string, string>, { environment }: Context): Map<string, string> {
  const epoch = environment["SOURCE_DATE_EPOCH"];
  if (epoch !== undefined && epoch !== "" && !args.has("SOURCE_DATE_EPOCH")) args.set("SOURCE_DATE_EPOCH", epoch);
  return args;
}

interface Source {
  /** In the context; or its content, and what messages call it. Absent: what the context has. */
  readonly dockerfile:
    | string
    | { readonly content: Buffer; readonly name: string; readonly ignore?: string }
    | undefined;
  /** Where the files come from. */
  readonly source: Place;
}

type Place =
  | { readonly kind: "none" }
  | { readonly kind: "input"; readonly head: Buffer }
  | { readonly kind: "directory"; readonly directory: string }
  | { readonly kind: "url"; readonly url: string };

/** Where the files come from, and the Dockerfile. @throws {UsageError} */
function findSource(operand: string, file: string | undefined, context: Context): Source {
  if (operand === "-") {
    const head = readHead();
    if (isArchive(head)) {
      if (file === "-") throw new UsageError("Standard input cannot be both the context and the Dockerfile");
      return { source: { kind: "input", head }, dockerfile: namedDockerfile(file) };
    }
    if (file !== undefined) throw new UsageError("Without a context there is no file: slipway image build -f FILE .");
    const content = Buffer.concat([head, readFileSync(0)]);
    return { source: { kind: "none" }, dockerfile: { content, name: "-" } };
  }
  const directory = resolve(context.directory, operand);
  const isDirectory = statSync(directory, { throwIfNoEntry: false })?.isDirectory() === true;
  if (!isDirectory && isRemoteContext(operand)) {
    const source = { kind: "url", url: remoteUrl(operand) } as const;
    return { source, dockerfile: namedDockerfile(file) };
  }
  if (!isDirectory) throw new UsageError(`There is no directory ${JSON.stringify(operand)} to take as the context`);
  const source = { kind: "directory", directory } as const;
  if (file === undefined) {
    const name = ["Dockerfile", "Containerfile"].find((each) => existsSync(join(directory, each)));
    if (name !== undefined) return { source, dockerfile: name };
    throw new UsageError(`There is no Dockerfile in ${JSON.stringify(operand)}: name one with --file`);
  }
  if (file === "-") return { source, dockerfile: { content: readStandardInput(), name: "-" } };
  const path = [resolve(context.directory, file), resolve(directory, file)].find((each) => existsSync(each));
  if (path === undefined) throw new UsageError(`There is no file ${JSON.stringify(file)}`);
  const ignore = `${path}.dockerignore`;
  const ignored = existsSync(ignore) ? { ignore: readNamed(ignore).toString() } : {};
  return { source, dockerfile: { content: readNamed(path), name: file, ...ignored } };
}

/** Of a context that is not here yet: in it, as Docker has it, or standard input. */
function namedDockerfile(file: string | undefined): Source["dockerfile"] {
  return file === "-" ? { content: readStandardInput(), name: "-" } : file;
}

/** Reads so much of standard input that an archive is known by it. */
function readHead(): Buffer {
  if (process.stdin.isTTY) throw new UsageError("The Dockerfile is read from standard input, which is a terminal");
  const head = Buffer.alloc(512);
  let length = 0;
  for (let read = -1; read !== 0 && length < head.length; length += read) read = readInput(head, length);
  return head.subarray(0, length);
}

/** As readFileSync does: whoever writes may be slower than we are. */
function readInput(buffer: Buffer, at: number): number {
  for (;;) {
    try {
      return readSync(0, buffer, at, buffer.length - at, null);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EOF") return 0;
      if (code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
    }
  }
}

/** How tar archives begin, compressed or not. */
const magics = [
  [0x1f, 0x8b],
  [0x28, 0xb5, 0x2f, 0xfd],
  [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00],
  [0x42, 0x5a, 0x68],
];

function isArchive(head: Buffer): boolean {
  return (
    head.subarray(257, 262).toString() === "ustar" ||
    magics.some((magic) => head.subarray(0, magic.length).equals(Buffer.from(magic)))
  );
}

/** A file, or the pipe of a `<(command)`: a link to /dev/zero has no end. @throws {UsageError} */
function readNamed(path: string): Buffer {
  const stat = statSync(path);
  if (stat.isFIFO() || (stat.isFile() && stat.size <= MAX_FILE_BYTES)) return readFileSync(path);
  throw new UsageError(`${JSON.stringify(path)} is not a file of at most ${MAX_FILE_BYTES / 2 ** 20} MiB`);
}

function readStandardInput(): Buffer {
  if (process.stdin.isTTY) throw new UsageError("The Dockerfile is read from standard input, which is a terminal");
  return readFileSync(0);
}

export const verbs: Readonly<Record<string, Verb>> = { build: { usage, run: build } };
