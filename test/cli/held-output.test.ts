import { describe, expect, test } from "vitest";
import { HeldOutput } from "../../cli/held-output.ts";

describe("HeldOutput", () => {
  test("passes text on, and keeps it while it is held", () => {
    const shown: string[] = [];
    const output = new HeldOutput((text) => void shown.push(text));
    output.print("a\n");
    output.hold();
    output.print("b\n");
    output.print("c\n");
    expect(shown).toEqual(["a\n"]);
    output.release();
    output.print("d\n");
    expect(shown).toEqual(["a\n", "b\nc\n", "d\n"]);
  });

  test("keeps the beginning and the end of a flood, and says how much is left out", () => {
    let shown = "";
    const output = new HeldOutput((text) => (shown += text));
    output.hold();
    const lines = Array.from({ length: 100_000 }, (_, i) => `${String(i).padStart(99, ".")}\n`);
    for (const line of lines) output.print(line);
    output.release();
    expect(shown.length).toBeLessThan(5 << 20);
    expect(shown.startsWith(lines.slice(0, 1000).join(""))).toBe(true);
    expect(shown.endsWith(lines.slice(-1000).join(""))).toBe(true);
    const omitted = Number(/… (\d+) characters are left out …\n/.exec(shown)?.[1]);
    expect(shown.length - `… ${omitted} characters are left out …\n`.length + omitted).toBe(100 * lines.length);
  });
});
