/** Dockerfiles and contexts that mean harm: each ends soon, says why, and leaves nothing. */
import { spawnSync } from "node:child_process";
import { existsSync, linkSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildError } from "../../build/index.ts";
import { BuildFixture } from "./build-fixture.ts";
import { mergeLayers } from "./image-files.ts";
import { isRoot } from "../runtime/image-fixture.ts";

describe.skipIf(!isRoot)("a hostile build", () => {
  let fixture: BuildFixture;
  beforeAll(async () => {
    fixture = await BuildFixture.open();
  });
  afterAll(async () => {
    await fixture[Symbol.asyncDispose]();
  });

  async function failure(
    dockerfile: string,
    context: Record<string, string | Buffer> = {},
    options = {},
  ): Promise<string> {
    const error = await fixture.build(dockerfile, context, options).then(
      () => new Error("It did not fail"),
      (reason: unknown) => reason as Error,
    );
    if (!(error instanceof BuildError)) throw error;
    return error.message;
  }

  test("of 100 000 instructions is refused", async () => {
    expect(await failure(`FROM base\n${"RUN true\n".repeat(100_000)}`)).toContain("more than 10000 instructions");
  });

  test("of stages that are each other's base is refused", async () => {
    expect(await failure("FROM b AS a\nFROM a AS b\n")).toContain('"b"');
    expect(await failure("FROM base AS a\nCOPY --from=b /x /\nFROM base AS b\nCOPY --from=a /x /\n")).toContain(
      "does not stand before",
    );
    expect(await failure("FROM base AS a\nCOPY --from=a /x /\n")).toContain("does not stand before");
    // As deep as there may be stages.
    const stages = Array.from(
      { length: 1001 },
      (_, index) => `FROM ${index === 0 ? "base" : `s${index - 1}`} AS s${index}`,
    );
    expect(await failure(stages.join("\n"))).toContain("more than 1000 stages");
  });

  test("of ARGs that double is refused before they fill the memory", async () => {
    const args = Array.from({ length: 60 }, (_, index) => `ARG A${index + 1}=$A${index}$A${index}`);
    expect(await failure(["ARG A0=xxxxxxxx", ...args, "FROM base", ""].join("\n"))).toMatch(/longer|large|1 MiB/);
    const inStage = ["FROM base", "ARG A0=xxxxxxxx", ...args].join("\n");
    expect(await failure(inStage)).toMatch(/longer|large|1 MiB/);
    const environment = ["FROM base", "ENV A0=xxxxxxxx", ...args.map((each) => each.replace("ARG", "ENV"))].join("\n");
    expect(await failure(environment)).toMatch(/longer|large|1 MiB/);
  });

  test("with an ignore file of patterns that backtrack elsewhere takes no time", async () => {
    const patterns = Array.from({ length: 200 }, () => `${"*a".repeat(60)}b`).join("\n");
    const name = "a".repeat(200);
    const built = await fixture.build("FROM scratch\nCOPY . /\n", { ".dockerignore": patterns, [name]: "x" }, {});
    expect(mergeLayers(await fixture.layers(built))).toHaveProperty([name]);
    expect(await failure("FROM scratch\nCOPY . /\n", { ".dockerignore": "x\n".repeat(10_001) })).toContain("10000");
    expect(await failure("FROM scratch\nCOPY . /\n", { ".dockerignore": "[a" })).toContain("line 1");
  });

  test("with an ignore file that cannot be read is refused, for it would ignore nothing", async () => {
    const refusal = /"\.dockerignore" cannot be used: it is no file in the build context of at most 4 MiB/;
    const files = { secret: "x" };
    expect(await failure("FROM scratch\nCOPY . /\n", { ...files, ".dockerignore": "#\n".repeat(3 << 20) })).toMatch(
      refusal,
    );
    for (const target of ["/dev/zero", "/etc/passwd", "nowhere", "."]) {
      const contextDir = fixture.context(files);
      symlinkSync(target, join(contextDir, ".dockerignore"));
      expect(await failure("FROM scratch\nCOPY . /\n", {}, { contextDir })).toMatch(refusal);
    }
  });

  test("with an archive that unpacks to far too much is refused", async () => {
    const zeros = gzipSync(Buffer.alloc(64 << 20), { level: 9 });
    // A tar header that promises a terabyte, and a gzip stream that goes on.
    const header = Buffer.alloc(512);
    header.write("bomb");
    header.write("0000644\0", 100);
    header.write("0000000\0", 108);
    header.write("0000000\0", 116);
    header.write(`${(2 ** 40).toString(8).padStart(12, "0").slice(0, 12)}`, 124);
    header.write("00000000000\0", 136);
    header.write("ustar\x0000", 257, "latin1");
    header.write("0", 156);
    header.fill(" ", 148, 156);
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
    const bomb = Buffer.concat([gzipSync(header), ...Array.from({ length: 8 }, () => zeros)]);
    const text = await failure("FROM scratch\nADD bomb.tar.gz /\n", { "bomb.tar.gz": bomb });
    expect(text).toContain("decompression bomb");
  });

  test("context of links, sockets, devices and loops gives what is in it and no more", async () => {
    const contextDir = fixture.context({ "a/file": "inside" });
    const outside = join(fixture.directory, "outside");
    mkdirSync(outside, { recursive: true });
    writeFileSync(join(outside, "secret"), "secret");
    symlinkSync("../../../../../../../../etc", join(contextDir, "up"));
    symlinkSync(outside, join(contextDir, "absolute"));
    symlinkSync("loop-b", join(contextDir, "loop-a"));
    symlinkSync("loop-a", join(contextDir, "loop-b"));
    symlinkSync("/proc/self/root", join(contextDir, "proc"));
    linkSync(join(contextDir, "a/file"), join(contextDir, "hard"));
    const server = createServer().listen(join(contextDir, "socket"));
    spawnSync("mkfifo", [join(contextDir, "pipe")]);
    spawnSync("mknod", [join(contextDir, "null"), "c", "1", "3"]);
    try {
      const options = { contextDir };
      const built = await fixture.build("FROM scratch\nCOPY . /\n", {}, options);
      const merged = mergeLayers(await fixture.layers(built));
      expect(merged["absolute"]).toBe(`l 0:0 ${outside}`);
      expect(merged).not.toHaveProperty(["null"]);
      expect(JSON.stringify(merged)).not.toContain("f 0:0 644 secret");
      for (const source of ["up/passwd", "absolute/secret", "proc/etc/passwd", "loop-a", "a/../../outside/secret"]) {
        expect(await failure(`FROM scratch\nCOPY ${source} /x\n`, {}, options)).toMatch(/there is no|circles|links/);
        expect(
          await failure(`FROM base\nRUN --mount=type=bind,source=${source},target=/x cat /x\n`, {}, options),
        ).toMatch(/there is no|circles|links/);
      }
    } finally {
      server.close();
    }
  });

  test("cannot name mounts, caches and secrets that lead elsewhere", async () => {
    const dockerfile = (mount: string) => `FROM base\nRUN --mount=${mount} true\n`;
    for (const [mount, message] of [
      ["type=cache,target=/", "nothing can be mounted on /"],
      ["type=bind,target=/../..", "nothing can be mounted on /"],
      ["type=secret,id=absent,required=true", 'there is no secret "absent"'],
      ["type=host,target=/x", "host"],
    ] as const)
      expect(await failure(dockerfile(mount))).toContain(message);
    // An id is no path.
    await fixture.build(dockerfile("type=cache,id=../../../../escaped,target=/c"));
    expect(existsSync(join(fixture.directory, "escaped"))).toBe(false);
    expect(readdirSync(join(fixture.host.stateDir, "build"))).not.toContain("escaped");
    const secrets = new Map([["../../etc/x", () => Promise.resolve(Buffer.from("value"))]]);
    const built = await fixture.build(
      "FROM base\nRUN --mount=type=secret,id=../../etc/x ls /run/secrets > /list\n",
      {},
      { secrets },
    );
    expect(mergeLayers(await fixture.layers(built))["list"]).toContain("x");
  });

  test("whose command makes directories deeper than any path is the user's failure, and is cleaned up after", async () => {
    const dig = (levels: number) => `RUN i=0; while [ $i -lt ${levels} ]; do mkdir d; cd d; i=$((i+1)); done`;
    expect(await failure(`FROM base\n${dig(3000)}\n`)).toBe("what was written is more than 512 directories deep");
    expect(await failure(`FROM base\n${dig(600)}\n`)).toBe("what was written is more than 512 directories deep");
    await fixture.build(`FROM base\n${dig(500)}\nRUN true\n`);
  });

  test("leaves nothing behind", async () => {
    await fixture.settled();
    expect(fixture.leftovers()).toEqual([]);
  });
});
