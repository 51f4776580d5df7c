import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { SealError, SecretKeys } from "../../server/secret-keys.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "slipway-keys-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("SecretKeys", () => {
  test("seals for one place, differently each time, and opens nothing else", () => {
    const keys = new SecretKeys([Buffer.alloc(32, 1)]);
    const value = Buffer.from("a value \0 with bytes");
    const sealed = keys.seal(value, "here");
    expect(keys.open(sealed, "here")).toEqual(value);
    expect(Buffer.from(sealed.sealed).includes("value")).toBe(false);
    expect(keys.seal(value, "here").sealed).not.toEqual(sealed.sealed);
    expect(() => keys.open(sealed, "there")).toThrow(SealError);
    for (let at = 0; at < sealed.sealed.length; at += 5) {
      const changed = Buffer.from(sealed.sealed);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(() => keys.open({ ...sealed, sealed: changed }, "here")).toThrow("damaged");
    }
    for (const length of [0, 5, 12, 27]) {
      const cut = Buffer.from(sealed.sealed).subarray(0, length);
      expect(() => keys.open({ ...sealed, sealed: cut }, "here")).toThrow(SealError);
    }
    expect(() => new SecretKeys([Buffer.alloc(32, 2)]).open(sealed, "here")).toThrow("which the server does not have");
    // The old one behind a new one still opens.
    expect(new SecretKeys([Buffer.alloc(32, 2), Buffer.alloc(32, 1)]).open(sealed, "here")).toEqual(value);
  });

  test("makes a file that nobody else reads, and reads it again", () => {
    const path = join(directory, "made");
    const made = SecretKeys.read(path, { make: true });
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(existsSync(`${path}.new`)).toBe(false);
    expect(SecretKeys.read(path, { make: false }).currentId).toBe(made.currentId);
    expect(readFileSync(path, "utf8")).not.toContain(made.currentId);
  });

  test.for([
    ["", "there is no key in it"],
    ["# only a comment\n", "there is no key in it"],
    ["too short\n", "line 1 holds no key"],
    [`${"a".repeat(64)}\nzz${"a".repeat(62)}\n`, "line 2 holds no key"],
    [`${Buffer.alloc(31, 1).toString("base64")}\n`, "line 1 holds no key"],
  ] as const)("refuses %j without showing it", ([text, problem]) => {
    const path = join(directory, "wrong");
    writeFileSync(path, text);
    const read = () => SecretKeys.read(path, { make: true });
    expect(read).toThrow(problem);
    const lines = text.split("\n").filter((line) => line.length > 20);
    expect(lines.filter((line) => messageOf(read).includes(line))).toEqual([]);
  });

  test("does not make a file that was named", () => {
    expect(() => SecretKeys.read(join(directory, "none"), { make: false })).toThrow(
      /Cannot read the key for secrets: ENOENT/,
    );
  });
});

function messageOf(act: () => unknown): string {
  try {
    act();
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}
