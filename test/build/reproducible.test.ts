/** The same inputs are the same image, whoever builds it, where and when. */
import { chmodSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BuildFixture, listArchive } from "./build-fixture.ts";
import { isRoot } from "../runtime/image-fixture.ts";
import { tarArchive } from "../runtime/tar-archive.ts";

const dockerfile = `FROM base AS made
ARG SOURCE_DATE_EPOCH
WORKDIR /w
COPY --chown=app dir ./
ADD archive.tar /unpacked/
RUN echo x > new && mkdir -p a/b && rm /bin/nc && ln new link && cp -p f copied
FROM base
COPY --from=made /w /w
COPY dir /dir
COPY --link dir/f /linked/
RUN --mount=type=bind,target=/c cp /c/dir/f /from-context
COPY <<END /inline
text
END
LABEL a=b
`;

describe.skipIf(!isRoot)("a build with SOURCE_DATE_EPOCH", () => {
  test("takes the default of an ARG above the first FROM, unless it is given or taken back", async () => {
    await using fixture = await BuildFixture.open();
    const made = async (dockerfile: string, epoch?: string) => {
      const buildArgs = new Map(epoch === undefined ? [] : [["SOURCE_DATE_EPOCH", epoch]]);
      return (await fixture.build(dockerfile, {}, { buildArgs })).configuration.created;
    };
    const dockerfile = "ARG DAY=15\nARG SOURCE_DATE_EPOCH=${DAY}00000000\nFROM scratch\nCOPY <<E /f\ntext\nE\n";
    expect(await made(dockerfile)).toBe("2017-07-14T02:40:00Z");
    expect(await made(dockerfile, "1600000000")).toBe("2020-09-13T12:26:40Z");
    expect(Date.parse((await made(dockerfile, "")) as string)).toBeGreaterThan(Date.parse("2025-01-01"));
    await expect(made(dockerfile.replace("15", "soon"))).rejects.toThrow(
      'SOURCE_DATE_EPOCH is "soon00000000", neither a number of seconds since 1970',
    );
  });

  test("gives the same digest from contexts with other times, in another store, with another umask", async () => {
    const epoch = 1_500_000_000;
    const buildArgs = new Map([["SOURCE_DATE_EPOCH", `${epoch}`]]);
    const archive = tarArchive([{ name: "in/" }, { name: "in/file", content: "archived" }]);
    const before = process.umask();
    const built = [];
    try {
      for (const [umask, seconds] of [
        [0o022, epoch - 1000],
        [0o077, epoch + 1000],
        [0o000, epoch - 50_000_000],
      ] as const) {
        process.umask(0o022);
        await using fixture = await BuildFixture.open();
        const contextDir = fixture.context({ "dir/f": "f", "dir/g": "g", "dir/sub/h": "h" });
        writeFileSync(join(contextDir, "archive.tar"), archive);
        for (const name of ["dir/f", "dir/g", "dir/sub/h", "archive.tar"]) chmodSync(join(contextDir, name), 0o644);
        for (const name of ["dir/f", "dir/g", "dir/sub/h", "dir/sub", "dir", "archive.tar"])
          utimesSync(join(contextDir, name), seconds, seconds);
        process.umask(umask);
        const image = await fixture.build(dockerfile, {}, { buildArgs, contextDir });
        const layers = (await fixture.layers(image)).map(listArchive);
        built.push({ digest: image.manifest.digest, layers });
      }
    } finally {
      process.umask(before);
    }
    const [first, ...others] = built;
    for (const other of others) {
      expect(other.layers).toEqual(first?.layers);
      expect(other.digest).toBe(first?.digest);
    }
  });
});
