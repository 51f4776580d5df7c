import { chmodSync, mkdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildMemos, fingerprintContext, type Memo, memoKey } from "../../cli/build-memo.ts";
import { imageStorePath } from "../../runtime/image-store-path.ts";
import { TemporaryDirectory } from "./command.ts";

/** Until what was written is old enough to be trusted. */
const settled = () => delay(2100);

describe("fingerprintContext", () => {
  let directory: TemporaryDirectory;
  let context: string;
  beforeAll(async () => {
    directory = await TemporaryDirectory.create();
    context = join(directory.path, "contéxt ł");
    mkdirSync(join(context, "dir"), { recursive: true });
    writeFileSync(join(context, "dir/file"), "one");
    mkdirSync(join(context, "node_modules"));
  });
  afterAll(() => directory[Symbol.asyncDispose]());

  test("trusts nothing that has just been written", async () => {
    writeFileSync(join(context, "new"), "");
    expect(fingerprintContext(context, "")).toBeUndefined();
    await settled();
    expect(fingerprintContext(context, "")).toMatch(/^[0-9a-f]{64}$/);
  });

  test("is another one after every change, and not after one of what is ignored by name", async () => {
    const ignored = "# no\n/node_modules/\n*.log\n";
    const seen = new Set([fingerprintContext(context, ignored)]);
    writeFileSync(join(context, "node_modules/x"), "");
    await settled();
    expect(seen).toContain(fingerprintContext(context, ignored));
    const changes = [
      () => writeFileSync(join(context, "dir/file"), "two"),
      () => chmodSync(join(context, "dir/file"), 0o600),
      () => utimesSync(join(context, "dir/file"), 1, 1),
      () => writeFileSync(join(context, "dir/a.log"), "a pattern is not looked into"),
      () => rmSync(join(context, "dir/file")),
      () => symlinkSync("nowhere", join(context, "dir/link")),
      () => mkdirSync(join(context, "dir/文")),
      () => writeFileSync(join(context, "dir/文/é"), ""),
      () => writeFileSync(Buffer.concat([Buffer.from(`${context}/dir/`), Buffer.of(0xff)]), "not text"),
    ];
    for (const change of changes) {
      change();
      await settled();
      const fingerprint = fingerprintContext(context, ignored);
      expect(fingerprint).toBeDefined();
      expect(seen).not.toContain(fingerprint);
      seen.add(fingerprint);
    }
    // With exceptions nothing is left out.
    expect(seen).not.toContain(fingerprintContext(context, `${ignored}!node_modules/x\n`));
  });
});

describe("BuildMemos", () => {
  test("do without where nothing can be written", async () => {
    await using directory = await TemporaryDirectory.create();
    writeFileSync(join(directory.path, "run"), "in the way");
    const memos = new BuildMemos(directory.path);
    const key = memoKey({});
    memos.keep(key, { context: "", names: [], parts: [], titles: [], imageNames: [], digest: "", metadata: {} });
    expect(memos.find(key, "")).toBeUndefined();
  });

  test("find what was kept, as long as names and parts are as they were", async () => {
    await using directory = await TemporaryDirectory.create();
    const { path } = directory;
    const images = imageStorePath(join(path, "images"));
    mkdirSync(join(images, "names"), { recursive: true });
    mkdirSync(join(images, "layers/a"), { recursive: true });
    const memos = new BuildMemos(path);
    const memo: Memo = {
      context: "c",
      names: [],
      parts: ["layers/a"],
      titles: ["[1/1] RUN x"],
      imageNames: ["docker.io/library/app:1"],
      digest: "sha256:0",
      metadata: {},
    };
    const key = memoKey({ a: 1 });
    expect(memos.find(key, "c")).toBeUndefined();
    memos.keep(key, memo);
    expect(memos.find(key, "c")).toMatchObject(memo);
    expect(memos.find(key, "d")).toBeUndefined();
    expect(memos.find(memoKey({ a: 2 }), "c")).toBeUndefined();
    memos.keep(key, {
      ...memo,
      names: [{ name: "docker.io/library/gone:1", manifest: "sha256:1", resolved: undefined }],
    });
    expect(memos.find(key, "c")).toBeUndefined();
    memos.keep(key, memo);
    rmSync(join(images, "layers/a"), { recursive: true });
    expect(memos.find(key, "c")).toBeUndefined();
    for (let i = 0; i < 210; i++) memos.keep(memoKey({ i }), memo);
    mkdirSync(join(images, "layers/a"));
    expect(memos.find(memoKey({ i: 209 }), "c")).toBeDefined();
    expect(memos.find(memoKey({ i: 0 }), "c")).toBeUndefined();
  });
});
