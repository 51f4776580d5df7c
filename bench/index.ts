/** `npm run bench -- NAME [--runs N] [--json]`: the measured claims of docs/benchmarks.md, each beside its peers. */
import { chownSync, statSync } from "node:fs";
import { parseArgs } from "node:util";

const benchmarks: Record<string, (options: { readonly runs: number; readonly json: boolean }) => Promise<void>> = {
  build: async (options) => (await import("./build.ts")).benchBuild(options),
  launcher: async (options) => (await import("./launcher.ts")).benchLauncher(options),
  log: async (options) => (await import("./log.ts")).benchLog(options),
  pull: async (options) => (await import("./pull.ts")).benchPull(options),
  run: async (options) => (await import("./run.ts")).benchRun(options),
  memory: async (options) => (await import("./memory.ts")).benchMemory(options),
  seccomp: async (options) => (await import("./seccomp.ts")).benchSeccomp(options),
  throughput: async (options) => (await import("./throughput.ts")).benchThroughput(options),
  webhook: async (options) => (await import("./webhook.ts")).benchWebhook(options),
};

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { runs: { type: "string", default: "100" }, json: { type: "boolean", default: false } },
});
const [name = "launcher"] = positionals;
const benchmark = benchmarks[name];
if (benchmark === undefined) {
  console.error(`No benchmark "${name}"; there are ${Object.keys(benchmarks).join(", ")}`);
  process.exit(2);
}
// crun gives its standard descriptors to the container's user, and this machine's /dev/null is among them.
const nowhere = statSync("/dev/null");
try {
  await benchmark({ runs: Number(values.runs), json: values.json });
} finally {
  if (process.geteuid?.() === 0) chownSync("/dev/null", nowhere.uid, nowhere.gid);
}
