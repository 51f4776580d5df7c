import { describe, expect, test } from "vitest";
import {
  helpText,
  parseArguments,
  parseChoice,
  parseCount,
  UsageError,
  wantsHelp,
  type Usage,
} from "../../cli/arguments.ts";

const usage = {
  name: "sail",
  operands: "[PORT...]",
  summary: "Sail to ports",
  options: {
    crew: { short: "c", value: "N", help: "How many" },
    port: { value: "NAME", multiple: true, help: "Where to" },
    fast: { short: "f", help: "Hurry" },
  },
  examples: [["slipway sail --fast", "hurry"]],
  count: { least: 0, most: 2 },
} as const satisfies Usage;

describe("parseArguments", () => {
  test("fills in what was not given", () => {
    expect(parseArguments(usage, [])).toEqual({ values: { crew: undefined, port: [], fast: false }, operands: [] });
  });

  test("takes long, short, inline and repeated options, and operands after --", () => {
    const { values, operands } = parseArguments(usage, ["-fc", "3", "--port=a", "--port", "b", "x", "--", "--fast"]);
    expect(values).toEqual({ crew: "3", port: ["a", "b"], fast: true });
    expect(operands).toEqual(["x", "--fast"]);
  });

  test("takes a lone dash and a negative inline value as values", () => {
    expect(parseArguments(usage, ["--crew", "-"]).values.crew).toBe("-");
    expect(parseArguments(usage, ["--crew=-1"]).values.crew).toBe("-1");
    expect(parseArguments(usage, ["-"]).operands).toEqual(["-"]);
  });

  test.for([
    [["--crwe", "3"], "slipway sail has no option --crwe (did you mean --crew?)"],
    [["--constructor"], "slipway sail has no option --constructor"],
    [["-x"], "slipway sail has no option -x"],
    [["--crew"], "--crew needs a value: --crew N"],
    [["--crew", "--fast"], "--crew needs a value: --crew N"],
    [["--fast=yes"], "--fast takes no value"],
    [["a", "b", "c d"], 'slipway sail does not know what to do with "c d"'],
  ] as const)("refuses %j", ([argv, message]) => {
    expect(() => parseArguments(usage, argv)).toThrow(new UsageError(message));
  });
});

describe("wantsHelp", () => {
  test("is not confused by what follows --", () => {
    expect(wantsHelp(["--bad", "-h"])).toBe(true);
    expect(wantsHelp(["--", "--help"])).toBe(false);
  });
});

describe("helpText", () => {
  test("lists options with their short forms and values, and examples", () => {
    expect(helpText(usage).split("\n")).toEqual([
      "Usage: slipway sail [OPTIONS] [PORT...]",
      "",
      "Sail to ports.",
      "",
      "Options:",
      "  -c, --crew N     How many",
      "      --port NAME  Where to",
      "  -f, --fast       Hurry",
      "  -h, --help       Show this text",
      "",
      "Examples:",
      "  slipway sail --fast  hurry",
      "",
    ]);
  });
});

describe("parseCount", () => {
  test("takes whole numbers in the range", () => expect(parseCount("--jobs", "4", { least: 1, most: 8 })).toBe(4));
  test.for(["", "0", "9", "-1", "1.5", "0x2", "1e9999", "99999999999"])("refuses %j", (text) => {
    expect(() => parseCount("--jobs", text, { least: 1, most: 8 })).toThrow(UsageError);
  });
});

describe("parseChoice", () => {
  test("suggests the choice that was meant", () => {
    expect(() => parseChoice("--event", "psuh", ["push", "tag"])).toThrow(
      /one of push, tag, not "psuh" \(did you mean push\?\)/,
    );
  });
});
