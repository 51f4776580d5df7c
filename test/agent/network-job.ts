/** A process for job-network.test.ts: runs one job with the networks of the namespace in which it was started. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { executeJob, type JobOptions, type JobResult } from "../../agent/index.ts";
import { parsePipeline } from "../../pipelines/index.ts";
import { Host, type HostNetworks } from "../../runtime/index.ts";

export interface NetworkJob {
  readonly pipeline: string;
  readonly stateDir: string;
  readonly networks?: HostNetworks;
  readonly options?: Partial<JobOptions>;
}

export interface NetworkJobResult extends JobResult {
  /** By position. */
  readonly logs: readonly string[];
}

const { pipeline: source, stateDir, networks = {}, options = {} } = JSON.parse(process.argv[2] ?? "{}") as NetworkJob;
const { pipeline, diagnostics } = parsePipeline(source);
const [job] = pipeline?.jobs ?? [];
if (job === undefined) throw new Error(diagnostics.map(({ message }) => message).join("; "));
const directory = mkdtempSync(join(tmpdir(), "slipway-network-job-"));
for (const name of ["workspace", "log"]) mkdirSync(join(directory, name));
const host = await Host.open({ stateDir, networks });
try {
  const result = await executeJob(job, {
    host,
    id: "net",
    workspace: { dir: join(directory, "workspace") },
    variables: {},
    logDir: join(directory, "log"),
    reporter: { problem: (error) => process.stderr.write(`${error.message}\n`) },
    ...options,
  });
  const logs = [...result.steps, ...result.services].map((_, index) => {
    try {
      return readFileSync(join(directory, "log", `${index}.log`), "utf8");
    } catch {
      return "";
    }
  });
  process.stdout.write(JSON.stringify({ ...result, logs } satisfies NetworkJobResult));
} finally {
  await host[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
}
