import { describe, expect, test } from "vitest";
import { formatDiagnostic } from "../../pipelines/index.ts";
import { parseDockerfile } from "../../build/index.ts";
import { seededRandom } from "../pipelines/random.ts";

const fragments = [
  "FROM a\n",
  "FROM --platform=$X a AS b\n",
  "RUN ",
  "RUN --mount=type=cache,target=/x ",
  "COPY --from=b ",
  "ADD ",
  "ENV ",
  "ARG ",
  "LABEL ",
  "ONBUILD ",
  "HEALTHCHECK --interval=1s CMD ",
  "SHELL ",
  "# escape=`\n",
  "<<EOF",
  "<<-'E' ",
  "EOF\n",
  "E\n",
  '["a", "b"]',
  "--",
  "--x=",
  "=",
  "$",
  "${x:-",
  "}",
  '"',
  "'",
  "\\\n",
  "\\",
  "`\n",
  "\n",
  "\t",
  " ",
  "#",
  ",",
  "\r\n",
  "\u2028",
  "é",
  "👷",
  "\0",
  "\ufeff",
  "\x1b[31m",
];

/** What must hold of any input whatsoever. */
function findFaults(source: string | Uint8Array): string[] {
  const { dockerfile, diagnostics } = parseDockerfile(source);
  const faults: string[] = [];
  const failed = diagnostics.some(({ severity }) => severity === "error");
  if (failed === (dockerfile !== undefined)) faults.push("a Dockerfile comes with errors, or neither does");
  for (const diagnostic of diagnostics) {
    const { line, column, endColumn, snippet, snippetColumn = 1, message } = diagnostic;
    if (line < 1 || column < 1 || endColumn <= column) faults.push(`the place ${line}:${column}-${endColumn}`);
    if (snippet.length > 200 || snippet.includes("\n")) faults.push("the snippet is more than a line");
    if (column < snippetColumn || column > snippetColumn + snippet.length)
      faults.push(`column ${column} is not in the snippet`);
    if (message === "" || message.includes("undefined") || message.includes("\n")) faults.push(`message ${message}`);
    if (/[\0-\x09\x0b-\x1f\x7f-\x9f]/.test(formatDiagnostic(diagnostic))) faults.push("a control character is shown");
  }
  for (const stage of dockerfile?.stages ?? []) {
    for (const { span } of stage.instructions) if (span.end < span.start) faults.push("a span that ends first");
  }
  return faults.map((fault) => `${fault} for ${JSON.stringify(source.toString())}`);
}

// The amount of work is fixed; the limit is for what hangs, not for a busy machine.
describe("parseDockerfile", { timeout: 120_000 }, () => {
  test("survives random pieces of Dockerfiles", () => {
    const random = seededRandom(4);
    const faults: string[] = [];
    for (let round = 0; round < 4000; round += 1) {
      const pieces = Array.from({ length: random.below(30) }, () => random.pick(fragments));
      faults.push(...findFaults(`${random.below(3) === 0 ? "" : "FROM a\n"}${pieces.join("")}`));
    }
    expect(faults).toEqual([]);
  });

  test("survives random bytes", () => {
    const random = seededRandom(5);
    const faults: string[] = [];
    for (let round = 0; round < 500; round += 1) {
      faults.push(...findFaults(Uint8Array.from({ length: random.below(200) }, () => random.below(256))));
    }
    expect(faults).toEqual([]);
  });

  test.for([
    ["spaces", " ".repeat(60_000)],
    ["spaces and an x", `${" ".repeat(60_000)}x`],
    ["tabs", `RUN ${"\t".repeat(60_000)}x`],
    ["backslashes", "\\".repeat(60_000)],
    ["here-documents", `RUN ${"<<a ".repeat(15_000)}`],
    ["quotes", `ENV a=${`"'`.repeat(30_000)}`],
    ["dollars", `RUN <<${"${a:-".repeat(10_000)}`],
    ["brackets", `CMD ${"[".repeat(60_000)}`],
    ["commas", `RUN --mount=${",".repeat(60_000)} x`],
    ["continued lines", "RUN \\\n".repeat(100_000)],
    ["instructions", "RUN x\n".repeat(100_000)],
    ["stages", "FROM a\n".repeat(5_000)],
    ["words", `EXPOSE ${"1 ".repeat(30_000)}`],
    ["units", `HEALTHCHECK --interval=${"1h".repeat(30_000)}x CMD y`],
  ])("reads %s in good time", ([, text]) => {
    expect(findFaults(`FROM a\n${text as string}`).map((fault) => fault.slice(0, 200))).toEqual([]);
  });
});
