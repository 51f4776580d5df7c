import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { describeFile, describeTree, getXattr, ImageFixture, isRoot } from "./image-fixture.ts";
import { type Member, tarArchive } from "./tar-archive.ts";

/** Unpacks members as a root tar, beside `usr/`, which makes it one. */
async function unpack(fixture: ImageFixture, members: readonly Member[], options = {}): Promise<string> {
  fixture.write("root.tar", tarArchive([{ name: "usr/", mode: 0o755 }, ...members]));
  const image = await fixture.resolve("./root.tar", options);
  return image.layers[0] as string;
}

describe.skipIf(!isRoot)("a layer on disk", () => {
  test("has what GNU tar packed: owners, modes, times, links, holes, names, attributes", async () => {
    using fixture = new ImageFixture();
    const source = join(fixture.directory, "source");
    mkdirSync(join(source, "usr/bin"), { recursive: true });
    const at = (name: string) => join(source, name);
    writeFileSync(at("usr/bin/su"), "su");
    chownSync(at("usr/bin/su"), 0, 42);
    chmodSync(at("usr/bin/su"), 0o6755);
    writeFileSync(at("usr/bin/ping"), "ping");
    execFileSync("setcap", ["cap_net_raw+ep", at("usr/bin/ping")]);
    linkSync(at("usr/bin/su"), at("usr/bin/su2"));
    symlinkSync("/etc/passwd", at("usr/absolute"));
    symlinkSync("../../../../etc/passwd", at("usr/escaping"));
    writeFileSync(at("usr/naïve ☃"), "utf-8");
    writeFileSync(Buffer.from(`${source}/usr/latin\xff`, "latin1"), "not utf-8");
    writeFileSync(at("usr/sparse"), "end");
    truncateSync(at("usr/sparse"), 50_000_000);
    execFileSync("mkfifo", ["-m", "600", at("usr/fifo")]);
    mkdirSync(at("tmp"));
    chmodSync(at("tmp"), 0o1777);
    mkdirSync(at("private"));
    writeFileSync(at("private/file"), "x");
    chmodSync(at("private"), 0o2500);
    chownSync(at("private"), 1000, 1001);
    for (const name of ["usr/bin/su", "usr/bin", "private", "usr"])
      utimesSync(at(name), 1_400_000_000, 1_400_000_001.5);
    const tar = join(fixture.workspace, "root.tar");
    execFileSync("tar", ["-C", source, "--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "-cf", tar, "."]);

    const { layers } = await fixture.resolve("./root.tar");
    const root = layers[0] as string;
    expect(describeTree(root)).toEqual(describeTree(source));
    expect(describeFile(join(root, "usr/bin/su"))).toBe("f 0:42 6755 su");
    expect(statSync(join(root, "usr/bin/su")).ino).toBe(statSync(join(root, "usr/bin/su2")).ino);
    expect(getXattr(join(root, "usr/bin/ping"), "security.capability")).toEqual(
      getXattr(at("usr/bin/ping"), "security.capability"),
    );
    expect(getXattr(join(root, "usr/bin/ping"), "security.capability")).toHaveLength(20);
    const sparse = statSync(join(root, "usr/sparse"));
    expect({ size: sparse.size, small: sparse.blocks < 100 }).toEqual({ size: 50_000_000, small: true });
    expect(readdirSync(join(root, "usr"), "latin1")).toContain("latin\xff");
    for (const name of ["usr/bin/su", "usr/bin", "private", "usr", "private/file", "usr/absolute"]) {
      const times = [root, source].map((each) => lstatSync(join(each, name), { bigint: true }).mtimeNs);
      expect({ name, time: times[0] }).toEqual({ name, time: times[1] });
    }
    expect(fixture.leftovers()).toEqual([]);
  });

  test("has whiteouts as overlayfs wants them, whatever the order of entries", async () => {
    using fixture = new ImageFixture();
    const root = await unpack(fixture, [
      { name: "usr/.wh.gone" },
      { name: ".wh.implied" },
      { name: "implied/file", content: "new" },
      { name: "usr/opaque/" },
      { name: "usr/opaque/.wh..wh..opq" },
      { name: "usr/opaque/kept", content: "kept" },
      { name: "usr/before/", mode: 0o750 },
      { name: "usr/.wh.before" },
      { name: "usr/.wh.after" },
      { name: "usr/after/", mode: 0o700 },
      { name: "usr/.wh.file" },
      { name: "usr/file", content: "replaced" },
      { name: ".wh..wh.plnk/12.34", content: "aufs" },
      { name: "usr/.wh..wh.aufs", content: "aufs" },
    ]);
    expect(describeTree(root)).toEqual({
      implied: "d 0:0 755 opaque",
      "implied/file": "f 0:0 644 new",
      usr: "d 0:0 755",
      "usr/after": "d 0:0 700 opaque",
      "usr/before": "d 0:0 750 opaque",
      "usr/file": "f 0:0 644 replaced",
      "usr/gone": "c 0",
      "usr/opaque": "d 0:0 644 opaque",
      "usr/opaque/kept": "f 0:0 644 kept",
    });
  });

  test("has the last of several entries of a name", async () => {
    using fixture = new ImageFixture();
    const root = await unpack(fixture, [
      { name: "usr/a", content: "first" },
      { name: "usr/a", content: "second" },
      { name: "usr/b/", mode: 0o700 },
      { name: "usr/b/c/", mode: 0o700 },
      { name: "usr/b/c/file", content: "x" },
      { name: "usr/b", content: "no directory any more" },
      { name: "usr/d", content: "x" },
      { name: "usr/d/", mode: 0o711 },
      { name: "usr/d/", mode: 0o755, mtime: 1_000_000_000 },
      { name: "usr/d/file", content: "x" },
      { name: "usr/e", type: "2", linkName: "/etc" },
      { name: "usr/e/", mode: 0o755 },
      { name: "usr/e/passwd", content: "inside" },
      { name: "usr/a", type: "1", linkName: "./usr/a" },
    ]);
    expect(describeTree(root)).toEqual({
      usr: "d 0:0 755",
      "usr/a": "f 0:0 644 second",
      "usr/b": "f 0:0 644 no directory any more",
      "usr/d": "d 0:0 755",
      "usr/d/file": "f 0:0 644 x",
      "usr/e": "d 0:0 755",
      "usr/e/passwd": "f 0:0 644 inside",
    });
    expect(statSync(join(root, "usr/d")).mtimeMs).toBe(1_000_000_000_000);
  });

  test("takes user attributes and leaves out those that steer overlayfs and device nodes", async () => {
    using fixture = new ImageFixture();
    const root = await unpack(fixture, [
      {
        name: "usr/file",
        content: "x",
        pax: {
          "SCHILY.xattr.user.kept": "value",
          "SCHILY.xattr.user.overlay.metacopy": "",
          "SCHILY.xattr.trusted.overlay.redirect": "/etc/shadow",
          "SCHILY.xattr.trusted.other": "x",
          "SCHILY.xattr.security.selinux": "x",
        },
      },
      { name: "usr/directory/", pax: { "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.d": "1" } },
      { name: "usr/null", type: "3" },
      { name: "usr/sda", type: "4" },
    ]);
    const file = join(root, "usr/file");
    expect(getXattr(file, "user.kept")?.toString()).toBe("value");
    for (const name of ["user.overlay.metacopy", "trusted.overlay.redirect", "trusted.other"]) {
      expect({ name, value: getXattr(file, name) }).toEqual({ name, value: undefined });
    }
    expect(getXattr(join(root, "usr/directory"), "user.d")?.toString()).toBe("1");
    expect(getXattr(join(root, "usr/directory"), "trusted.overlay.opaque")).toBeUndefined();
    expect(readdirSync(join(root, "usr")).sort()).toEqual(["directory", "file"]);
  });

  test("reads absolute names as names in the layer", async () => {
    using fixture = new ImageFixture();
    const root = await unpack(fixture, [
      { name: "/layers/app", content: "buildpack" },
      { name: "//usr//./b", type: "1", linkName: "/layers/app" },
    ]);
    expect(describeFile(join(root, "layers/app"))).toBe("f 0:0 644 buildpack");
    expect(describeFile(join(root, "usr/b"))).toBe("f 0:0 644 buildpack");
  });

  const outside = (fixture: ImageFixture) => join(fixture.directory, "outside");
  test.each<[string, (fixture: ImageFixture) => Member[], RegExp]>([
    ["a name with ..", () => [{ name: "usr/../../../evil" }], /entry "usr\/\.\.\/.*has a name with a "\.\." component/],
    [
      "a write through a symbolic link",
      (fixture) => [
        { name: "usr/link", type: "2", linkName: outside(fixture) },
        { name: "usr/link/evil", content: "x" },
      ],
      /entry "usr\/link\/evil" goes through a symbolic link/,
    ],
    [
      "a write through a link to the root",
      () => [
        { name: "l", type: "2", linkName: "/" },
        { name: "l/tmp/image-test-evil", content: "x" },
      ],
      /goes through a symbolic link/,
    ],
    [
      "a whiteout through a symbolic link",
      (fixture) => [{ name: "usr/link", type: "2", linkName: outside(fixture) }, { name: "usr/link/.wh.precious" }],
      /goes through a symbolic link/,
    ],
    [
      "an opaque mark through a symbolic link",
      (fixture) => [{ name: "usr/link", type: "2", linkName: outside(fixture) }, { name: "usr/link/.wh..wh..opq" }],
      /goes through a symbolic link/,
    ],
    [
      "a hard link to outside",
      () => [{ name: "usr/link", type: "1", linkName: "../../../../../../etc/passwd" }],
      /is a hard link to .*a name with a "\.\." component/,
    ],
    [
      "a hard link through a symbolic link",
      () => [
        { name: "usr/etc", type: "2", linkName: "/etc" },
        { name: "usr/passwd", type: "1", linkName: "usr/etc/passwd" },
      ],
      /is a hard link to "usr\/etc\/passwd", which the layer does not have/,
    ],
    [
      "a hard link to nothing",
      () => [{ name: "usr/a", type: "1", linkName: "etc/passwd" }],
      /entry "usr\/a" is a hard link to "etc\/passwd", which the layer does not have/,
    ],
    [
      "a hard link to a whiteout",
      () => [{ name: "usr/.wh.w" }, { name: "usr/a", type: "1", linkName: "usr/w" }],
      /which the layer does not have/,
    ],
    [
      "a hard link that replaces its own target",
      () => [
        { name: "usr/a/b", content: "x" },
        { name: "usr/a", type: "1", linkName: "usr/a/b" },
      ],
      /entry "usr\/a" cannot be written/,
    ],
    [
      "a file as directory",
      () => [
        { name: "usr/a", content: "x" },
        { name: "usr/a/b", content: "x" },
      ],
      /goes through something that is not a directory/,
    ],
    [
      "a name of 5000 bytes",
      () => [{ name: "x", pax: { path: "d/".repeat(2500) } }],
      /a name of 5000 bytes, more than 4095/,
    ],
    [
      "a component of 300 bytes",
      () => [{ name: "x", pax: { path: "a".repeat(300) } }],
      /component of 300 bytes, more than 255/,
    ],
    ["a NUL in a name", () => [{ name: "x", pax: { path: "a\0b" } }], /PAX header/],
    [
      "a link of 5000 bytes",
      () => [{ name: "x", type: "2", pax: { linkpath: "a".repeat(5000) } }],
      /5000 bytes, more than 4095/,
    ],
    ["a link to nothing", () => [{ name: "x", type: "2" }], /symbolic link to nothing/],
    ["a root that is a file", () => [{ name: "./.", content: "x" }], /would replace the root directory/],
    ["a whiteout of ..", () => [{ name: "usr/.wh..." }], /whiteout of no file/],
    ["a whiteout of nothing", () => [{ name: "usr/.wh." }], /whiteout of no file/],
    ["a truncated file", () => [{ name: "usr/a", content: "x", size: 100_000 }], /truncated/],
    [
      "a sparse file of 8 EiB",
      () => [{ name: "a", pax: { "GNU.sparse.map": "0,0", "GNU.sparse.size": "9007199254740000" } }],
      /entry "a" cannot be written: ftruncate: EFBIG/,
    ],
  ])("is refused: %s", async (_what, members, message) => {
    using fixture = new ImageFixture();
    mkdirSync(outside(fixture));
    writeFileSync(join(outside(fixture), "precious"), "still here");
    await expect(unpack(fixture, members(fixture))).rejects.toThrow(message);
    await expect(unpack(fixture, members(fixture))).rejects.toMatchObject({ name: "ImageError" });
    expect(describeTree(outside(fixture))).toEqual({ precious: "f 0:0 644 still here" });
    expect(getXattr(outside(fixture), "trusted.overlay.opaque")).toBeUndefined();
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers() }).toEqual({ leftovers: [], layers: [] });
  });

  test("is refused beyond its limits of entries and bytes, and nothing of it stays", async () => {
    using fixture = new ImageFixture();
    const many = Array.from({ length: 200 }, (_, i) => ({ name: `usr/${i}`, content: "x" }));
    await expect(unpack(fixture, many, { limits: { maxEntries: 100 } })).rejects.toThrow(/more than 100 entries/);
    const implied = [{ name: "x", pax: { path: `${"d/".repeat(200)}file` } }];
    await expect(unpack(fixture, implied, { limits: { maxEntries: 100 } })).rejects.toThrow(/more than 100 entries/);
    const large = [{ name: "usr/a", content: Buffer.alloc(3_000_000) }];
    await expect(unpack(fixture, large, { limits: { maxBytes: 2 ** 20 } })).rejects.toThrow(/more than 1 MiB/);
    expect({ leftovers: fixture.leftovers(), layers: fixture.layers() }).toEqual({ leftovers: [], layers: [] });
  });

  test("may be 2000 directories deep", async () => {
    using fixture = new ImageFixture();
    const path = `${"d/".repeat(2000)}file`;
    const root = await unpack(fixture, [{ name: "x", content: "deep", pax: { path } }]);
    expect(statSync(join(root, "d/".repeat(20))).isDirectory()).toBe(true);
  });
});
