/**
 * A job of three `true` steps: what it takes beyond the steps themselves, after start-up. And the gap between two steps: of `true`, which
 * ends before a container can be created, in a job that begins with a checkout, as an agent's do, and in one whose workspace is
 * there; and where a step takes long enough (`sleep 0.005`, `sleep 0.05`) for the next one's container to be created meanwhile.
 */
import { execFile, execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { executeJob, type JobOptions } from "../agent/index.ts";
import { type JobSpec, parsePipeline } from "../pipelines/index.ts";
import { Host } from "../runtime/index.ts";
import { machine, milliseconds, summarize, table } from "./stats.ts";

/** @param network By default the one that a job has by default: its steps share it. */
function parseJob(scripts: readonly string[], network = "job"): JobSpec {
  const steps = scripts.map((run, i) => ({ name: `step ${i}`, run }));
  const [job] = parsePipeline(JSON.stringify({ network, jobs: { bench: { steps } } }), {}).pipeline?.jobs ?? [];
  if (job === undefined) throw new Error("The benchmark's own pipeline is invalid");
  return job;
}

/** With a hundred files in one commit. */
function makeRepository(directory: string): string {
  mkdirSync(directory);
  const git = (...args: readonly string[]) => execFileSync("git", args, { cwd: directory, stdio: "ignore" });
  git("init", "--quiet");
  for (let i = 0; i < 100; i++) writeFileSync(join(directory, `file-${i}`), `${i}\n`.repeat(1000));
  git("add", ".");
  git("-c", "user.name=bench", "-c", "user.email=bench@example.com", "commit", "--quiet", "--message", "files");
  return directory;
}

/** By the transport that a network's is, packs and all. */
async function clone(origin: string, directory: string): Promise<void> {
  await promisify(execFile)("git", ["clone", "--quiet", "--depth", "1", `file://${origin}`, directory]);
}

export async function benchRun(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const short = parseJob(["true", "true", "true"]);
  const alone = parseJob(["true", "true", "true"], "none");
  const many = parseJob(Array.from({ length: 10 }, () => "true"));
  const brief = parseJob(Array.from({ length: 5 }, () => "sleep 0.005"));
  const long = parseJob(Array.from({ length: 5 }, () => "sleep 0.05"));
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-"));
  try {
    const workspace = join(directory, "workspace");
    const logDir = join(directory, "log");
    for (const path of [workspace, logDir]) mkdirSync(path);
    const origin = makeRepository(join(directory, "origin"));
    await using host = await Host.open({ stateDir: join(directory, "state") });
    const totals: number[] = [];
    const overheads: number[] = [];
    const networkOverheads: number[] = [];
    const gaps: number[] = [];
    const manyGaps: number[] = [];
    const checkedOutGaps: number[] = [];
    const briefGaps: number[] = [];
    const longGaps: number[] = [];
    const warmUp = 5;
    let sequence = 0;
    const inWorkspace = { dir: workspace, copyOnWrite: true };
    const execute = async (job: JobSpec, place: JobOptions["workspace"] = inWorkspace) => {
      const startMs = performance.now();
      const { status, reason, steps } = await executeJob(job, {
        host,
        id: `bench${sequence++}`,
        workspace: place,
        variables: {},
        logDir,
        reporter: {},
      });
      const totalMs = performance.now() - startMs;
      if (status !== "success") throw new Error(`Cannot measure: ${reason}`);
      const gaps = steps.slice(1).map((step, i) => (step.startedAtMs ?? 0) - (steps[i]?.finishedAtMs ?? 0));
      // A step's own time is its program's, from execve to its end.
      const stepsMs = steps.reduce((sum, { startedAtMs = 0, finishedAtMs = 0 }) => sum + finishedAtMs - startedAtMs, 0);
      return { totalMs, overheadMs: totalMs - stepsMs, gaps };
    };
    for (let run = -warmUp; run < options.runs; run++) {
      const plain = await execute(alone);
      const first = await execute(short);
      const there = await execute(many);
      const checkedOut = join(directory, "checkout");
      mkdirSync(checkedOut);
      const fourth = await execute(many, { dir: checkedOut, ready: clone(origin, checkedOut) });
      rmSync(checkedOut, { recursive: true });
      const [second, third] = [await execute(brief), await execute(long)];
      if (run < 0) continue;
      totals.push(plain.totalMs);
      overheads.push(plain.overheadMs);
      networkOverheads.push(first.overheadMs);
      gaps.push(...first.gaps);
      manyGaps.push(...there.gaps);
      checkedOutGaps.push(...fourth.gaps);
      briefGaps.push(...second.gaps);
      longGaps.push(...third.gaps);
    }
    const rows = [
      { name: "overhead of the job, without a network", ...summarize(overheads) },
      { name: "the whole job, without a network", ...summarize(totals) },
      { name: "overhead of the job in its network", ...summarize(networkOverheads) },
      { name: "gap between two of three steps of `true`", ...summarize(gaps) },
      { name: "gap between two of ten steps of `true`", ...summarize(manyGaps) },
      { name: "the same after a checkout", ...summarize(checkedOutGaps) },
      { name: "gap between two steps of 5 ms", ...summarize(briefGaps) },
      { name: "gap between two steps of 50 ms", ...summarize(longGaps) },
    ];
    if (options.json) {
      console.log(JSON.stringify({ benchmark: "run", machine: machine(), unit: "ms", results: rows }));
      return;
    }
    console.log(`A job of three \`true\` steps, ms. ${machine()}\n`);
    console.log(
      table(
        ["", "min", "median", "p99"],
        rows.map((row) => [row.name, ...[row.min, row.median, row.p99].map(milliseconds)]),
      ),
    );
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
