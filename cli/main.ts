/**
 * The `slipway` command: finds the verb, runs it, turns its outcome into an exit code.
 *
 * Start-up is what a person waits for most often, so this file imports nothing heavy and each verb only when it is asked for.
 */
import { readFileSync } from "node:fs";
import type { RootlessObstacle } from "../runtime/rootless.ts";
import { helpText, table, UsageError, wantsHelp } from "./arguments.ts";
import { didYouMean } from "./did-you-mean.ts";
import { painter, wantsColours } from "./terminal.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

interface Entry {
  readonly summary: string;
  /** @param verb Of a group: what comes with it may be all that is loaded. */
  readonly load: (verb?: string) => Promise<{ readonly verbs: Readonly<Record<string, Verb>> }>;
  /** Has verbs below it: `slipway repo add`. */
  readonly isGroup?: true;
  /** Starts containers, or would like to: an ordinary user gets the privileges for that first. */
  readonly containers?: "needed" | "wished";
}

/** In the order of the help. */
export const entries: Readonly<Record<string, Entry>> = {
  run: {
    summary: "Run this checkout's pipeline here: no server, no Redis",
    load: () => import("./run.ts"),
    containers: "needed",
  },
  lint: { summary: "Check pipeline files, all problems at once", load: () => import("./lint.ts") },
  doctor: {
    summary: "Show what this host can do and what mends the rest",
    load: () => import("./doctor.ts"),
    containers: "wished",
  },
  up: {
    summary: "Start server, agent and embedded Redis together",
    load: () => import("./up.ts"),
    containers: "needed",
  },
  server: { summary: "Start the server: webhooks, API, dashboard", load: () => import("./server.ts") },
  agent: {
    summary: "Start an agent: runs jobs on this machine",
    load: () => import("./agent.ts"),
    containers: "needed",
  },
  repo: { summary: "Add, list or remove repositories", load: () => import("./repo.ts"), isGroup: true },
  secret: { summary: "Set, list or remove secrets of pipelines", load: () => import("./secret.ts"), isGroup: true },
  build: { summary: "List, show, follow, cancel or rerun builds", load: () => import("./build.ts"), isGroup: true },
  image: {
    summary: "Build, list, pull, push, import, export or remove images",
    // Answers in a few milliseconds where nothing has changed.
    load: (verb) => (verb === "build" ? import("./image-build.ts") : import("./image.ts")),
    isGroup: true,
    containers: "needed",
  },
  cache: {
    summary: "List or remove what builds keep for later ones",
    load: () => import("./cache.ts"),
    isGroup: true,
    containers: "needed",
  },
  shell: { summary: "Open a terminal in a running or a kept failed step", load: () => import("./shell.ts") },
  oci: { summary: "Run OCI bundles: an OCI runtime for Podman and others", load: () => import("./oci.ts") },
  demo: {
    summary: "Show all of it in a few seconds, in a temporary directory",
    load: () => import("./demo.ts"),
    containers: "needed",
  },
};

void main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<void> {
  const entry = findEntry(argv[0] ?? "");
  const obstacle = entry?.containers === undefined || wantsHelp(argv) ? undefined : await gainPrivileges();
  const context = createContext(obstacle);
  let code = await runVerb(argv, context);
  await flush(process.stdout);
  // What a file does not take is told in the next turn.
  await new Promise(setImmediate);
  const reason: unknown = context.outputClosed.reason;
  if (reason instanceof OutputError) code = report(reason, "", context);
  await flush(process.stderr);
  // Not process.exitCode: what a verb leaves open must not keep a finished command.
  process.exit(code);
}

/** The output is not whole: its disk is full, for example. */
class OutputError extends Error {
  override readonly name = "OutputError";

  constructor(code: string) {
    super(`Cannot write the output: ${code}`);
  }
}

/** Waits until a reader has taken what was written, or is gone: `process.exit` would drop what a full pipe has not taken yet. */
async function flush(stream: NodeJS.WriteStream): Promise<void> {
  if (stream.writableLength === 0 || stream.destroyed) return;
  await new Promise<void>((resolve) => {
    stream.once("close", resolve);
    stream.write("", () => resolve());
  });
}

function findEntry(name: string): Entry | undefined {
  return Object.hasOwn(entries, name) ? entries[name] : undefined;
}

/**
 * Makes sure that containers can be started: root can do it, anybody else's command starts itself again in a user namespace,
 * and this call does not return then. Before anything has been opened or printed.
 */
async function gainPrivileges(): Promise<RootlessObstacle | undefined> {
  const { enterUserNamespace, ownCommand } = await import("../runtime/rootless.ts");
  return await enterUserNamespace(ownCommand(process.env));
}

async function runVerb(argv: readonly string[], context: Context): Promise<number> {
  const words = [...argv];
  let name = "";
  try {
    const first = words.shift();
    if (first === undefined) throw new UsageError("No verb given");
    if (["help", "--help", "-h"].includes(first)) return await showHelp(words, context);
    if (["version", "--version", "-V"].includes(first)) return showVersion(context);
    const entry = findEntry(first);
    if (entry?.isGroup !== undefined) name = `${first} `;
    const verb = await findVerb(first, words, context);
    if (verb === undefined) return exitCodes.success;
    name = `${verb.usage.name} `;
    if (verb.ownHelp === undefined && wantsHelp(words)) {
      context.print(helpText(verb.usage));
      return exitCodes.success;
    }
    if (entry?.containers === "needed" && context.obstacle !== undefined) {
      const { found, mend } = context.obstacle;
      throw new Error(`Cannot start containers as this user: ${found}; ${mend}; "slipway doctor" tells more`);
    }
    return await verb.run(words, context);
  } catch (error) {
    return report(error, name, context);
  }
}

