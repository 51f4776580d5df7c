/** `slipway cache …`: what builds on this machine keep for later ones, beside the layers of the image store. */
import { existsSync, readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { parseArguments, parseChoice, type Usage, UsageError } from "./arguments.ts";
import { jsonOption, storeOptions } from "./image-store.ts";
import { ago, columns, parseAge } from "./table.ts";
import { cell, plain } from "./terminal.ts";
import { type Context, exitCodes, findDataDir, type Verb } from "./verb.ts";

const kinds = ["containers", "mount"] as const;

/** One cache of one agent, or of the commands of this data directory. */
interface Cache {
  /** `cache: {containers: NAME}` of a nested step, or `RUN --mount=type=cache` of a Dockerfile. */
  readonly kind: (typeof kinds)[number];
  readonly name: string;
  /** Whose: builds of another repository, or of a stranger's pull request, have others of the same name. */
  readonly owner: string;
  /** Of the data directory: `agent`, `run`, `run/0`. */
  readonly place: string;
  readonly bytes: number;
  readonly usedAtMs: number;
  /** @returns Whether it is removed; not while it is used. */
  remove(): Promise<boolean>;
}

const kindOption = { value: "KIND", help: "containers or mount only" } as const;

const listUsage = {
  name: "cache ls",
  summary: "List what builds have kept",
  description: `
KIND containers is what a nested step keeps by cache: { containers: NAME }; mount is a directory of RUN --mount=type=cache, in a
build: step or slipway image build. Layers are in the image store: slipway image ls and gc.`,
  options: { kind: kindOption, json: jsonOption, ...storeOptions },
  examples: [
    ["slipway cache ls", "names, owners, sizes, last use"],
    ["slipway cache ls --json | jq 'map(.bytes) | add'", "all together"],
  ],
} as const satisfies Usage;

async function list(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(listUsage, argv);
  const caches = ofKind(await findCaches(findDataDir(values, context)), values.kind);
  if (values.json) {
    const rows = caches.map(({ kind, name, owner, place, bytes, usedAtMs }) => ({
      kind,
      name,
      owner,
      place,
      bytes,
      usedAtMs,
    }));
    context.print(`${JSON.stringify(rows, undefined, 2)}\n`);
    return exitCodes.success;
  }
  const { formatBytes } = await import("./size.ts");
  const shown = caches.map(({ kind, name, owner, place, bytes, usedAtMs }) => [
    kind,
    cell(name, 50),
    cell(owner, 50) || "-",
    cell(place, 20),
    formatBytes(bytes),
    ago(usedAtMs),
  ]);
  if (shown.length === 0) context.warn("Builds have kept nothing yet");
  for (const line of columns([["KIND", "NAME", "OWNER", "PLACE", "SIZE", "USED"], ...shown]))
    context.print(`${line}\n`);
  return exitCodes.success;
}

const removeUsage = {
  name: "cache rm",
  operands: "[NAME...]",
  summary: "Remove what builds have kept",
  description: `
Removes the caches of these names, whoever they belong to; the next build begins without. One that a command uses stays, and the
exit code is 1 then.`,
  options: {
    all: { help: "All of them, or all that the other options name" },
    kind: kindOption,
    "unused-for": { value: "DURATION", help: "Only what has not been used for so long: 14d, 12h" },
    json: jsonOption,
    ...storeOptions,
  },
  examples: [
    ["slipway cache rm images", "what nested steps have kept by that name"],
    ["slipway cache rm --all --unused-for 30d", "what nobody has wanted for a month"],
  ],
  count: { least: 0, most: 1000 },
} as const satisfies Usage;

async function remove(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(removeUsage, argv);
  if (operands.length === 0 && !values.all) throw new UsageError("slipway cache rm needs a NAME, or --all");
  if (operands.length > 0 && values.all) throw new UsageError("slipway cache rm takes a NAME or --all, not both");
  const unusedForMs = values["unused-for"] === undefined ? 0 : parseAge("--unused-for", values["unused-for"]);
  const named = ofKind(await findCaches(findDataDir(values, context)), values.kind).filter(
    ({ name }) => values.all || operands.includes(name),
  );
  const missing = operands.find((operand) => !named.some(({ name }) => name === operand));
  if (missing !== undefined) throw new UsageError(`There is no cache ${JSON.stringify(missing)}: slipway cache ls`);
  const chosen = named.filter(({ usedAtMs }) => Date.now() - usedAtMs >= unusedForMs);
  const removed: Cache[] = [];
  for (const cache of chosen) {
    if (await cache.remove()) removed.push(cache);
    else context.warn(`slipway: ${plain(cache.name)} (${cache.place}) is in use and stays`);
  }
  const freedBytes = removed.reduce((sum, { bytes }) => sum + bytes, 0);
  if (values.json) {
    context.print(`${JSON.stringify({ removed: removed.map(({ name }) => name), freedBytes }, undefined, 2)}\n`);
  } else {
    const { formatBytes } = await import("./size.ts");
    for (const { name, place } of removed) context.print(`removed ${plain(name)} (${place})\n`);
    context.print(`${formatBytes(freedBytes)} freed\n`);
  }
  return removed.length === chosen.length ? exitCodes.success : exitCodes.buildFailed;
}

function ofKind(caches: readonly Cache[], kind: string | undefined): readonly Cache[] {
  if (kind === undefined) return caches;
  const wanted = parseChoice("--kind", kind, kinds);
  return caches.filter((cache) => cache.kind === wanted);
}

/** All of a data directory, the last used first. */
async function findCaches(dataDir: string): Promise<readonly Cache[]> {
  const { listCacheMounts, removeCacheMount } = await import("../build/index.ts");
  const { ContainerCaches, removeTrees } = await import("../runtime/index.ts");
  const found: Cache[] = [];
  for (const stateDir of stateDirs(dataDir)) {
    const place = relative(dataDir, stateDir);
    for (const { name, namespace: owner, path, bytes, usedAtMs } of await listCacheMounts(stateDir))
      found.push({ kind: "mount", name, owner, place, bytes, usedAtMs, remove: () => removeCacheMount(path) });
    const directory = join(stateDir, "container-caches");
    if (!existsSync(directory)) continue;
    const removals: Promise<void>[] = [];
    const caches = new ContainerCaches(directory, {
      budgetBytes: Infinity,
      remove: (path) => {
        const removal = removeTrees([path]);
        removals.push(removal);
        return removal;
      },
    });
    for (const { name, namespace, bytes, usedAtMs } of await caches.list()) {
      const removeOne = async () => {
        await caches.remove({ name, namespace });
        await Promise.all(removals);
        return true;
      };
      found.push({ kind: "containers", name, owner: namespace, place, bytes, usedAtMs, remove: removeOne });
    }
  }
  return found.toSorted((a, b) => b.usedAtMs - a.usedAtMs);
}

/** Of the agent, and of the commands that start containers themselves: several at a time have one each. */
function stateDirs(dataDir: string): string[] {
  const run = join(dataDir, "run");
  const slots = existsSync(run) ? readdirSync(run).filter((name) => /^\d+$/.test(name)) : [];
  return [join(dataDir, "agent"), run, ...slots.map((slot) => join(run, slot))];
}

export const verbs: Readonly<Record<string, Verb>> = {
  ls: { usage: listUsage, run: list },
  rm: { usage: removeUsage, run: remove },
};
