import { describe, expect, test } from "vitest";
import { formatDiagnostic } from "../../pipelines/index.ts";
import { type Instruction, parseDockerfile, type StageInstruction } from "../../build/index.ts";
import { parseTrigger } from "../../build/parse.ts";

/** The instructions below FROM, without what says where they stand. */
function parse(text: string): unknown[] {
  const { dockerfile, diagnostics } = parseDockerfile(`FROM scratch\n${text}`);
  const errors = diagnostics.filter(({ severity }) => severity === "error");
  expect(errors.map(({ message }) => message)).toEqual([]);
  return dockerfile?.stages.flatMap(({ instructions }) => instructions.map(bare)) ?? [];
}

/** Words become their texts; spans and empty lists go. */
function bare(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(bare);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value);
  if (entries.length === 2 && "span" in value && "text" in value) return value.text;
  return Object.fromEntries(
    entries
      .filter(([key, each]) => !key.endsWith("pan") && key !== "text" && !(Array.isArray(each) && each.length === 0))
      .filter(([, each]) => each !== false)
      .map(([key, each]) => [key, key === "command" ? commandText(each as Instruction) : bare(each)]),
  );
}

function commandText(command: unknown): unknown {
  const { form, ...rest } = command as { form: "exec" | "shell"; text?: string; args?: string[] };
  return form === "exec" ? rest.args : rest.text;
}

/** All problems of a Dockerfile, as a terminal shows them. */
function problems(text: string): string {
  return parseDockerfile(text)
    .diagnostics.map((diagnostic) => formatDiagnostic(diagnostic))
    .join("\n");
}

