/** The build cache on its way from one store to another. */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { CachePlace } from "../../build/index.ts";
import { RegistryClient } from "../../runtime/index.ts";
import { BuildFixture, type Built } from "./build-fixture.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { DebianRegistry } from "../runtime/registry-fixture.ts";

const dockerfile = `FROM base AS made
WORKDIR /w
COPY a /w/
RUN cat a > b && ln b c && chown 1000:1001 b && rm /bin/nc && rm -r /home/app && mkdir /home/app && mkfifo p
RUN true
FROM base
COPY --from=made /w /w
RUN --mount=type=bind,target=/c cp /c/a /a
`;

describe.skipIf(!isRoot)("a cache", () => {
  let here: BuildFixture;
  let there: BuildFixture;
  let registry: DebianRegistry;
  const client = new RegistryClient({}, { retryBaseMs: 1 });
  beforeAll(async () => {
    [here, there, registry] = await Promise.all([BuildFixture.open(), BuildFixture.open(), DebianRegistry.start()]);
  });
  afterAll(async () => {
    client[Symbol.dispose]();
    await registry[Symbol.asyncDispose]();
    await Promise.all([here[Symbol.asyncDispose](), there[Symbol.asyncDispose]()]);
  });

  const build = (
    fixture: BuildFixture,
    caches: { importCache?: CachePlace[]; exportCache?: CachePlace[] },
    text = dockerfile,
  ) => fixture.build(text, { a: "a" }, { client, ...caches });
  const cached = ({ steps }: Built) => steps.map((step) => step.cached);

  test("that was exported to a registry or a directory gives the same image without a command", async () => {
    const places: CachePlace[] = [
      { kind: "registry", name: `${registry.host}/cache:1` },
      { kind: "directory", path: join(here.directory, "cache") },
    ];
    const built = await build(here, { exportCache: places });
    expect(cached(built)).toEqual(Array.from({ length: 6 }, () => false));
    for (const place of places) {
      await using other = await BuildFixture.open();
      const again = await build(other, { importCache: [{ kind: "directory", path: "/absent" }, place] });
      expect(cached(again)).toEqual(Array.from({ length: 6 }, () => true));
      expect(again.manifest).toEqual(built.manifest);
      expect(again.warnings).toEqual([expect.stringContaining('the cache "/absent" is not used')]);
      await other.settled();
      expect(other.leftovers()).toEqual([]);
    }
    // Another one takes its place, in which only what it has used is.
    await build(here, { exportCache: places }, "FROM base\nRUN echo other\n");
    const manifests = JSON.parse(readFileSync(join(here.directory, "cache/index.json"), "utf8")) as {
      manifests: object[];
    };
    expect(manifests.manifests).toHaveLength(1);
    expect(readdirSync(here.directory).filter((name) => name.startsWith(".cache"))).toEqual([]);
  });

  test("that is none, is damaged or lies is not used, and what it lacks is made", async () => {
    const path = join(here.directory, "damaged");
    const text = "FROM base\nRUN echo one > /one\nRUN echo two > /two\n";
    const built = await build(here, { exportCache: [{ kind: "directory", path }] }, text);
    const [layer] = JSON.parse(String(await here.store.blobs.read(built.manifest.digest))).layers.slice(-2) as {
      digest: string;
    }[];
    const { digest = "" } = layer ?? {};
    const blob = join(path, "blobs", digest.replace(":", "/"));
    const content = readFileSync(blob);
    writeFileSync(blob, content.fill(0, 30, 60));
    const again = await build(there, { importCache: [{ kind: "directory", path }] }, text);
    expect(cached(again)).toEqual([false, true]);
    expect(again.warnings).toEqual([expect.stringContaining("a layer of the imported cache is not used")]);

    const empty = join(here.directory, "empty");
    mkdirSync(empty);
    const image = { kind: "registry", name: `${registry.host}/image:1` } as const;
    registry.push("image:1", []);
    const without = await build(
      there,
      { importCache: [{ kind: "directory", path: empty }, image] },
      "FROM base\nRUN true 3\n",
    );
    expect(without.warnings).toHaveLength(2);
    expect(cached(without)).toEqual([false]);
    writeFileSync(join(empty, "precious"), "");
    await expect(
      build(there, { exportCache: [{ kind: "directory", path: empty }] }, "FROM base\nRUN true 4\n"),
    ).rejects.toThrow("something else is there");
    rmSync(empty, { recursive: true });
  });

  test("of other trust is not looked into, imported or not", async () => {
    const place: CachePlace = { kind: "directory", path: join(here.directory, "poison") };
    const text = "FROM base\nRUN echo trusted > /t\n";
    await here.build(text, {}, { client, exportCache: [place], cacheNamespace: "stranger" });
    const importing = await there.build(text, {}, { client, importCache: [place], cacheNamespace: "stranger" });
    expect(cached(importing)).toEqual([true]);
    expect(cached(await there.build(text, {}, { cacheNamespace: "main" }))).toEqual([false]);
    expect(cached(await there.build(text, {}, { cacheNamespace: "stranger" }))).toEqual([true]);
  });

  test("leaves nothing half-written", async () => {
    for (const fixture of [here, there]) {
      await fixture.settled();
      expect(fixture.leftovers()).toEqual([]);
    }
  });
});
