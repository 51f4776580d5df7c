import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bin, type CommandOptions, environment, type Outcome, run, slipway, TemporaryDirectory } from "./command.ts";
import { TerminalRun } from "./terminal-run.ts";

/** Keeps what runs need on a disk of its own, not in the data directory of whoever runs the tests. */
let data: TemporaryDirectory;
beforeAll(async () => {
  data = await TemporaryDirectory.create();
});
afterAll(async () => await data[Symbol.asyncDispose]());

/** Runs `slipway run` in a checkout with this pipeline. */
async function runPipeline(
  pipeline: string,
  args: readonly string[] = [],
  options: CommandOptions = {},
): Promise<Outcome> {
  await using checkout = await createCheckout(pipeline);
  return await slipwayRun(checkout, args, options);
}

function slipwayRun(
  checkout: TemporaryDirectory,
  args: readonly string[] = [],
  options: CommandOptions = {},
): Promise<Outcome> {
  return slipway(["run", "--data-dir", data.path, ...args], { cwd: checkout.path, ...options });
}

async function createCheckout(
  pipeline: string,
  files: Readonly<Record<string, string>> = {},
): Promise<TemporaryDirectory> {
  const checkout = await TemporaryDirectory.create({ ".slipway.yml": pipeline, ...files });
  const env = environment({ GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" });
  const git = (...args: readonly string[]) =>
    execFileSync("git", ["-C", checkout.path, ...args], { env, stdio: "pipe" });
  git("init", "--quiet", "--initial-branch=trunk");
  git("add", "--all");
  git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message=one");
  return checkout;
}

const jobs = (text: string) => `jobs:\n${text.replace(/^/gm, "  ")}`;
const step = (run: string, more = "") => `steps: [{ run: ${JSON.stringify(run)}${more} }]`;

describe("slipway run --explain", () => {
  test("prints each step's configuration and operations, and runs nothing", async () => {
    const pipeline = jobs(`a:\n  ${step("touch ran", ", network: none")}\nb:\n  ${step("true", ", nested: true")}`);
    const { code, stdout, stderr } = await runPipeline(pipeline, ["--explain"]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const steps = JSON.parse(stdout) as { job: string; config: Record<string, unknown>; operations: string[] }[];
    expect(steps.map(({ job }) => job)).toEqual(["a", "b"]);
    expect(steps[0]?.config).toMatchObject({
      process: { args: ["/bin/sh", "-e", "-c", "--", "touch ran", "touch ran"], noNewPrivileges: true },
    });
    expect(steps[1]?.config).toMatchObject({ process: { noNewPrivileges: false } });
    expect(steps[0]?.operations.at(-1)).toContain("execute the program");
  });
});

const imagePipeline = `
jobs:
  image:
    network: none
    steps:
      - cp "$(command -v busybox)" busybox
      - build: { tags: "slipway-test/hello:\${SLIPWAY_BRANCH}", args: { WHOM: "\${WHOM}" } }
        env: { WHOM: people }
      - run: cat /greeting
        image: slipway-test/hello:\${SLIPWAY_BRANCH}
`;
const imageFiles = {
  Dockerfile: `FROM scratch AS tools
COPY busybox /bin/sh
COPY busybox /bin/cat
FROM tools
ARG WHOM
RUN echo "hello, $WHOM" > /greeting
`,
};

describe("slipway run of a pipeline that builds an image", () => {
  test("builds it, runs the next step in it, and leaves it under its name", async () => {
    await using checkout = await createCheckout(imagePipeline, imageFiles);
    const { code, stdout, stderr } = await slipwayRun(checkout);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain('RUN echo "hello, $WHOM" > /greeting\n');
    expect(stdout).toMatch(/image │ built sha256:[0-9a-f]{64}\n/);
    expect(stdout).toMatch(/image │ hello, people\n/);
    expect(existsSync(join(checkout.path, "busybox"))).toBe(false);
    const images = await slipway(["image", "ls", "--data-dir", data.path]);
    expect(images.stdout).toContain("slipway-test/hello:trunk");
  });

  test("explains what would be built, and what runs in it", async () => {
    const { code, stdout } = await runPipeline(imagePipeline, ["--explain"]);
    expect(code).toBe(0);
    const steps = JSON.parse(stdout) as Record<string, unknown>[];
    expect(steps[1]).toMatchObject({
      step: "build slipway-test/hello:${SLIPWAY_BRANCH}",
      build: {
        context: ".",
        dockerfile: "Dockerfile",
        args: { WHOM: "people" },
        names: ["docker.io/slipway-test/hello:trunk"],
      },
    });
    expect(steps[2]).toEqual({
      job: "image",
      step: "cat /greeting",
      builtBy: "build slipway-test/hello:${SLIPWAY_BRANCH}",
    });
  });
});

describe("slipway run", () => {
  test("runs steps in a container and shows names, output, durations and a table", async () => {
    const pipeline = jobs('hello:\n  steps:\n    - name: greet\n      run: echo "hello, $(id -u)"; echo oops >&2');
    const { code, stdout, stderr } = await runPipeline(pipeline);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(
      /^hello ▶ greet\nhello │ (?:hello, 0\nhello │ oops|oops\nhello │ hello, 0)\nhello ✓ greet [\d.]+ m?s\n\n✓ hello {2}success .* ✓ greet [^\n]+\n[^\n]*: success in [^\n]+\n$/,
    );
    expect(stdout).not.toContain("\x1b");
  });

  test("exits with 1 if a step fails, skips what follows it and says why", async () => {
    const pipeline = jobs(
      `a:\n  steps:\n    - { name: bad, run: exit 3 }\n    - { name: never, run: echo no }\nb:\n  needs: [a]\n  ${step("echo no")}`,
    );
    const { code, stdout } = await runPipeline(pipeline);
    expect(code).toBe(1);
    expect(stdout).toMatch(/a ✗ bad .*exit code 3/);
    expect(stdout).toContain('b − skipped: it needs "a", which failed');
    expect(stdout).not.toContain("│ no\n");
  });

  test("goes on after a failure that is allowed", async () => {
    const { code, stdout } = await runPipeline(jobs(`a:\n  ${step("exit 1", ", allow_failure: true")}`));
    expect(code).toBe(0);
    expect(stdout).toContain("exit code 1 (allowed to fail)");
  });

  test("shows services beside the steps, and why one has failed", async () => {
    const { code, stdout } = await runPipeline(
      jobs(`
good:
  services:
    cache: { run: exec redis-server --save '' --dir /tmp, ready: { port: 6379 } }
  steps: [redis-cli -h cache ping]
bad:
  services:
    db: { run: "echo no disk; exit 3", ready: { port: 5432 } }
  steps: ["true"]
`),
      ["--network", "none"],
    );
    expect(code).toBe(1);
    expect(stdout).toMatch(/^good cache │ .*Ready to accept connections/m);
    expect(stdout).toContain("good │ PONG\n");
    expect(stdout).toMatch(
      /^bad {2}✗ service db .*it ended before it was ready: exit code 3; its last output: no disk$/m,
    );
    expect(stdout).toMatch(/^✗ bad .* ✗ service db/m);
  });

  test("steps reach only what --network gives them", async () => {
    const { code, stdout } = await runPipeline(jobs(`a:\n  ${step("ls /sys/class/net")}`), ["--network", "none"]);
    expect({ code, stdout }).toMatchObject({ code: 0, stdout: expect.stringContaining("a │ lo\na ✓") });
    const wrong = await runPipeline(jobs(`a:\n  ${step("true")}`), ["--network", "nope"]);
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining("--network must be one of job, none") });
  });

  test("shows the working tree as it is, uncommitted files too, and never changes it", async () => {
    await using checkout = await createCheckout(
      jobs(
        `a:\n  steps:\n    - run: cat committed fresh; echo changed > committed; echo made > made; rm fresh\n    - run: cat committed made; test ! -e fresh`,
      ),
      { committed: "old\n" },
    );
    const fresh = join(checkout.path, "fresh");
    execFileSync("sh", ["-c", 'echo new > "$0"', fresh]);
    const { code, stdout } = await slipwayRun(checkout);
    expect(stdout.split("\n").filter((line) => line.startsWith("a │"))).toEqual([
      "a │ old",
      "a │ new",
      "a │ changed",
      "a │ made",
    ]);
    expect(code).toBe(0);
    expect(readFileSync(join(checkout.path, "committed"), "utf8")).toBe("old\n");
    expect(readFileSync(fresh, "utf8")).toBe("new\n");
    expect(existsSync(join(checkout.path, "made"))).toBe(false);
  });

  test("each job has a workspace of its own, side by side with the others", async () => {
    // Each waits for the other's beginning; one after the other would never end.
    const meet = (own: string) => step(`echo ${own} > mine; cat mine; ls | grep -c mine`);
    const { code, stdout } = await runPipeline(jobs(`a:\n  ${meet("a")}\nb:\n  ${meet("b")}`), ["--jobs", "2"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/a │ a\n(.*\n)*?a │ 1\n/);
    expect(stdout).toMatch(/b │ b\n(.*\n)*?b │ 1\n/);
  });

  test("--job runs that job alone, an unknown one is wrong usage", async () => {
    const pipeline = jobs(`build:\n  ${step("echo build")}\ntest:\n  needs: [build]\n  ${step("echo test")}`);
    await using checkout = await createCheckout(pipeline);
    const { code, stdout } = await slipwayRun(checkout, ["--job", "test"]);
    expect(code).toBe(0);
    expect(stdout).toContain("test │ test\n");
    expect(stdout).not.toContain("build");
    const wrong = await slipwayRun(checkout, ["--job", "tset"]);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain('There is no job "tset" (did you mean test?); there are build, test');
  });

  test("--event applies the pipeline's triggers; without it every job runs", async () => {
    const pipeline = `on: { push: { branches: [main] } }\n${jobs(`a:\n  ${step("echo $SLIPWAY_EVENT $SLIPWAY_BRANCH")}`)}`;
    await using checkout = await createCheckout(pipeline);
    expect((await slipwayRun(checkout)).stdout).toContain("a │ manual trunk\n");
    const not = await slipwayRun(checkout, ["--event", "push"]);
    expect(not).toMatchObject({ code: 0, stdout: "" });
    expect(not.stderr).toContain('Nothing to run: branch "trunk" matches none of main');
    expect((await slipwayRun(checkout, ["--event", "push", "--branch", "main"])).stdout).toContain("a │ push main\n");
    expect((await slipwayRun(checkout, ["--event", "tag"])).code).toBe(2);
  });

  test("a pipeline with errors is printed with its problems and exits with 1", async () => {
    const { code, stdout, stderr } = await runPipeline("jobs: { a: { stepz: [] } }");
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toContain(".slipway.yml:1:14: error:");
  });

  test("works without Git", async () => {
    await using directory = await TemporaryDirectory.create({ ".slipway.yml": jobs(`a:\n  ${step("echo hi")}`) });
    expect((await slipwayRun(directory)).stdout).toContain("a │ hi\n");
  });

  test("two at the same time do not disturb each other", async () => {
    await using checkout = await createCheckout(jobs(`a:\n  ${step("echo hi; sleep 0.5")}`));
    const outcomes = await Promise.all([slipwayRun(checkout), slipwayRun(checkout), slipwayRun(checkout)]);
    expect(outcomes.map(({ code, stderr }) => ({ code, stderr }))).toEqual(Array(3).fill({ code: 0, stderr: "" }));
  });

  test("of the escape sequences in output only colours reach a terminal", async () => {
    const run = String.raw`printf '\033]0;owned\007text\033[2J \033[31mred\n'`;
    const pipeline = jobs(`a:\n  steps:\n    - name: escape\n      run: ${JSON.stringify(run)}`);
    const coloured = await runPipeline(pipeline, [], { env: { FORCE_COLOR: "1" } });
    expect(coloured.stdout).toContain("text \x1b[31mred\x1b[0m\n");
    const plain = await runPipeline(pipeline);
    expect(plain.stdout).toContain("│ text red\n");
  });

  test("SIGINT cancels the running step, skips the rest, cleans up and exits with 1", async () => {
    const pipeline = jobs(
      `a:\n  ${step("trap 'exit 0' TERM; echo begun; sleep 100 & wait")}\nb:\n  needs: [a]\n  ${step("echo no")}`,
    );
    let isSent = false;
    const { code, stdout, stderr } = await runPipeline(pipeline, [], {
      watch: (child, text) => {
        if (isSent || !text.includes("│ begun")) return;
        isSent = true;
        child.kill("SIGINT");
      },
    });
    expect({ code, stderr }).toEqual({ code: 1, stderr: "" });
    expect(stdout).toMatch(/■ .*received SIGINT/);
    expect(stdout).not.toContain("│ no\n");
    expect(readFileSync("/proc/self/mounts", "utf8")).not.toContain(data.path);
  });

  test("output that nobody reads any more ends the run", async () => {
    const script = `'${process.execPath}' '${new URL("../../cli/slipway.cjs", import.meta.url).pathname}' run --data-dir '${data.path}' | head -n 2; echo "code \${PIPESTATUS[0]}"`;
    await using checkout = await createCheckout(jobs(`a:\n  ${step("while :; do echo y; done")}`));
    const output = execFileSync("bash", ["-c", script], { cwd: checkout.path, encoding: "utf8", env: environment() });
    expect(output).toMatch(/^a ▶ .*\na │ y\ncode 1\n$/);
  });

  const failing = jobs(
    `a:\n  env: { GREETING: hello }\n  steps:\n    - echo one > one\n    - { name: fails, run: "echo made > /made; exit 3" }\n    - echo never\n` +
      `b:\n  steps:\n    - sleep 5; echo from b\n`,
  );

  test("--shell-on-failure opens a shell in the step that fails; what else is shown waits for its end", async () => {
    const script = "cat one /made; echo $GREETING; pwd; sleep 8; exit 4\n";
    const { code, stdout, stderr } = await runPipeline(failing, ["--shell-on-failure"], { input: script });
    expect(code).toBe(1);
    expect(stderr).toContain("slipway: a shell in a/fails, as it failed (exit code 3); exit goes on\n");
    expect(stdout).toMatch(/a ✗ fails .*exit code 3\none\nmade\nhello\n\/workspace\nb │ from b\n/);
    expect(stdout.match(/✗ fails .*exit code 3\n/g)).toHaveLength(1);
    expect(stdout).not.toContain("never\na");
  });

  test("--shell-on-failure gives it this terminal, with its size, and takes it back", async () => {
    await using checkout = await createCheckout(failing);
    await using shell = new TerminalRun(["run", "--data-dir", data.path, "--shell-on-failure", "--job", "a"], {
      cwd: checkout.path,
      env: { TERM: "dumb" },
      rows: 31,
      columns: 99,
    });
    await shell.until(/as it failed/);
    shell.type("echo size $(stty size); cat /made\r");
    expect(await shell.until(/\nsize (.*)\r\nmade\r\n/)).toBe("31 99");
    shell.type("exit\r");
    expect(await shell.exited).toEqual({ code: 1, signal: null });
    expect(shell.text).toMatch(/failure in /);
  });

  test("--shell-on-failure gives it to one step after the other", async () => {
    const both = jobs("a:\n  steps: [{ name: one, run: exit 3 }]\nb:\n  steps: [{ name: two, run: exit 4 }]\n");
    await using checkout = await createCheckout(both);
    await using shell = new TerminalRun(["run", "--data-dir", data.path, "--shell-on-failure"], {
      cwd: checkout.path,
      env: { TERM: "dumb" },
    });
    for (const [index, which] of ["first", "second"].entries()) {
      // What is typed before goes to the shell before.
      await shell.until(new RegExp(`(?:as it failed[^]*){${index + 1}}`));
      shell.type(`echo $((6*7)) in ${which}; exit\r`);
      await shell.until(new RegExp(`\n42 in ${which}`));
    }
    expect(await shell.exited).toEqual({ code: 1, signal: null });
  });

  test("takes down what runs when its output cannot be written", async () => {
    await using checkout = await createCheckout(jobs(`a:\n  ${step("echo x; sleep 600")}\n`));
    const command = `'${process.execPath}' '${bin}' run --data-dir '${data.path}' > /dev/full`;
    const { code, stderr } = await run("bash", ["-c", command], { cwd: checkout.path });
    expect({ code, stderr }).toEqual({ code: 125, stderr: "slipway: Cannot write the output: ENOSPC\n" });
  });

  test("leaves nothing but its image store and caches", () => {
    const left = readdirSync(join(data.path, "run/0"));
    expect(left.filter((name) => !["build", "container-caches", "images", "lock", "skeleton"].includes(name))).toEqual(
      [],
    );
    expect(readFileSync("/proc/self/mounts", "utf8")).not.toContain(data.path);
  });
});
