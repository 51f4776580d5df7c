/** What every verb gets and gives. */
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { RootlessObstacle } from "../runtime/rootless.ts";
import type { Paint } from "./terminal.ts";
import type { Usage, Values } from "./arguments.ts";

/** The process around a verb; the only way to it, so that tests and verbs agree on what is read. */
export interface Context {
  readonly environment: NodeJS.ProcessEnv;
  readonly directory: string;
  readonly isRoot: boolean;
  /** Why this user's command has no privileges to start containers with, if it wants any. */
  readonly obstacle: RootlessObstacle | undefined;
  /** Whether standard output shows colours. */
  readonly colours: boolean;
  /** Whether standard error does. */
  readonly errorColours: boolean;
  readonly paint: Paint;
  /** Writes to standard output as it is; add the newline. */
  readonly print: (text: string) => void;
  /** Writes one line to standard error. */
  readonly warn: (line: string) => void;
  /** Writes to standard error as it is. */
  readonly writeError: (text: string) => void;
  readonly errorIsTerminal: boolean;
  /** Aborted once nobody reads standard output any more (`| head`). */
  readonly outputClosed: AbortSignal;
}

/** One verb of the command. */
export interface Verb {
  readonly usage: Usage;
  /** Answers --help itself: words after it may belong to somebody else. */
  readonly ownHelp?: true;
  /** Does the work and says how it went: 0 success, 1 the build failed. Thrown errors become 2 (`UsageError`), their `exitCode` or 125. */
  run(argv: readonly string[], context: Context): Promise<number>;
}

export const exitCodes = { success: 0, buildFailed: 1, wrongUsage: 2, ourError: 125 } as const;

/** The option every verb with state has. */
export const dataDirOption = {
  value: "DIR",
  help: "Where Slipway keeps its data (SLIPWAY_DATA_DIR)\n[default: /var/lib/slipway as root, else ~/.local/share/slipway]",
} as const;

/** The data directory: the option, SLIPWAY_DATA_DIR, or the usual place. Absolute; not created. */
export function findDataDir(values: Values<{ "data-dir": typeof dataDirOption }>, context: Context): string {
  const given = values["data-dir"] ?? (context.environment["SLIPWAY_DATA_DIR"] || undefined);
  if (given !== undefined) return resolve(context.directory, given);
  if (context.isRoot) return "/var/lib/slipway";
  return join(context.environment["XDG_DATA_HOME"] || join(homedir(), ".local/share"), "slipway");
}
