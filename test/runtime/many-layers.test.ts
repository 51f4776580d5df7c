import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Host, ImageLease, RegistryClient, resolveImage, runContainer } from "../../runtime/index.ts";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { splitLayers } from "../../runtime/overlay-limit.ts";
import { look } from "./layer-view-fixture.ts";
import { isRoot, type OciLayer } from "./image-fixture.ts";
import { ScriptedRegistry } from "./registry-fixture.ts";
import { shellLayer } from "./shell-layer.ts";
import { tarArchive } from "./tar-archive.ts";

function oci(tar: Buffer): OciLayer {
  return { tar, blob: gzipSync(tar, { level: 1 }), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
}

/** Each has a file of its own and one of all; the last one deletes those of the first and of one in the middle. */
function layersUpTo(count: number): OciLayer[] {
  return Array.from({ length: count }, (_, i) => {
    const own = { name: `n/${i}`, content: `${i}` };
    const all = { name: "all", content: `${i}` };
    if (i === 0) return oci(shellLayer([own, all]));
    const gone = i === count - 1 ? ["n/.wh.0", `n/.wh.${count >> 1}`] : [];
    return oci(tarArchive([own, all, ...gone.map((name) => ({ name, content: "" }))]));
  });
}

test("splitLayers merges no more than it must", () => {
  const layers = Array.from({ length: 502 }, (_, i) => i);
  expect(splitLayers(layers.slice(0, 500))).toEqual({ base: [], rest: layers.slice(0, 500) });
  const { base, rest } = splitLayers(layers);
  expect([...base, ...rest]).toEqual(layers);
  expect([base.length, rest.length]).toEqual([3, 499]);
});

describe.skipIf(!isRoot)("an image of 500 layers", () => {
  const directory = mkdtempSync(join(tmpdir(), "slipway-many-"));
  let registry: ScriptedRegistry;
  let client: RegistryClient;
  beforeAll(async () => {
    registry = await ScriptedRegistry.start();
    client = new RegistryClient({}, { retryBaseMs: 1 });
    const layers = layersUpTo(500);
    registry.add("500", layers);
    registry.add("501", [...layers, oci(tarArchive([{ name: "more", content: "" }]))]);
  });
  afterAll(async () => {
    client[Symbol.dispose]();
    await registry[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
  });

  test.for([false, true])("runs; overlays by path: %s", { timeout: 120_000 }, async (overlaysByPath) => {
    const imageStoreDir = join(directory, "images");
    await using host = await Host.open({ stateDir: join(directory, "state"), imageStoreDir, overlaysByPath });
    using range = host.claimUidRange();
    using lease = new ImageLease();
    const found = { baseDir: directory, storeDir: host.imageStoreDir, client, lease };
    const image = await resolveImage(`${registry.host}/t:500`, found);
    expect(image.layers).toHaveLength(500);
    const output: string[] = [];
    await using container = await runContainer(host, {
      id: "many",
      image,
      uidRange: range,
      args: ["/bin/sh", "-ec", "set -- /n/*; echo $# $(cat /all /n/1 /n/251); touch /n/new; stat -c %u /n/7 /n/new"],
      env: { PATH: "/bin" },
      network: "none",
      resources: { memoryBytes: 2 ** 28, cpu: 1, pids: 64 },
      output: (_, chunk) => void output.push(chunk.toString()),
    });
    expect(await container.result).toMatchObject({ exitCode: 0 });
    // No name ends in a line break: 499 of all, 1, and 251.
    expect(output.join("")).toBe("498 4991251\n0\n0\n");
    mkdirSync(join(directory, "empty"), { recursive: true });
    const view = { layers: image.layers, emptyDir: join(directory, "empty"), byPath: overlaysByPath };
    expect(await look({ ...view, paths: ["all", "n/0", "n/250", "n/499"] })).toMatchObject({
      resolved: [{ found: 1 }, { found: 1 }, { found: 1 }, { found: 2 }],
    });
    expect(readFileSync(join(image.layers[499] as string, "all"), "utf8")).toBe("499");
  });

  test("is the most", { timeout: 120_000 }, async () => {
    const found = { baseDir: directory, storeDir: join(directory, "images"), client };
    await expect(resolveImage(`${registry.host}/t:501`, found)).rejects.toThrow("has 501 layers, more than 500");
  });
});
