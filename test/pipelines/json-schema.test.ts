import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { parsePipeline, pipelineJsonSchema } from "../../pipelines/index.ts";

const fixtures = new URL("./fixtures/", import.meta.url);

describe("pipelineJsonSchema", () => {
  // `vitest run -u` writes it.
  test("is what pipeline.schema.json says", async () => {
    const text = JSON.stringify(pipelineJsonSchema(), null, 2);
    // Lists of words on one line where they fit, as the formatter has them.
    const folded = text.replaceAll(/^(.*)\[\s+([^[\]{}]*?)\s+\]/gm, (expanded, before: string, items: string) => {
      const line = `${before}[${items.replaceAll(/\s*\n\s*/g, " ")}]`;
      return line.length < 120 ? line : expanded;
    });
    await expect(`${folded}\n`).toMatchFileSnapshot("../../pipelines/pipeline.schema.json");
  });

  const schema = z.fromJSONSchema(pipelineJsonSchema());

  test.for(
    readdirSync(fixtures).filter((name) => {
      const source = readFileSync(new URL(name, fixtures));
      return name.endsWith(".yml") && parsePipeline(source).pipeline !== undefined;
    }),
  )("accepts %s, which the parser accepts", (name) => {
    const value: unknown = parse(readFileSync(new URL(name, fixtures), "utf8"), { merge: true });
    expect(schema.safeParse(value).error).toBeUndefined();
  });

  test.for([
    "jobs: {}",
    "jobs: { a: {} }",
    "jobs: { a: { steps: [] } }",
    "jobs: { a: { stesp: [x] } }",
    "jobs: { 'a b': { steps: [x] } }",
    "jobs: { a: { steps: [{ name: x }] } }",
    "jobs: { a: { steps: [{ run: x, timeout: 5 }] } }",
    "jobs: { a: { steps: [{ run: x, resources: { memory: 512mb } }] } }",
    "jobs: { a: { steps: [x] } }\nimage: /usr",
    "jobs: { a: { steps: [x] } }\non: pushes",
    "jobs: { a: { steps: [x] } }\non: { push: [main] }",
    "jobs: { a: { steps: [x] } }\nenv: { 2X: y }",
  ])("refuses %s, as the parser does", (source) => {
    expect(parsePipeline(source).pipeline).toBeUndefined();
    expect(schema.safeParse(parse(source)).success).toBe(false);
  });
});
