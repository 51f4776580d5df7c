/** `slipway image …`: the images that agents and local runs keep. */
import type { Collected, CollectOptions, NamedImage, StoredImage } from "../runtime/index.ts";
import { parseArguments, type Usage, UsageError } from "./arguments.ts";
import { verbs as buildVerbs } from "./image-build.ts";
import { findImage, jsonOption, openStore, parseName, storeOptions } from "./image-store.ts";
import { transferVerbs } from "./image-transfer.ts";
import { ago, columns, parseAge } from "./table.ts";
import { cell, plain } from "./terminal.ts";
import { type Context, exitCodes, type Verb } from "./verb.ts";

const listUsage = {
  name: "image ls",
  summary: "List the images of the store",
  description: "Sizes are of the layers; several images may share them. Images without a tag are shown with --all.",
  options: {
    all: { short: "a", help: "Also images that no tag stands for any more" },
    json: jsonOption,
    ...storeOptions,
  },
  examples: [
    ["slipway image ls", "names, digests, sizes, last use"],
    ["slipway image ls --json | jq -r '.[].name'", "for scripts"],
  ],
} as const satisfies Usage;

interface Row {
  readonly name: string;
  /** Of the manifest. */
  readonly digest: string;
  readonly platform: string;
  readonly sizeBytes: number;
  readonly createdAtMs: number;
  readonly usedAtMs: number;
}

async function list(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(listUsage, argv);
  const { layerKey, readStoredImage } = await import("../runtime/images.ts");
  const store = await openStore(values, context);
  const sizes = new Map((await store.layers.list()).map(({ key, sizeBytes }) => [key, sizeBytes]));
  const rows: Row[] = [];
  for (const named of await store.names.list()) {
    if (named.name.includes("@") && !values.all) continue;
    const image = await readStoredImage(store, named.manifest.digest, undefined, { platform: "any" });
    if (image === undefined) continue;
    const keys = new Set(image.layers.map(({ diffId }) => layerKey(diffId)));
    const sizeBytes = [...keys].reduce((sum, key) => sum + (sizes.get(key) ?? 0), 0);
    const { name, createdAtMs, usedAtMs } = named;
    rows.push({ name, digest: image.manifestDigest, platform: platformOf(image), sizeBytes, createdAtMs, usedAtMs });
  }
  if (values.json) {
    context.print(`${JSON.stringify(rows, undefined, 2)}\n`);
    return exitCodes.success;
  }
  const { formatBytes } = await import("./size.ts");
  if (rows.length === 0) context.warn("No images yet: slipway image pull NAME");
  const { familiarName, parseReference } = await import("../runtime/images.ts");
  const shown = rows.map((row) => [
    cell(familiarName(parseReference(row.name)), 70),
    row.digest.slice(7, 19),
    row.platform,
    formatBytes(row.sizeBytes),
    ago(row.usedAtMs),
  ]);
  for (const line of columns([["NAME", "DIGEST", "PLATFORM", "SIZE", "USED"], ...shown])) context.print(`${line}\n`);
  return exitCodes.success;
}

function platformOf(image: StoredImage): string {
  const {
    os = "linux",
    architecture = "?",
    variant,
  } = JSON.parse(image.configContent.toString("utf8")) as {
    os?: string;
    architecture?: string;
    variant?: string;
  };
  return plain([os, architecture, ...(variant === undefined ? [] : [variant])].join("/"));
}

const inspectUsage = {
  name: "image inspect",
  operands: "NAME...",
  summary: "Show what an image is made of, as JSON",
  options: storeOptions,
  examples: [
    ["slipway image inspect node:24", "manifest, configuration, layers"],
    ["slipway image inspect node:24 | jq -r '.[0].config.config.Env[]'", "its environment"],
  ],
  count: { least: 1, most: 100 },
} as const satisfies Usage;

