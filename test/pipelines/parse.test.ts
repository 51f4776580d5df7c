import { describe, expect, test } from "vitest";
import { DEFAULTS, type Diagnostic, LIMITS, parsePipeline, type Pipeline } from "../../pipelines/index.ts";

const minimal = "jobs: { a: { steps: [make] } }\n";

function diagnose(source: string | Uint8Array): readonly Diagnostic[] {
  return parsePipeline(source).diagnostics;
}

function read(source: string | Uint8Array): Pipeline {
  const { pipeline, diagnostics } = parsePipeline(source);
  if (pipeline === undefined) throw new Error(JSON.stringify(diagnostics));
  return pipeline;
}

function bytes(...parts: (string | number)[]): Uint8Array {
  return Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part) : Buffer.from([part]))));
}

describe("parsePipeline on what is not UTF-8 text", () => {
  test.for<[what: string, source: string | Uint8Array, expected: Partial<Diagnostic>]>([
    ["an empty file", "", { line: 1, column: 1, message: "the file is empty" }],
    ["white space", " \n\n", { line: 1, column: 1, message: "the file is empty" }],
    [
      "a byte of Latin-1",
      bytes("a: b\nné: ", 0xe9, "x"),
      { line: 2, column: 5, message: "the file is not UTF-8: byte 0xe9 at offset 10" },
    ],
    ["a cut character at the end", bytes("a: ", 0xe2, 0x82), { line: 1, column: 4 }],
    ["an overlong NUL", bytes("a: ", 0xc0, 0x80), { line: 1, column: 4 }],
    ["UTF-16 with a byte order mark", bytes(0xff, 0xfe, "j", 0), { message: "the file is UTF-16, not UTF-8" }],
    ["a NUL", "jobs:\n a\0", { line: 2, column: 3, message: "the file contains a NUL byte, so it is not YAML text" }],
    [
      "an escape sequence",
      "a: \u001b[2J",
      { line: 1, column: 4, message: "the control character U+001B is not allowed" },
    ],
    ["a C1 control", "a: \u009b2J", { line: 1, column: 4, message: "the control character U+009B is not allowed" }],
    ["a carriage return alone", "a: b\rc: d", { line: 1, column: 5 }],
    [
      "half a surrogate pair",
      "a: \ud800x",
      { line: 1, column: 4, message: "half of a surrogate pair (U+D800) is not text" },
    ],
    ["a byte order mark inside", "a: \ufeffx", { line: 1, column: 4 }],
  ])("%s", ([, source, expected]) => {
    const { pipeline, diagnostics } = parsePipeline(source);
    expect(pipeline).toBeUndefined();
    expect(diagnostics).toHaveLength(1);
    expect(diagnostics[0]).toMatchObject({ severity: "error", file: ".slipway.yml", ...expected });
  });

  test("a byte order mark at the start and CRLF line ends are accepted, scripts get LF", () => {
    const pipeline = read("\ufeffjobs:\r\n  a:\r\n    steps:\r\n      - run: |\r\n          one\r\n          two\r\n");
    expect(pipeline.jobs[0]?.steps[0]?.run).toBe("one\ntwo\n");
    expect(diagnose("\ufeffjobs: {}\r\n")[0]).toMatchObject({ line: 1, column: 7 });
  });

  test("characters beyond the BMP are text", () => {
    expect(read("name: 👷\n" + minimal).name).toBe("👷");
  });
});

