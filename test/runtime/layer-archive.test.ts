import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { cString, syscall } from "../../runtime/syscall.ts";
import { writeLayerArchive } from "../../runtime/layer-archive.ts";
import { tarHeader } from "../../runtime/tar-writer.ts";
import { TarReader, type TarEntry } from "../../runtime/tar-reader.ts";
import { jobIds, overlayXattrs } from "../../runtime/file-owners.ts";
import { describeTree, getXattr, ImageFixture, isRoot } from "./image-fixture.ts";

function archive(directory: string, newestSeconds?: number): Buffer {
  const fd = openSync(directory, "r");
  try {
    return Buffer.concat(Array.from(writeLayerArchive(fd, { newestSeconds }), (piece) => Buffer.from(piece)));
  } finally {
    closeSync(fd);
  }
}

function read(content: Buffer): TarEntry[] {
  const entries: TarEntry[] = [];
  const reader = new TarReader(
    { entry: (entry) => void entries.push(entry), data: () => {}, end: () => {} },
    { endMarker: "required" },
  );
  reader.write(content);
  reader.end();
  return entries;
}

function whiteout(path: string): void {
  syscall("mknodat", -100, cString(path), 0o020000, 0);
}

function opaque(path: string): void {
  syscall("setxattr", cString(path), cString(`${overlayXattrs()}opaque`), Buffer.from("y"), 1, 0);
}

/** A layer that has everything a layer can have. */
function makeLayer(directory: string): void {
  const at = (name: string) => join(directory, name);
  mkdirSync(at("usr/bin"), { recursive: true });
  writeFileSync(at("usr/bin/su"), "su");
  chownSync(at("usr/bin/su"), 0, 42);
  chmodSync(at("usr/bin/su"), 0o6755);
  linkSync(at("usr/bin/su"), at("usr/bin/a-name-before"));
  writeFileSync(at("usr/bin/ping"), "p".repeat(70_000));
  execFileSync("setcap", ["cap_net_raw+ep", at("usr/bin/ping")]);
  symlinkSync("/etc/passwd", at("usr/absolute"));
  symlinkSync("x".repeat(300), at("usr/long-link"));
  writeFileSync(at("usr/naïve ☃"), "utf-8");
  writeFileSync(Buffer.from(`${directory}/usr/latin\xff`, "latin1"), "not utf-8");
  const deep = at(`usr/${"d".repeat(200)}/${"e".repeat(200)}`);
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, "f".repeat(255)), "deep");
  execFileSync("mkfifo", ["-m", "640", at("usr/fifo")]);
  mkdirSync(at("tmp"));
  chmodSync(at("tmp"), 0o1777);
  writeFileSync(at("huge-owner"), "");
  const [uid, gid] = jobIds().ids.all ? [3_000_000_000, 2_097_152] : [60_000, 61_000];
  chownSync(at("huge-owner"), uid, gid);
  whiteout(at("usr/gone"));
  mkdirSync(at("anew"));
  writeFileSync(at("anew/file"), "new");
  opaque(at("anew"));
  utimesSync(at("usr/bin/su"), 1_400_000_000, 1_400_000_001.25);
  utimesSync(at("anew/file"), -5, -1.5);
  utimesSync(at("usr/bin/ping"), 2_000_000_000, 2_000_000_000);
}

