import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { formatDiagnostic, parsePipeline } from "../../pipelines/index.ts";

// A case is a file in fixtures/ and beside it what is to be expected of it: the diagnostics as a person reads them, then
// the pipeline. A new case needs only its .yml; `vitest run -u` writes the other file, which is then to be read.
const fixtures = new URL("./fixtures/", import.meta.url);

describe("parsePipeline", () => {
  const names = readdirSync(fixtures).filter((name) => name.endsWith(".yml"));

  test.for(names)("%s", async (name) => {
    const { pipeline, diagnostics } = parsePipeline(readFileSync(new URL(name, fixtures)), { file: name });
    const blocks = diagnostics.map((diagnostic) => formatDiagnostic(diagnostic));
    if (pipeline !== undefined) blocks.push(JSON.stringify(pipeline, null, 2));
    await expect(`${blocks.join("\n\n")}\n`).toMatchFileSnapshot(`./fixtures/${name.replace(/yml$/, "expected")}`);
  });
});