/** Takes the verb's words off `words`; undefined if only a group's help was wanted (and shown). */
async function findVerb(first: string, words: string[], context: Context): Promise<Verb | undefined> {
  const entry = findEntry(first);
  if (entry === undefined) {
    const what = first.startsWith("-") ? "option" : "verb";
    throw new UsageError(`There is no ${what} ${JSON.stringify(first)}${didYouMean(first, Object.keys(entries))}`);
  }
  const { verbs } = await entry.load(words[0]);
  if (entry.isGroup === undefined) return verbs[first];
  const second = words.shift();
  const names = Object.keys(verbs);
  if (second === "--help" || second === "-h") {
    context.print(groupHelp(first, entry, verbs));
    return undefined;
  }
  if (second === undefined) throw new UsageError(`slipway ${first} needs a verb: ${names.join(", ")}`);
  const verb = Object.hasOwn(verbs, second) ? verbs[second] : undefined;
  if (verb === undefined) {
    throw new UsageError(`slipway ${first} has no verb ${JSON.stringify(second)}${didYouMean(second, names)}`);
  }
  return verb;
}

async function showHelp(words: string[], context: Context): Promise<number> {
  const first = words.shift();
  if (first === undefined) {
    context.print(overview());
    return exitCodes.success;
  }
  if (words.length === 0) words.push("--help");
  const verb = await findVerb(first, words, context);
  if (verb !== undefined) context.print(helpText(verb.usage));
  return exitCodes.success;
}

function overview(): string {
  return [
    "Usage: slipway VERB [OPTIONS]",
    "",
    "CI whose agents run every step in its own fresh Linux container.",
    "",
    "Verbs:",
    ...table(Object.entries(entries).map(([name, { summary }]) => [name, summary] as const)),
    "",
    "slipway VERB --help shows a verb's options and examples; slipway --version the version.",
    "",
    "Exit codes: 0 success, 1 the build failed, 2 wrong usage, 125 Slipway's own error.",
    "NO_COLOR=1 switches colours off, FORCE_COLOR=1 on; SLIPWAY_DEBUG=1 adds stack traces to errors.",
    "",
  ].join("\n");
}

function groupHelp(name: string, entry: Entry, verbs: Readonly<Record<string, Verb>>): string {
  return [
    `Usage: slipway ${name} VERB [OPTIONS]`,
    "",
    `${entry.summary}.`,
    "",
    "Verbs:",
    ...table(Object.entries(verbs).map(([verb, { usage }]) => [verb, usage.summary] as const)),
    "",
    `slipway ${name} VERB --help shows a verb's options and examples.`,
    "",
  ].join("\n");
}

function showVersion(context: Context): number {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
  context.print(`slipway ${version}\n`);
  return exitCodes.success;
}

/** @param name The verb's, with a space behind it; empty if there was none. */
function report(error: unknown, name: string, context: Context): number {
  if (error instanceof UsageError) {
    context.warn(`slipway: ${error.message}`);
    context.warn(`Try: slipway ${name}--help`);
    return exitCodes.wrongUsage;
  }
  context.warn(`slipway: ${error instanceof Error ? error.message : String(error)}`);
  const isMistake = error instanceof TypeError || error instanceof ReferenceError || error instanceof RangeError;
  if (error instanceof Error && (isMistake || context.environment["SLIPWAY_DEBUG"])) {
    for (let cause: unknown = error; cause instanceof Error; cause = cause.cause)
      context.warn(cause.stack ?? cause.message);
  }
  return error instanceof Error
    ? ((error as { exitCode?: number }).exitCode ?? exitCodes.ourError)
    : exitCodes.ourError;
}

function createContext(obstacle: RootlessObstacle | undefined): Context {
  const closed = new AbortController();
  process.stdout.on("error", ({ code }: NodeJS.ErrnoException) => {
    if (closed.signal.aborted) return;
    // A reader that has seen enough, or a terminal that was closed, is no error; anything else that breaks the output is. What
    // runs is taken down in either case.
    const isGone = code === "EPIPE" || code === "EIO";
    closed.abort(isGone ? new Error("nobody reads the output any more") : new OutputError(code ?? "unknown"));
  });
  process.stderr.on("error", () => {});
  const colours = wantsColours(process.env, process.stdout.isTTY === true);
  return {
    environment: process.env,
    directory: process.cwd(),
    isRoot: process.geteuid?.() === 0,
    obstacle,
    colours,
    errorColours: wantsColours(process.env, process.stderr.isTTY === true),
    paint: painter(colours),
    print: (text) => void (closed.signal.aborted || process.stdout.write(text)),
    warn: (line) => void process.stderr.write(`${line}\n`),
    writeError: (text) => void process.stderr.write(text),
    errorIsTerminal: process.stderr.isTTY === true,
    outputClosed: closed.signal,
  };
}
