/** The validation programs of opencontainers/runtime-tools: had as a Go module or from a checkout, built, run one by one. */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Change, mends } from "./mends.ts";
import { readTap, type TapResult } from "./tap.ts";

const module = "github.com/opencontainers/runtime-tools";
/** What docs/oci.md tells the results of. */
const commit = "5e639034dcdc2422164e3d7d76a737e2fb451a67";

/** How one validation program ended under one runtime. */
export interface ValidationResult extends TapResult {
  readonly program: string;
  readonly timedOut: boolean;
}

/** The suite twice: as it is, and those programs that have an error with it mended. */
export interface Suite {
  readonly original: string;
  readonly mended: string;
}

/**
 * Builds the programs; what has been built already is used again.
 *
 * @param checkout A clone of runtime-tools; without one Go is asked for the module.
 * @throws {Error} If Go, or the source, is not to be had.
 */
export function buildSuite(checkout: string | undefined): Suite {
  const version = createHash("sha256").update(commit).update(JSON.stringify(mends)).digest("hex").slice(0, 12);
  const directory = join(tmpdir(), `slipway-runtime-tools-${version}`);
  const suite = { original: join(directory, "original"), mended: join(directory, "mended") };
  if (existsSync(join(directory, "built"))) return suite;
  if (spawnSync("go", ["version"]).status !== 0)
    throw new Error("Cannot build runtime-tools without Go: install Go 1.21 or newer");
  const source = checkout ?? downloadModule();
  rmSync(directory, { recursive: true, force: true });
  console.error(`building the validation programs in ${directory}`);
  for (const target of Object.values(suite)) {
    cpSync(source, target, { recursive: true });
    // The module cache is read-only.
    spawnSync("chmod", ["-R", "u+w", target]);
  }
  build(suite.original, programNames(suite.original), []);
  const changes = mends.flatMap((mend) => mend.changes);
  const overlay = changes.filter(({ file }) => file.startsWith("GOROOT/"));
  for (const change of changes) if (!overlay.includes(change)) applyChange(suite.mended, change);
  build(
    suite.mended,
    mends.flatMap(({ programs }) => programs),
    overlay,
  );
  mkdirSync(join(directory, "built"));
  return suite;
}

function build(directory: string, programs: readonly string[], overlay: readonly Change[]): void {
  const env = { ...process.env, CGO_ENABLED: "0" };
  const go = (...args: string[]) => {
    const { status, stderr } = spawnSync("go", ["build", ...args], { cwd: directory, env, encoding: "utf8" });
    if (status !== 0) throw new Error(`Cannot build runtime-tools: go build ${args.join(" ")}:\n${stderr}`);
  };
  go(...overlayArguments(directory, overlay), "-o", "runtimetest", "./cmd/runtimetest");
  for (const name of programs) go("-o", `validation/${name}/${name}.t`, `./validation/${name}`);
}

/** Go's own packages are not ours to write to: the compiler is shown another file in their place. */
function overlayArguments(directory: string, changes: readonly Change[]): string[] {
  if (changes.length === 0) return [];
  const goroot = spawnSync("go", ["env", "GOROOT"], { encoding: "utf8" }).stdout.trim();
  const replaced = changes.map((change, i) => {
    const original = change.file.replace("GOROOT", goroot);
    const replacement = join(directory, `overlay-${i}.go`);
    writeFileSync(replacement, changed(readFileSync(original, "utf8"), change));
    return [original, replacement] as const;
  });
  const file = join(directory, "overlay.json");
  writeFileSync(file, JSON.stringify({ Replace: Object.fromEntries(replaced) }));
  return ["-overlay", file];
}

function applyChange(directory: string, change: Change): void {
  const file = join(directory, change.file);
  writeFileSync(file, changed(readFileSync(file, "utf8"), change));
}

function changed(text: string, { file, from, to }: Change): string {
  if (!text.includes(from)) throw new Error(`Cannot mend ${file}: it does not have ${JSON.stringify(from)}`);
  return text.replace(from, () => to);
}

/** The names of all programs, sorted. */
export function programNames(directory: string): string[] {
  return readdirSync(join(directory, "validation"))
    .filter((name) => existsSync(join(directory, "validation", name, `${name}.go`)))
    .toSorted();
}

function downloadModule(): string {
  const { stdout } = spawnSync("go", ["mod", "download", "-json", `${module}@${commit}`], {
    encoding: "utf8",
    cwd: tmpdir(),
  });
  const { Dir: directory, Error: error } = JSON.parse(stdout || "{}") as {
    readonly Dir?: string;
    readonly Error?: string;
  };
  if (directory === undefined) {
    throw new Error(`Cannot download ${module}: ${error ?? "Go said nothing"}\nGive a checkout of it with --suite DIR`);
  }
  return directory;
}

/** Runs one program on a runtime; it and what it has started are killed when `limitMs` have passed. */
export async function validate(
  directory: string,
  program: string,
  { runtime, limitMs = 120_000 }: { readonly runtime: string; readonly limitMs?: number },
): Promise<ValidationResult> {
  // A group of its own: a program that hangs waits for the runtime it has started.
  const child = spawn(join("validation", program, `${program}.t`), [], {
    cwd: directory,
    env: { ...process.env, RUNTIME: runtime },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  let output = "";
  let errors = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  }, limitMs);
  const code = await new Promise<number | null>((resolve) => child.on("exit", resolve));
  clearTimeout(timer);
  // A container that lives on may hold the pipes; what the program itself said is there.
  child.stdout.destroy();
  child.stderr.destroy();
  return { program, timedOut, ...readTap(output, { code, errors }) };
}
