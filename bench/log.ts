/** A step that writes 1 GB to standard output: the rate at which it arrives in the log file, and the agent's memory. */
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { executeJob } from "../agent/index.ts";
import { parsePipeline } from "../pipelines/index.ts";
import { Host } from "../runtime/index.ts";
import { machine, summarize, table } from "./stats.ts";

const bytes = 1_000_000_000;
const line = "a line of output as a build prints them, with some words and a number 123456";

export async function benchLog(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const runs = Math.min(options.runs, 5);
  const source = `jobs:\n  flood:\n    steps:\n      - run: "yes '${line}' | head -c ${bytes}"\n`;
  const [job] = parsePipeline(source, {}).pipeline?.jobs ?? [];
  if (job === undefined) throw new Error("The benchmark's own pipeline is invalid");
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-"));
  try {
    const workspace = join(directory, "workspace");
    const logDir = join(directory, "log");
    for (const path of [workspace, logDir]) mkdirSync(path);
    await using host = await Host.open({ stateDir: join(directory, "state") });
    const variants = [
      { name: "no secrets", maskedValues: [] },
      {
        name: "three secrets to mask",
        maskedValues: ["correct horse battery", "hunter2hunter2", "s3cr3t-t0k3n-value"],
      },
    ];
    const rows = [];
    for (const { name, maskedValues } of variants) {
      const rates: number[] = [];
      for (let run = 0; run < runs; run++) {
        rmSync(logDir, { recursive: true });
        mkdirSync(logDir);
        const result = await executeJob(job, {
          host,
          id: `bench-${maskedValues.length}-${run}`,
          workspace: { dir: workspace },
          variables: {},
          maskedValues,
          logDir,
          reporter: {},
        });
        const [step] = result.steps;
        const written = statSync(join(logDir, "0.log")).size;
        if (result.status !== "success" || written !== bytes)
          throw new Error(`Cannot measure: ${written} bytes, ${result.reason}`);
        rates.push(bytes / 1e6 / (((step?.finishedAtMs ?? 0) - (step?.startedAtMs ?? 0)) / 1000));
      }
      rows.push({ name, ...summarize(rates), peakMemoryMB: process.resourceUsage().maxRSS / 1000 });
    }
    if (options.json) {
      console.log(JSON.stringify({ benchmark: "log", machine: machine(), unit: "MB/s", results: rows }));
      return;
    }
    console.log(`1 GB of standard output into the log file, MB/s; peak memory of the agent so far, MB. ${machine()}\n`);
    const cells = rows.map((row) => [
      row.name,
      ...[row.min, row.median, row.max, row.peakMemoryMB].map((value) => value.toFixed(0)),
    ]);
    console.log(table(["", "min", "median", "max", "memory"], cells));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
