/**
 * `npm run validate:oci [-- --suite DIR] [--runtime NAME]... [PROGRAM...]`: the validation programs of opencontainers/runtime-tools on
 * `slipway oci`, and on runc and crun where they are installed, as the table of docs/oci.md.
 *
 * `npm run validate:oci -- callers [--runtime NAME] [NAME...]` does what callers.ts says, `-- crun DIR` and `-- runc DIR` what
 * runtime-suites.ts says.
 *
 * As root. Not a part of `npm test`: it needs Go and the suite's source. The exit code is 1 if a program fails on Slipway
 * for which neither the host nor an error of the program (mends.ts) is the reason.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { hostLacks } from "./expected.ts";
import { mends } from "./mends.ts";
import { buildSuite, programNames, type Suite, validate, type ValidationResult } from "./suite.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    suite: { type: "string" },
    runtime: { type: "string", multiple: true, default: ["slipway", "runc", "crun"] },
    limit: { type: "string", default: "120" },
    verbose: { type: "boolean", default: false },
  },
});
const slipway = fileURLToPath(new URL("../../cli/slipway.cjs", import.meta.url));

/** A program as it is, and mended if it has an error. */
interface Outcome {
  readonly original: ValidationResult;
  readonly mended?: ValidationResult;
}

const directory = mkdtempSync(join(tmpdir(), "slipway-validation-"));
try {
  process.exitCode = await main();
} finally {
  rmSync(directory, { recursive: true, force: true });
}

async function main(): Promise<number> {
  const [first, ...names] = positionals;
  if (first === "callers") {
    const [runtime = "slipway"] = values.runtime;
    return (await import("./callers.ts")).validateCallers(names, runtime);
  }
  if (first === "crun" || first === "runc") {
    const [checkout, ...files] = names;
    if (checkout === undefined) throw new Error(`Cannot run ${first}'s suite: name the directory of its sources`);
    return (await import("./runtime-suites.ts")).validateSuite(first, checkout, {
      wanted: files,
      runtimes: values.runtime,
    });
  }
  const suite = buildSuite(values.suite);
  const programs = positionals.length > 0 ? positionals : programNames(suite.original);
  const runtimes = values.runtime.filter((name) => name === "slipway" || spawnSync(name, ["--version"]).status === 0);
  const outcomes = new Map<string, Outcome[]>(programs.map((program) => [program, []]));
  for (const runtime of runtimes) {
    for (const program of programs) outcomes.get(program)?.push(await run(suite, program, runtime));
  }
  return report(runtimes, outcomes);
}

async function run(suite: Suite, program: string, runtime: string): Promise<Outcome> {
  const one = async (where: string, label: string) => {
    const { command, removeContainers } = makeCommand(runtime);
    const result = await validate(where, program, { runtime: command, limitMs: Number(values.limit) * 1000 });
    removeContainers();
    const why = result.verdict === "fail" ? `: ${result.failures[0]}` : "";
    console.error(`${runtime} ${program}${label} ${result.verdict}${result.timedOut ? " (timed out)" : ""}${why}`);
    if (values.verbose) for (const failure of result.failures.slice(1)) console.error(`    ${failure}`);
    return result;
  };
  const original = await one(suite.original, "");
  const hasMend = mends.some(({ programs }) => programs.includes(program));
  return hasMend ? { original, mended: await one(suite.mended, " (mended)") } : { original };
}

/** A program of one word, which is what the suite wants, with a state directory of its own. */
function makeCommand(runtime: string): { readonly command: string; readonly removeContainers: () => void } {
  const root = join(directory, `${runtime}-state`);
  const command = join(directory, runtime);
  const argv = runtime === "slipway" ? [process.execPath, slipway, "oci"] : [runtime];
  const words = [...argv, "--root", root].map((word) => `'${word}'`).join(" ");
  // crun refuses a hybrid host whose v2 hierarchy has a controller; it is not shown that one.
  const hide = runtime === "crun" && existsSync("/sys/fs/cgroup/unified");
  const line = hide ? `unshare -m sh -c 'umount /sys/fs/cgroup/unified; exec "$@"' sh ${words}` : words;
  // crun 1.8 takes no configuration that says 1.3; nothing in them is newer than 1.0.
  const older = `for at in . "$@"; do [ ! -f "$at/config.json" ] || sed -i 's/"ociVersion": *"1[.][1-3][.][0-9]"/"ociVersion": "1.0.2"/' "$at/config.json"; done\n`;
  writeFileSync(command, `#!/bin/sh\n${runtime === "crun" ? older : ""}exec ${line} "$@"\n`);
  chmodSync(command, 0o755);
  const removeContainers = () => {
    if (existsSync(root)) for (const id of readdirSync(root)) spawnSync(command, ["delete", "--force", id]);
    removeCgroups();
  };
  return { command, removeContainers };
}

/** Those that the programs name; not every runtime removes what it has made. */
function removeCgroups(): void {
  const cgroups = "/sys/fs/cgroup";
  for (const hierarchy of ["", ...readdirSync(cgroups)]) {
    for (const path of [
      "testdir/testcontainer",
      "testdir",
      "slipway-oci/testdir/testcontainer",
      "slipway-oci/testdir",
    ]) {
      try {
        rmdirSync(join(cgroups, hierarchy, path));
      } catch {
        // not there
      }
    }
  }
}

function report(runtimes: readonly string[], outcomes: ReadonlyMap<string, readonly Outcome[]>): number {
  console.log(`| validation program | ${runtimes.join(" | ")} | why it fails |`);
  console.log(`|---|${runtimes.map(() => "---|").join("")}---|`);
  const ours = runtimes.indexOf("slipway");
  let unexplained = 0;
  for (const [program, all] of outcomes) {
    const own = all[ours];
    const why = own?.original.verdict === "fail" ? reason(program, own) : "";
    if (why === undefined) unexplained++;
    const cells = all.map(({ original, mended }) => {
      const differs = mended !== undefined && mended.verdict !== original.verdict;
      return differs ? `${original.verdict}; mended: ${mended.verdict}` : original.verdict;
    });
    console.log(`| ${program} | ${cells.join(" | ")} | ${why ?? own?.original.failures[0]} |`);
  }
  const all = [...outcomes.values()];
  for (const [i, name] of runtimes.entries()) {
    const passed = all.filter((one) => one[i]?.original.verdict !== "fail").length;
    const mended = all.filter((one) => (one[i]?.mended ?? one[i]?.original)?.verdict !== "fail").length;
    console.log(
      `${i === 0 ? "\n" : ""}${name}: ${passed} of ${all.length} pass, ${mended} with the programs' errors mended.`,
    );
  }
  if (unexplained > 0) console.log(`${unexplained} fail on Slipway without a reason that is known.`);
  return unexplained > 0 ? 1 : 0;
}

/** Why it fails though Slipway does what the specification demands; undefined if it does not. */
function reason(program: string, { mended }: Outcome): string | undefined {
  const lacking = hostLacks(program);
  if (lacking !== undefined) return lacking;
  return mended?.verdict === "pass" ? mends.find(({ programs }) => programs.includes(program))?.why : undefined;
}
