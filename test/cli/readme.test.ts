import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { parsePipeline } from "../../pipelines/index.ts";
import { root, slipway } from "./command.ts";

const readme = readFileSync(join(root, "README.md"), "utf8");
const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { scripts: Record<string, string> };

/** The blocks of one language. */
function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, "gms"))].map(([, block]) => block ?? "");
}

describe("README.md", () => {
  test("shows pipelines without mistakes", () => {
    expect(blocks("yaml").length).toBeGreaterThan(0);
    for (const block of blocks("yaml")) expect(parsePipeline(block).diagnostics).toEqual([]);
  });

  test("names npm scripts that exist", () => {
    const own = [...readme.matchAll(/npm (?:run (\w+)|(test)\b)/g)].map(([, script, name]) => script ?? name ?? "");
    expect(own).toEqual(expect.arrayContaining(["demo", "test", "check"]));
    for (const name of own) expect(Object.keys(scripts)).toContain(name);
  });

  test("links to files that exist", () => {
    const targets = [...readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, path]) => path ?? "");
    expect(targets.filter((path) => !existsSync(join(root, path)))).toEqual([]);
  });

  test("names verbs and options that exist", async () => {
    const commands = blocks("sh")
      .flatMap((block) => block.split("\n"))
      .map((line) => /npx slipway ([^#]+)/.exec(line)?.[1]?.trim().split(/\s+/) ?? [])
      .filter((words) => words.length > 0);
    expect(commands.length).toBeGreaterThan(3);
    for (const words of commands) {
      const name = words[0] === "repo" || words[0] === "build" ? words.slice(0, 2) : words.slice(0, 1);
      const { code, stdout } = await slipway([...name, "--help"]);
      expect(code, name.join(" ")).toBe(0);
      for (const option of words.filter((word) => word.startsWith("--"))) expect(stdout).toContain(option);
    }
  });
});

test.for(["hello-slipway", "image"])("the pipeline of the example %s has no mistakes", (name) => {
  const { diagnostics } = parsePipeline(readFileSync(join(root, `examples/${name}/.slipway.yml`)));
  expect(diagnostics).toEqual([]);
});
