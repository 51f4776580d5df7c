import { describe, expect, test } from "vitest";
import { type Diagnostic, formatDiagnostic, parsePipeline } from "../../pipelines/index.ts";

const diagnostic: Diagnostic = {
  severity: "error",
  message: 'unknown key "stesp" in job "build"',
  file: ".slipway.yml",
  line: 4,
  column: 5,
  endColumn: 10,
  snippet: "    stesp:",
  suggestion: 'did you mean "steps"?',
};

const control = /[\0-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/;

describe("formatDiagnostic", () => {
  test("shows place, message, line, caret and help", () => {
    expect(formatDiagnostic(diagnostic)).toBe(
      [
        '.slipway.yml:4:5: error: unknown key "stesp" in job "build"',
        "  4 |     stesp:",
        "    |     ^^^^^",
        '  help: did you mean "steps"?',
      ].join("\n"),
    );
  });

  test("colours only when told to", () => {
    expect(formatDiagnostic(diagnostic)).not.toContain("\u001b");
    expect(formatDiagnostic({ ...diagnostic, severity: "warning" }, { color: true })).toContain("\u001b[33mwarning:");
  });

  test("keeps the caret below its column behind tabs, wide characters and marks", () => {
    const lines = formatDiagnostic({ ...diagnostic, snippet: "a\tb構é̂x", column: 7, endColumn: 8 }).split("\n");
    expect(lines[1]).toBe("  4 | a   b構é̂x");
    expect(lines[2]).toBe("    |         ^");
  });

  test("lets no control character of the file, message or name through", () => {
    const hostile = "\u001b]0;owned\u0007\u001b[2J\u202eevil\u2066\u0085\u007f\b\r\n\u200b";
    const text = formatDiagnostic({
      ...diagnostic,
      snippet: hostile,
      message: hostile,
      file: hostile,
      suggestion: hostile,
    });
    expect(text.split("\n")).toHaveLength(4);
    expect(text).not.toMatch(control);
    expect(text).toContain("␛[2J<U+202E>evil");
  });

  test("leaves the line out where there is none", () => {
    expect(formatDiagnostic({ ...diagnostic, snippet: "" }).split("\n")).toHaveLength(2);
  });
});

describe("the snippet of a long line", () => {
  test("holds the column and says where it begins", () => {
    const source = `jobs: { a: { steps: [${'"word word word", '.repeat(60)}{ rnu: x }] } }`;
    const [found] = parsePipeline(source).diagnostics;
    expect(found?.snippet.length).toBeLessThanOrEqual(200);
    const at = (found?.column ?? 0) - (found?.snippetColumn ?? 1);
    expect(found?.snippet.slice(at, at + 3)).toBe("rnu");
    const lines = found === undefined ? [] : formatDiagnostic(found).split("\n");
    expect(lines[1]?.indexOf("rnu")).toBe(lines[2]?.indexOf("^^^"));
  });
});
