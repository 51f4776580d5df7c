/** Enforces the import table of docs/architecture.md on every file there is. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

/** Who may import whom; a folder may always import itself. */
const mayImport: Readonly<Record<string, readonly string[]>> = {
  pipelines: [],
  runtime: [],
  build: ["pipelines", "runtime"],
  queue: ["pipelines"],
  agent: ["build", "queue", "pipelines", "runtime"],
  server: ["queue", "pipelines"],
  web: [],
  cli: ["agent", "build", "pipelines", "queue", "runtime", "server"],
  bench: ["agent", "build", "cli", "pipelines", "queue", "runtime", "server"],
};

/** Where a package may be imported (test/ and bench/ may import what they measure and check). */
const packageHomes: Readonly<Record<string, readonly string[]>> = {
  bullmq: ["queue"],
  fastify: ["server"],
  ioredis: ["queue"],
  koffi: ["runtime"],
  "node:sqlite": ["server"],
  "simple-git": ["agent", "server"],
  ws: ["queue", "server"],
};

interface Import {
  readonly file: string;
  readonly folder: string;
  readonly specifier: string;
  readonly isType: boolean;
}

const files = Object.keys(mayImport).flatMap((folder) =>
  (readdirSync(join(root, folder), { recursive: true }) as string[])
    .filter((name) => /\.(?:ts|js|mjs|cjs)$/.test(name) && !name.includes("node_modules"))
    .map((name) => `${folder}/${name}`),
);
const imports = files.flatMap((file) => scan(file, readFileSync(join(root, file), "utf8")));

