/** `slipway image pull|push|import|export`: images on their way into the store and out of it. */
import { createWriteStream, existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArguments, type Usage, UsageError } from "./arguments.ts";
import type { PushProgress } from "../runtime/index.ts";
import { findImage, findIndex, openTransfer, parseName, transferOptions } from "./image-store.ts";
import { type Context, exitCodes, type Verb } from "./verb.ts";

const pullUsage = {
  name: "image pull",
  operands: "NAME...",
  summary: "Pull images from registries into the store",
  description: `
NAME is read as Docker reads it: node:24, ghcr.io/owner/name@sha256:…, registry.example:5000/team/image:tag. Only what the
store does not have is fetched. Prints each image's digest.`,
  options: {
    platform: { value: "OS/ARCH", help: "Another platform than this machine's: linux/arm64, linux/arm/v7" },
    archives: { help: "Keep the layers' archives too, for push and export where the registry cannot be asked" },
    ...transferOptions,
  },
  examples: [
    ["slipway image pull node:24", "so that no job has to wait for it"],
    ["slipway image pull --archives registry.example/team/app:1", "to export it without a network"],
  ],
  count: { least: 1, most: 1000 },
} as const satisfies Usage;

async function pull(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(pullUsage, argv);
  const { defaultLayerLimits, parseReference, pullImage } = await import("../runtime/images.ts");
  const references = operands.map((name) => parseName(name, parseReference));
  const platform = parsePlatform(values.platform);
  using transfer = await openTransfer(values, context);
  for (const reference of references) {
    const pulled = await pullImage(reference, {
      ...transfer,
      policy: "always",
      limits: defaultLayerLimits,
      platform,
      keepArchives: values.archives,
      onProgress: ({ digest, receivedBytes, totalBytes, state }) =>
        transfer.progress.update("pulling", digest, state === "there" ? totalBytes : receivedBytes, totalBytes),
      onNote: (note) => transfer.progress.note(note),
    });
    transfer.progress.clear();
    context.print(`${pulled.resolved}\n`);
  }
  return exitCodes.success;
}

function parsePlatform(text: string | undefined) {
  if (text === undefined) return undefined;
  const [os = "", architecture = "", variant, rest] = text.split("/");
  if (!/^\w+$/.test(os) || !/^\w+$/.test(architecture) || rest !== undefined) {
    throw new UsageError(`--platform must be OS/ARCH or OS/ARCH/VARIANT, not ${JSON.stringify(text)}`);
  }
  return { os, architecture, ...(variant === undefined ? {} : { variant }) };
}

const pushUsage = {
  name: "image push",
  operands: "NAME [TARGET]",
  summary: "Push an image of the store to a registry",
  description: `
Pushes what the registry does not have. Layers that another of its repositories has are taken over there; what is sent goes
in chunks, and goes on from the last one if the connection breaks. TARGET is the name in the registry, if it is another one.`,
  options: transferOptions,
  examples: [
    ["slipway image push registry.example/team/app:1", "under its own name"],
    ["slipway image push app:1 registry.example/team/app:1", "under another one"],
  ],
  count: { least: 1, most: 2 },
} as const satisfies Usage;

async function push(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(pushUsage, argv);
  const { parseReference, pushImage, pushIndex } = await import("../runtime/images.ts");
  const [name = "", target = name] = operands;
  const reference = parseName(target, parseReference);
  using transfer = await openTransfer(values, context);
  const { named, image } = await findImage(transfer.store, name, transfer.lease);
  const index = await findIndex(transfer.store, named, transfer.lease);
  const options = {
    ...transfer,
    onProgress: ({ digest, sentBytes, totalBytes }: PushProgress) =>
      transfer.progress.update("pushing", digest, sentBytes, totalBytes),
  };
  if (index === undefined) await pushImage(image, reference, options);
  else await pushIndex(index, reference, options);
  transfer.progress.clear();
  context.print(`${index?.descriptor.digest ?? image.manifestDigest}\n`);
  return exitCodes.success;
}

const importUsage = {
  name: "image import",
  operands: "PATH [NAME...]",
  summary: "Take an image archive or a root file system into the store",
  description: `
PATH is an OCI layout (directory or tar), a docker save archive or the tar of a root file system, compressed or not; - reads
standard input. NAME is what the store is to call it; without one, what the archive says.`,
  options: transferOptions,
  examples: [
    ["docker save app:1 | slipway image import -", "as Docker calls it"],
    ["slipway image import rootfs.tar.zst base:bookworm", "what debootstrap and tar have made"],
  ],
  count: { least: 1, most: 100 },
} as const satisfies Usage;

async function importPath(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(importUsage, argv);
  const { formatReference, importImage, parseReference } = await import("../runtime/images.ts");
  const [path = "", ...given] = operands;
  const names = given.map((name) => formatReference(parseName(name, parseReference)));
  using transfer = await openTransfer(values, context);
  const { store, lease, signal } = transfer;
  const options = { store, lease, signal, ...(names.length === 0 ? {} : { names }) };
  const imported =
    path === "-"
      ? await fromStandardInput((file) => importImage(file, options))
      : await importImage(resolve(context.directory, path), options);
  for (const name of imported.names) context.print(`${name}\n`);
  return exitCodes.success;
}

/** Its members are needed in another order than they come in. */
async function fromStandardInput<T>(use: (file: string) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(process.env["TMPDIR"] ?? tmpdir(), "slipway-import-"));
  try {
    const file = join(directory, "image");
    await pipeline(process.stdin, createWriteStream(file, { flags: "wx", mode: 0o600 }));
    return await use(file);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

const exportUsage = {
  name: "image export",
  operands: "NAME",
  summary: "Write an image as an archive: OCI layout and docker save in one",
  description: `
Writes a tar archive that docker load, podman load and skopeo (oci-archive:, docker-archive:) read; to standard output unless
that is a terminal. A FILE that ends with a slash, or is a directory, becomes an OCI layout directory. The same image gives
the same bytes.`,
  options: {
    output: { short: "o", value: "FILE", help: "Where to write it [default: standard output]" },
    ...transferOptions,
  },
  examples: [
    ["slipway image export app:1 | docker load", "to another runtime"],
    ["slipway image export -o app/ app:1", "an OCI layout"],
  ],
  count: { least: 1, most: 1 },
} as const satisfies Usage;

async function exportImage(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(exportUsage, argv);
  const { output } = values;
  if (output === undefined && process.stdout.isTTY) {
    throw new UsageError("An archive is nothing for a terminal: give --output FILE, or redirect the output");
  }
  const { exportArchive, exportDirectory, writeArchiveFile } = await import("../runtime/images.ts");
  using transfer = await openTransfer(values, context);
  const { named, image: one } = await findImage(transfer.store, operands[0] as string, transfer.lease);
  const image = (await findIndex(transfer.store, named, transfer.lease)) ?? one;
  const options = { ...transfer, name: named.name };
  if (output === undefined) {
    await pipeline(Readable.from(exportArchive(image, options), { objectMode: false }), process.stdout);
    return exitCodes.success;
  }
  const path = resolve(context.directory, output);
  if (output.endsWith("/") || (existsSync(path) && statSync(path).isDirectory())) {
    await exportDirectory(image, path, options);
  } else {
    await writeArchiveFile(exportArchive(image, options), path, options);
  }
  return exitCodes.success;
}

export const transferVerbs: Readonly<Record<string, Verb>> = {
  pull: { usage: pullUsage, run: pull },
  push: { usage: pushUsage, run: push },
  import: { usage: importUsage, run: importPath },
  export: { usage: exportUsage, run: exportImage },
};
