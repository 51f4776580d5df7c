import { describe, expect, test } from "vitest";

interface Piece {
  readonly text: string;
  readonly style: Readonly<Record<string, unknown>>;
}
// The dashboard is plain JavaScript: what it exports is stated here.
const url = new URL("../../web/ansi.js", import.meta.url).href;
const { pieces, plain, styleAfter } = (await import(url)) as {
  pieces: (line: string, style: object) => Piece[];
  plain: object;
  styleAfter: (line: string, style: object) => object;
};

const text = (line: string) =>
  pieces(line, plain)
    .map((piece) => piece.text)
    .join("");

describe("pieces", () => {
  test("honours colours and weights and carries them on", () => {
    expect(pieces("\x1b[1;31mred\x1b[0m plain", plain)).toEqual([
      { text: "red", style: { bold: true, fg: 1 } },
      { text: " plain", style: {} },
    ]);
    const after = styleAfter("x \x1b[32mgreen", plain);
    expect(pieces("still", after)[0]?.style).toEqual({ fg: 2 });
  });

  test.each([
    ["38;5;9", { fg: 9 }],
    ["38;5;208", { fg: "rgb(255 135 0)" }],
    ["38;5;244", { fg: "rgb(128 128 128)" }],
    ["48;2;1;2;3", { bg: "rgb(1 2 3)" }],
    ["38;2;999;0;", { fg: "rgb(255 0 0)" }],
    ["97;104", { fg: 15, bg: 12 }],
    ["38", { fg: undefined }],
  ])("reads ESC[%sm", (code, style) => {
    expect(pieces(`\x1b[${code}mx`, plain)[0]?.style).toEqual(style);
  });

  test.each([
    ["title", "\x1b]0;owned\x07text"],
    ["hyperlink", "\x1b]8;;javascript:alert(1)\x1b\\text\x1b]8;;\x1b\\"],
    ["clipboard", "\x1b]52;c;aGk=\x07text"],
    ["cursor and screen", "\x1b[2J\x1b[1;1H\x1b[?25ltext\x1b[K"],
    ["device string", "\x1bP1;2|x\x1b\\text"],
    ["character sets, reset", "\x1b(B\x1bctext"],
    ["control characters", "\x00te\x08x\x7ft\x9b"],
    ["an unfinished sequence", "text\x1b["],
    ["an unfinished title", "text\x1b]0;no end"],
  ])("drops %s", (_what, line) => {
    expect(text(line)).toBe("text");
  });

  test("takes time that grows with the line only", () => {
    const hostile = "\x1b[".repeat(100_000) + "\x1b]".repeat(100_000) + ";".repeat(100_000);
    expect(pieces(hostile, plain).length).toBeLessThan(200_000);
  });

  test("leaves markup as the text it is", () => {
    expect(text("<img src=x onerror=alert(1)>&amp;")).toBe("<img src=x onerror=alert(1)>&amp;");
  });
});
