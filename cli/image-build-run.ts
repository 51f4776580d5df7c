/** The build that `slipway image build` asks for, as `docker build` and `buildah bud` do it. */
import { closeSync, createWriteStream, writeSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import {
  BuildError,
  type BuiltImage,
  buildImages,
  Contexts,
  type ContextSource,
  FileWorkers,
  parsePlatform,
  type Platform,
  StoreImages,
  writeOutput,
} from "../build/index.ts";
import { formatDiagnostic } from "../pipelines/index.ts";
import {
  formatReference,
  type ImageLease,
  type ImageStore,
  importImage,
  layerKey,
  parseReference,
} from "../runtime/index.ts";
import { UsageError } from "./arguments.ts";
import type { Memo } from "./build-memo.ts";
import { BuildProgress } from "./build-progress.ts";
import { type BuildRequest, writeReports } from "./image-build.ts";
import { openTransfer, parseName } from "./image-store.ts";
import type { NamedSource } from "./image-build-options.ts";
import { parseLimits } from "./limits.ts";
import { LocalMachine } from "./local-host.ts";
import { imageStoreDir } from "./registries.ts";
import { type Context, exitCodes, findDataDir } from "./verb.ts";

/** Processes of one RUN. */
const MAX_PIDS = 32_768;

/** How long the command waits for layers to be on disk. */
const SETTLE_MS = 2000;

/** Builds the image, and does with it what is asked for. @returns The exit code. */
export async function runBuild(request: BuildRequest, context: Context): Promise<number> {
  const { values, what, outputs, isQuiet, networkKind } = request;
  const references = request.names.map((name) => parseName(name, parseReference));
  if (references.some(({ digest }) => digest !== undefined))
    throw new UsageError("What an image is called cannot have a digest: that is what it gets");
  const names = [...new Set(references.map(formatReference))];
  if (outputs.some(({ kind }) => kind === "registry") && names.length === 0)
    throw new UsageError("A push needs a name: -t REGISTRY/NAME:TAG");
  const platforms = parsePlatforms(request.platforms);
  for (const place of [...request.importCache, ...request.exportCache])
    if (place.kind === "registry") parseName(place.name, parseReference);
  const unlimited = { cpuset: undefined, pids: undefined, disk: undefined, log: undefined };
  const { together: ceiling } = parseLimits({ ...values, ...unlimited }, context);
  using transfer = await openTransfer({ ...values, quiet: isQuiet }, context);
  const { store, lease, client } = transfer;
  const signal = AbortSignal.any([transfer.signal, context.outputClosed]);
  const progress = new BuildProgress(context, { isQuiet });
  const stateDir = join(findDataDir(values, context), "run");
  const imageDir = imageStoreDir(values, context);
  await using machine = new LocalMachine(stateDir, { networkKind, imageStoreDir: imageDir, ceiling });
  await using workers = new FileWorkers();
  const images = new RecordedImages({
    store,
    client,
    lease,
    pull: values.pull ? "always" : "missing",
    keepArchives: false,
    onNote: (note) => progress.noted(note),
  });
  try {
    const resources = { memoryBytes: totalmem(), cpu: availableParallelism(), pids: MAX_PIDS };
    const where = { machine, store, lease, workers, resources, reporter: progress, signal };
    await using contexts = await Contexts.open(where);
    const main = await openMain(what.source, { contexts, store, signal });
    const built = await buildImages({
      ...what,
      ...where,
      contextDir: main.directory,
      contextSeconds: main.modifiedSeconds,
      contexts: await contexts.named(await importLayouts(what.contexts, { store, lease, signal })),
      dockerfile: main.dockerfile === undefined ? what.dockerfile : { content: main.dockerfile, name: "Dockerfile" },
      images,
      platforms,
      names,
      isKept: true,
      noCache: values["no-cache"],
      importCache: request.importCache,
      exportCache: request.exportCache,
      client,
    });
    for (const output of outputs) {
      await writeOutput(built, output, {
        ...transfer,
        workers,
        overlaysByPath: machine.overlaysByPath,
        signal,
        onProgress: ({ digest, sentBytes, totalBytes }) =>
          transfer.progress.update("pushing", digest, sentBytes, totalBytes),
      });
      transfer.progress.clear();
    }
    const kept = names.length > 0 ? names : [await keepNameless(built, store)];
    const result = { digest: built.descriptor.digest, metadata: describeBuilt(built) };
    writeReports(result, values, context);
    if (!progress.hasSaidMore) keepMemo(request, { ...result, built, kept, images, titles: progress.titles });
    progress.finished(names);
    const isOutputTaken = outputs.some((output) => "path" in output && typeof output.path !== "string");
    if (!isOutputTaken) context.print(`${built.descriptor.digest}\n`);
    // What is not known to be on disk when the machine goes down is made again; a disk that is busy is not worth more.
    await Promise.race([store.settled(), delay(SETTLE_MS, undefined, { ref: false })]);
    return exitCodes.success;
  } catch (error) {
    progress.flush();
    if (signal.aborted) context.warn(`slipway: Canceled: ${(signal.reason as Error).message}`);
    else if (error instanceof BuildError) tellFailure(error, context);
    else if (isDiskFull(error)) {
      const place = JSON.stringify(findDataDir(values, context));
      context.warn(
        `slipway: Cannot build the image: the disk of the data directory ${place} is full; "slipway image gc" makes room`,
      );
    } else throw error;
    return exitCodes.buildFailed;
  }
}

/** Makes the context ready: standard input is read to its end, for archives are read twice. */
async function openMain(
  source: BuildRequest["what"]["source"],
  {
    contexts,
    store,
    signal,
  }: { readonly contexts: Contexts; readonly store: ImageStore; readonly signal: AbortSignal },
) {
  if (source.kind === "none") return { directory: await store.emptyDirectory() };
  if (source.kind !== "input") return await contexts.main(source);
  const file = await store.scratchFile();
  try {
    writeSync(file, source.head);
    await pipeline(process.stdin, createWriteStream("", { fd: file, autoClose: false, start: source.head.length }), {
      signal,
    });
    return await contexts.main({ kind: "archive", path: `/proc/self/fd/${file}`, name: "standard input" });
  } finally {
    closeSync(file);
  }
}

/** Layouts become images of the store, which are found by their digest. */
async function importLayouts(
  named: ReadonlyMap<string, NamedSource>,
  options: { readonly store: ImageStore; readonly lease: ImageLease; readonly signal: AbortSignal },
): Promise<ReadonlyMap<string, ContextSource>> {
  const sources = new Map<string, ContextSource>();
  for (const [name, source] of named) {
    if (source.kind !== "layout") {
      if (source.kind === "image") parseName(source.name, parseReference);
      sources.set(name, source);
      continue;
    }
    const { manifest } = await importImage(source.path, { ...options, names: [] });
    if (source.digest !== undefined && source.digest !== manifest.digest)
      throw new UsageError(
        `--build-context ${name}: the layout has the image ${manifest.digest}, not ${source.digest}`,
      );
    const reference = { registry: "localhost", repository: "layout", digest: manifest.digest };
    await options.store.names.set(formatReference(reference), { manifest, isLocal: true });
    sources.set(name, { kind: "image", name: formatReference(reference) });
  }
  return sources;
}

function parsePlatforms(texts: readonly string[]): readonly Platform[] | undefined {
  const platforms = texts.map((text) => {
    const platform = parsePlatform(text.trim());
    if (platform?.os === "linux") return platform;
    throw new UsageError(`--platform must be like linux/arm64, not ${JSON.stringify(text)}`);
  });
  return platforms.length === 0 ? undefined : platforms;
}

/** Base images, and which ones were asked for. */
class RecordedImages extends StoreImages {
  readonly names = new Set<string>();

  override async resolve(...[name, options]: Parameters<StoreImages["resolve"]>) {
    const found = await super.resolve(name, options);
    this.names.add(formatReference(parseReference(name)));
    return found;
  }
}

/** What has no name can be named by its digest until `slipway image gc`. @returns The name that it gets. */
async function keepNameless({ descriptor, images }: BuiltImage, store: ImageStore): Promise<string> {
  const { digest } = descriptor;
  const name = formatReference({ registry: "localhost", repository: "unnamed", digest });
  const manifest = images[0]?.manifest ?? descriptor;
  await store.names.set(name, { manifest, isLocal: true, ...(images.length > 1 && { resolved: digest }) });
  return name;
}

/** As BuildKit names it. */
function describeBuilt({ descriptor, images, names }: BuiltImage): object {
  const { mediaType, digest, size } = descriptor;
  return {
    "containerimage.digest": digest,
    "containerimage.descriptor": { mediaType, digest, size },
    ...(images.length === 1 && { "containerimage.config.digest": images[0]?.id }),
    ...(names.length > 0 && { "image.name": names.join(",") }),
  };
}

/** Writes down how the next such command can do without a build. */
function keepMemo(
  { memo, memos }: BuildRequest,
  found: Pick<Memo, "digest" | "metadata" | "titles"> & {
    readonly built: BuiltImage;
    readonly kept: readonly string[];
    readonly images: RecordedImages;
  },
): void {
  if (memo === undefined) return;
  const { built, kept, images, digest, metadata, titles } = found;
  const names = [...images.names, ...kept].map((name) => memos.name(name));
  const { stored } = built;
  const all = "images" in stored ? stored.images : [stored];
  const digests = all.flatMap((image) => [
    image.manifestDigest,
    image.manifest.config.digest,
    ...image.layers.map(({ descriptor }) => descriptor.digest),
  ]);
  const parts = [
    ...[digest, ...digests].map((each) => `blobs/${each.replace(":", "/")}`),
    ...all.flatMap(({ layers }) => layers.map(({ diffId }) => `layers/${layerKey(diffId)}`)),
    ...built.images.flatMap(({ directories }) => directories.map((each) => `layers/${basename(dirname(each))}`)),
  ];
  memos.keep(memo.key, {
    context: memo.context,
    names: names.filter((name) => name !== undefined),
    // Archives of base layers need not be there.
    parts: [...new Set(parts)].filter((part) => memos.has(part)),
    titles,
    imageNames: built.names,
    digest,
    metadata,
  });
}

/** Errors of threads have only their text. */
function isDiskFull(error: unknown): boolean {
  const { code, message } = error as NodeJS.ErrnoException;
  return code === "ENOSPC" || code === "EDQUOT" || /: (?:ENOSPC|EDQUOT)$/.test(message);
}

function tellFailure({ message, diagnostic, others }: BuildError, context: Context): void {
  const color = context.errorColours;
  if (diagnostic === undefined) context.warn(`slipway: Cannot build the image: ${message}`);
  for (const each of diagnostic === undefined ? [] : [diagnostic, ...others])
    context.warn(formatDiagnostic(each, { color }));
}