/** Removes comments, so that a word in prose is no import. Strings stay: they hold the specifiers. */
function code(source: string): string {
  const token = /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`|\/\*[^]*?\*\/|(?<=^|[\s;{}(),])\/\/[^\n]*/g;
  return source.replace(token, (match) => (match.startsWith("/") ? " " : match));
}

function scan(file: string, source: string): Import[] {
  const patterns = [
    /\b(?<keyword>import|export)(?<type>\s+type)?\s(?:[^;"'`()]*?\sfrom\s*)?["'](?<specifier>[^"'\n]+)["']/g,
    /\b(?:import|require|require\.resolve)\(\s*["'`](?<specifier>[^"'`\n]+)["'`]/g,
  ];
  const folder = file.split("/")[0] ?? "";
  return patterns.flatMap((pattern) =>
    [...code(source).matchAll(pattern)].map(({ groups }) => ({
      file,
      folder,
      specifier: groups?.["specifier"] ?? "",
      isType: groups?.["type"] !== undefined,
    })),
  );
}

/** `queue/index.ts` for a relative import, undefined for a package. */
function target({ file, specifier }: Import): string | undefined {
  return specifier.startsWith(".") ? relative(root, join(root, dirname(file), specifier)) : undefined;
}

describe("scan", () => {
  test("finds every way to import and nothing in comments", () => {
    const source = [
      'import a from "one";',
      "import {\n  b,\n  type C,\n} from 'two';",
      'import type { D } from "three";',
      'export * from "./four.ts";',
      'export type { E } from "five";',
      'import "six";',
      'const f = await import("seven");',
      'const g = require("eight");',
      'let h: typeof import("nine");',
      '// import i from "ten";',
      '/* import j from "eleven"; */',
    ].join("\n");
    const found = scan("pipelines/x.ts", source);
    expect(found.map(({ specifier }) => specifier).sort()).toEqual(
      ["one", "two", "three", "./four.ts", "five", "six", "seven", "eight", "nine"].sort(),
    );
    expect(found.filter(({ isType }) => isType).map(({ specifier }) => specifier)).toEqual(["three", "five"]);
  });

  test("sees the whole repository", () => {
    expect(files).toEqual(expect.arrayContaining(["cli/main.ts", "runtime/index.ts", "server/index.ts"]));
    expect(imports.length).toBeGreaterThan(files.length);
  });
});

describe("imports", () => {
  test("follow the table of docs/architecture.md", () => {
    const wrong = imports.filter((one) => {
      const other = target(one)?.split("/")[0];
      return other !== undefined && other !== one.folder && !mayImport[one.folder]?.includes(other);
    });
    expect(wrong.map(describeImport)).toEqual([]);
  });

  test("across folders name index.ts only", () => {
    const wrong = imports.filter((one) => {
      const path = target(one);
      // bench/ measures insides; package.json is data; what starts often, or twice, loads no more than it needs.
      if (path === undefined || one.folder === "bench") return false;
      const small = ["files.ts", "image-store-path.ts", "images.ts", "load-typescript.cjs", "oci.ts", "rootless.ts"];
      if (small.some((name) => path === `runtime/${name}`)) return false;
      const other = path.split("/")[0] ?? "";
      return other !== one.folder && other in mayImport && path !== `${other}/index.ts`;
    });
    expect(wrong.map(describeImport)).toEqual([]);
  });

  test("of pipelines/ in queue/ are types only", () => {
    const wrong = imports.filter(
      (one) => one.folder === "queue" && target(one)?.startsWith("pipelines/") && !one.isType,
    );
    expect(wrong.map(describeImport)).toEqual([]);
  });

  test("of node modules carry node:", () => {
    const bare = new Set([
      "assert",
      "child_process",
      "crypto",
      "events",
      "fs",
      "http",
      "net",
      "os",
      "path",
      "stream",
      "url",
      "util",
    ]);
    const wrong = imports.filter(
      ({ file, specifier }) => file.endsWith(".ts") && bare.has(specifier.split("/")[0] ?? ""),
    );
    expect(wrong.map(describeImport)).toEqual([]);
  });

  test.for(Object.entries(packageHomes))("of %s stay at home", ([name, homes]) => {
    const wrong = imports.filter(
      ({ folder, specifier }) =>
        (specifier === name || specifier.startsWith(`${name}/`)) && folder !== "bench" && !homes.includes(folder),
    );
    expect(wrong.map(describeImport)).toEqual([]);
  });

  test("of koffi are in one file of runtime/", () => {
    const users = new Set(
      imports.filter(({ folder, specifier }) => folder !== "bench" && specifier === "koffi").map(({ file }) => file),
    );
    expect([...users]).toHaveLength(1);
  });

  test("are of packages that package.json names", () => {
    const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { dependencies: object };
    const wrong = imports.filter(({ folder, specifier }) => {
      if (specifier.startsWith(".") || specifier.startsWith("node:") || folder === "web" || folder === "bench")
        return false;
      const name = specifier
        .split("/")
        .slice(0, specifier.startsWith("@") ? 2 : 1)
        .join("/");
      return !(name in dependencies) && !specifier.startsWith("/");
    });
    // The bootstrap runs on a Node that does not know node: specifiers yet.
    expect(wrong.filter(({ file }) => !file.endsWith(".cjs")).map(describeImport)).toEqual([]);
  });
});

/** Files that hand part of this process's environment on to git, or have a parameter called `process`; they decide nothing by it. */
const handOn = ["agent/git.ts", "agent/large-files.ts", "runtime/process-block.ts", "server/mirror.ts"];

describe("environment and arguments", () => {
  test("are read in cli/ only", () => {
    const readers = files.filter((file) => {
      if (/^(?:cli|bench|web)\//.test(file) || handOn.includes(file)) return false;
      const source = code(readFileSync(join(root, file), "utf8"));
      return (
        /\bprocess\s*(?:\?\.|\.)\s*(?:env|argv)\b|\bprocess\[["'](?:env|argv)/.test(source) ||
        /\{[^}]*\b(?:env|argv)\b[^}]*\}\s*from\s*["']node:process/.test(source)
      );
    });
    expect(readers).toEqual([]);
  });
});

function describeImport({ file, specifier }: Import): string {
  return `${file} imports ${specifier}`;
}
