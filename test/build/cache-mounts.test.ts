import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CacheMounts, type KeptCacheMount, listCacheMounts, removeCacheMount } from "../../build/cache-mounts.ts";
import { imageOwner } from "../../runtime/file-owners.ts";
import { BuildFixture } from "./build-fixture.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";

describe.skipIf(!isRoot)("CacheMounts", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "cache-mounts-"));
  });
  afterAll(() => {
    rmSync(directory, { recursive: true });
  });
  const { signal } = new AbortController();
  const options = { uid: 0, gid: 0, mode: 0o755, signal, scratch: (name: string) => join(directory, name) };

  test("give a locked directory to one at a time, also of another build", async () => {
    const [one, other] = [new CacheMounts(directory, "n"), new CacheMounts(directory, "n")];
    const first = await one.take("a", { ...options, sharing: "locked" });
    expect(first.isNew).toBe(true);
    let taken = false;
    const second = other.take("a", { ...options, sharing: "locked" }).then((mount) => {
      taken = true;
      return mount;
    });
    // Nobody waits for another id, or for who shares.
    (await other.take("b", { ...options, sharing: "locked" }))[Symbol.dispose]();
    (await other.take("a", { ...options, sharing: "shared" }))[Symbol.dispose]();
    expect(taken).toBe(false);
    first[Symbol.dispose]();
    using mount = await second;
    expect(mount).toMatchObject({ directory: first.directory, isNew: false });
    const canceling = new AbortController();
    const waiting = one.take("a", { ...options, sharing: "locked", signal: canceling.signal });
    canceling.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });

  test("give each of several who want it alone a directory, and a free one again", async () => {
    const mounts = [new CacheMounts(directory, "p"), new CacheMounts(directory, "p")];
    const [a, b] = await Promise.all(mounts.map((each) => each.take("x", { ...options, sharing: "private" })));
    expect(a?.directory).not.toBe(b?.directory);
    writeFileSync(join(a?.directory as string, "kept"), "");
    a?.[Symbol.dispose]();
    using again = await (mounts[1] as CacheMounts).take("x", { ...options, sharing: "private" });
    expect(existsSync(join(again.directory, "kept"))).toBe(true);
    b?.[Symbol.dispose]();
  });

  test.each(["shared", "locked"] as const)(
    "show a %s directory to nobody before it holds what it begins with",
    async (sharing) => {
      const mounts = [new CacheMounts(directory, sharing), new CacheMounts(directory, sharing)] as const;
      const gate = Promise.withResolvers<void>();
      const started = Promise.withResolvers<void>();
      const seed = async (to: string) => {
        writeFileSync(join(to, "half"), "");
        started.resolve();
        await gate.promise;
        writeFileSync(join(to, "whole"), "");
      };
      const first = mounts[0].take("s", { ...options, sharing, seed });
      await started.promise;
      const never = () => Promise.reject(new Error("filled twice"));
      const second = mounts[1].take("s", { ...options, sharing, seed: never });
      gate.resolve();
      const filled = await first;
      expect(filled.isNew).toBe(true);
      filled[Symbol.dispose]();
      using shared = await second;
      expect(shared.isNew).toBe(false);
      expect(readdirSync(shared.directory).sort()).toEqual(["half", "whole"]);
    },
  );

  test("begin anew where filling a directory has failed, or was killed", async () => {
    const mounts = new CacheMounts(directory, "failing");
    const seed = (to: string) => {
      writeFileSync(join(to, "half"), "");
      return Promise.reject(new Error("no space"));
    };
    const failing = mounts.take("f", { ...options, sharing: "locked", seed });
    await expect(failing).rejects.toThrow("no space");
    using again = await mounts.take("f", { ...options, sharing: "locked" });
    expect(again.isNew).toBe(true);
    expect(readdirSync(again.directory)).toEqual([]);
  });

  test("are removed when nobody uses them, and begin anew", async () => {
    const mounts = new CacheMounts(directory, "removed");
    const of = async () => (await listCacheMounts(directory)).filter(({ namespace }) => namespace === "removed");
    const [one, other] = [
      await mounts.take("r", { ...options, label: "shown", sharing: "shared" }),
      await mounts.take("r", { ...options, sharing: "shared" }),
    ];
    writeFileSync(join(one.directory, "file"), Buffer.alloc(50_000));
    const [kept] = (await of()) as [KeptCacheMount];
    expect(kept.name).toBe("shown");
    expect(kept.bytes).toBeGreaterThan(50_000);
    one[Symbol.dispose]();
    expect(await removeCacheMount(kept.path)).toBe(false);
    expect(existsSync(join(other.directory, "file"))).toBe(true);
    other[Symbol.dispose]();
    expect(await removeCacheMount(kept.path)).toBe(true);
    expect(await of()).toEqual([]);
    expect(readdirSync(kept.path)).toEqual(["making"]);
    using again = await mounts.take("r", { ...options, sharing: "locked" });
    expect(again.isNew).toBe(true);
    expect(readdirSync(again.directory)).toEqual([]);
  });

  test("keep namespaces apart, and make directories as they are wanted", async () => {
    const take = (namespace: string) =>
      new CacheMounts(directory, namespace).take("id", { ...options, sharing: "shared", uid: 5, gid: 6, mode: 0o711 });
    const [one, two] = [await take("main"), await take("pull request")];
    expect(one.directory).not.toBe(two.directory);
    const { uid, gid, mode } = statSync(one.directory);
    expect([imageOwner(uid), imageOwner(gid), mode & 0o7777]).toEqual([5, 6, 0o711]);
  });
});

