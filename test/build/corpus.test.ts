/**
 * The corpus: Dockerfiles that cover every instruction and flag, built by us and by Debian's buildah; file system and
 * configuration are the same but for what the case itself lists. What that buildah does not know is compared with
 * `expected.json`; UPDATE_EXPECTED=1 writes it anew.
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildFixture, type Built, busyboxLayer } from "./build-fixture.ts";
import { Buildah, hasBuildah } from "./buildah.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";

const corpus = fileURLToPath(new URL("corpus/", import.meta.url));

/** What stands in case.json. */
interface Case {
  readonly args?: Readonly<Record<string, string>>;
  readonly target?: string;
  /** Files of the context by the id of the secret that they are. */
  readonly secrets?: Readonly<Record<string, string>>;
  /** False for what Debian's buildah does not know. */
  readonly buildah?: boolean;
  /** Paths, and fields of the configuration, in which we differ from buildah, and why. */
  readonly differs?: Readonly<Record<string, string>>;
  readonly server?: Readonly<Record<string, string>>;
}

/** What an image is, for a comparison. */
interface Described {
  readonly files: Record<string, string>;
  readonly config: Record<string, unknown>;
}

describe.skipIf(!isRoot)("the corpus", () => {
  let fixture: BuildFixture;
  let buildah: Buildah;
  let server: Server;
  let base: Record<string, string>;

  beforeAll(async () => {
    fixture = await BuildFixture.open();
    buildah = new Buildah(join(fixture.directory, "buildah"));
    const layer = busyboxLayer();
    base = mergeLayers([layer]);
    const layout = fixture.addImage("localhost/base", { layers: [layer] });
    fixture.addImage("localhost/base:latest", { layers: [layer] });
    const triggers = ["RUN echo triggered > /triggered", "COPY file /from-trigger"];
    fixture.addImage("localhost/onbuild", { layers: [layer], config: { OnBuild: triggers } });
    if (hasBuildah) {
      buildah.import(layout, "localhost/base");
      buildah.build(prepareContext("onbuild-kept"), { name: "localhost/onbuild" });
    }
    server = createServer((request, response) => {
      const content = served.get(request.url ?? "");
      if (request.url === "/moved") {
        response.writeHead(302, { location: "/file.txt" }).end();
        return;
      }
      response.writeHead(content === undefined ? 404 : 200, { "last-modified": "Sun, 06 Nov 1994 08:49:37 GMT" });
      response.end(content);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  });
  afterAll(async () => {
    server?.close();
    await fixture[Symbol.asyncDispose]();
  });
  const served = new Map<string, Buffer | string>();

  function prepareContext(name: string): string {
    const context = join(fixture.directory, "contexts", name);
    mkdirSync(context, { recursive: true });
    const source = join(corpus, name);
    cpSync(join(source, "Dockerfile"), join(context, "Dockerfile"));
    const script = join(source, "context.sh");
    if (existsSync(script))
      execFileSync("sh", ["-e", script], { cwd: context, env: { PATH: process.env["PATH"], LC_ALL: "C.UTF-8" } });
    return context;
  }

  const cases = readdirSync(corpus).sort();

  test("covers every instruction and flag at least 40 times", () => {
    expect(cases.length).toBeGreaterThanOrEqual(40);
  });

  const forBuildah = cases.filter((name) => readCase(name).buildah !== false);
  const unknownToBuildah = cases.filter((name) => readCase(name).buildah === false);

  test.for(forBuildah)("%s", async (name, { skip }) => {
    if (!hasBuildah) skip("buildah is not installed");
    const { context, options, ours } = await buildCase(name);
    buildah.build(context, { name: `case-${name}`, args: buildahArgs(context, options) });
    const theirs = describeBuildah(`case-${name}`);
    const differs = options.differs ?? {};
    expect(without(ours, differs)).toEqual(without(theirs, differs));
    // A difference that is none any more is not to be explained.
    for (const path of Object.keys(differs)) {
      expect({ path, value: valueAt(ours, path) }).not.toEqual({ path, value: valueAt(theirs, path) });
    }
  });

  test.for(unknownToBuildah)("%s, as written down", async (name) => {
    const { ours } = await buildCase(name);
    expect(ours).toEqual(expectedOf(name, ours));
  });

  /** Builds a case with our runtime. */
  async function buildCase(name: string) {
    const context = prepareContext(name);
    const options = readCase(name);
    const args = { ...options.args };
    if (options.server !== undefined) {
      for (const [path, content] of Object.entries(options.server)) served.set(path, content);
      args["SERVER"] = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    }
    const built = await fixture.build(
      "",
      {},
      {
        contextDir: context,
        dockerfile: "Dockerfile",
        buildArgs: new Map(Object.entries(args)),
        target: options.target,
        network: options.server === undefined ? "none" : "host",
        secrets: new Map(
          Object.entries(options.secrets ?? {}).map(([id, file]) => [
            id,
            async () => readFileSync(join(context, file)),
          ]),
        ),
      },
    );
    return { context, options: { ...options, args }, ours: await describeBuilt(built) };
  }

  async function describeBuilt(built: Built): Promise<Described> {
    return describeImage(await fixture.layers(built), built.configuration as never);
  }

  function describeBuildah(name: string): Described {
    const { layers, configuration } = buildah.read(name);
    return describeImage(layers, configuration as never);
  }

  /** Only what differs from the base image, so that a case shows what it is about. */
  function describeImage(
    layers: readonly Buffer[],
    { config, author }: { config: Record<string, unknown>; author?: string },
  ): Described {
    const merged = mergeLayers(layers);
    const isOnBase = "bin/busybox" in merged;
    const files = Object.fromEntries(Object.entries(merged).filter(([path, text]) => !isOnBase || base[path] !== text));
    for (const path of Object.keys(base)) if (isOnBase && !(path in merged)) files[path] = "gone";
    return { files, config: normalize({ ...config, ...(author ? { author } : {}) }) };
  }
});

function readCase(name: string): Case {
  const path = join(corpus, name, "case.json");
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Case) : {};
}

function buildahArgs(context: string, { args = {}, target, secrets = {} }: Case): string[] {
  return [
    ...Object.entries(args).flatMap(([name, value]) => ["--build-arg", `${name}=${value}`]),
    ...(target === undefined ? [] : ["--target", target]),
    ...Object.entries(secrets).flatMap(([id, file]) => ["--secret", `id=${id},src=${join(context, file)}`]),
  ];
}

/** Without what is empty, and without what says nothing about the image. */
function normalize(config: Record<string, unknown>): Record<string, unknown> {
  const ignored = new Set(["Image", "Hostname", "Domainname", "ArgsEscaped", "OpenStdin", "StdinOnce", "Tty"]);
  const kept = Object.entries(config)
    .filter(([key, value]) => !ignored.has(key) && !key.startsWith("Attach") && !isEmpty(value))
    .map(([key, value]) => {
      if (key === "Labels") return [key, withoutBuilder(value as Record<string, string>)] as const;
      return [key, key === "Env" ? (value as string[]).toSorted() : value] as const;
    })
    .filter(([, value]) => !isEmpty(value));
  return Object.fromEntries(kept.sort(([a], [b]) => (a < b ? -1 : 1)));
}

function withoutBuilder(labels: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).filter(([key]) => key !== "io.buildah.version"));
}

function isEmpty(value: unknown): boolean {
  return (
    value === undefined ||
    value === null ||
    value === "" ||
    value === false ||
    (typeof value === "object" && Object.keys(value).length === 0)
  );
}

/** All but what a case says is different. */
function without({ files, config }: Described, differs: Readonly<Record<string, string>>): Described {
  return {
    files: Object.fromEntries(Object.entries(files).filter(([path]) => !(path in differs))),
    config: Object.fromEntries(Object.entries(config).filter(([key]) => !(`config.${key}` in differs))),
  };
}

function valueAt({ files, config }: Described, path: string): unknown {
  return path.startsWith("config.") ? config[path.slice("config.".length)] : files[path];
}

function expectedOf(name: string, ours: Described): unknown {
  const path = join(corpus, name, "expected.json");
  if (process.env["UPDATE_EXPECTED"]) writeFileSync(path, `${JSON.stringify(ours, undefined, 2)}\n`);
  return JSON.parse(readFileSync(path, "utf8"));
}
