import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, symlinkSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { collectImages } from "../../runtime/image-collect.ts";
import { ImageLease } from "../../runtime/image-lease.ts";
import type { ImageStore } from "../../runtime/image-store.ts";
import { layerKey } from "../../runtime/layer-store.ts";
import { isRoot, oneFileLayer, sha256 } from "./image-fixture.ts";
import { PullFixture } from "./pull-fixture.ts";
import { ScriptedRegistry } from "./registry-fixture.ts";

function layer(name: string, bytes = 100_000) {
  const tar = oneFileLayer(name, "x".repeat(bytes));
  return { tar, blob: tar };
}
const base = layer("usr/base");
const app = layer("usr/app");
const other = layer("usr/other");

describe.skipIf(!isRoot)("collectImages", () => {
  let registry: ScriptedRegistry;
  let fixture: PullFixture;
  let store: ImageStore;

  beforeEach(async () => {
    registry = await ScriptedRegistry.start();
    fixture = new PullFixture();
    store = await fixture.store();
    registry.add("app", [base, app]);
    registry.add("other", [base, other]);
  });
  afterEach(async () => {
    await fixture[Symbol.asyncDispose]();
    await registry[Symbol.asyncDispose]();
  });

  /** Pulls without holding on to it. */
  async function pull(tag: string): Promise<void> {
    using lease = new ImageLease();
    await fixture.pull(`${registry.host}/t:${tag}`, { lease });
  }

  const layers = () => fixture.layers().sort();
  const keys = (...wanted: { tar: Buffer }[]) => wanted.map(({ tar }) => layerKey(sha256(tar))).sort();

  /** Sets back when everything was used last. */
  function age(names: readonly string[], daysAgo: number): void {
    const at = Date.now() / 1000 - daysAgo * 86_400;
    for (const name of names) {
      for (const file of readdirSync(join(fixture.directory, "store", name))) {
        utimesSync(join(fixture.directory, "store", name, file), at, at);
      }
    }
  }

  test("removes a name and what no other one needs", async () => {
    await pull("app");
    await pull("other");
    const { names, layers: count } = await collectImages(store, { names: [`${registry.host}/t:app`] });
    expect(names).toHaveLength(2);
    expect(count).toBe(1);
    expect(layers()).toEqual(keys(base, other));
    await pull("app");
    expect(layers()).toEqual(keys(base, other, app));
  });

  test("removes copies for jobs with ids of their own with the layer that they were made from", async () => {
    await pull("app");
    await pull("other");
    const shifted = join(store.directory, "shifted/300000");
    const copy = ({ tar }: { tar: Buffer }, name: string) => {
      mkdirSync(join(shifted, name, "usr"), { recursive: true });
      symlinkSync(join(store.directory, "layers", layerKey(sha256(tar)), "files"), join(shifted, `${name}.source`));
    };
    copy(app, "a");
    copy(other, "b");
    mkdirSync(join(shifted, `new-${process.pid}-being-made`));
    await collectImages(store, { names: [`${registry.host}/t:app`] });
    expect(readdirSync(shifted).sort()).toEqual(["b", "b.source", `new-${process.pid}-being-made`]);
  });

  test("keeps an image that another tag stands for, and superseded ones until they are asked for", async () => {
    await pull("app");
    registry.add("same", [base, app]);
    await pull("same");
    await collectImages(store, { names: [`${registry.host}/t:app`] });
    expect(layers()).toEqual(keys(base, app));
    registry.add("same", [base, other]);
    await pull("same");
    expect(layers()).toEqual(keys(base, app, other));
    const { names } = await collectImages(store, { untagged: true });
    expect(names).toHaveLength(1);
    expect(layers()).toEqual(keys(base, other));
  });

  test("removes what was used longest ago until the budget holds", async () => {
    await pull("app");
    age(["names", "layers"], 3);
    await pull("other");
    expect(await collectImages(store, { budgetBytes: 10_000_000 })).toMatchObject({ names: [], freedBytes: 0 });
    const collected = await collectImages(store, { budgetBytes: 250_000 });
    expect(collected.names).toHaveLength(2);
    expect(layers()).toEqual(keys(base, other));
    expect(collected.keptBytes).toBeLessThan(250_000);
    await collectImages(store, { budgetBytes: 0 });
    expect(layers()).toEqual([]);
    expect(await store.names.list()).toEqual([]);
    expect(await store.blobs.list()).toEqual([]);
  });

  test("removes what was not used for long", async () => {
    await pull("app");
    age(["names", "layers", "blobs/sha256"], 3);
    await pull("other");
    await collectImages(store, { unusedForMs: 86_400_000 });
    expect(layers()).toEqual(keys(base, other));
    // Using it is enough to keep it.
    age(["names", "layers", "blobs/sha256"], 3);
    await pull("other");
    await collectImages(store, { unusedForMs: 86_400_000 });
    expect(layers()).toEqual(keys(base, other));
  });

  test("never touches what runs, in this process or another", async () => {
    await pull("other");
    const held = await fixture.pull(`${registry.host}/t:app`);
    const everything = { budgetBytes: 0, unusedForMs: 0, untagged: true, names: [`${registry.host}/t:app`] };
    expect((await collectImages(store, everything)).names).toHaveLength(2);
    expect(layers()).toEqual(keys(base, app));
    for (const directory of held.layers) expect(existsSync(directory)).toBe(true);
    const program = `
      import { ImageLease } from ${JSON.stringify(join(import.meta.dirname, "../../runtime/image-lease.ts"))};
      import { ImageStore } from ${JSON.stringify(join(import.meta.dirname, "../../runtime/image-store.ts"))};
      const store = await ImageStore.open(${JSON.stringify(join(fixture.directory, "store"))});
      const lease = new ImageLease();
      await store.layers.find(${JSON.stringify(layerKey(sha256(app.tar)))}, lease);
      console.log("held");
      setInterval(() => lease, 1000);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    fixture.lease[Symbol.dispose]();
    await collectImages(store, everything);
    expect(layers()).toEqual(expect.arrayContaining(keys(app)));
    child.kill("SIGKILL");
    await once(child, "exit");
    await collectImages(store, everything);
    expect(layers()).toEqual([]);
  });

  test("waits while a name is being given, and a name waits while it looks", async () => {
    await pull("app");
    const lock = await store.names.lock();
    let collected = false;
    const collecting = collectImages(store, { budgetBytes: 0 }).then(() => (collected = true));
    const naming = pull("other");
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(collected).toBe(false);
    const { close } = await import("../../runtime/syscall.ts");
    close(lock);
    await Promise.all([collecting, naming]);
    await pull("other");
    expect(layers()).toEqual(expect.arrayContaining(keys(base, other)));
  });
});