describe.skipIf(!isRoot)("RUN --mount=type=cache", () => {
  let fixture: BuildFixture;
  beforeAll(async () => {
    fixture = await BuildFixture.open();
  });
  afterAll(async () => {
    await fixture[Symbol.asyncDispose]();
  });

  test("locked: commands side by side take turns", async () => {
    const command = (name: string) =>
      `RUN --mount=type=cache,id=turns,sharing=locked,target=/c [ ! -e /c/busy ] && touch /c/busy && sleep 0.3 && rm /c/busy && echo ${name} > /${name}`;
    const stage = (name: string) => `FROM base AS ${name}\n${command(name)}\n`;
    const built = await fixture.build(
      `${stage("a")}${stage("b")}${stage("d")}FROM base\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=d /d /\n`,
    );
    expect(mergeLayers(await fixture.layers(built))).toMatchObject({ a: "f 0:0 644 a\n", b: "f 0:0 644 b\n" });
  });

  test("from: begins with what an image or stage has, once", async () => {
    const dockerfile = (text: string) =>
      `FROM base AS seed\nRUN mkdir /s && echo ${text} > /s/f\nFROM base\nRUN --mount=type=cache,id=seeded,from=seed,source=/s,target=/c cat /c/f > /got && echo changed > /c/f\n`;
    expect(mergeLayers(await fixture.layers(await fixture.build(dockerfile("one"))))["got"]).toContain(" one\n");
    const again = await fixture.build(dockerfile("two"), {}, { noCache: true });
    expect(mergeLayers(await fixture.layers(again))["got"]).toContain(" changed\n");
  });

  test("another owner or mode is another directory, made as it is wanted", async () => {
    const line = (options: string, file: string) =>
      `RUN --mount=type=cache,id=owned${options},target=/c stat -c '%u:%g %a' /c > /${file} && ls /c >> /${file} && touch /c/${file}\n`;
    const built = await fixture.build(
      `FROM base\n${line("", "a")}${line(",uid=1000,gid=1001,mode=0711", "b")}${line("", "d")}${line(",uid=1000,gid=1001,mode=0711", "e")}`,
    );
    expect(mergeLayers(await fixture.layers(built))).toMatchObject({
      a: "f 0:0 644 0:0 755\n",
      b: "f 0:0 644 1000:1001 711\n",
      d: "f 0:0 644 0:0 755\na\n",
      e: "f 0:0 644 1000:1001 711\nb\n",
    });
  });

  test("leaves nothing behind", async () => {
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
  });
});
