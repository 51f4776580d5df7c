import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { importImage } from "../../runtime/image-import.ts";
import { pushImage, type PushOptions, type PushProgress } from "../../runtime/image-push.ts";
import { RegistryClient } from "../../runtime/registry-client.ts";
import { parseReference } from "../../runtime/registry-reference.ts";
import { readStoredImage, type StoredImage } from "../../runtime/stored-image.ts";
import { isRoot, oneFileLayer, ociLayout, type OciLayer } from "./image-fixture.ts";
import { PullFixture } from "./pull-fixture.ts";
import { DebianRegistry, FaultyProxy, ScriptedRegistry } from "./registry-fixture.ts";

function layer(name: string, content?: string | Buffer): OciLayer {
  const tar = oneFileLayer(name, content?.toString("latin1"));
  return { tar, blob: gzipSync(tar), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
}

describe.skipIf(!isRoot)("pushImage", () => {
  const large = layer("usr/large", randomBytes(3_000_000));
  const small = layer("usr/small");
  let registry: DebianRegistry;
  const client = new RegistryClient({}, { retryBaseMs: 1, stallMs: 5000 });

  beforeAll(async () => {
    registry = await DebianRegistry.start();
  });
  afterAll(async () => {
    client[Symbol.dispose]();
    await registry[Symbol.asyncDispose]();
  });

  async function stored(fixture: PullFixture, layers: readonly OciLayer[]): Promise<StoredImage> {
    const layout = join(fixture.directory, `layout-${crypto.randomUUID()}`);
    for (const { name, content } of ociLayout(layers)) {
      mkdirSync(dirname(join(layout, name)), { recursive: true });
      writeFileSync(join(layout, name), content ?? "");
    }
    const store = await fixture.store();
    const { manifest } = await importImage(layout, { store, lease: fixture.lease, names: ["docker.io/library/t:1"] });
    return (await readStoredImage(store, manifest.digest)) as StoredImage;
  }

  async function push(fixture: PullFixture, image: StoredImage, name: string, options: Partial<PushOptions> = {}) {
    const states: Record<string, PushProgress["state"]> = {};
    await pushImage(image, parseReference(name), {
      store: await fixture.store(),
      client,
      lease: fixture.lease,
      onProgress: ({ digest, state }) => (states[digest] = state),
      ...options,
    });
    return image.layers.map(({ descriptor }) => states[descriptor.digest]);
  }

  test("sends what is not there, and takes over what another repository has", async () => {
    await using fixture = new PullFixture();
    const image = await stored(fixture, [small, large]);
    expect(await push(fixture, image, `${registry.host}/a/one:1`)).toEqual(["sent", "sent"]);
    expect(await push(fixture, image, `${registry.host}/a/one:2`)).toEqual(["there", "there"]);
    expect(await push(fixture, image, `${registry.host}/b/two:1`)).toEqual(["mounted", "mounted"]);
    const { Digest } = JSON.parse(
      registry.skopeo("inspect", "--tls-verify=false", `docker://${registry.host}/b/two:1`),
    );
    expect(Digest).toBe(image.manifestDigest);
    await using other = new PullFixture();
    const pulled = await other.pull(`${registry.host}/b/two:1`);
    expect(readFileSync(join(pulled.layers[0] as string, "usr/small"), "utf8")).toBe("usr/small");
  });

  test("goes on from the byte where a connection broke", async () => {
    await using fixture = new PullFixture();
    await using scripted = await ScriptedRegistry.start();
    await using proxy = await FaultyProxy.start(scripted.host);
    const image = await stored(fixture, [large]);
    let breaks = 4;
    proxy.breakAfter = (line) => (line.startsWith("PATCH") && breaks-- > 0 ? 300_000 : undefined);
    expect(await push(fixture, image, `${proxy.host}/broken:1`, { chunkBytes: 500_000 })).toEqual(["sent"]);
    expect(scripted.blobs.get(image.layers[0]?.descriptor.digest as string)).toEqual(large.blob);
    expect(proxy.requests.filter((line) => line.startsWith("POST"))).toHaveLength(2);
    // What was under way when the connection broke comes again.
    expect(proxy.sentBytes).toBeLessThan(large.blob.length + 1_000_000);
  });

  test("goes on from the last chunk at a registry that keeps no part of one", async () => {
    await using fixture = new PullFixture();
    await using proxy = await FaultyProxy.start(registry.host);
    const image = await stored(fixture, [large]);
    let requests = 0;
    proxy.breakAfter = (line) => (line.startsWith("PATCH") && ++requests === 3 ? 0 : undefined);
    expect(await push(fixture, image, `${proxy.host}/broken:1`, { chunkBytes: 500_000 })).toEqual(["sent"]);
    const copied = JSON.parse(registry.skopeo("inspect", "--tls-verify=false", `docker://${registry.host}/broken:1`));
    expect(copied.Layers).toEqual(image.layers.map(({ descriptor }) => descriptor.digest));
  });

  test("begins again where the registry has forgotten the upload", async () => {
    await using fixture = new PullFixture();
    await using proxy = await FaultyProxy.start(registry.host);
    const image = await stored(fixture, [layer("usr/other", randomBytes(1_000_000))]);
    let breaks = 1;
    proxy.breakAfter = (line) => (line.startsWith("PATCH") && breaks-- > 0 ? 1 : undefined);
    const { breakAfter } = proxy;
    proxy.breakAfter = (line) => (/^GET .*uploads/.test(line) ? 0 : breakAfter(line));
    await push(fixture, image, `${proxy.host}/forgotten:1`, { chunkBytes: 300_000 });
    expect(proxy.requests.some((line) => line.startsWith("GET "))).toBe(true);
  });

  test("passes on what the store has unpacked only, from where it was pulled", async () => {
    await using fixture = new PullFixture();
    registry.push("c/source:1", [small]);
    const { image } = await fixture.pull(`${registry.host}/c/source:1`);
    const store = await fixture.store();
    expect(await store.blobs.has(small === undefined ? "" : (image.layers[0]?.descriptor.digest as string))).toBe(
      false,
    );
    await using elsewhere = await DebianRegistry.start();
    expect(await push(fixture, image, `${elsewhere.host}/c:1`)).toEqual(["sent"]);
    await using other = new PullFixture();
    expect((await other.pull(`${elsewhere.host}/c:1`)).resolved).toBe(image.manifestDigest);
    const none = image.layers.map((each) => ({ ...each, diffId: `sha256:${"0".repeat(64)}` }));
    await using third = await DebianRegistry.start();
    await expect(push(fixture, { ...image, layers: none }, `${third.host}/c:1`)).rejects.toThrow(
      /unpacked only, and does not know where its archive can be fetched; pull the image with --archives/,
    );
  });

  test("says who denies access, and what a registry changes", async () => {
    await using fixture = new PullFixture();
    const image = await stored(fixture, [small]);
    await using closed = await DebianRegistry.start({ auth: "basic" });
    await expect(push(fixture, image, `${closed.host}/t:1`)).rejects.toThrow(/denies access to "t" \(401/);
    await using scripted = await ScriptedRegistry.start();
    scripted.handlers.push((request, response) => {
      if (request.method === "HEAD") response.writeHead(200).end();
      else response.writeHead(201, { "docker-content-digest": `sha256:${"0".repeat(64)}` }).end();
    });
    await expect(push(fixture, image, `${scripted.host}/t:1`)).rejects.toThrow("it has changed it");
    expect(existsSync(fixture.directory)).toBe(true);
  });
});
