import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const loader = fileURLToPath(new URL("../../runtime/load-typescript.cjs", import.meta.url));

/** What a program prints as JSON that has the loader as its argument. */
const run = (program: string): unknown =>
  JSON.parse(execFileSync(process.execPath, ["--no-warnings", "-e", program, loader], { encoding: "utf8" }));

const hash = 'require("node:v8").cachedDataVersionTag()';

describe("load-typescript.cjs", () => {
  test("leaves V8's flags as they were, or nothing compiled before would count", () => {
    const program = `
      const { Module } = WebAssembly;
      require(process.argv[1]);
      require("node:module").stripTypeScriptTypes("const a: number = 1");
      console.log(JSON.stringify({ hash: ${hash}, isWhole: WebAssembly.Module === Module }));
    `;
    expect(run(program)).toEqual({ hash: run(`console.log(${hash})`), isWhole: true });
  });

  test("leaves the modules of others what they are, and waits for Node's", () => {
    const program = `
      const { Module } = WebAssembly;
      require(process.argv[1]);
      const empty = Buffer.from("\\0asm\\x01\\0\\0\\0");
      class Own extends WebAssembly.Module {}
      let wrong;
      try {
        new WebAssembly.Module(Buffer.from("wrong"));
      } catch ({ name }) {
        wrong = name;
      }
      WebAssembly.compile(empty).then((compiled) => {
        const modules = [compiled, new WebAssembly.Module(empty), new Own(empty)];
        const are = [Module, WebAssembly.Module].map((type) => modules.every((each) => each instanceof type));
        const isWaiting = WebAssembly.Module !== Module;
        require("node:module").stripTypeScriptTypes("const a: number = 1");
        const [isWhole, isOwn] = [WebAssembly.Module === Module, modules[2] instanceof Own];
        console.log(JSON.stringify({ wrong, are, isOwn, isWaiting, isWhole, hash: ${hash} }));
      });
    `;
    const expected = { wrong: "CompileError", are: [true, true], isOwn: true, isWaiting: true, isWhole: true };
    expect(run(program)).toEqual({ ...expected, hash: run(`console.log(${hash})`) });
  });
});
