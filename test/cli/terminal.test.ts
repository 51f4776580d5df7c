import { describe, expect, test } from "vitest";
import { cell, duration, logLine, painter, plain, wantsColours } from "../../cli/terminal.ts";

describe("plain", () => {
  test("leaves ordinary names alone, in every script", () => {
    expect(plain("feature/größe-日本")).toBe("feature/größe-日本");
  });

  test("shows control characters instead of sending them", () => {
    expect(plain("a\x1b]0;owned\x07b\r\nc\x9bd")).toBe("a\\x1b]0;owned\\x07b\\x0d\\x0ac\\x9bd");
    expect(plain("safe\u202eelpmis")).toBe("safe\\u{202e}elpmis");
  });
});

describe("cell", () => {
  test("keeps a long name from stretching a table", () => {
    expect(cell("main", 4)).toBe("main");
    expect(cell("main-2", 4)).toBe("mai…");
    expect(cell("😀😀😀", 2)).toBe("😀…");
    expect(cell("\x1b", 4)).toBe("\\x1b");
  });
});

describe("logLine", () => {
  test.for([
    ["tabs and text", "a\tb", "a\tb"],
    ["window titles", "\x1b]0;owned\x07text", "text"],
    ["the clipboard (OSC 52)", "\x1b]52;c;ZXZpbA==\x1b\\text", "text"],
    ["an unfinished string", "text\x1b]0;for ever", "text"],
    ["cursor movement", "\x1b[2J\x1b[1;1Htext\x1b[?25l", "text"],
    ["DCS", "\x1bP1$r0m\x1b\\text", "text"],
    ["C1 controls", "a\x9b31mb", "a31mb"],
    ["bell and backspace", "a\x07b\x08", "ab"],
    ["progress bars", "10%\r50%\r100%\r", "100%"],
    ["reset of the terminal", "\x1bctext", "text"],
  ] as const)("handles %s", ([_what, line, shown]) => {
    expect(logLine(line, true)).toBe(shown);
  });

  test("keeps colours where they are wanted, closed at the end of the line", () => {
    expect(logLine("\x1b[31mred", true)).toBe("\x1b[31mred\x1b[0m");
    expect(logLine("\x1b[31mred\x1b[0m", false)).toBe("red");
  });
});

describe("wantsColours", () => {
  test.for([
    [{}, true, true],
    [{}, false, false],
    [{ TERM: "dumb" }, true, false],
    [{ NO_COLOR: "1" }, true, false],
    [{ NO_COLOR: "" }, true, true],
    [{ FORCE_COLOR: "1" }, false, true],
    [{ FORCE_COLOR: "0" }, true, false],
    [{ NO_COLOR: "1", FORCE_COLOR: "1" }, true, false],
  ] as const)("%j on a terminal: %s", ([environment, isTerminal, colours]) => {
    expect(wantsColours(environment, isTerminal)).toBe(colours);
  });
});

describe("painter", () => {
  test("adds nothing without colours", () => {
    expect(painter(false)("red", "x")).toBe("x");
    expect(painter(true)("red", "x")).toBe("\x1b[31mx\x1b[39m");
  });
});

describe("duration", () => {
  test.for([
    [0, "0.0 ms"],
    [4.21, "4.2 ms"],
    [9.96, "10 ms"],
    [999.4, "999 ms"],
    [999.6, "1.00 s"],
    [59_994, "59.99 s"],
    [59_996, "1 min 00 s"],
    [125_000, "2 min 05 s"],
    [3_599_600, "1 h 00 min"],
    [7_380_000, "2 h 03 min"],
  ] as const)("%s ms is %s", ([durationMs, text]) => expect(duration(durationMs)).toBe(text));
});