async function inspect(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(inspectUsage, argv);
  const { layerKey } = await import("../runtime/images.ts");
  const store = await openStore(values, context);
  const found = [];
  for (const operand of operands) {
    const { named, image } = await findImage(store, operand);
    const layers = await Promise.all(
      image.layers.map(async ({ descriptor, diffId }) => {
        const { mediaType, digest, size } = descriptor;
        const [files, archive, known] = await Promise.all([
          store.layers.find(layerKey(diffId)),
          store.blobs.has(digest, size),
          store.layers.blobs(layerKey(diffId)),
        ]);
        const repositories = known.find((blob) => blob.digest === digest)?.repositories ?? [];
        return { diffId, mediaType, digest, size, files: files ?? null, archiveInStore: archive, repositories };
      }),
    );
    found.push({
      names: await namesOf(store.names.list(), named),
      digest: image.manifestDigest,
      ...(named.resolved === undefined ? {} : { resolved: named.resolved }),
      mediaType: named.manifest.mediaType,
      createdAtMs: named.createdAtMs,
      usedAtMs: named.usedAtMs,
      layers,
      config: JSON.parse(image.configContent.toString("utf8")) as unknown,
    });
  }
  context.print(`${JSON.stringify(found, undefined, 2)}\n`);
  return exitCodes.success;
}

async function namesOf(all: Promise<readonly NamedImage[]>, { manifest }: NamedImage): Promise<string[]> {
  return (await all).filter((each) => each.manifest.digest === manifest.digest).map(({ name }) => name);
}

const removeUsage = {
  name: "image rm",
  operands: "NAME...",
  summary: "Remove images from the store",
  description: `
Removes the names, and of what they stand for whatever no other name needs. An image that a job uses stays, with its names;
the exit code is 1 then.`,
  options: { json: jsonOption, ...storeOptions },
  examples: [["slipway image rm node:22", "it is pulled again when a job wants it"]],
  count: { least: 1, most: 1000 },
} as const satisfies Usage;

async function remove(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(removeUsage, argv);
  const { collectImages, formatReference, parseReference } = await import("../runtime/images.ts");
  const store = await openStore(values, context);
  const names = operands.map((name) => formatReference(parseName(name, parseReference)));
  for (const [index, name] of names.entries()) {
    if ((await store.names.get(name)) === undefined) {
      throw new UsageError(`There is no image ${JSON.stringify(operands[index])} in the store`);
    }
  }
  const collected = await collectImages(store, { names });
  const kept = names.filter((name) => !collected.names.includes(name));
  await report(collected, values.json, context);
  for (const name of kept) context.warn(`slipway: ${name} is in use and stays`);
  return kept.length === 0 ? exitCodes.success : exitCodes.buildFailed;
}

const collectUsage = {
  name: "image gc",
  summary: "Remove what nobody uses from the store",
  description: `
Without options: images that no tag stands for any more, and layers and archives that belong to no image (those of images in
workspaces among them). With options: whatever they say, the longest unused first. What a job uses always stays.`,
  options: {
    budget: { value: "SIZE", help: "Until the store has at most so much: 20GiB" },
    "unused-for": { value: "DURATION", help: "What has not been used for so long: 14d, 12h" },
    json: jsonOption,
    ...storeOptions,
  },
  examples: [
    ["slipway image gc", "what is left over"],
    ["slipway image gc --budget 20GiB --unused-for 30d", "and what is old or too much"],
  ],
} as const satisfies Usage;

async function collect(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(collectUsage, argv);
  const { parseBytes } = await import("./size.ts");
  const options: CollectOptions = {
    untagged: values.budget === undefined && values["unused-for"] === undefined,
    ...(values.budget === undefined ? {} : { budgetBytes: parseBytes("--budget", values.budget) }),
    ...(values["unused-for"] === undefined ? {} : { unusedForMs: parseAge("--unused-for", values["unused-for"]) }),
  };
  const { collectImages } = await import("../runtime/images.ts");
  await report(await collectImages(await openStore(values, context), options), values.json, context);
  return exitCodes.success;
}

async function report(collected: Collected, json: boolean, context: Context): Promise<void> {
  if (json) {
    context.print(`${JSON.stringify(collected, undefined, 2)}\n`);
    return;
  }
  const { formatBytes } = await import("./size.ts");
  const { names, layers, freedBytes, keptBytes } = collected;
  for (const name of names) context.print(`removed ${plain(name)}\n`);
  context.print(`${formatBytes(freedBytes)} freed (${layers} layers), ${formatBytes(keptBytes)} left\n`);
}

export const verbs: Readonly<Record<string, Verb>> = {
  ls: { usage: listUsage, run: list },
  ...buildVerbs,
  ...transferVerbs,
  inspect: { usage: inspectUsage, run: inspect },
  rm: { usage: removeUsage, run: remove },
  gc: { usage: collectUsage, run: collect },
};
