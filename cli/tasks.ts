/** What `npm run demo`, `npm test`, `npm run check`, `npm run bench` and `npm run validate:oci` do once the packages are there; see bootstrap.cjs. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { installPrograms, MissingProgramError } from "./install.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const bin = (name: string) => `${root}node_modules/${name}`;

/** One program of a task, run with this Node. */
type Command = readonly [label: string, ...args: string[]];

interface Task {
  /** Git and Redis, installed if they are missing. */
  readonly needsPrograms: boolean;
  /** All run, one after the other, even if one fails. */
  readonly commands: (args: readonly string[]) => readonly Command[];
}

const tasks: Readonly<Record<string, Task>> = {
  demo: { needsPrograms: true, commands: (args) => [["demo", `${root}cli/slipway.cjs`, "demo", ...args]] },
  test: { needsPrograms: true, commands: (args) => [["tests", bin("vitest/vitest.mjs"), "run", ...args]] },
  check: {
    needsPrograms: false,
    commands: () => [
      ["types", bin("typescript/bin/tsc"), "-p", root],
      ["lint", bin("oxlint/bin/oxlint"), "--type-aware", "--quiet", root],
      ["format", bin("@biomejs/biome/bin/biome"), "format", root],
      ["unit tests", bin("vitest/vitest.mjs"), "run", "--project", "unit"],
    ],
  },
  bench: { needsPrograms: true, commands: (args) => [["bench", `${root}bench/index.ts`, ...args]] },
  "validate:oci": {
    needsPrograms: false,
    commands: (args) => [["validation", `${root}test/oci-validation/run.ts`, ...args]],
  },
};

void main(process.argv.slice(2));

async function main([name, ...args]: readonly string[]): Promise<void> {
  const task = name !== undefined && Object.hasOwn(tasks, name) ? tasks[name] : undefined;
  if (task === undefined) return end(2, `There is no task ${JSON.stringify(name)}: ${Object.keys(tasks).join(", ")}`);
  try {
    const say = (line: string) => void process.stderr.write(`slipway: ${line}\n`);
    if (task.needsPrograms) installPrograms(process.env, { forTests: name === "test", say });
  } catch (error) {
    if (error instanceof MissingProgramError) return end(125, error.message);
    throw error;
  }
  const commands = task.commands(args);
  const failed: string[] = [];
  let worst = 0;
  for (const [label, ...command] of commands) {
    if (commands.length > 1) process.stderr.write(`== ${label}\n`);
    const code = await runNode(command);
    if (code !== 0) failed.push(label);
    worst ||= code;
  }
  if (commands.length > 1)
    process.stderr.write(failed.length === 0 ? "== all good\n" : `== failed: ${failed.join(", ")}\n`);
  process.exit(worst);
}

/** Runs this Node on the arguments with our terminal; a signal we get is for the program, and its end is ours. */
async function runNode(args: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, args, { stdio: "inherit", cwd: root });
  const hasTerminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY;
  const forward = (signal: NodeJS.Signals) => {
    // Ctrl-C on a terminal reaches the whole foreground process group; passing it on would count twice.
    if (!(hasTerminal && signal === "SIGINT")) child.kill(signal);
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, forward);
  const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
  for (const name of signals) process.off(name, forward);
  if (signal !== null) process.kill(process.pid, signal);
  return code ?? 125;
}

function end(code: number, line: string): never {
  process.stderr.write(`slipway: ${line}\n`);
  process.exit(code);
}
