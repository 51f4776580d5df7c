import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isRoot, oneFileLayer, sha256 } from "./image-fixture.ts";
import { PullFixture } from "./pull-fixture.ts";
import { DebianRegistry, ScriptedRegistry } from "./registry-fixture.ts";

const architecture = process.arch === "arm64" ? "arm64" : "amd64";
const gzipType = "application/vnd.oci.image.layer.v1.tar+gzip";
const zstdType = "application/vnd.oci.image.layer.v1.tar+zstd";

function layer(name: string, content?: string) {
  const tar = oneFileLayer(name, content);
  return { tar, blob: gzipSync(tar), mediaType: gzipType };
}

const base = layer("usr/base", "base");
const top = layer("usr/top", "top");

describe.skipIf(!isRoot)("pullImage from Debian's registry", () => {
  let registry: DebianRegistry;
  beforeAll(async () => {
    registry = await DebianRegistry.start();
  });
  afterAll(async () => {
    await registry[Symbol.asyncDispose]();
  });

  test("brings layers plain, gzip and zstd, and finds them in the store the next time", async () => {
    await using fixture = new PullFixture();
    const plain = oneFileLayer("usr/plain", "plain");
    const zstd = oneFileLayer("usr/zstd", "zstd");
    registry.push(
      "team/app:1",
      [base, { tar: plain, blob: plain }, { tar: zstd, blob: zstdCompressSync(zstd), mediaType: zstdType }],
      { config: { config: { Env: ["A=1"], User: "7", WorkingDir: "/srv" } } },
    );
    const image = await fixture.pull(`${registry.host}/team/app:1`);
    expect(
      image.layers.map((directory, i) => readFileSync(join(directory, `usr/${["base", "plain", "zstd"][i]}`), "utf8")),
    ).toEqual(["base", "plain", "zstd"]);
    expect(image.image.config).toMatchObject({ env: { A: "1" }, user: "7", workingDir: "/srv" });
    const again = await fixture.pull(`${registry.host}/team/app:1`);
    expect(again.layers).toEqual(image.layers);
    const pinned = await fixture.pull(`${registry.host}/team/app@${image.resolved}`, { policy: "never" });
    expect(pinned.layers).toEqual(image.layers);
  });
});

describe.skipIf(!isRoot)("pullImage", () => {
  test("fetches nothing twice: neither manifest nor layers, whatever the tag", async () => {
    await using registry = await ScriptedRegistry.start();
    await using fixture = new PullFixture();
    const digest = registry.add("1", [base, top]);
    registry.add("2", [base, layer("usr/other")]);
    await fixture.pull(`${registry.host}/t:1`);
    expect(registry.requests.filter((request) => request.includes("blobs"))).toHaveLength(3);
    registry.requests.length = 0;
    await fixture.pull(`${registry.host}/t:1`);
    expect(registry.requests).toEqual(["HEAD /v2/t/manifests/1"]);
    await fixture.pull(`${registry.host}/t:1`, { policy: "missing" });
    await fixture.pull(`${registry.host}/t@${digest}`);
    expect(registry.requests).toHaveLength(1);
    await fixture.pull(`${registry.host}/t:2`);
    expect(registry.requests.filter((request) => request.includes("blobs"))).toHaveLength(2);
  });

  test("sees that a tag has moved, unless that is not asked", async () => {
    await using registry = await ScriptedRegistry.start();
    await using fixture = new PullFixture();
    const name = `${registry.host}/t:1`;
    const first = registry.add("1", [base]);
    await fixture.pull(name);
    const second = registry.add("1", [top]);
    expect((await fixture.pull(name, { policy: "missing" })).resolved).toBe(first);
    expect((await fixture.pull(name, { policy: "never" })).resolved).toBe(first);
    expect((await fixture.pull(name)).resolved).toBe(second);
    await expect(fixture.pull(`${registry.host}/u:1`, { policy: "never" })).rejects.toThrow("pull is never");
  });

  test("does not ask for a name that was given here, unless it is to", async () => {
    await using registry = await ScriptedRegistry.start();
    await using fixture = new PullFixture();
    const name = `${registry.host}/t:1`;
    const first = registry.add("1", [base]);
    await fixture.pull(name);
    const store = await fixture.store();
    for (const { name: each, manifest } of await store.names.list()) {
      await store.names.set(each, { manifest, isLocal: true });
    }
    const second = registry.add("1", [top]);
    registry.requests.length = 0;
    // The second time as another job of the build does, which has agreed on it.
    const pins = { find: () => first, agree: (_: string, digest: string) => Promise.resolve(digest) };
    for (const options of [{}, { pins }, {}]) expect((await fixture.pull(name, options)).resolved).toBe(first);
    expect(registry.requests).toEqual([]);
    expect((await fixture.pull(name, { policy: "always" })).resolved).toBe(second);
    // From now on it is the registry's.
    const third = registry.add("1", [base, top]);
    expect((await fixture.pull(name)).resolved).toBe(third);
  });

  test("takes the platform's manifest out of an index", async () => {
    await using registry = await ScriptedRegistry.start();
    await using fixture = new PullFixture();
    const ours = registry.add("ours", [base]);
    const content = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: [
          { digest: sha256(Buffer.from("s390x")), platform: { os: "linux", architecture: "s390x" } },
          { digest: ours, platform: { os: "linux", architecture } },
        ].map((each) => ({
          mediaType: "application/vnd.oci.image.manifest.v1+json",
          size: registry.manifests.get(ours)?.content.length,
          ...each,
        })),
      }),
    );
    const index = registry.addManifest("1", content, "application/vnd.oci.image.index.v1+json");
    const image = await fixture.pull(`${registry.host}/t:1`);
    expect(image).toMatchObject({ resolved: index, image: { manifestDigest: ours } });
    registry.requests.length = 0;
    await fixture.pull(`${registry.host}/t@${index}`);
    expect(registry.requests).toEqual([]);
  });
});
