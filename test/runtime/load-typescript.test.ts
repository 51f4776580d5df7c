import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const loader = fileURLToPath(new URL("../../runtime/load-typescript.cjs", import.meta.url));

test("load-typescript.cjs leaves V8's flags as they were, or nothing compiled before would count", () => {
  const program = `
    const { Module } = WebAssembly;
    require(process.argv[1]);
    require("node:module").stripTypeScriptTypes("const a: number = 1");
    const [hash] = [require("node:v8").cachedDataVersionTag()];
    process.stdout.write(JSON.stringify({ hash, isWhole: WebAssembly.Module === Module }));
  `;
  const run = (args: readonly string[]) =>
    JSON.parse(execFileSync(process.execPath, ["--no-warnings", "-e", program, ...args], { encoding: "utf8" }));
  const plain = execFileSync(process.execPath, ["-p", 'require("node:v8").cachedDataVersionTag()'], {
    encoding: "utf8",
  });
  expect(run([loader])).toEqual({ hash: Number(plain), isWhole: true });
});
