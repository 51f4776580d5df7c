import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type TarEntry, TarReader, type TarReaderOptions } from "../../runtime/tar-reader.ts";
import { type Member, tarArchive } from "./tar-archive.ts";

interface Read {
  readonly entry: TarEntry;
  content: Buffer;
}

/** Reads an archive in chunks of `chunkBytes`, holes filled with zeros. */
function read(
  archive: Buffer,
  chunkBytes = 1 << 20,
  options: TarReaderOptions = { endMarker: "required" },
): Map<string, Read> {
  const entries = new Map<string, Read>();
  let current: Read | undefined;
  const reader = new TarReader(
    {
      entry: (entry) => {
        current = { entry, content: Buffer.alloc(entry.size) };
        entries.set(Buffer.from(entry.name, "latin1").toString(), current);
      },
      data: (chunk, position) => void chunk.copy(current?.content as Buffer, position),
      end: () => {
        current = undefined;
      },
    },
    options,
  );
  for (let at = 0; at < archive.length; at += chunkBytes) reader.write(archive.subarray(at, at + chunkBytes));
  reader.end();
  return entries;
}

/** The same with digests for contents: comparing megabytes byte by byte is what takes long. */
function summary(entries: ReadonlyMap<string, Read>): unknown[] {
  return Array.from(entries, ([name, { entry, content }]) => [
    name,
    entry,
    createHash("sha256").update(content).digest("hex"),
  ]);
}

const longName = `${"directory/".repeat(20)}file`;
let directory: string;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "tar-reader-"));
  const tree = join(directory, "tree");
  mkdirSync(join(tree, "directory/".repeat(20)), { recursive: true });
  writeFileSync(join(tree, longName), "long");
  writeFileSync(join(tree, "plain"), "content", { mode: 0o640 });
  utimesSync(join(tree, "plain"), 1_500_000_000.25, 1_500_000_000.25);
  writeFileSync(join(tree, "größe"), Buffer.alloc(513, 1));
  writeFileSync(join(tree, "empty"), "");
  writeFileSync(join(tree, "block"), Buffer.alloc(512, 2));
  linkSync(join(tree, "plain"), join(tree, "zz-link"));
  symlinkSync(longName, join(tree, "symlink"));
  const sparse = await open(join(tree, "sparse"), "w");
  for (let i = 0; i < 30; i++) await sparse.write(Buffer.from(`data ${i}`), 0, null, i * 65_536);
  await sparse.close();
  truncateSync(join(tree, "sparse"), 4_000_000);
});

afterAll(() => rmSync(directory, { recursive: true }));

function systemTar(...args: string[]): Buffer {
  return execFileSync("tar", ["-C", join(directory, "tree"), "--sort=name", "-cf", "-", ...args, "."], {
    maxBuffer: 1 << 26,
    env: { PATH: process.env["PATH"] },
  });
}

describe("TarReader reads what GNU tar writes", () => {
  test.each(["gnu", "pax", "v7", "ustar"])("in the format %s, in chunks of any size", (format) => {
    // v7 has no long names and ustar no long links.
    const excluded = { v7: ["directory", "symlink"], ustar: ["symlink"] }[format] ?? [];
    const args = excluded.map((name) => `--exclude=./${name}`);
    const archive = systemTar(`--format=${format}`, ...args);
    const whole = read(archive);
    expect(whole.get("./plain")?.content.toString()).toBe("content");
    expect(whole.get("./plain")?.entry).toMatchObject({ mode: 0o640, mtimeSeconds: 1_500_000_000 });
    expect(whole.get("./größe")?.content.equals(Buffer.alloc(513, 1))).toBe(true);
    expect(whole.get("./block")?.content.equals(Buffer.alloc(512, 2))).toBe(true);
    expect(whole.get("./")?.entry.type).toBe("directory");
    expect(whole.get("./zz-link")?.entry).toMatchObject({ type: "link", linkName: "./plain" });
    expect({
      long: whole.get(`./${longName}`)?.content.toString(),
      symlink: whole.get("./symlink")?.entry.linkName,
    }).toEqual({
      long: excluded.includes("directory") ? undefined : "long",
      symlink: excluded.includes("symlink") ? undefined : longName,
    });
    const all = summary(whole);
    for (const chunkBytes of [7, 511, 512, 513, 10_000]) expect(summary(read(archive, chunkBytes))).toEqual(all);
  });

  test("with fractions of seconds in PAX", () => {
    const { entry } = read(systemTar("--format=pax")).get("./plain") as Read;
    expect(entry.mtimeNanoseconds).toBe(250_000_000);
  });

  test.each([["--format=gnu"], ["--sparse-version=0.0"], ["--sparse-version=0.1"], ["--sparse-version=1.0"]])(
    "with holes: %s",
    (option) => {
      const format = option.startsWith("--format") ? [] : ["--format=pax"];
      const archive = systemTar("--sparse", option, ...format);
      expect(archive.length).toBeLessThan(1_000_000);
      for (const chunkBytes of [1000, 1 << 20]) {
        const { entry, content } = read(archive, chunkBytes).get("./sparse") as Read;
        expect(entry).toMatchObject({ sparse: true, size: 4_000_000 });
        const expected = Buffer.alloc(4_000_000);
        for (let i = 0; i < 30; i++) expected.write(`data ${i}`, i * 65_536);
        expect(content.equals(expected)).toBe(true);
      }
    },
  );
});

