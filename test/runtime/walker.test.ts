import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { walkerArm64 } from "../../runtime/walker-arm64.ts";
import { walkerX64 } from "../../runtime/walker-x64.ts";

const layout = {
  tableAddress: 0x10102000,
  scratchAddress: 0x10101000,
  failMessageAddress: 0x10101040,
  statusFd: 3,
};

// Each listing was made by objdump, read instruction by instruction beside the source, and is what the code must be.
const walkers = [
  {
    architecture: "arm64",
    code: walkerArm64(layout, { write: 64, exitGroup: 94 }),
    objdump: ["aarch64-linux-gnu-objdump", "-D", "-b", "binary", "-m", "aarch64"],
  },
  {
    architecture: "x64",
    code: walkerX64(layout, { write: 1, exitGroup: 231 }),
    objdump: ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--insn-width=10"],
  },
];

test.for(walkers)("walker of $architecture assembles to the bytes of its listing", ({ architecture, code }) => {
  const hex = listing(architecture).map(({ bytes }) => bytes);
  const words = architecture === "arm64" ? hex.map((word) => word.match(/../g)?.reverse().join("")) : hex;
  expect(Buffer.from(code).toString("hex")).toBe(words.join(""));
});

test.for(walkers)("walker of $architecture disassembles to its listing", ({ architecture, code, objdump }, context) => {
  const [command = "", ...args] = objdump;
  if (spawnSync(command, ["--version"]).status !== 0) {
    context.skip(`${command} is not installed (Debian packages binutils and binutils-aarch64-linux-gnu)`);
  }
  const directory = mkdtempSync(join(tmpdir(), "slipway-walker-"));
  try {
    const file = join(directory, "code");
    writeFileSync(file, code);
    const printed = execFileSync(command, [...args, file], { encoding: "utf8" });
    expect(parse(printed)).toEqual(listing(architecture));
  } finally {
    rmSync(directory, { recursive: true });
  }
});

function listing(architecture: string) {
  return parse(readFileSync(new URL(`fixtures/walker-${architecture}.lst`, import.meta.url), "utf8"));
}

/** `58: 48 3d 01 f0 ff ff cmp rax,0xfffffffffffff001` */
function parse(text: string): { address: string; bytes: string; instruction: string }[] {
  return text.split("\n").flatMap((line) => {
    const folded = line
      .replace(/\s*\/\/.*$/, "")
      .replace(/\s+/g, " ")
      .trim();
    const [, address, bytes, instruction] = /^([0-9a-f]+): ((?:[0-9a-f]{2} )+|[0-9a-f]{8} )(.+)$/.exec(folded) ?? [];
    if (address === undefined || bytes === undefined || instruction === undefined) return [];
    return [{ address, bytes: bytes.replaceAll(" ", ""), instruction }];
  });
}
