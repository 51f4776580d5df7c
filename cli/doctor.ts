/** `slipway doctor`: what this host can do, and which setting mends the rest. */
import { execFileSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { HostCheck } from "../runtime/index.ts";
import { parseArguments, type Usage } from "./arguments.ts";
import { dataDirOption, exitCodes, findDataDir, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "doctor",
  summary: "Show what this host can do and what mends the rest",
  description: `
Tries out every kernel feature and program that agents and servers need. An agent refuses to start while a required one is
missing: it would have to isolate less. Exits with 125 if a required one is missing.`,
  options: {
    "data-dir": dataDirOption,
    json: { help: "Print one JSON array: name, ok, required, found, mend" },
  },
  examples: [
    ["slipway doctor", "check this host"],
    ["slipway doctor --json | jq '.[] | select(.ok | not)'", "only what is missing"],
  ],
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  const checks = [...(await checkRuntime(findDataDir(values, context), context)), await checkRedis(), checkGit()];
  context.print(values.json ? `${JSON.stringify(checks, undefined, 2)}\n` : render(checks, context));
  return checks.some(({ ok, required }) => required && !ok) ? exitCodes.ourError : exitCodes.success;
}

/** Each thing by itself, and if nothing required is missing, all of it together. */
async function checkRuntime(dataDir: string, { environment, obstacle }: Context): Promise<HostCheck[]> {
  const { checkHost, checkMode, checkNested, checkNetworks, Host, testHost } = await import("../runtime/index.ts");
  const mode = checkMode(environment, obstacle);
  // Nothing of what follows would work.
  if (obstacle !== undefined) return mode;
  // Beside the state of an agent that may be running here, on the same file system.
  const stateDir = join(dataDir, `doctor-${process.pid}`);
  const existed = existsSync(dataDir);
  try {
    const found = await checkHost({ stateDir });
    const checks = [...mode, ...found.map((check) => ({ ...check, found: check.found.replaceAll(stateDir, dataDir) }))];
    const missing = checks.filter(({ ok, required }) => required && !ok).map(({ name }) => name);
    // Agents start without cgroups if they are told to: then the rest is worth knowing.
    if (missing.some((name) => name !== "cgroups")) return checks;
    await using host = await Host.open({ stateDir, allow: missing.length > 0 ? ["no-cgroups"] : [] });
    const networks = await checkNetworks();
    // Without them, steps can have no network or the host's.
    return [
      ...checks,
      await testHost(host),
      await checkNested(host),
      ...networks.map((check) => ({ ...check, required: false })),
    ];
  } finally {
    rmSync(existed ? stateDir : dataDir, { recursive: true, force: true });
  }
}

async function checkRedis(): Promise<HostCheck> {
  const { findRedisServer, installHint } = await import("../queue/index.ts");
  const found = await findRedisServer();
  const check = { name: "Redis or Valkey (slipway up, demo, tests)", required: false };
  if (found === undefined)
    return { ...check, ok: false, found: "neither redis-server nor valkey-server", mend: installHint() };
  return { ...check, ok: true, found: `${found.path} ${found.version}` };
}

function checkGit(): HostCheck {
  try {
    const version = execFileSync("git", ["--version"], { encoding: "utf8" }).trim();
    return { name: "git", required: true, ok: true, found: version };
  } catch {
    return { name: "git", required: true, ok: false, found: "not in PATH", mend: "apt-get install git" };
  }
}

function render(checks: readonly HostCheck[], { paint }: Context): string {
  const width = Math.max(...checks.map(({ name }) => name.length));
  const lines = checks.map(({ name, ok, required, found, mend }) => {
    const mark = ok ? paint("green", "ok     ") : required ? paint("red", "missing") : paint("yellow", "absent ");
    const line = `${mark}  ${name.padEnd(width)}  ${found}`;
    return ok || mend === undefined
      ? line
      : `${line}\n         ${" ".repeat(width)}  ${paint("bold", "mend:")} ${mend}`;
  });
  const missing = checks.filter(({ ok, required }) => required && !ok).length;
  const absent = checks.filter(({ ok, required }) => !required && !ok).length;
  lines.push("");
  if (missing > 0)
    lines.push(
      paint(
        "red",
        `${missing} required ${missing === 1 ? "thing is" : "things are"} missing: agents do not start here.`,
      ),
    );
  else
    lines.push(
      paint(
        "green",
        `Agents can run here${absent > 0 ? `; ${absent} optional ${absent === 1 ? "thing is" : "things are"} absent` : ""}.`,
      ),
    );
  return `${lines.join("\n")}\n`;
}

export const verbs: Readonly<Record<string, Verb>> = { doctor: { usage, run } };
