import { describe, expect, test } from "vitest";
import { EscapeFilter } from "../../cli/shell-escape.ts";

/** Types pieces and answers what is sent on, with `!` where the person leaves. */
function type(...pieces: readonly string[]): string {
  const filter = new EscapeFilter();
  let sent = "";
  for (const piece of pieces) {
    const { bytes, isEnd } = filter.filter(Buffer.from(piece));
    sent += Buffer.from(bytes).toString();
    if (isEnd) return `${sent}!`;
  }
  return sent;
}

describe("EscapeFilter", () => {
  test.for([
    [["ls\r"], "ls\r"],
    [["~."], "!"],
    [["ls\r~.rest"], "ls\r!"],
    [["ls\n~."], "ls\n!"],
    [["a~.b\r"], "a~.b\r"],
    [["\r", "~", "."], "\r!"],
    [["\r~~."], "\r~."],
    [["\r~~~."], "\r~~."],
    [["\r~x~."], "\r~x~."],
    [["\r~", "\r~."], "\r~\r!"],
    [["~/bin/x\r"], "~/bin/x\r"],
    [["ü\r~."], "ü\r!"],
  ] as const)("%j", ([pieces, sent]) => {
    expect(type(...pieces)).toBe(sent);
    // However it is cut.
    expect(type(...Array.from(pieces.join("")))).toBe(sent);
  });
});
