/** Trees as steps leave them: large, deep, with any names, full of links. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { needRight } from "./host-rights.ts";
import { MeasuringThread } from "../../runtime/measuring-thread.ts";
import { TreeRemoval } from "../../runtime/tree-removal.ts";
import { isPlainTree, measure } from "../../runtime/tree-size.ts";

const KiB = 1024;
let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "slipway-tree-"));
});
afterEach(() => {
  execFileSync("rm", ["-rf", directory]);
});

function size(options: { sinceMs?: number; pids?: number[]; thoroughly?: boolean; mostFiles?: number } = {}) {
  const { sinceMs, pids = [], thoroughly = false, mostFiles = 1e6 } = options;
  return measure({
    trees: [{ path: directory, ...(sinceMs !== undefined && { sinceMs }) }],
    pids,
    thoroughly,
    mostFiles,
  });
}

/** A chain of directories that no path reaches the end of. */
function makeDeep(levels: number): void {
  const script = `import os
os.chdir(${JSON.stringify(directory)})
for i in range(${levels}):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
open("end", "w").close()`;
  execFileSync("python3", ["-c", script]);
}

describe("measure", () => {
  test("counts what the file system has allotted, each file once", () => {
    writeFileSync(join(directory, "a"), Buffer.alloc(64 * KiB));
    linkSync(join(directory, "a"), join(directory, "b"));
    mkdirSync(join(directory, "below"));
    writeFileSync(join(directory, "below/c"), Buffer.alloc(16 * KiB, 1));
    writeFileSync(join(directory, "hole"), "");
    truncateSync(join(directory, "hole"), 1024 ** 4);
    const { made, old, tooDeep } = size();
    expect(made.files).toBe(4);
    expect(made.bytes).toBeGreaterThanOrEqual(80 * KiB);
    expect(made.bytes).toBeLessThan(128 * KiB);
    expect([old.files, tooDeep]).toEqual([0, false]);
  });

  test("follows no symbolic link, and counts names that are not text", () => {
    symlinkSync("/usr", join(directory, "usr"));
    symlinkSync(directory, join(directory, "self"));
    execFileSync("sh", ["-c", 'cd "$0" && mkdir "$(printf "\\377")" && touch "$(printf "\\377/\\376")"', directory]);
    expect(size().made.files).toBe(4);
  });

  test("tells what was there from what was made since", async () => {
    writeFileSync(join(directory, "old"), Buffer.alloc(64 * KiB, 1));
    await delay(50);
    const sinceMs = Date.now();
    await delay(50);
    writeFileSync(join(directory, "new"), Buffer.alloc(32 * KiB, 1));
    const { made, old } = size({ sinceMs });
    expect([made.files, old.files]).toEqual([1, 1]);
    expect(old.bytes).toBeGreaterThanOrEqual(64 * KiB);
    expect(made.bytes).toBeLessThan(64 * KiB);
  });

  test("counts files that were deleted and are still open or mapped", async (context) => {
    const script = `import ctypes, os, time
def hidden(name):
    f = open(name, "w+b"); f.write(bytes([1]) * ${128 * KiB}); f.flush(); os.unlink(name)
    return f
a = hidden("a")
b = hidden("b")
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
m = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, b.fileno(), ctypes.c_long(0))
b.close()
c = os.memfd_create("memory"); os.write(c, bytes(${128 * KiB}))
print("ready", flush=True); time.sleep(1000)`;
    const holder = spawn("python3", ["-c", script], { cwd: directory, stdio: ["ignore", "pipe", "inherit"] });
    try {
      await once(holder.stdout, "data");
      expect(size().made.files).toBe(0);
      const pids = [holder.pid ?? 0];
      expect(size({ pids }).made.files).toBe(1);
      expect(size({ pids }).made.bytes).toBeGreaterThanOrEqual(128 * KiB);
      needRight("files that others have mapped", context);
      expect(size({ pids, thoroughly: true }).made.files).toBe(2);
    } finally {
      holder.kill("SIGKILL");
      await once(holder, "close");
    }
  });

  test("stops at so many files, and where no path could lead", () => {
    for (let i = 0; i < 50; i++) writeFileSync(join(directory, `${i}`), "");
    expect(size({ mostFiles: 10 }).made.files).toBe(11);
    makeDeep(1005);
    expect(size()).toMatchObject({ tooDeep: true });
  });

  test("of what is gone is nothing", () => {
    rmSync(directory, { recursive: true });
    expect(size({ pids: [0, 2 ** 30] }).made).toEqual({ bytes: 0, files: 0 });
  });
});

