import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { sharedPins } from "../../agent/image-pins.ts";
import { defaultUntrustedPolicy } from "../../agent/index.ts";
import { BuildStepFixture } from "./build-fixture.ts";

let fixture: BuildStepFixture;

beforeAll(async () => {
  fixture = await BuildStepFixture.open();
});
afterAll(async () => {
  await fixture[Symbol.asyncDispose]();
});
afterEach(async () => {
  await fixture.expectClean();
});

const greeter = 'FROM BASE\nARG WHOM=nobody\nRUN echo "hello, $WHOM" > /greeting\nCOPY file /file\n';

describe("a step that builds", () => {
  test("makes an image that later steps run in and build on", async () => {
    const result = await fixture.run(
      `
      - echo from the workspace > file
      - build: { tags: "app:\${SLIPWAY_COMMIT}", args: { WHOM: "\${NAME}" }, labels: { commit: "\${SLIPWAY_COMMIT}" } }
        env: { NAME: all of you }
      - run: cat /greeting /file
        image: app:\${SLIPWAY_COMMIT}
      - build: { dockerfile: Second, tags: second }
      - run: cat /second
        image: second
`,
      { Dockerfile: greeter, Second: "FROM app:c0ffee\nRUN tr a-z A-Z < /greeting > /second\n" },
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    expect(result.logs[1]).toContain('[1/2] RUN echo "hello, $WHOM" > /greeting\n');
    expect(result.logs[1]).toMatch(/built sha256:[0-9a-f]{64}\n$/);
    expect(result.logs[2]).toMatch(/hello, all of you\nfrom the workspace\n$/);
    expect(result.logs[4]).toMatch(/HELLO, ALL OF YOU\n$/);
    expect(result.steps[1]).toMatchObject({ exitCode: 0, imageDigest: /built (\S+)/.exec(result.logs[1] ?? "")?.[1] });
  });

  test("takes files from directories and images that it gives names", async () => {
    const result = await fixture.run(
      `
      - build: { dockerfile: First, tags: "first:1" }
      - build:
          context: app
          contexts: { shared: lib, alpine: "docker-image://first:\${N}" }
          tags: second
        env: { N: 1 }
      - run: cat /first /shared
        image: second
`,
      {
        First: "FROM BASE\nRUN echo one > /first\n",
        "app/Dockerfile": "FROM alpine\nCOPY --from=shared f /shared\n",
        "lib/f": "two",
      },
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    expect(result.logs[2]).toMatch(/one\ntwo$/);
  });

  test("says what its commands have used together, and nothing where none has run", async () => {
    const work = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done";
    const result = await fixture.run(
      `
      - build: { tags: used }
      - build: { tags: used }
      - build: { tags: used, dockerfile: Failing }
`,
      {
        Dockerfile: `FROM BASE AS a\nRUN ${work}; head -c 3000000 /dev/zero > /a\nFROM BASE\nRUN ${work}\nCOPY --from=a /a /\n`,
        Failing: `FROM BASE\nRUN ${work}; false\n`,
      },
    );
    expect(result.status).toBe("failure");
    const [first, cached, failed] = result.steps.map(({ usage }) => usage);
    expect(cached).toBeUndefined();
    expect(failed?.cpuTimeMs).toBeGreaterThan(0);
    expect(first?.cpuTimeMs).toBeGreaterThan(0);
    expect(first?.memoryPeakBytes).toBeGreaterThan(0);
    expect(first?.ioWriteBytes).toBeGreaterThanOrEqual(3_000_000);
  });

  test("pushes to the registry with its tags, and says by which digest", async () => {
    const result = await fixture.run(
      `
      - build: { tags: ["REGISTRY/team/app:1", "REGISTRY/team/app:latest"], push: true }
      - build: { tags: [mirrored], push: "REGISTRY/mirror" }
`,
      { Dockerfile: greeter, file: "x" },
    );
    expect(result).toMatchObject({ status: "success", problems: [] });
    const { registry } = fixture;
    for (const [name, step] of [
      ["team/app:1", 0],
      ["team/app:latest", 0],
      ["mirror/mirrored:latest", 1],
    ] as const) {
      const inspected = JSON.parse(
        registry.skopeo("inspect", "--tls-verify=false", `docker://${registry.host}/${name}`),
      ) as { readonly Digest: string };
      expect(inspected.Digest).toBe(result.steps[step]?.imageDigest);
      expect(result.logs[step]).toContain(`pushed ${registry.host}/${name}\n`);
    }
    expect(result.logs[1]).toContain("(cached)");
  });

  test("builds for several platforms, of which later steps run the own one", async () => {
    const dockerfile =
      "FROM --platform=$BUILDPLATFORM BASE AS tools\nFROM scratch\nARG TARGETARCH\nCOPY --from=tools / /\nLABEL arch=$TARGETARCH\n";
    const result = await fixture.run(
      `
      - build: { tags: "REGISTRY/several:1", push: true, platforms: [linux/amd64, linux/arm64] }
      - run: echo in it
        image: REGISTRY/several:1
`,
      { Dockerfile: dockerfile },
    );
    expect(result.logs[1]).toMatch(/in it\n$/);
    const raw = fixture.registry.skopeo(
      "inspect",
      "--raw",
      "--tls-verify=false",
      `docker://${fixture.registry.host}/several:1`,
    );
    const index = JSON.parse(raw) as { manifests: { platform: { architecture: string } }[] };
    expect(index.manifests.map(({ platform }) => platform.architecture)).toEqual(["amd64", "arm64"]);
    // Of each platform the one of that platform, without a registry.
    const chained = await fixture.run(
      `
      - build: { tags: several, platforms: [linux/amd64, linux/arm64] }
      - build: { dockerfile: Second, tags: REGISTRY/chained, push: true, platforms: [linux/amd64, linux/arm64] }
`,
      { Dockerfile: dockerfile, Second: "FROM several\nCOPY Second /\n" },
    );
    expect(chained.reason).toBeUndefined();
    const archOf = (arch: string) => {
      const name = `docker://${fixture.registry.host}/chained`;
      const text = fixture.registry.skopeo("--override-arch", arch, "inspect", "--tls-verify=false", "--config", name);
      return (JSON.parse(text) as { config: { Labels: { arch: string } } }).config.Labels.arch;
    };
    expect(["amd64", "arm64"].map(archOf)).toEqual(["amd64", "arm64"]);
  });

  test("gives secrets to commands that ask for them, and to nothing else", async () => {
    const dockerfile =
      "FROM BASE\nRUN --mount=type=secret,id=token --mount=type=secret,id=file cat /run/secrets/token /run/secrets/file | md5sum\n" +
      "RUN ! test -e /run/secrets/token && ! env | grep -q hush\n";
    const result = await fixture.run(
      `
      - printf 'two' > made-by-a-step
      - build: { secrets: { token: { env: TOKEN }, file: { file: made-by-a-step } } }
        env: { TOKEN: hush }
`,
      { Dockerfile: dockerfile },
    );
    expect(result.status).toBe("success");
    expect(result.logs[1]).toContain(`${createHash("md5").update("hushtwo").digest("hex")}  -\n`);
  });

  test("masks what commands print of their secrets, in whatever pieces", async () => {
    const result = await fixture.run(
      "\n      - { build: { secrets: { t: { env: TOKEN } } }, env: { TOKEN: correct-horse } }\n",
      {
        Dockerfile: `FROM BASE
RUN --mount=type=secret,id=t cat /run/secrets/t; echo; printf correct-; sleep 0.2; printf horse; sleep 0.2; printf correct-h; exit 3
`,
      },
    );
    expect(result.logs[0]).toContain("***\n***correct-h");
    expect(result.logs[0]).not.toContain("correct-horse");
    expect(result.steps[0]?.exitCode).toBe(3);
  });

  test("writes archives and layouts into the workspace, which later steps and skopeo read", async () => {
    const dir = fixture.workspace({ Dockerfile: greeter, file: "x", "dist/old.tar": "old", "full/x": "" });
    const result = await fixture.run(
      `
      - build: { tags: a, output: dist/old.tar }
      - build: { tags: a, output: new/layout }
      - { run: "cat /greeting; stat -c %u dist/old.tar new/layout/index.json", image: ./dist/old.tar }
      - { run: cat /greeting, image: ./new/layout }
      - { build: { output: full }, allow_failure: true }
`,
      dir,
    );
    expect(result.logs[2]).toMatch(/hello, nobody\n0\n0\n$/);
    expect(result.logs[3]).toMatch(/hello, nobody\n$/);
    expect(result.steps[4]?.reason).toBe('the output "full" cannot be written: the directory is not empty');
    const { registry } = fixture;
    for (const image of [
      `docker-archive:${dir}/dist/old.tar:a`,
      `oci-archive:${dir}/dist/old.tar`,
      `oci:${dir}/new/layout`,
    ]) {
      const inspected = JSON.parse(registry.skopeo("inspect", image)) as { readonly Layers: readonly string[] };
      expect(inspected.Layers).toHaveLength(3);
    }
  });

  test("does what the example shows", async () => {
    const example = new URL("../../examples/image/", import.meta.url);
    const read = (name: string) => readFileSync(new URL(name, example), "utf8");
    const files = Object.fromEntries(["hello.sh", ".dockerignore"].map((name) => [name, read(name)]));
    const Dockerfile = read("Dockerfile").replaceAll("busybox:1.37", "BASE").replace("nobody", "app");
    const [job] = fixture.jobs(read(".slipway.yml"));
    const result = await fixture.runJob(
      { ...job!, steps: job!.steps.map((step) => ({ ...step, network: "none" })) },
      { ...files, Dockerfile },
    );
    expect(result.reason).toBeUndefined();
    expect(result.logs[1]).toMatch(/hello from commit c0ffee, as user 1000\n$/);
  });

  test("that has no value for a variable fails, saying which", async () => {
    const result = await fixture.run(`\n      - build: { tags: "app:\${SLIPWAY_TAG}" }\n`, { Dockerfile: greeter });
    expect(result.steps[0]).toMatchObject({ status: "failure" });
    expect(result.steps[0]?.reason).toContain('"app:${SLIPWAY_TAG}": ${SLIPWAY_TAG} has no value here');
  });

  test("sees a copy-on-write workspace as the steps before it have left it", async () => {
    const dir = fixture.workspace({ Dockerfile: "FROM BASE\nCOPY . /all\nRUN ls /all\n", kept: "", gone: "" });
    const result = await fixture.run("\n      - touch made; rm gone\n      - build: .\n", dir, {
      workspace: { dir, copyOnWrite: true },
    });
    expect(result.logs[1]).toMatch(/Dockerfile\nkept\nmade\n/);
    expect(existsSync(join(dir, "made"))).toBe(false);
  });

  test("tells other jobs of the build what its tags mean, and nobody else", async () => {
    const pins = sharedPins();
    const build = "\n      - build: { tags: between/jobs }\n";
    const use = "\n      - { run: cat /greeting, image: between/jobs, pull: never }\n";
    const files = { Dockerfile: greeter, file: "x" };
    expect(await fixture.run(build, files, { pins })).toMatchObject({ status: "success" });
    expect(await fixture.run(use, {}, { pins })).toMatchObject({ status: "success" });
    const stranger = await fixture.run(use, {}, { pins: sharedPins() });
    expect(stranger.steps[0]?.reason).toContain("not in the store of this agent");
  });

  test("leaves no name in the store that other builds could take for a registry's, unless the store is the user's", async () => {
    const build = "\n      - build: { tags: busybox }\n";
    const use = "\n      - { run: cat /greeting, image: busybox, pull: never }\n";
    const files = { Dockerfile: greeter, file: "x" };
    await fixture.run(build, files);
    expect((await fixture.run(use, {})).status).toBe("failure");
    await fixture.run(build, files, { builds: { cacheNamespace: "", namesImages: true } });
    expect((await fixture.run(use, {})).status).toBe("success");
  });
});

describe("a build that fails", () => {
  test("for a command shows the Dockerfile's line, and the command's code", async () => {
    const result = await fixture.run("\n      - build: docker\n      - echo never\n", {
      "docker/Dockerfile": "FROM BASE\n\nRUN echo to stderr >&2; exit 42\n",
    });
    expect(result.status).toBe("failure");
    expect(result.steps).toMatchObject([
      { status: "failure", exitCode: 42, reason: "docker/Dockerfile:3: the command failed with exit code 42" },
      { status: "skipped" },
    ]);
    expect(result.logs[0]).toContain(
      "to stderr\ndocker/Dockerfile:3:1: error: the command failed with exit code 42\n  3 | RUN echo to stderr >&2; exit 42\n    | ^^^\n",
    );
  });

  test("for what is written shows all of it, and may be allowed", async () => {
    const result = await fixture.run("\n      - { build: ., allow_failure: true }\n      - echo on\n", {
      Dockerfile: "FROM BASE\nRUM x\nCOPPY a b\n",
    });
    expect(result.status).toBe("success");
    expect(result.steps[0]).toMatchObject({ status: "failure", allowedFailure: true });
    expect(result.logs[0]).toContain("Dockerfile:2:1: error:");
    expect(result.logs[0]).toContain("Dockerfile:3:1: error:");
  });

  test.for([
    ["build: nowhere", 'the context "nowhere" is no directory of the workspace'],
    ["build: { dockerfile: Absent }", 'there is no Dockerfile "Absent" in the workspace'],
    ["build: { target: absent }", 'there is no stage "absent"'],
    ["build: { dockerfile: Missing }", "there is no such image"],
  ])("for %s says so", async ([step, reason]) => {
    const result = await fixture.run(`\n      - ${step}\n`, {
      Dockerfile: "FROM BASE\n",
      Missing: `FROM ${fixture.registry.host}/missing\n`,
    });
    expect(result.steps[0]?.status).toBe("failure");
    expect(`${result.steps[0]?.reason}`).toContain(reason === "there is no such image" ? "missing" : reason);
  });

  test("leaves its tags without a meaning for the steps after it", async () => {
    const result = await fixture.run(
      "\n      - { build: { tags: BASE }, allow_failure: true }\n      - { run: echo, image: BASE }\n",
      { Dockerfile: "FROM BASE\nRUN false\n" },
    );
    expect(result.steps[1]).toMatchObject({ status: "failure" });
    expect(result.steps[1]?.reason).toContain("was to build it, and has not");
  });
});

describe("a build that is stopped", () => {
  const endless = { Dockerfile: 'FROM BASE\nRUN echo be""gun; sleep 1000 & sleep 1000\n' };

  test("by cancellation takes its commands down", async () => {
    const cancel = new AbortController();
    const result = await fixture.run("\n      - build: .\n", endless, {
      signal: cancel.signal,
      onOutput: (text) => {
        if (text.includes("begun")) cancel.abort(new Error("by a test"));
      },
    });
    expect(result).toMatchObject({ status: "canceled", reason: "by a test", problems: [] });
    expect(result.logs[0]).toMatch(/begun\nby a test\n$/);
  });

  test("by its time limit fails", async () => {
    const result = await fixture.run("\n      - { build: ., timeout: 1s }\n", endless);
    expect(result.steps[0]).toMatchObject({ status: "failure", reason: "it ran for longer than 1 s" });
  });

  test("by the limit of its log fails, and its commands were held back before", async () => {
    const result = await fixture.run("\n      - { build: ., resources: { log: 64KiB } }\n", {
      Dockerfile: "FROM BASE\nRUN yes\n".replace("yes", "while :; do seq 1000; done"),
    });
    expect(result.steps[0]).toMatchObject({ status: "failure", reason: "it printed more than 64 KiB" });
  });

  test("by the limit of its memory fails, and says so", async () => {
    const result = await fixture.run("\n      - { build: ., resources: { memory: 32MiB } }\n", {
      Dockerfile: "FROM BASE\nRUN dd if=/dev/zero of=/dev/null bs=256M count=1\n",
    });
    expect(result.steps[0]?.reason).toMatch(/^Dockerfile:2: the command .*: .*used .* of 32 MiB/);
  });

  test("by the limit of its disk fails, whatever part of it is over", async () => {
    const half = "RUN dd if=/dev/zero of=/half-$(cat /proc/sys/kernel/random/uuid) bs=1M count=20 2>/dev/null\n";
    const steps = "\n      - { build: { cache: false }, resources: { disk: 32MiB } }\n";
    const whole = await fixture.run(steps, { Dockerfile: `FROM BASE\n${half.replace("count=20", "count=64")}` });
    expect(whole.steps[0]?.reason).toMatch(/^Dockerfile:2: .*32 MiB/);
    const sum = await fixture.run(steps, { Dockerfile: `FROM BASE\n${half}${half.replace("half-", "other-")}` });
    expect(sum.steps[0]?.reason).toMatch(/^Dockerfile:3: /);
    const copied = await fixture.run(steps, {
      Dockerfile: "FROM BASE\nCOPY big /a\nCOPY big /b\n",
      big: "x".repeat(20 << 20),
    });
    expect(copied.steps[0]?.reason).toBe("Dockerfile:3: the layers of this build have more than 32 MiB");
    const mounted = await fixture.run(steps, {
      Dockerfile: "FROM BASE\nRUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/x bs=1M count=64; sleep 1000\n",
    });
    expect(mounted.steps[0]?.reason).toMatch(/^Dockerfile:2: the command was ended: killed: wrote .* of 32 MiB/);
  });
});

test("what a service writes into the workspace meanwhile is the step's, as it is with a script", async () => {
  const [job] = fixture.jobs(`
jobs:
  job:
    services:
      writer: { run: "until test -e begun; do sleep 0.1; done; dd if=/dev/zero of=filled bs=1M count=64; sleep 1000" }
    steps:
      - { build: ., resources: { disk: 32MiB }, network: job }
`);
  const dir = fixture.workspace({ Dockerfile: 'FROM BASE\nRUN echo be""gun; sleep 1000\n' });
  const result = await fixture.runJob(job!, dir, {
    serviceGraceMs: 100,
    onOutput: (text) => {
      if (text.includes("begun")) writeFileSync(join(dir, "begun"), "");
    },
  });
  expect(result.steps[0]).toMatchObject({ status: "failure", reason: expect.stringContaining("of 32 MiB") });
});

describe("a hostile workspace", () => {
  test("leads neither context, Dockerfile nor secrets outside", async () => {
    writeFileSync(join(fixture.directory, "outside"), "FROM scratch\n# the host's\n");
    mkdirSync(join(fixture.directory, "outside-dir"), { recursive: true });
    writeFileSync(join(fixture.directory, "outside-dir/Dockerfile"), "FROM scratch\n");
    const dir = fixture.workspace({ Dockerfile: "FROM BASE\nRUN --mount=type=secret,id=s cat /run/secrets/s\n" });
    symlinkSync(join(fixture.directory, "outside"), join(dir, "File"));
    symlinkSync("../../../../../../../../etc/passwd", join(dir, "passwd"));
    symlinkSync(join(fixture.directory, "outside-dir"), join(dir, "context"));
    for (const step of [
      "build: context",
      "build: { contexts: { x: context } }",
      "build: { dockerfile: File }",
      "build: { secrets: { s: { file: passwd } } }",
    ]) {
      const result = await fixture.run(`\n      - ${step}\n`, dir);
      expect(result.steps[0]?.status).toBe("failure");
      expect(result.logs[0]).not.toContain("root:");
    }
  });

  test("leads no output outside", async () => {
    const outside = join(fixture.directory, "outside-output");
    mkdirSync(outside);
    const dir = fixture.workspace({ Dockerfile: "FROM scratch\nCOPY Dockerfile /\n" });
    symlinkSync(outside, join(dir, "absolute"));
    symlinkSync("../outside-output", join(dir, "relative"));
    symlinkSync(join(outside, "file.tar"), join(dir, "file.tar"));
    for (const path of ["absolute/a.tar", "relative/b.tar", "file.tar", "absolute", "relative/layout"]) {
      await fixture.run(`\n      - build: { output: ${path} }\n`, dir);
    }
    expect(readdirSync(outside)).toEqual([]);
  });

  test("with files that have no end or only holes costs neither disk nor time", async () => {
    const result = await fixture.run(
      `
      - truncate -s 8T context/holes
      - build: { context: context, dockerfile: ../Dockerfile }
`,
      { Dockerfile: "FROM BASE\nCOPY . /all\n", "context/x": "" },
    );
    expect(result.steps[1]?.reason).toBe("Dockerfile:2: what is to be copied has more than 20 GiB: 8 TiB");
    const made = await fixture.run("\n      - build: .\n", {
      Dockerfile: "FROM BASE\nRUN dd if=/dev/zero of=/x bs=1M count=0 seek=8388608\n",
    });
    expect(made.steps[0]?.reason).toBe("Dockerfile:2: the layers of this build have more than 20 GiB");
  });

  test("that changes its context while it is read neither leads outside nor hangs", async () => {
    const result = await fixture.run(
      `
      - run: mkfifo context/fifo; ln -s /etc/passwd context/link; ln -s / context/root
      - build: { context: context, dockerfile: ../Dockerfile }
`,
      { Dockerfile: "FROM BASE\nCOPY . /all\nRUN ls -l /all; ! test -e /all/root/workspace\n", "context/x": "" },
    );
    expect(result.status).toBe("success");
    expect(result.logs[1]).toContain("link -> /etc/passwd");
  });
});

describe("a stranger's build", () => {
  const untrusted = defaultUntrustedPolicy;

  test.for(["push: true", "push: registry.example", "secrets: { s: { env: S } }"])("may not %s", async (key) => {
    const tags = key.includes("registry.example") ? "a" : "a.example/b";
    const result = await fixture.run(
      `\n      - { build: { tags: ${tags}, ${key} }, env: { S: x } }\n`,
      {},
      { untrusted },
    );
    expect(result).toMatchObject({ status: "failure", steps: [{ status: "skipped" }] });
    expect(result.reason).toMatch(/wants (?:push|secrets), which commits of strangers do not get/);
  });

  test("leaves what the last four jobs have made, and the base they share", async () => {
    const store = (part: string) => new Set(readdirSync(join(fixture.host.imageStoreDir, part)));
    await fixture.run("\n      - build: .\n", { Dockerfile: "FROM BASE\n" });
    const before = { layers: store("layers"), names: store("names") };
    for (let i = 0; i < 6; i++) {
      const steps = "\n      - build: { tags: stranger }\n      - { run: cat /made, image: stranger }\n";
      const result = await fixture.run(steps, { Dockerfile: `FROM BASE\nRUN echo ${i} > /made\n` }, { untrusted });
      expect(result).toMatchObject({ status: "success", problems: [] });
    }
    expect(store("names").difference(before.names).size).toBe(4);
    // As an instruction's and as an image's.
    expect(store("layers").difference(before.layers).size).toBe(8);
    expect(before.layers.difference(store("layers")).size).toBe(0);
  });

  test("shares no layer and no cache directory with others", async () => {
    const files = {
      Dockerfile:
        "FROM BASE\nRUN --mount=type=cache,target=/cache ls /cache; touch /cache/be''en; cat /proc/sys/kernel/random/uuid > /made\n",
    };
    const build = (options: object, cacheNamespace: string) =>
      fixture.run("\n      - build: { tags: x }\n      - { run: cat /made, image: x }\n", files, {
        ...options,
        builds: { cacheNamespace, namesImages: false },
      });
    const own = await build({}, "a");
    const strangers = await build({ untrusted }, "a stranger 1");
    const again = await build({}, "a");
    const strangersAgain = await build({ untrusted }, "a stranger 2");
    expect([own.status, strangers.status, again.status]).toEqual(["success", "success", "success"]);
    expect(strangers.logs[0]).not.toContain("been");
    expect(strangersAgain.logs[0]).not.toContain("been");
    expect(strangers.logs[0]).not.toContain("cached");
    expect(again.logs[0]).toContain("(cached)");
    const made = (log: string | undefined) => log?.trim().split("\n").at(-1);
    expect(made(strangers.logs[1])).not.toBe(made(own.logs[1]));
    expect(made(again.logs[1])).toBe(made(own.logs[1]));
  });
});