describe("parsePipeline at its limits", () => {
  test.for<[what: string, source: string | Uint8Array, message: RegExp]>([
    ["a file of 10 MiB", new Uint8Array(10 * 1024 ** 2), /^the file has 10 MiB; a pipeline has at most 1 MiB$/],
    ["a text whose bytes are too many", "é".repeat(LIMITS.fileBytes * 0.6), /^the file has 1\.2 MiB/],
    ["too many tokens", "- \n".repeat(100_000), /more than 200,000 YAML tokens/],
    ["brackets without end", "[".repeat(100_000), /nested more than 50 levels/],
    ["braces without end", '{"a":'.repeat(50_000), /nested more than 50 levels/],
    ["block lists without end", "- ".repeat(60_000), /nested more than 50 levels/],
    [
      "too many jobs",
      `jobs:\n${lines(501, (index) => `  j${index}: { steps: [x] }`)}`,
      /^"jobs" has 501 jobs; at most 500/,
    ],
    [
      "too many steps",
      `jobs: { a: { steps: [${"x, ".repeat(101)}] } }`,
      /^"steps" of job "a" has 101 steps; at most 100/,
    ],
    ["too long a script", `jobs: { a: { steps: ["${"é".repeat(60_000)}"] } }`, /has 117\.2 KiB; at most 100 KiB/],
    ["too long a variable", `env: { A: ${"x".repeat(102_401)} }\n${minimal}`, /^"env\.A" has 100 KiB; at most 100 KiB/],
    [
      "too many variables",
      `env:\n${lines(1001, (index) => `  V${index}: x`)}${minimal}`,
      /has 1001 variables; at most 1000/,
    ],
    [
      "too large an environment",
      `env: { A: &a ${"x".repeat(100_000)}, B: *a, C: *a }\n${minimal}`,
      /variables of this step have 293 KiB/,
    ],
    ["too many patterns", `on: { branches: [${"a, ".repeat(101)}] }\n${minimal}`, /has 101 patterns; at most 100/],
    ["too long a pattern", `on: { branches: ${"a".repeat(256)} }\n${minimal}`, /it has 256 characters; at most 255/],
  ])("refuses %s", ([, source, message]) => {
    const { pipeline, diagnostics } = parsePipeline(source);
    expect(pipeline).toBeUndefined();
    expect(diagnostics.map((diagnostic) => diagnostic.message)).toEqual(
      expect.arrayContaining([expect.stringMatching(message)]),
    );
  });

  test("accepts what is exactly at the limits", () => {
    expect(read(`jobs: { a: { steps: [${lines(100, (index) => `  x${index},`)}  ] } }`).jobs[0]?.steps).toHaveLength(
      100,
    );
    expect(read(`jobs:\n${lines(500, (index) => `  j${index}: { steps: [x] }`)}`).jobs).toHaveLength(500);
    expect(read(`jobs: { a: { steps: ["${"x".repeat(LIMITS.runBytes)}"] } }`).jobs).toHaveLength(1);
    expect(read(`${minimal}#${"x".repeat(LIMITS.fileBytes - minimal.length - 1)}`).jobs).toHaveLength(1);
  });

  test("refuses aliases that explode, by lists and by merge keys", () => {
    const layers = lines(20, (index) => `x-${index + 1}: &a${index + 1} [${`*a${index}, `.repeat(9)}]`);
    const [first, ...rest] = diagnose(`x-0: &a0 [x]\n${layers}${minimal}`);
    expect(first?.message).toBe("aliases expand to more than 250,000 values here");
    expect(rest).toEqual([]);
    const merges = lines(2000, (index) => `x-${index + 1}: &a${index + 1} { <<: *a${index}, k${index}: x }`);
    expect(diagnose(`x-0: &a0 { k: x }\n${merges}${minimal}`)[0]?.message).toMatch(/^aliases expand/);
  });

  test("refuses a script that aliases repeat into gigabytes", () => {
    const jobs = lines(500, (index) => `  j${index}: { steps: [${"*s, ".repeat(100)}] }`);
    const diagnostics = diagnose(`x-s: &s "${"x".repeat(100_000)}"\njobs:\n${jobs}`);
    expect(diagnostics[0]?.message).toBe("the scripts and variables of all steps have more than 32 MiB");
  });

  test("shows 50 problems and counts the others", () => {
    const diagnostics = diagnose(`jobs:\n${lines(400, (index) => `  j${index}: { stesp: [] }`)}`);
    expect(diagnostics).toHaveLength(LIMITS.diagnostics + 1);
    expect(diagnostics.at(-1)?.message).toBe("and 350 more problems");
  });

  test("shows errors before warnings where both do not fit", () => {
    const steps = lines(90, (index) => `      - { run: x${index}, timeout: 2m }`);
    const source = `jobs:\n  a:\n    timeout: 1m\n    steps:\n${steps}  b: { stesp: [] }\n`;
    expect(diagnose(source).filter(({ severity }) => severity === "error")).toHaveLength(1);
  });
});

function lines(count: number, line: (index: number) => string): string {
  return Array.from({ length: count }, (_, index) => `${line(index)}\n`).join("");
}

describe("parsePipeline fills in", () => {
  test("every default", () => {
    const [job] = read(minimal).jobs;
    expect(job).toMatchObject({ needs: [], pool: DEFAULTS.pool, timeoutMs: DEFAULTS.jobTimeoutMs });
    expect(job?.steps[0]).toMatchObject({
      image: DEFAULTS.image,
      timeoutMs: DEFAULTS.stepTimeoutMs,
      resources: DEFAULTS.resources,
      network: DEFAULTS.network,
      allowFailure: false,
    });
  });

  test("a written job timeout for its steps", () => {
    const steps = read("timeout: 5m\njobs: { a: { steps: [x] }, b: { timeout: 3h, steps: [x] } }").jobs.flatMap(
      (job) => job.steps,
    );
    expect(steps.map((step) => step.timeoutMs)).toEqual([5 * 60_000, 3 * 3_600_000]);
  });

  test.for([
    ["1.10", "1.10"],
    ["0x1F", "0x1F"],
    ["010", "010"],
    ["1e3", "1e3"],
    ["+1", "+1"],
    ["true", "true"],
    ["True", "True"],
    [".inf", ".inf"],
    ["no", "no"],
    ["1_000", "1_000"],
    ["2026-01-01", "2026-01-01"],
    ["12:30:45", "12:30:45"],
    ['"1.10"', "1.10"],
    ["'it''s'", "it's"],
    ['""', ""],
    ["!!str 1.10", "1.10"],
    ["a # comment", "a"],
  ] as const)("the variable %s as %j", ([written, expected]) => {
    expect(read(`env:\n  A: ${written}\n${minimal}`).jobs[0]?.steps[0]?.env).toEqual({ A: expected });
  });

  test("variables with the names of object members", () => {
    const env = read(`env: { __proto__: a, constructor: b, toString: c }\n${minimal}`).jobs[0]?.steps[0]?.env;
    expect(Object.entries(env ?? {})).toEqual([
      ["__proto__", "a"],
      ["constructor", "b"],
      ["toString", "c"],
    ]);
    expect(Object.getPrototypeOf(env)).toBeNull();
  });

  test("jobs with the names of object members", () => {
    const source = "jobs: { __proto__: { steps: [x] }, constructor: { steps: [x], needs: __proto__ } }";
    expect(read(source).jobs.map((job) => [job.name, job.needs])).toEqual([
      ["__proto__", []],
      ["constructor", ["__proto__"]],
    ]);
    expect(diagnose("jobs: { a: { steps: [x], needs: toString } }")[0]?.message).toMatch(/which is no job$/);
  });
});
