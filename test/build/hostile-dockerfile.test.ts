import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BuildFixture } from "./build-fixture.ts";

let fixture: BuildFixture;
beforeAll(async () => {
  fixture = await BuildFixture.open();
});
afterAll(async () => await fixture[Symbol.asyncDispose]());

const long = "x".repeat(60_000);
const many = (count: number, line: (index: number) => string) =>
  Array.from({ length: count }, (_, i) => line(i)).join("");

describe("a Dockerfile", () => {
  test.for([
    ["labels of megabytes", `FROM scratch\nARG A=${long}\n${`LABEL a=${"$A".repeat(17)}\n`.repeat(2000)}`],
    ["ARGs of megabytes", `ARG A=${long}\n${`ARG B=${"$A".repeat(17)}\n`.repeat(2000)}FROM scratch\n`],
    ["all ports again and again", `FROM scratch\n${"EXPOSE 1-65535\n".repeat(500)}`],
  ] as const)("of few lines that become %s is refused before they do", async ([, dockerfile]) => {
    await expect(fixture.build(dockerfile)).rejects.toThrow(
      "with its variables replaced, the Dockerfile has more than",
    );
  });

  test("with more volumes or labels than any image has is refused", async () => {
    const volumes = many(40, (i) => `VOLUME ${many(300, (j) => `/v${i}-${j} `)}\n`);
    await expect(fixture.build(`FROM scratch\n${volumes}`)).rejects.toThrow("an image has at most 10000 volumes");
  });

  test("that takes long to be understood leaves others a turn", async () => {
    let turns = 0;
    const turn = () => void (turns++, (immediate = setImmediate(turn)));
    let immediate = setImmediate(turn);
    const { configuration } = await fixture.build(`FROM scratch\n${many(9000, (i) => `ENV a${i}=b\n`)}`);
    clearImmediate(immediate);
    expect(configuration.config.Env).toHaveLength(9001);
    expect(turns).toBeGreaterThan(2);
  });

  test("keeps what its labels are called, and its base's as they are", async () => {
    const { configuration } = await fixture.build(
      "FROM scratch AS a\nLABEL __proto__=x constructor=y a=1\nFROM a\nLABEL a=2 b=3\nFROM a\nLABEL c=4\n",
    );
    expect(Object.entries(configuration.config.Labels ?? {})).toEqual([
      ["__proto__", "x"],
      ["constructor", "y"],
      ["a", "1"],
      ["c", "4"],
    ]);
  });
});