describe.skipIf(!isRoot)("writeLayerArchive", () => {
  test("writes what unpacks to the same layer, by us and by GNU tar", async () => {
    using fixture = new ImageFixture();
    const layer = join(fixture.directory, "layer");
    makeLayer(layer);
    const content = archive(layer);
    fixture.write("root.tar", content);
    const { layers } = await fixture.resolve("./root.tar");
    expect(describeTree(layers[0] as string)).toEqual(describeTree(layer));
    for (const name of ["usr/bin/su", "anew/file", "usr/absolute", "usr/bin", "tmp"]) {
      const times = [layer, layers[0] as string].map((each) => lstatSync(join(each, name), { bigint: true }).mtimeNs);
      expect({ name, time: times[1] }).toEqual({ name, time: times[0] });
    }
    const capability = (root: string) => getXattr(join(root, "usr/bin/ping"), "security.capability");
    expect(capability(layers[0] as string)).toEqual(capability(layer));

    const unpacked = join(fixture.directory, "tar");
    mkdirSync(unpacked);
    execFileSync("tar", [
      "-C",
      unpacked,
      "--xattrs",
      "--xattrs-include=*",
      "-xpf",
      join(fixture.workspace, "root.tar"),
    ]);
    const expected = describeTree(layer);
    delete expected["usr/gone"];
    expected["usr/.wh.gone"] = "f 0:0 644 ";
    expected["anew/.wh..wh..opq"] = "f 0:0 644 ";
    expected["anew"] = (expected["anew"] as string).replace(" opaque", "");
    expect(describeTree(unpacked)).toEqual(expected);
    expect(statSync(join(unpacked, "usr/bin/su")).ino).toBe(statSync(join(unpacked, "usr/bin/a-name-before")).ino);
  });

  test("writes the same bytes for the same tree made in another order, and no time after the newest", () => {
    using fixture = new ImageFixture();
    const [one, two] = ["one", "two"].map((name) => join(fixture.directory, name)) as [string, string];
    makeLayer(one);
    mkdirSync(join(two, "tmp"), { recursive: true });
    writeFileSync(join(two, "zzz"), "");
    mkdirSync(join(two, "anew"));
    rmSync(join(two, "zzz"));
    for (const name of ["tmp", "anew"]) rmSync(join(two, name), { recursive: true });
    makeLayer(two);
    const epoch = 1_500_000_000;
    expect(archive(one, epoch).equals(archive(two, epoch))).toBe(true);
    const entries = read(archive(one, epoch));
    const names = entries.map(({ name }) => name.replace("/.wh.gone", "/gone"));
    expect(names).toEqual(names.toSorted());
    const younger = entries.filter(({ mtimeSeconds }) => mtimeSeconds > epoch);
    expect(younger).toEqual([]);
    expect(entries.find(({ name }) => name === "usr/bin/su")).toMatchObject({ linkName: "usr/bin/a-name-before" });
    expect(entries.find(({ name }) => name === "usr/bin/a-name-before")?.mtimeNanoseconds).toBe(250_000_000);
  });
});

describe("tarHeader", () => {
  const entry = {
    name: "a",
    type: "file",
    linkName: "",
    mode: 0o644,
    uid: 0,
    gid: 0,
    size: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
  } as const;

  test.for([
    ["a plain name", {}],
    ["a name that is split", { name: `${"p".repeat(120)}/${"n".repeat(90)}` }],
    ["a name that cannot be split", { name: "n".repeat(180) }],
    ["bytes that are not ASCII", { name: "\xff\xfe" }],
    ["a long link", { type: "symlink", linkName: "l".repeat(101) }],
    ["8 GiB", { size: 2 ** 33 }],
    ["large ids", { uid: 4_294_967_294, gid: 2_097_152 }],
    ["a fraction of a second", { mtimeSeconds: 5, mtimeNanoseconds: 30_000_000 }],
    ["a time before 1970", { mtimeSeconds: -2, mtimeNanoseconds: 500_000_000 }],
    ["whole seconds before 1970", { mtimeSeconds: -2 }],
    ["attributes", { xattrs: new Map([["user.x", Buffer.from("a\n=\0b")]]) }],
    ["a record whose length has one digit more than its text", { name: `${"n".repeat(500)}`, linkName: "" }],
  ] as const)("is read again: %s", ([, fields]) => {
    const written = { ...entry, ...fields };
    const headers = tarHeader(written);
    const entries: TarEntry[] = [];
    const reader = new TarReader(
      { entry: (each) => void entries.push(each), data: () => {}, end: () => {} },
      { endMarker: "optional" },
    );
    reader.write(headers);
    expect(entries).toEqual([expect.objectContaining(written)]);
  });
});
