import { describe, expect, test } from "vitest";
import type { Configuration } from "../../build/configuration.ts";
import { parseDockerfile } from "../../build/index.ts";
import { InstructionError, type Operation, StageState } from "../../build/stage-state.ts";

interface Evaluated {
  readonly config: Configuration["config"];
  readonly operations: readonly Operation[];
  readonly warnings: readonly string[];
  readonly history: readonly string[];
  readonly state: StageState;
}

/** Applies the instructions below FROM to an image with this configuration. */
function evaluate(
  text: string,
  options: { config?: object; buildArgs?: Record<string, string>; globalArgs?: Record<string, string> } = {},
): Evaluated {
  const { dockerfile, diagnostics } = parseDockerfile(`FROM x\n${text}`);
  if (dockerfile === undefined) throw new Error(diagnostics[0]?.message);
  const warnings: string[] = [];
  const image = { os: "linux", architecture: "amd64", config: options.config ?? {}, history: [] };
  const state = StageState.onImage(image, {
    escape: dockerfile.escape,
    globalArgs: new Map(Object.entries(options.globalArgs ?? {})),
    buildArgs: new Map(Object.entries(options.buildArgs ?? {})),
    warn: (_span, message) => void warnings.push(message),
    spend: () => {},
  });
  const operations: Operation[] = [];
  for (const instruction of dockerfile.stages[0]?.instructions ?? []) {
    const { operation, createdBy } = state.apply(instruction);
    if (operation !== undefined) operations.push(operation);
    state.record(createdBy, { hasLayer: operation !== undefined, created: undefined });
  }
  const history = state.history.map(({ created_by }) => created_by ?? "");
  return { config: state.config, operations, warnings, history, state };
}

describe("StageState", () => {
  test("keeps the order of ENV and gives an image without PATH Docker's", () => {
    const { config } = evaluate("ENV a=1 b=2\nENV a=3 c=$a$b", { config: { Env: ["Z=1"] } });
    expect(config.Env).toEqual([
      "Z=1",
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "a=3",
      "b=2",
      // All of one instruction see what stood before it.
      "c=12",
    ]);
  });

  test("gives commands ARGs and ENV, declares none that is not, and shows them in the history", () => {
    const { operations, history, config } = evaluate("ARG A=a\nARG B\nARG G\nENV E=$A\nRUN x", {
      config: { Env: ["PATH=/bin"] },
      buildArgs: { B: "given", UNDECLARED: "no", HTTP_PROXY: "http://proxy" },
      globalArgs: { G: "global" },
    });
    expect(operations).toMatchObject([
      {
        args: ["/bin/sh", "-c", "x"],
        env: {
          PATH: "/bin",
          A: "a",
          B: "given",
          G: "global",
          E: "a",
          HTTP_PROXY: "http://proxy",
          http_proxy: "http://proxy",
        },
      },
    ]);
    expect(operations[0]).not.toHaveProperty("env.UNDECLARED");
    expect(config.Env).toEqual(["PATH=/bin", "E=a"]);
    expect(history.at(-1)).toBe("RUN |3 A=a B=given G=global /bin/sh -c x");
  });

  test("takes what --build-arg says before defaults, which are not even read then", () => {
    expect(() => evaluate("ARG A=${MISSING:?}")).toThrow("MISSING");
    const { operations } = evaluate("ARG A=${MISSING:?}\nRUN x", { buildArgs: { A: "1" } });
    expect(operations).toMatchObject([{ env: { A: "1" } }]);
  });

  test("joins working directories, and destinations to them", () => {
    const { config, operations } = evaluate(
      "WORKDIR a/./b\nWORKDIR ../c/\nCOPY x y\nCOPY x ../z/\nCOPY x .\nCOPY x /d/.",
    );
    expect(config.WorkingDir).toBe("/a/c");
    expect(operations.map((each) => (each.kind === "copy" ? each.destination : each.kind))).toEqual([
      "directory",
      "directory",
      "/a/c/y",
      "/a/z/",
      "/a/c/",
      "/d/",
    ]);
  });

  test("runs here-documents as the command, as a program, or by the shell", () => {
    const { operations } = evaluate(
      'SHELL ["/bin/bash", "-ec"]\nRUN <<EOF\na\nb\nEOF\nRUN <<-EOF\n\t#!/bin/py\n\tx\nEOF\nRUN cat <<A 3<<"B"\n$a\nA\nb\nB\n',
    );
    expect(operations).toMatchObject([
      { args: ["/bin/bash", "-ec", "a\nb\n"] },
      { args: ["/bin/bash", "-ec", "/dev/pipes/EOF"], script: { path: "/dev/pipes/EOF", content: "#!/bin/py\nx\n" } },
      { args: ["/bin/bash", "-ec", 'cat <<A 3<<"B"\n$a\nA\nb\nB'] },
    ]);
  });

  test("leaves the base's command to none but an unchanged entry point", () => {
    const base = { config: { Cmd: ["base"], Entrypoint: ["old"] } };
    expect(evaluate("", base).config).toMatchObject({ Cmd: ["base"], Entrypoint: ["old"] });
    expect(evaluate('ENTRYPOINT ["new"]', base).config.Cmd).toBeUndefined();
    expect(evaluate('CMD ["own"]\nENTRYPOINT ["new"]', base).config).toMatchObject({ Cmd: ["own"] });
  });

  test("hands triggers to whoever builds on it, once", () => {
    const { state, config } = evaluate("ONBUILD RUN b", { config: { OnBuild: ["RUN a"] } });
    expect(config.OnBuild).toEqual(["RUN b"]);
    expect(state.triggers).toEqual(["RUN a", "RUN b"]);
  });

  test("expands ports, also those that a variable holds", () => {
    const { config } = evaluate("ARG P='80 81/udp'\nEXPOSE $P 127.0.0.1:90:91 5000-5001/TCP");
    expect(Object.keys(config.ExposedPorts ?? {})).toEqual(["80/tcp", "81/udp", "91/tcp", "5000/tcp", "5001/tcp"]);
  });

  test.for([
    ["EXPOSE 70000", "no number from 0 to 65535"],
    ["EXPOSE 80/http", "write tcp, udp or sctp"],
    ["EXPOSE 9-5", "no number from 0"],
    ["STOPSIGNAL SIGNOTHING", "there is no signal"],
    ["STOPSIGNAL 99", "there is no signal"],
    ["WORKDIR $NONE", "a WORKDIR without a name"],
    ["VOLUME $NONE", "a VOLUME without a name"],
    ["ENV ${X}=1", "is no name of a variable"],
    ["ENV a='x", "a single quote is not closed"],
    ["COPY --from=$A x y", "--from cannot have variables"],
    ["RUN --network=bridge x", 'there is no network "bridge"'],
    ["RUN --security=insecure x", "is not allowed"],
    ["RUN --mount=type=cache,target=/x,sharing=$A y", "sharing of a mount is shared"],
    ["ENV A=1234567890\n" + "ENV A=$A$A$A$A\n".repeat(12), "longer than"],
  ] as const)("refuses %s", ([text, message]) => {
    const run = () => evaluate(`ARG A=a\n${text}`);
    expect(run).toThrow(InstructionError);
    expect(run).toThrow(message);
  });

  test("warns of variables that are not set", () => {
    expect(evaluate("COPY $A ${B:-b} $1 /").warnings).toEqual(['the variable "A" is not set here']);
  });
});