function removeAll(path: string): void {
  using removal = new TreeRemoval(path);
  while (!removal.step(7));
}

describe("TreeRemoval", () => {
  test("deletes a tree of any names, modes and links, and nothing that links lead to", () => {
    const outside = mkdtempSync(join(tmpdir(), "slipway-outside-"));
    writeFileSync(join(outside, "file"), "");
    const tree = join(directory, "tree");
    mkdirSync(join(tree, "closed/below"), { recursive: true });
    writeFileSync(join(tree, "closed/below/file"), "");
    symlinkSync(outside, join(tree, "link"));
    execFileSync("sh", [
      "-c",
      'cd "$0" && mkdir "$(printf "\\377")" && touch "$(printf "\\377/\\376")" && mkfifo pipe',
      tree,
    ]);
    chmodSync(join(tree, "closed"), 0);
    removeAll(tree);
    expect(existsSync(tree)).toBe(false);
    expect(readdirSync(outside)).toEqual(["file"]);
    rmSync(outside, { recursive: true });
  });

  test("deletes what no path leads to", () => {
    makeDeep(2000);
    removeAll(directory);
    expect(existsSync(directory)).toBe(false);
  });

  test("deletes files, links, and what is not there", () => {
    writeFileSync(join(directory, "file"), "");
    symlinkSync("/usr", join(directory, "link"));
    for (const name of ["file", "link", "nothing"]) removeAll(join(directory, name));
    expect(readdirSync(directory)).toEqual([]);
  });

  test("deletes 10 000 files in a directory", () => {
    mkdirSync(join(directory, "many"));
    for (let i = 0; i < 10_000; i++) writeFileSync(join(directory, "many", `file-${i}`), "");
    removeAll(join(directory, "many"));
    expect(readdirSync(directory)).toEqual([]);
  });

  test("ends where something cannot be deleted", (context) => {
    mkdirSync(join(directory, "tree/a"), { recursive: true });
    writeFileSync(join(directory, "tree/a/kept"), "");
    writeFileSync(join(directory, "tree/gone"), "");
    try {
      execFileSync("chattr", ["+i", join(directory, "tree/a/kept")], { stdio: "ignore" });
    } catch {
      return context.skip("this file system or this user cannot keep files");
    }
    removeAll(join(directory, "tree"));
    execFileSync("chattr", ["-i", join(directory, "tree/a/kept")]);
    expect(readdirSync(join(directory, "tree"))).toEqual(["a"]);
  });
});

test("isPlainTree knows a small tree from one that is large, deep or strange", () => {
  mkdirSync(join(directory, "a/b"), { recursive: true });
  writeFileSync(join(directory, "a/b/file"), "");
  expect(isPlainTree(directory, 10)).toBe(true);
  expect(isPlainTree(directory, 2)).toBe(false);
  expect(isPlainTree(join(directory, "nothing"), 10)).toBe(true);
  execFileSync("sh", ["-c", 'cd "$0" && touch "$(printf "\\377")"', directory]);
  expect(isPlainTree(directory, 10)).toBe(false);
  rmSync(join(directory, "a"), { recursive: true });
  makeDeep(20);
  expect(isPlainTree(directory, 100)).toBe(false);
});

test("MeasuringThread measures in order, and ends", async () => {
  mkdirSync(join(directory, "tree/below"), { recursive: true });
  const thread = new MeasuringThread();
  const request = { trees: [{ path: directory }], pids: [], thoroughly: false, mostFiles: 10 };
  const both = await Promise.all([thread.measure(request), thread.measure({ ...request, trees: [] })]);
  expect(both.map(({ made }) => made.files)).toEqual([2, 0]);
  const unanswered = thread.measure(request);
  const ended = thread[Symbol.asyncDispose]();
  await expect(unanswered).rejects.toThrow("Cannot measure a disk: the agent is ending");
  await ended;
  await expect(thread.measure(request)).rejects.toThrow("ending");
});
