/** `slipway image build`: an image from a Dockerfile, as `docker build` and `buildah bud` make it. */
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { join, resolve } from "node:path";
import type { BuildError, BuiltImage, Platform, PlatformBuildOptions } from "../build/index.ts";
import { formatDiagnostic } from "../pipelines/index.ts";
import type { ImageReference, ImageStore } from "../runtime/index.ts";
import { parseArguments, parseChoice, type Usage, UsageError, type Values } from "./arguments.ts";
import { BuildProgress } from "./build-progress.ts";
import { parseBuildArgs, parseOutputs, parsePairs, parseSecrets, parseSsh } from "./image-build-options.ts";
import { openTransfer, parseName } from "./image-store.ts";
import { limitOptions, parseLimits } from "./limits.ts";
import { LocalMachine } from "./local-host.ts";
import { imageStoreDir, registriesOption } from "./registries.ts";
import { type Context, dataDirOption, exitCodes, findDataDir, type Verb } from "./verb.ts";

const usage = {
  name: "image build",
  operands: "[CONTEXT]",
  summary: "Build an image from a Dockerfile",
  description: `
Each RUN is one of our containers, its changes a layer in the store; what an earlier build has made of the same is taken from
there. CONTEXT is the directory that COPY and ADD take from [default: the current one]; - has none and reads the Dockerfile
from standard input. Stages side by side where they do not need each other, without those that the target does not need.

Prints the image's digest: of its manifest, or of the index of several platforms. The exit code is 1 if the build failed.`,
  options: {
    file: {
      short: "f",
      value: "FILE",
      help: "The Dockerfile, - for standard input\n[default: Dockerfile or Containerfile in the context]",
    },
    tag: { short: "t", value: "NAME", multiple: true, help: "What the store is to call the image; may be repeated" },
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
    pull: { help: "Ask registries for base images that the store has, too" },
    network: { value: "KIND", help: "Of RUN and remote ADD: default, none or host" },
    output: {
      short: "o",
      value: "OUTPUT",
      multiple: true,
      help: "type=image, or type=oci|docker|local,dest=PATH; a path alone is type=local,\ncompression=gzip|zstd|uncompressed holds for all; may be repeated",
    },
    push: { help: "Push the image to the registries that its names name" },
    iidfile: { value: "FILE", help: "Write the digest there" },
    "metadata-file": { value: "FILE", help: "Write what was built there, as JSON" },
    progress: { value: "KIND", help: "plain or quiet [default: plain]" },
    quiet: { short: "q", help: "Print the digest only, like --progress quiet" },
    memory: limitOptions.memory,
    cpus: limitOptions.cpus,
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

type BuildValues = Values<typeof usage.options>;

/** Processes of one RUN. */
const MAX_PIDS = 32_768;

async function build(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(usage, argv);
  const progressKind = parseChoice("--progress", values.progress ?? "plain", ["plain", "quiet", "auto"]);
  const networkKind = parseNetwork(values.network);
  const source = findSource(operands[0] ?? ".", values.file, context);
  const what = {
    ...source,
    target: values.target,
    buildArgs: withEpoch(parseBuildArgs(values["build-arg"], context), context),
    secrets: parseSecrets(values.secret, context),
    ssh: parseSsh(values.ssh, context),
    labels: parsePairs("--label", values.label),
    annotations: parsePairs("--annotation", values.annotation),
    noCache: values["no-cache"],
  };
  const given = parseOutputs(values.output, context);
  const outputs = values.push ? [...given.outputs, { kind: "registry" as const }] : given.outputs;
  const unlimited = { cpuset: undefined, pids: undefined, disk: undefined, log: undefined };
  const { together: ceiling } = parseLimits({ ...values, ...unlimited }, context);
  const [{ isRootless, formatReference, parseReference }, { buildImages, BuildError, FileWorkers, ...builder }] =
    await Promise.all([import("../runtime/index.ts"), import("../build/index.ts")]);
  if (isRootless()) throw new Error(`Cannot build images as an ordinary user: ${rootOnly}`);
  const names = [...values.tag, ...given.names].map((name) => formatReference(parseName(name, parseReference)));
  if (outputs.some(({ kind }) => kind === "registry") && names.length === 0) {
    throw new UsageError("A push needs a name: -t REGISTRY/NAME:TAG");
  }
  const platforms = parsePlatforms(values.platform, builder.parsePlatform);
  const isQuiet = values.quiet || progressKind === "quiet";
  using transfer = await openTransfer({ ...values, quiet: isQuiet }, context);
  const { store, lease, client } = transfer;
  const signal = AbortSignal.any([transfer.signal, context.outputClosed]);
  const progress = new BuildProgress(context, { isQuiet });
  await using machine = new LocalMachine(join(findDataDir(values, context), "run"), {
    networkKind,
    imageStoreDir: imageStoreDir(values, context),
    ceiling,
  });
  await using workers = new FileWorkers();
  const images = new builder.StoreImages({
    store,
    client,
    lease,
    pull: values.pull ? "always" : "missing",
    keepArchives: false,
    onNote: (note) => progress.noted(note),
  });
  const resources = { memoryBytes: totalmem(), cpu: availableParallelism(), pids: MAX_PIDS };
  const where = { machine, store, lease, workers, images, resources, reporter: progress, signal };
  try {
    const built = await buildImages({
      ...what,
      ...where,
      contextDir: what.contextDir ?? (await store.emptyDirectory()),
      platforms,
      names: names.length === 0 ? undefined : [...new Set(names)],
      isKept: true,
      compression: given.compression,
    });
    for (const output of outputs) {
      await builder.writeOutput(built, output, {
        ...transfer,
        workers,
        overlaysByPath: machine.overlaysByPath,
        signal,
        onProgress: ({ digest, sentBytes, totalBytes }) =>
          transfer.progress.update("pushing", digest, sentBytes, totalBytes),
      });
      transfer.progress.clear();
    }
    if (names.length === 0) await keepNameless(built, { store, formatReference });
    writeReports(built, values, context);
    progress.finished(built.names);
    const isOutputTaken = outputs.some((output) => "path" in output && typeof output.path !== "string");
    if (!isOutputTaken) context.print(`${built.descriptor.digest}\n`);
    return exitCodes.success;
  } catch (error) {
    progress.flush();
    if (signal.aborted) context.warn(`slipway: Canceled: ${(signal.reason as Error).message}`);
    else if (error instanceof BuildError) tellFailure(error, context);
    else throw error;
    return exitCodes.buildFailed;
  }
}

const rootOnly =
  "a layer's files need owners that only root can give them, and a cache of their own; as root it works (sudo slipway image build)";

function parseNetwork(text: string | undefined): "job" | "none" | "host" {
  const kind = parseChoice("--network", text ?? "default", ["default", "none", "host"]);
  return kind === "default" ? "job" : kind;
}

function parsePlatforms(
  texts: readonly string[],
  parse: (text: string) => Platform | undefined,
): readonly Platform[] | undefined {
  const platforms = texts
    .flatMap((text) => text.split(","))
    .map((text) => {
      const platform = parse(text.trim());
      if (platform?.os === "linux") return platform;
      throw new UsageError(`--platform must be like linux/arm64, not ${JSON.stringify(text)}`);
    });
  return platforms.length === 0 ? undefined : platforms;
}

function withEpoch(args: Map<string, string>, { environment }: Context): Map<string, string> {
  const epoch = environment["SOURCE_DATE_EPOCH"];
  if (epoch !== undefined && epoch !== "" && !args.has("SOURCE_DATE_EPOCH")) args.set("SOURCE_DATE_EPOCH", epoch);
  return args;
}

interface Source extends Pick<PlatformBuildOptions, "dockerfile"> {
  /** Absent for an empty one. */
  readonly contextDir: string | undefined;
}

/** Where the files come from, and the Dockerfile. @throws {UsageError} */
function findSource(operand: string, file: string | undefined, context: Context): Source {
  if (operand === "-") {
    if (file !== undefined) throw new UsageError("Without a context there is no file: slipway image build -f FILE .");
    const content = readStandardInput();
    if (content.subarray(257, 262).toString() === "ustar" || content[0] === 0x1f) {
      throw new UsageError("Standard input is an archive; unpack it and name the directory");
    }
    return { contextDir: undefined, dockerfile: { content, name: "-" } };
  }
  if (/^(?:https?|git|ssh):\/\//.test(operand)) {
    throw new UsageError(`The context must be a directory, not ${JSON.stringify(operand)}: clone it before`);
  }
  const contextDir = resolve(context.directory, operand);
  if (statSync(contextDir, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new UsageError(`There is no directory ${JSON.stringify(operand)} to take as the context`);
  }
  if (file === undefined) {
    const name = ["Dockerfile", "Containerfile"].find((each) => existsSync(join(contextDir, each)));
    if (name !== undefined) return { contextDir, dockerfile: name };
    throw new UsageError(`There is no Dockerfile in ${JSON.stringify(operand)}: name one with --file`);
  }
  if (file === "-") return { contextDir, dockerfile: { content: readStandardInput(), name: "-" } };
  const path = [resolve(context.directory, file), resolve(contextDir, file)].find((each) => existsSync(each));
  if (path === undefined) throw new UsageError(`There is no file ${JSON.stringify(file)}`);
  const ignore = `${path}.dockerignore`;
  const ignored = existsSync(ignore) ? { ignore: readFileSync(ignore, "utf8") } : {};
  return { contextDir, dockerfile: { content: readFileSync(path), name: file, ...ignored } };
}

function readStandardInput(): Buffer {
  if (process.stdin.isTTY) throw new UsageError("The Dockerfile is read from standard input, which is a terminal");
  return readFileSync(0);
}

/** What has no name can be named by its digest until `slipway image gc`. */
async function keepNameless(
  { descriptor, images }: BuiltImage,
  {
    store,
    formatReference,
  }: { readonly store: ImageStore; readonly formatReference: (reference: ImageReference) => string },
): Promise<void> {
  const { digest } = descriptor;
  const name = formatReference({ registry: "localhost", repository: "unnamed", digest });
  const manifest = images[0]?.manifest ?? descriptor;
  await store.names.set(name, { manifest, ...(images.length > 1 && { resolved: digest }) });
}

/** The files that scripts read. */
function writeReports({ descriptor, images, names }: BuiltImage, values: BuildValues, context: Context): void {
  const write = (path: string, content: string) => writeFileSync(resolve(context.directory, path), content);
  if (values.iidfile !== undefined) write(values.iidfile, descriptor.digest);
  if (values["metadata-file"] === undefined) return;
  const { mediaType, digest, size } = descriptor;
  // BuildKit's names for it.
  const metadata = {
    "containerimage.digest": digest,
    "containerimage.descriptor": { mediaType, digest, size },
    ...(images.length === 1 && { "containerimage.config.digest": images[0]?.id }),
    ...(names.length > 0 && { "image.name": names.join(",") }),
  };
  write(values["metadata-file"], `${JSON.stringify(metadata, undefined, 2)}\n`);
}

function tellFailure({ message, diagnostic, others }: BuildError, context: Context): void {
  const color = context.errorColours;
  if (diagnostic === undefined) context.warn(`slipway: Cannot build the image: ${message}`);
  for (const each of diagnostic === undefined ? [] : [diagnostic, ...others])
    context.warn(formatDiagnostic(each, { color }));
}

export const buildVerbs: Readonly<Record<string, Verb>> = { build: { usage, run: build } };