describe("TarReader", () => {
  test("takes PAX values over the header's and extended attributes byte by byte", () => {
    const value = Buffer.from([0, 255, 10, 61]);
    const pax = { path: "näme", uid: "3000000", size: "3", mtime: "-1.5", "SCHILY.xattr.user.x": value };
    const { entry, content } = read(tarArchive([{ name: "short", content: "abc", size: 0, pax }])).get("näme") as Read;
    expect(content.toString()).toBe("abc");
    expect(entry).toMatchObject({ uid: 3_000_000, mtimeSeconds: -2, mtimeNanoseconds: 500_000_000 });
    expect(entry.xattrs).toEqual(new Map([["user.x", value]]));
  });

  test("reads base-256 numbers", () => {
    const sizeField = Buffer.from([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    expect(
      read(tarArchive([{ name: "a", content: "abc", sizeField }]))
        .get("a")
        ?.content.toString(),
    ).toBe("abc");
  });

  test("leaves out contents on request", () => {
    const names: string[] = [];
    const archive = tarArchive([
      { name: "a", content: Buffer.alloc(100_000) },
      { name: "b", content: "b" },
    ]);
    const reader = new TarReader(
      {
        entry: ({ name }) => names.push(name),
        data: () => expect.unreachable(),
        end: () => {},
      },
      { endMarker: "required" },
    );
    let reads = 0;
    for (let at = 0; at < archive.length; at += 512 + reader.skip()) {
      reader.write(archive.subarray(at, at + 512));
      reads++;
    }
    reader.end();
    expect({ names, reads }).toEqual({ names: ["a", "b"], reads: 4 });
  });

  const a: Member = { name: "a", content: "abc" };
  test.each<[string, Buffer, RegExp]>([
    ["an empty file", Buffer.alloc(0), /it is empty/],
    ["a header cut off", tarArchive([a]).subarray(0, 300), /truncated: it ends after 300 bytes, in a header/],
    ["content cut off", tarArchive([{ ...a, size: 3000 }], { end: false }), /truncated.*in the entry "a"/],
    ["no end marker", tarArchive([a], { end: false }), /truncated.*without the end-of-archive blocks/],
    ["text", Buffer.alloc(2048, "text "), /header at byte 0 has a broken checksum/],
    ["a damaged header", Buffer.from(tarArchive([a])).fill("z", 0, 1), /checksum/],
    ["a negative size", tarArchive([{ ...a, sizeField: Buffer.alloc(12, 0xff) }]), /impossible size -1 bytes/],
    [
      "a size beyond 2^53",
      tarArchive([{ ...a, sizeField: Buffer.concat([Buffer.from([0x80]), Buffer.alloc(11, 0xff)]) }]),
      /impossible size/,
    ],
    ["the owner -1", tarArchive([{ ...a, pax: { uid: "4294967295" } }]), /impossible owner 4294967295/],
    ["an unknown type", tarArchive([{ ...a, type: "Z" }]), /of type "Z", which is not supported/],
    ["a PAX record with a wrong length", tarArchive([{ name: "x", type: "x", content: "99 a=b\n" }, a]), /PAX header/],
    [
      "a PAX header of 2 MiB",
      tarArchive([{ name: "x", type: "x", content: Buffer.alloc(2 ** 21) }, a]),
      /2097152 bytes/,
    ],
    ["a PAX header without entry", tarArchive([{ name: "x", type: "x", content: "9 path=a\n" }]), /has no entry/],
    [
      "a name of 70000 bytes",
      tarArchive([{ name: "x", type: "L", content: Buffer.alloc(70_000, "a") }, a]),
      /70000 bytes/,
    ],
    [
      "sparse segments that overlap",
      tarArchive([{ ...a, pax: { "GNU.sparse.map": "0,2,1,1", "GNU.sparse.size": "9", "GNU.sparse.name": "a" } }]),
      /broken sparse map/,
    ],
    [
      "sparse segments beyond the size",
      tarArchive([{ ...a, pax: { "GNU.sparse.map": "100,3", "GNU.sparse.size": "9" } }]),
      /sparse map that does not fit/,
    ],
  ])("refuses %s", (_what, archive, message) => {
    expect(() => read(archive)).toThrow(message);
    expect(() => read(archive, 100)).toThrow(message);
  });

  test("stops after a limit of headers", () => {
    const archive = tarArchive(Array.from({ length: 20 }, (_, i) => ({ name: `${i}` })));
    expect(() => read(archive, 512, { endMarker: "required", maxHeaders: 10 })).toThrow("more than 10 headers");
  });
});
