/** Runs the `slipway` command as a person would: a real process, its exit code and what it printed. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));
export const bin = join(root, "cli/slipway.cjs");

export interface Outcome {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CommandOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly input?: string | Uint8Array;
  /** The Node to start with. */
  readonly node?: string;
  /** Sees the process while it runs and what it has printed so far, after each piece. */
  readonly watch?: (child: ChildProcess, stdout: string) => void;
}

/** The environment of a person at a pipe: no colours forced on or off by whoever runs the tests. */
export function environment(extra: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const { NO_COLOR: _no, FORCE_COLOR: _force, SLIPWAY_DEBUG: _debug, SLIPWAY_DATA_DIR: _dir, ...rest } = process.env;
  return { ...rest, ...extra };
}

/** Runs a program to its end. */
export async function run(program: string, args: readonly string[], options: CommandOptions = {}): Promise<Outcome> {
  const child = spawn(program, args, { cwd: options.cwd ?? root, env: environment(options.env) });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    options.watch?.(child, stdout);
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  child.stdin.on("error", () => {});
  child.stdin.end(options.input ?? "");
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  return { code, signal, stdout, stderr };
}

/** Runs `slipway` to its end. */
export function slipway(args: readonly string[], options: CommandOptions = {}): Promise<Outcome> {
  return run(options.node ?? process.execPath, [bin, ...args], options);
}

/** A temporary directory with files in it, removed when disposed. */
export class TemporaryDirectory implements AsyncDisposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  static async create(files: Readonly<Record<string, string>> = {}): Promise<TemporaryDirectory> {
    const directory = new TemporaryDirectory(await mkdtemp(join(tmpdir(), "slipway-test-")));
    for (const [name, content] of Object.entries(files)) {
      const path = join(directory.path, name);
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, content);
    }
    return directory;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.path, { recursive: true, force: true });
  }
}
