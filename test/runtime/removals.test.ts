/** What containers leave is deleted, whatever its names, modes and depth. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Removals } from "../../runtime/removals.ts";

const directory = mkdtempSync(join(tmpdir(), "slipway-removals-"));
const trash = join(directory, "trash");
const removals = new Removals();

beforeAll(async () => {
  mkdirSync(trash);
  // The thread is started when it is worth it.
  for (let i = 0; !removals.isThread; i++) {
    mkdirSync(join(trash, `first-${i}`));
    await removals.remove(join(trash, `first-${i}`));
  }
});

afterAll(async () => {
  await removals.close();
  rmSync(directory, { recursive: true, force: true });
});

describe("Removals", () => {
  test("delete links, not what they lead to, names that are no UTF-8, and what nobody may read", async () => {
    const tree = join(trash, "tree");
    const outside = join(directory, "outside");
    mkdirSync(join(tree, "closed/inner"), { recursive: true });
    writeFileSync(outside, "stays");
    symlinkSync(outside, join(tree, "link"));
    symlinkSync(directory, join(tree, "directory"));
    writeFileSync(Buffer.concat([Buffer.from(`${tree}/`), Buffer.from([0xff, 0xfe, 0x0a])]), "");
    execFileSync("chmod", ["0", join(tree, "closed")]);
    await removals.remove(tree);
    expect(readdirSync(trash)).toEqual([]);
    expect(existsSync(outside)).toBe(true);
  });

  test("delete a tree that is deeper than the longest path", async () => {
    const tree = join(trash, "deep");
    mkdirSync(tree);
    const script =
      "import os,sys\nos.chdir(sys.argv[1])\nfor i in range(300):\n os.mkdir('d'*100); os.chdir('d'*100)\nopen('file','w')";
    execFileSync("python3", ["-c", script, tree]);
    await removals.remove(tree);
    expect(readdirSync(trash)).toEqual([]);
  });

  test("let a small tree not wait for a large one", async () => {
    const [large, small] = [join(trash, "large"), join(trash, "small")];
    mkdirSync(large);
    mkdirSync(small);
    for (let i = 0; i < 10_000; i++) writeFileSync(join(large, `${i}`), "");
    const order: string[] = [];
    const both = [large, small].map((tree) => removals.remove(tree).then(() => order.push(tree)));
    await Promise.all(both);
    expect(order).toEqual([small, large]);
    expect(readdirSync(trash)).toEqual([]);
  });

  test("take what is gone already for deleted, and say what stays", async () => {
    await removals.remove(join(trash, "nothing"));
    await expect(removals.remove("/proc/self/fd")).rejects.toThrow("/proc/self/fd");
  });
});
