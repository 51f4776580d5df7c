/** A job of three `true` steps: what it takes beyond the steps themselves, after start-up. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { executeJob } from "../agent/index.ts";
import { parsePipeline } from "../pipelines/index.ts";
import { Host } from "../runtime/index.ts";
import { machine, milliseconds, summarize, table } from "./stats.ts";

const pipelineFile =
  "jobs:\n  three:\n    steps:\n" +
  ["one", "two", "three"].map((name) => `      - name: ${name}\n        run: "true"\n`).join("");

export async function benchRun(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const [job] = parsePipeline(pipelineFile, {}).pipeline?.jobs ?? [];
  if (job === undefined) throw new Error("The benchmark's own pipeline is invalid");
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-"));
  try {
    const workspace = join(directory, "workspace");
    const logDir = join(directory, "log");
    for (const path of [workspace, logDir]) mkdirSync(path);
    await using host = await Host.open({ stateDir: join(directory, "state") });
    const totals: number[] = [];
    const overheads: number[] = [];
    const gaps: number[] = [];
    const warmUp = 5;
    for (let run = -warmUp; run < options.runs; run++) {
      const startMs = performance.now();
      const result = await executeJob(job, {
        host,
        id: `bench${run + warmUp}`,
        workspace: { dir: workspace, copyOnWrite: true },
        variables: {},
        logDir,
        reporter: {},
      });
      const totalMs = performance.now() - startMs;
      if (result.status !== "success") throw new Error(`Cannot measure: ${result.reason}`);
      if (run < 0) continue;
      // A step's own time is its program's, from execve to the end of its output.
      const stepsMs = result.steps.reduce(
        (sum, { startedAtMs = 0, finishedAtMs = 0 }) => sum + finishedAtMs - startedAtMs,
        0,
      );
      totals.push(totalMs);
      overheads.push(totalMs - stepsMs);
      result.steps
        .slice(1)
        .forEach((step, i) => gaps.push((step.startedAtMs ?? 0) - (result.steps[i]?.finishedAtMs ?? 0)));
    }
    const rows = [
      { name: "overhead of the job", ...summarize(overheads) },
      { name: "the whole job", ...summarize(totals) },
      { name: "gap between two steps (whole ms)", ...summarize(gaps) },
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
