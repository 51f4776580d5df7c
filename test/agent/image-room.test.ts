import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ImageRoom } from "../../agent/image-room.ts";
import {
  defaultLayerLimits,
  ImageLease,
  ImageStore,
  parseReference,
  pullImage,
  RegistryClient,
} from "../../runtime/index.ts";
import { isRoot, oneFileLayer } from "../runtime/image-fixture.ts";
import { ScriptedRegistry } from "../runtime/registry-fixture.ts";

describe.skipIf(!isRoot)("ImageRoom", () => {
  const client = new RegistryClient({}, { retryBaseMs: 1 });
  let registry: ScriptedRegistry;
  let directory: string;
  let store: ImageStore;
  beforeEach(async () => {
    registry = await ScriptedRegistry.start();
    directory = mkdtempSync(join(tmpdir(), "slipway-room-"));
    store = await ImageStore.open(directory);
  });
  afterEach(async () => {
    await store.settled();
    await registry[Symbol.asyncDispose]();
    rmSync(directory, { recursive: true, force: true });
  });

  async function pull(tag: string, lease: ImageLease): Promise<void> {
    const tar = oneFileLayer(`usr/${tag}`, tag.repeat(100_000));
    registry.add(tag, [{ tar, blob: tar }]);
    await pullImage(parseReference(`${registry.host}/t:${tag}`), { store, client, lease, limits: defaultLayerLimits });
  }

  const tags = async () => {
    const named = await store.names.list();
    return named.flatMap(({ name }) => /:([a-z])$/.exec(name)?.[1] ?? []).toSorted();
  };

  test("removes what nobody uses until the budget holds, and what runs never", async () => {
    const problems: Error[] = [];
    const collected: number[] = [];
    await using room = new ImageRoom({
      storeDir: directory,
      budgetBytes: 230_000,
      onCollected: (freedBytes) => collected.push(freedBytes),
      onProblem: (error) => problems.push(error),
    });
    using running = new ImageLease();
    await pull("a", running);
    for (const tag of ["b", "c"]) {
      using over = new ImageLease();
      await pull(tag, over);
    }
    await Promise.all([room.look(), room.look()]);
    expect(await tags()).toEqual(["a", "c"]);
    expect(collected).toEqual([expect.any(Number)]);
    await room.look();
    expect(await tags()).toEqual(["a", "c"]);
    expect(collected).toHaveLength(1);
    running[Symbol.dispose]();
    await using strict = new ImageRoom({
      storeDir: directory,
      budgetBytes: 0,
      onProblem: (error) => problems.push(error),
    });
    strict.check();
    strict.check();
    await expect.poll(tags).toEqual([]);
    expect(problems).toEqual([]);
  });

  test("says what goes wrong, and goes on", async () => {
    const problems: Error[] = [];
    writeFileSync(join(directory, "file"), "");
    await using room = new ImageRoom({
      storeDir: join(directory, "file/below"),
      onProblem: (error) => problems.push(error),
    });
    await room.look();
    await room.look();
    expect(problems.map((error) => "code" in error && error.code)).toEqual(["ENOTDIR", "ENOTDIR"]);
  });
});
