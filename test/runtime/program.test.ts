import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { compileProgram, explainProgram, failMessage, type Operation } from "../../runtime/program.ts";
import { architecture as ours } from "../../runtime/syscall.ts";
import type { Architecture } from "../../runtime/syscall-table.ts";

let directory = "";
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "slipway-program-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** The native one always; the other where an emulator for it is installed. */
const runners: { architecture: Architecture; command: readonly string[] }[] = [
  { architecture: "x64", command: ours === "x64" ? [] : ["qemu-x86_64-static"] },
  { architecture: "arm64", command: ours === "arm64" ? [] : ["qemu-aarch64-static"] },
];

describe.for(runners)("compileProgram on $architecture", ({ architecture, command }) => {
  const emulator = command[0];
  const runnable = emulator === undefined || spawnSync(emulator, ["--version"]).status === 0;

  function run(operations: readonly Operation[]) {
    const program = compileProgram(operations, { architecture, statusFd: 2 });
    const file = join(directory, `program-${architecture}`);
    writeFileSync(file, program.file);
    chmodSync(file, 0o755);
    const { status, stdout, stderr } = emulator === undefined ? spawnSync(file) : spawnSync(emulator, [file]);
    return { program, status, stdout: stdout.toString(), stderr };
  }

  const exit = (code: number): Operation => ({ name: "exit", call: "exit_group", args: [code] });
  const write = (text: string): Operation => ({ name: "write", call: "write", args: [1, { text }, text.length] });

  test.runIf(runnable)("executes operations in order", () => {
    const { status, stdout } = run([write("one "), write("two"), exit(7)]);
    expect({ status, stdout }).toEqual({ status: 7, stdout: "one two" });
  });

  test.runIf(runnable)("feeds a stored result into later arguments", () => {
    const { stdout } = run([
      { memory: "pipe", size: 8 },
      { memory: "buffer", size: 8 },
      { memory: "length", size: 4 },
      { name: "pipe", call: "pipe2", args: [{ addressOf: "pipe" }, 0] },
      { name: "fill", call: "write", args: [{ load: "pipe", offset: 4 }, { text: "abc" }, 3] },
      { name: "read", call: "read", args: [{ load: "pipe" }, { addressOf: "buffer" }, 8], store: "length" },
      { name: "write", call: "write", args: [1, { addressOf: "buffer" }, { load: "length" }] },
      exit(0),
    ]);
    expect(stdout).toBe("abc");
  });

  test.runIf(runnable)("reports the failing operation and its errno", () => {
    const close: Operation = { name: "close what is not open", call: "close", args: [999] };
    const { program, status, stderr } = run([write("x"), close, exit(0)]);
    expect(status).toBe(127);
    expect(stderr.readUInt32LE(0)).toBe(failMessage);
    expect(stderr.readUInt32LE(4)).toBe(9); // EBADF
    expect(program.operationAt(stderr.readBigUInt64LE(8))).toBe(close);
  });

  test.runIf(runnable)("goes on after a tolerated errno and no other", () => {
    const close = (tolerate: readonly number[]): Operation => ({ name: "close", call: "close", args: [999], tolerate });
    expect(run([close([1, 2, 3, 9]), exit(3)]).status).toBe(3);
    expect(run([close([1, 2, 3, 4]), exit(3)]).status).toBe(127);
  });

  test.runIf(runnable)("jumps forwards on a positive result and on inequality, and backwards", () => {
    const { stdout, status } = run([
      { memory: "count", size: 4 },
      { memory: "pid", size: 4 },
      { label: "again" },
      // umask returns the mask before: 0o022 or whatever, then 1, then 2.
      { name: "umask", call: "umask", args: [1] },
      { name: "umask", call: "umask", args: [2], store: "count" },
      write("."),
      { name: "until 1", unequal: [{ load: "count" }, 1], goto: "again" },
      { name: "getpid", call: "getpid", args: [], store: "pid", ifPositive: "end" },
      { name: "never", fail: 5 },
      { label: "end" },
      exit(0),
    ]);
    expect({ stdout, status }).toEqual({ stdout: ".", status: 0 });
  });

  test.runIf(runnable)("formats a number so that it ends where it must", () => {
    const { stdout } = run([
      { memory: "number", size: 8, bytes: Buffer.from([0xff, 0xc9, 0x9a, 0x3b]) }, // 999999999
      { memory: "text", size: 16, bytes: Buffer.from("////////////\n") },
      { name: "format", decimal: { load: "number" }, endsAt: { addressOf: "text", offset: 12 } },
      { name: "write", call: "write", args: [1, { addressOf: "text" }, 13] },
      { name: "format", decimal: 0, endsAt: { addressOf: "text", offset: 1 } },
      { name: "write", call: "write", args: [1, { addressOf: "text" }, 2] },
      exit(0),
    ]);
    expect(stdout).toBe("///999999999\n0/");
  });

  test.runIf(runnable)("fails on purpose with the errno that it is given", () => {
    const { stderr, status } = run([{ name: "give up", fail: 42 }]);
    expect({ status, errno: stderr.readUInt32LE(4) }).toEqual({ status: 127, errno: 42 });
  });
});

test("compileProgram refuses a label, memory or call that does not exist", () => {
  const compile = (operation: Operation) => () => compileProgram([operation], { architecture: "arm64", statusFd: 2 });
  expect(compile({ name: "jump", unequal: [0, 1], goto: "nowhere" })).toThrow('no label "nowhere"');
  expect(compile({ name: "load", call: "close", args: [{ load: "fd" }] })).toThrow('no memory "fd"');
  expect(compile({ name: "open", call: "open", args: [] })).toThrow('No system call "open" on arm64');
  expect(compile({ name: "close", call: "close", args: [0], tolerate: [1, 2, 3, 4, 5] })).toThrow("room for 4");
});

test("explainProgram prints one operation a line", () => {
  const printed = explainProgram([
    { memory: "fd", size: 4 },
    { name: "open it", call: "openat", args: [-100, { text: "/a" }, 0x80000, 0], store: "fd", ifPositive: "end" },
    { label: "end" },
    { name: "stop", fail: 2 },
  ]);
  expect(printed).toBe('  fd = openat(-100, "/a", 0x80000, 0) >0 → end  # open it\nend:\n  fail 2  # stop\n');
});
