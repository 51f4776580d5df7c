/**
 * `npm run validate:oci -- crun DIR [FILE...]` and `-- runc DIR [FILE...]`: the suites with which crun and runc test
 * themselves, from a checkout in DIR, on `slipway oci` and on the crun or runc that is installed; with `--runtime slipway`
 * on Slipway alone.
 *
 * As root. crun's needs gcc and Python 3.12, runc's Go, libseccomp's headers, bats, jq and gawk; what runc's images are its
 * own script fetches unless they are in tests/integration/testdata (none may have a /proc or /sys). The checkout is copied:
 * nothing is written to it.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** A file of tests, and the command that runs it in the copy of the checkout. */
interface Suite {
  readonly files: readonly string[];
  readonly command: (file: string) => readonly [string, ...string[]];
  readonly environment: (runtime: string) => Readonly<Record<string, string>>;
}

interface Counts {
  readonly passed: number;
  readonly skipped: number;
  readonly failed: readonly string[];
}

const limitMs = 900_000;

/** Prints a table of files and, below it, which tests fail on Slipway. @returns The exit code: 1 if nothing has run. */
export function validateSuite(
  name: "crun" | "runc",
  checkout: string,
  { wanted, runtimes: names }: { readonly wanted: readonly string[]; readonly runtimes: readonly string[] },
): number {
  const directory = mkdtempSync(join(tmpdir(), `slipway-${name}-suite-`));
  try {
    const copy = join(directory, "suite");
    must("cp", ["-a", resolve(checkout), copy], directory);
    const suite = name === "crun" ? prepareCrun(copy, directory) : prepareRunc(copy);
    const files = suite.files.filter((file) => wanted.length === 0 || wanted.includes(file));
    const runtimes = ["slipway", ...(names.includes(name) && has(name) ? [name] : [])].map((runtime) =>
      makeCommand(runtime, directory),
    );
    const failures: string[] = [];
    console.log(
      `| ${name}'s tests, pass/skip/fail | ${["Slipway", ...runtimes.slice(1).map(() => name)].join(" | ")} |`,
    );
    console.log(`|---|${runtimes.map(() => "---|").join("")}`);
    for (const file of files) {
      const results = runtimes.map((runtime) => runFile(suite, file, { copy, runtime }));
      console.log(`| ${file} | ${results.map(summary).join(" | ")} |`);
      failures.push(...(results[0]?.failed ?? []).map((test) => `${file}: ${test}`));
    }
    console.log(["", "Fail on Slipway:", ...failures].join("\n"));
    return files.length === 0 ? 1 : 0;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function summary({ passed, skipped, failed }: Counts): string {
  return `${passed}/${skipped}/${failed.length}`;
}

function has(program: string): boolean {
  return spawnSync(program, ["--version"]).status === 0;
}

/** A program of one word. crun refuses a hybrid host whose v2 hierarchy has a controller; it is not shown that one. */
function makeCommand(runtime: string, directory: string): string {
  const slipway = fileURLToPath(new URL("../../cli/slipway.cjs", import.meta.url));
  const hides = runtime === "crun" && existsSync("/sys/fs/cgroup/unified");
  const words = runtime === "slipway" ? `'${process.execPath}' '${slipway}' oci` : runtime;
  const line = hides ? `unshare -m sh -c 'umount -l /sys/fs/cgroup/unified; exec "$@"' sh ${words}` : words;
  const command = join(directory, `${runtime}-command`);
  writeFileSync(command, `#!/bin/sh\nexec ${line} "$@"\n`);
  chmodSync(command, 0o755);
  return command;
}

function runFile(
  suite: Suite,
  file: string,
  { copy, runtime }: { readonly copy: string; readonly runtime: string },
): Counts {
  const [program, ...args] = suite.command(file);
  const { stdout } = spawnSync(program, args, {
    cwd: copy,
    env: { ...process.env, ...suite.environment(runtime) },
    stdio: ["ignore", "pipe", "ignore"],
    encoding: "utf8",
    maxBuffer: 64 << 20,
    timeout: limitMs,
  });
  const checks = stdout.split("\n").flatMap((line) => /^(not )?ok \d+ ?-? ?(.*)$/.exec(line) ?? []);
  const rows = Array.from({ length: checks.length / 3 }, (_, i) => checks.slice(3 * i, 3 * i + 3));
  const isSkipped = (row: readonly string[]) => row[1] === undefined && /# ?skip/i.test(row[2] ?? "");
  return {
    passed: rows.filter((row) => row[1] === undefined && !isSkipped(row)).length,
    skipped: rows.filter(isSkipped).length,
    failed: rows.filter((row) => row[1] !== undefined).map((row) => (row[2] ?? "").replace(/ # [\d.]+s$/, "")),
  };
}

/** Its tests want a program of theirs in the container, and a Python module that few distributions have. */
function prepareCrun(copy: string, directory: string): Suite {
  const tests = join(copy, "tests");
  const modules = join(directory, "modules");
  mkdirSync(modules);
  writeFileSync(join(modules, "config.h"), "#define HAVE_ERROR_H 1\n");
  must("gcc", ["-static", "-O2", `-I${modules}`, "-o", join(tests, "init"), join(tests, "init.c")], copy);
  if (spawnSync("python3", ["-c", "import libmount"]).status !== 0)
    writeFileSync(join(modules, "libmount.py"), libmount);
  return {
    files: readdirSync(tests).filter((name) => /^test_.*\.py$/.test(name)),
    command: (file) => ["python3", join("tests", file)],
    environment: (runtime) => ({ OCI_RUNTIME: runtime, INIT: join(tests, "init"), PYTHONPATH: modules }),
  };
}

/** As much of it as the tests use: a mountinfo file, found by mount point. */
const libmount = `class Mount:
    def __init__(self, vfs, fs):
        self.vfs_options, self.fs_options = vfs, fs

class Table:
    def __init__(self, path):
        lines = [line.split() for line in open(path)]
        self.mounts = {words[4]: Mount(words[5], words[-1]) for words in lines if "-" in words}

    def find_target(self, path):
        return self.mounts.get(path)
`;

function prepareRunc(copy: string): Suite {
  const programs = join(copy, "tests/cmd");
  mkdirSync(join(programs, "_bin"), { recursive: true });
  for (const entry of readdirSync(programs, { withFileTypes: true })) {
    if (!entry.isDirectory() || entry.name === "_bin") continue;
    must("go", ["build", "-tags", "seccomp", "-o", join(programs, "_bin"), `./tests/cmd/${entry.name}`], copy);
  }
  const tests = join(copy, "tests/integration");
  return {
    files: readdirSync(tests).filter((name) => name.endsWith(".bats")),
    command: (file) => ["bats", "--tap", join("tests/integration", file)],
    environment: (runtime) => ({ RUNC: runtime }),
  };
}

function must(program: string, args: readonly string[], directory: string): void {
  const { status, stderr, error } = spawnSync(program, args, { cwd: directory, encoding: "utf8" });
  if (status !== 0)
    throw new Error(`Cannot build the suite: ${program} ${args.join(" ")}: ${error?.message ?? stderr}`);
}