describe("parseDockerfile", () => {
  test("divides stages and what stands above them", () => {
    const { dockerfile } = parseDockerfile(
      "ARG V=1 W\nFROM --platform=$BUILDPLATFORM a:${V} AS Build\nRUN x\nFROM build\n",
    );
    expect(bare(dockerfile?.globalArgs)).toEqual([{ kind: "arg", args: [{ name: "V", value: "1" }, { name: "W" }] }]);
    expect(bare(dockerfile?.stages)).toEqual([
      {
        index: 0,
        from: { kind: "from", base: "a:${V}", platform: "$BUILDPLATFORM", stageName: "build" },
        instructions: [{ kind: "run", command: "x" }],
      },
      { index: 1, from: { kind: "from", base: "build" } },
    ]);
  });

  test("joins lines, past comments and empty ones", () => {
    const [run] = parse("RUN a \\\n  # a comment\n\n   b \\  \n&& c \\\\\nUSER x");
    expect(run).toEqual({ kind: "run", command: "a    b && c \\\\" });
  });

  test("reads directives, case and byte order mark aside", () => {
    const { dockerfile, diagnostics } = parseDockerfile(
      "\ufeff# Syntax = docker/dockerfile:1\n#escape=`\r\nFROM a\r\nRUN x `\r\n  y\r\n",
    );
    expect(diagnostics).toEqual([]);
    expect(dockerfile?.escape).toBe("`");
    expect(bare(dockerfile?.stages[0]?.instructions)).toEqual([{ kind: "run", command: "x   y" }]);
  });

  test("takes a directive below a comment for a comment", () => {
    expect(parseDockerfile("# hello\n# escape=`\nFROM a").dockerfile?.escape).toBe("\\");
  });

  test.for([
    ["RUN echo 'a  b'", { kind: "run", command: "echo 'a  b'" }],
    ['RUN ["a", "b c"]', { kind: "run", command: ["a", "b c"] }],
    ["RUN [ -f x ] && y", { kind: "run", command: "[ -f x ] && y" }],
    [
      "RUN --mount=type=cache,target=/c,Z --mount=target=.,z --network=none --security=sandbox x",
      { kind: "run", command: "x", mounts: ["--", "--"], network: "none", security: "sandbox" },
    ],
    ["CMD", { kind: "cmd", command: "" }],
    ['ENTRYPOINT ["a"]', { kind: "entrypoint", command: ["a"] }],
    ["ENTRYPOINT a $B", { kind: "entrypoint", command: "a $B" }],
    ["COPY a b c/", { kind: "copy", sources: ["a", "b"], destination: "c/" }],
    ['COPY ["a b", "c d"]', { kind: "copy", sources: ["a b"], destination: "c d" }],
    [
      "COPY --from=x --chown=1:2 --chmod=u+x --link --parents --exclude=*.o --exclude=b a c",
      {
        kind: "copy",
        sources: ["a"],
        destination: "c",
        from: "x",
        chown: "1:2",
        chmod: "u+x",
        link: true,
        parents: true,
        excludes: ["*.o", "b"],
      },
    ],
    [
      "ADD --checksum=sha256:x --keep-git-dir=true --unpack=false https://x/y /z",
      { kind: "add", sources: ["https://x/y"], destination: "/z", checksum: "sha256:x", keepGitDir: true },
    ],
    ["ENV a=1 b='x y' c=x\\ y", env(["a", "1"], ["b", "'x y'"], ["c", "x\\ y"])],
    ["ENV a b  c", { kind: "env", assignments: [{ name: "a", value: "b  c", legacy: true }] }],
    ['LABEL "a b"="c=d" e=', { ...env(['"a b"', '"c=d"'], ["e", ""]), kind: "label" }],
    ["ARG a b= c=$a", { kind: "arg", args: [{ name: "a" }, { name: "b", value: "" }, { name: "c", value: "$a" }] }],
    ["WORKDIR /a b", { kind: "workdir", value: "/a b" }],
    ["USER a:b", { kind: "user", value: "a:b" }],
    ["STOPSIGNAL SIGINT", { kind: "stopsignal", value: "SIGINT" }],
    ["MAINTAINER me <m@e>", { kind: "maintainer", value: "me <m@e>" }],
    ["EXPOSE 80 $P/udp", { kind: "expose", values: ["80", "$P/udp"] }],
    ['VOLUME ["/a b", "/c"]', { kind: "volume", values: ["/a b", "/c"] }],
    ["VOLUME /a /b", { kind: "volume", values: ["/a", "/b"] }],
    ['SHELL ["/bin/bash", "-c"]', { kind: "shell", shell: ["/bin/bash", "-c"] }],
    ["HEALTHCHECK NONE", { kind: "healthcheck", healthcheck: { Test: ["NONE"] } }],
    [
      'HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 --start-period=0s CMD ["a", "b"]',
      {
        kind: "healthcheck",
        healthcheck: { Test: ["CMD", "a", "b"], Interval: 90e9, Timeout: 5e8, Retries: 3 },
      },
    ],
    ["HEALTHCHECK CMD a || b", { kind: "healthcheck", healthcheck: { Test: ["CMD-SHELL", "a || b"] } }],
    ["ONBUILD RUN x \\\n y", { kind: "onbuild", trigger: "RUN x  y" }],
    ["onbuild copy --from=a . .", { kind: "onbuild", trigger: "copy --from=a . ." }],
  ] as const)("reads %s", ([text, expected]) => {
    const [instruction] = parse(text) as { mounts?: string[] }[];
    if (instruction?.mounts) instruction.mounts = instruction.mounts.map(() => "--");
    expect(instruction).toEqual(withoutFalse(expected));
  });

  test("reads here-documents: several, quoted, with tabs, of COPY and RUN", () => {
    const text = [
      "COPY <<one <<'two' <<-three f /d/",
      "1 $A",
      "one",
      "2 $A",
      "two",
      "\t3",
      "\t\tthree",
      "RUN <<EOF",
      "a",
      "EOF",
      "RUN cat <<-X 3<<Y && z",
      "x",
      "\tX",
      "y",
      "Y",
      "RUN echo $((1<<2)) <<< word",
      "ONBUILD COPY <<a /b",
      "in",
      "a",
    ].join("\n");
    const [copy, run, both, shift, onbuild] = parse(text);
    expect(copy).toEqual({
      kind: "copy",
      sources: ["f"],
      files: [
        { name: "one", content: "1 $A\n", expand: true },
        { name: "two", content: "2 $A\n" },
        { name: "three", content: "3\n", expand: true },
      ],
      destination: "/d/",
    });
    expect(run).toMatchObject({ command: "<<EOF", hereDocuments: [{ name: "EOF", content: "a\n" }] });
    expect(both).toMatchObject({
      command: "cat <<-X 3<<Y && z",
      hereDocuments: [
        { name: "X", content: "x\n", chomp: true },
        { name: "Y", content: "y\n" },
      ],
    });
    expect(shift).toEqual({ kind: "run", command: "echo $((1<<2)) <<< word" });
    expect(onbuild).toEqual({ kind: "onbuild", trigger: "COPY <<a /b\nin\na" });
  });

  test("shows every problem with its line and a caret", () => {
    expect(problems("FROM a\nRUM x\nCOPY --chonw=1 a \\\n  --b c\nUSER\nRUN x")).toBe(
      [
        'Dockerfile:2:1: error: there is no instruction "RUM"',
        "  2 | RUM x",
        "    | ^^^",
        '  help: did you mean "RUN"?',
        'Dockerfile:3:6: error: COPY has no flag "--chonw"',
        "  3 | COPY --chonw=1 a \\",
        "    |      ^^^^^^^^^",
        '  help: did you mean "chown"?',
        "Dockerfile:5:1: error: USER needs an argument",
        "  5 | USER",
        "    | ^^^^",
      ].join("\n"),
    );
  });

  test("points at what stands on a continued line", () => {
    expect(problems("FROM a\nCOPY --link \\\n  # comment\n  --from= --link=maybe a b\n")).toBe(
      [
        "Dockerfile:4:11: error: --link is written twice",
        "  4 |   --from= --link=maybe a b",
        "    |           ^^^^^^^^^^^^",
      ].join("\n"),
    );
  });

  test.for([
    ["", "the file has no FROM"],
    ["# only a comment", "the file has no FROM"],
    ["RUN x", "RUN stands above the first FROM"],
    ["FROM", "FROM takes an image"],
    ["FROM a b", "FROM takes an image"],
    ["FROM a is b", "expected AS"],
    ["FROM a AS 1b", "no name of a stage"],
    ["FROM a AS b c", "FROM takes an image"],
    ["FROM a\nRUN", "RUN needs a command"],
    ["FROM a\nRUN []", "RUN needs a command"],
    ["FROM a\nCMD [1]", "holds something that is no string"],
    ["FROM a\nCOPY a", "needs a source and a destination"],
    ["FROM a\nCOPY a <<EOF\nEOF", "cannot be the destination"],
    ["FROM a\nRUN <<EOF\nx", 'the here-document "EOF" does not end'],
    ["FROM a\nENV", "ENV needs from one to"],
    ["FROM a\nENV a", "ENV needs a value"],
    ["FROM a\nENV a=b c", "expected name=value"],
    ["FROM a\nENV =b", "an assignment without a name"],
    ["FROM a\nARG", "ARG needs a name"],
    ["FROM a\nARG =b", "an ARG without a name"],
    ["FROM a\nEXPOSE", "EXPOSE needs an argument"],
    ['FROM a\nVOLUME [""]', "not empty"],
    ["FROM a\nSHELL sh -c", "SHELL needs a JSON array"],
    ["FROM a\nHEALTHCHECK", "HEALTHCHECK takes NONE, or CMD"],
    ["FROM a\nHEALTHCHECK NONE x", "takes no arguments"],
    ["FROM a\nHEALTHCHECK CMD", "needs a command"],
    ["FROM a\nHEALTHCHECK --interval=5 CMD x", "is no duration"],
    ["FROM a\nHEALTHCHECK --interval=1us CMD x", "shorter than a millisecond"],
    ["FROM a\nHEALTHCHECK --retries=-1 CMD x", "is no number of retries"],
    ["FROM a\nONBUILD ONBUILD RUN x", "cannot be an ONBUILD trigger"],
    ["FROM a\nONBUILD FROM x", "cannot be an ONBUILD trigger"],
    ["FROM a\nONBUILD RUM x", 'there is no instruction "RUM"'],
    ["FROM a\nRUN --mount=target=/x,z=1 y", 'has no field "z"'],
    ["FROM a\nRUN --mount=type=bnd,target=/x y", "type of a mount is bind, cache"],
    ["FROM a\nRUN --mount=type=cache y", "needs a target"],
    ["FROM a\nRUN --mount=type=secret y", "a secret needs an id or a target"],
    ["FROM a\nRUN --mount=type=secret,id=a,src=b y", "an id or a source"],
    ["FROM a\nRUN --mount=type=tmpfs,target=/t,uid=1 y", 'has no field "uid"'],
    ["FROM a\nRUN --mount=type=bind,target=/t,from=$X y", "cannot have variables"],
    ["FROM a\nRUN --mount=type=bind,taget=/t y", 'did you mean "target"?'],
    ['FROM a\nRUN --mount=\\"type=bind y', "double quote of a mount is not closed"],
    ["# escape=x\nFROM a", "cannot escape"],
    ["# escape=\\\n# escape=`\nFROM a", "a second parser directive"],
    ["FROM a\0", "NUL"],
    ['FROM a\nCMD ["a\\u0000"]', "or a NUL"],
    [`FROM a\nRUN ${"x".repeat(70_000)}`, "longer than 65535"],
    [Buffer.from([0x46, 0xff]), "not UTF-8"],
    ["x".repeat(5_000_000), "a Dockerfile has at most"],
  ] as const)("refuses %s", ([text, message]) => {
    const { dockerfile, diagnostics } = parseDockerfile(text);
    expect(dockerfile).toBeUndefined();
    const [first] = diagnostics.filter(({ severity }) => severity === "error");
    expect(first?.message).toContain(message);
  });

  test("warns of what is old or looks wrong", () => {
    const { diagnostics } = parseDockerfile(
      "# syntax=example.com/other\nFROM a AS x\nFROM b AS x\nMAINTAINER m\nENV a b\nRUN c \\\n\n d",
    );
    expect(diagnostics.map(({ severity, line, message }) => `${line} ${severity} ${message}`)).toEqual([
      '1 warning the frontend "example.com/other" is not used: the file is read as a Dockerfile',
      '3 warning a second stage "x"',
      "4 warning MAINTAINER is deprecated",
      '5 warning the form "ENV name value" is old',
      "7 warning an empty line inside an instruction",
    ]);
  });
});

describe("parseTrigger", () => {
  const span = { start: 5, end: 9 };

  test("reads what an image keeps, here-documents too", () => {
    const instruction = parseTrigger("COPY <<a /b\nin\na", span) as StageInstruction;
    expect(instruction).toMatchObject({ kind: "copy", files: [{ content: "in\n" }], span, nameSpan: span });
    expect(instruction).toHaveProperty("destination.span", span);
  });

  test.for([
    ["FROM a", "FROM is not allowed there"],
    ["ONBUILD RUN x", "ONBUILD is not allowed there"],
    ["RUN a\nRUN b", "it is not one instruction"],
    ["", "it is not one instruction"],
    ["RUM a", 'there is no instruction "RUM"'],
  ])("refuses %s", ([trigger, message]) => {
    expect(parseTrigger(trigger as string, span)).toBe(message);
  });
});

function env(...pairs: [string, string][]): object {
  return { kind: "env", assignments: pairs.map(([name, value]) => ({ name, value })) };
}

function withoutFalse(expected: object): object {
  return Object.fromEntries(Object.entries(expected).filter(([, value]) => value !== false));
}
