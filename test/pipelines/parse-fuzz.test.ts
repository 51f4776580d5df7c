import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { formatDiagnostic, LIMITS, parsePipeline } from "../../pipelines/index.ts";
import { type Random, seededRandom } from "./random.ts";

const fixtures = new URL("./fixtures/", import.meta.url);
const corpus = readdirSync(fixtures)
  .filter((name) => name.endsWith(".yml"))
  .map((name) => readFileSync(new URL(name, fixtures)));

const fragments = [
  Array.from("[]{}:,-?|>&*!%@`\"'#~\t\n\n  "),
  ["jobs:", "steps:", "run:", "needs:", "env:", "on:", "image: ", "- ", "<<: ", "&a ", "*a", "a: ", "? ", "--- "],
  [
    "\n...\n",
    "\n  ",
    "\n    ",
    "\n      ",
    "!!str ",
    "!x ",
    "|\n",
    ">-\n",
    "\\u0000",
    "\\x",
    "é",
    "👷",
    "\0",
    "\ufeff",
  ],
  ["\u2028", "\r", "%YAML 1.1\n", "__proto__: ", "1", "true", "null", "5m", "1GiB", "x-a: ", "{a: 1}", "[a, b]"],
].flat();

/** What must hold of any input whatsoever. */
function findFaults(source: string | Uint8Array): string[] {
  const { pipeline, diagnostics } = parsePipeline(source);
  const faults: string[] = [];
  const failed = diagnostics.some(({ severity }) => severity === "error");
  if (failed === (pipeline !== undefined)) faults.push("a pipeline comes with errors, or neither does");
  if (diagnostics.length > LIMITS.diagnostics + 1) faults.push(`${diagnostics.length} diagnostics`);
  for (const diagnostic of diagnostics) {
    const { line, column, endColumn, snippet, snippetColumn = 1, message } = diagnostic;
    if (line < 1 || column < 1 || endColumn <= column) faults.push(`the place ${line}:${column}-${endColumn}`);
    if (snippet.length > 200 || snippet.includes("\n")) faults.push("the snippet is more than a line");
    if (column < snippetColumn || column > snippetColumn + snippet.length)
      faults.push(`column ${column} is not in the snippet`);
    if (message === "" || message.includes("undefined") || message.includes("\n"))
      faults.push(`the message ${message}`);
    if (/[\0-\x09\x0b-\x1f\x7f-\x9f]/.test(formatDiagnostic(diagnostic))) faults.push("a control character is shown");
  }
  for (const job of pipeline?.jobs ?? []) {
    if (job.steps.length === 0) faults.push(`job ${job.name} has no steps`);
    for (const { name, run, build } of job.steps) {
      if ((run === undefined) === (build === undefined)) faults.push(`step ${name} has both or neither`);
      if (run?.trim() === "") faults.push(`step ${name} has an empty script`);
      const paths = build === undefined ? [] : [build.context, build.dockerfile, build.output ?? "x"];
      if (paths.some((path) => path === "" || path.startsWith("/") || path.split("/").includes(".."))) {
        faults.push(`step ${name} has a path that leads out`);
      }
    }
  }
  return faults.map((fault) => `${fault} for ${JSON.stringify(source.toString())}`);
}

function mutate(bytes: Uint8Array, random: Random): Uint8Array {
  let current = Buffer.from(bytes);
  for (let count = 1 + random.below(4); count > 0; count -= 1) {
    const [at, length] = [random.below(current.length + 1), random.below(12)];
    const inserted = random.pick([
      () => Buffer.from(random.pick(fragments)),
      () => Buffer.from([random.below(256)]),
      () => current.subarray(random.below(current.length + 1)).subarray(0, random.below(60)),
      () => Buffer.alloc(0),
    ])();
    current = Buffer.concat([current.subarray(0, at), inserted, current.subarray(at + random.pick([0, length]))]);
  }
  return current;
}

// The amount of work is fixed; the limit is for what hangs, not for a busy machine.
describe("parsePipeline never throws and never hangs", { timeout: 120_000 }, () => {
  test("on random bytes", () => {
    const random = seededRandom(101);
    const source = (): Uint8Array => Uint8Array.from({ length: random.below(300) }, () => random.below(256));
    expect(Array.from({ length: 300 }, source).flatMap(findFaults)).toEqual([]);
  });

  test("on random pieces of YAML", () => {
    const random = seededRandom(102);
    const source = (): string => Array.from({ length: random.below(40) }, () => random.pick(fragments)).join("");
    expect(Array.from({ length: 800 }, source).flatMap(findFaults)).toEqual([]);
  });

  test("on changed pipelines", () => {
    const random = seededRandom(103);
    const source = (): Uint8Array => mutate(random.pick(corpus), random);
    expect(Array.from({ length: 800 }, source).flatMap(findFaults)).toEqual([]);
  });

  test("on pipelines cut anywhere", () => {
    const sources = corpus.flatMap((bytes) =>
      Array.from({ length: Math.ceil(bytes.length / 17) }, (_, index) => bytes.subarray(0, index * 17)),
    );
    expect(sources.flatMap(findFaults)).toEqual([]);
  });

  test("on every piece repeated through a large file", () => {
    const starts = ["", "a: ", "[", "jobs:\n  a:\n    steps: [", "jobs:\n  a:\n    steps:\n      - run: |\n          "];
    const sources = fragments.map((fragment, index) => `${starts[index % starts.length]}${fragment.repeat(8_000)}`);
    expect(sources.flatMap(findFaults)).toEqual([]);
  });

  test("and answers the same twice", () => {
    expect(corpus.map((bytes) => parsePipeline(bytes))).toEqual(corpus.map((bytes) => parsePipeline(bytes.toString())));
  });
});
