/** `slipway up`: everything on one machine. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArguments, parseCount, type Usage } from "./arguments.ts";
import { parseAllowed } from "./agent.ts";
import { keepArguments, keepOptions, parseKeep } from "./keep.ts";
import { limitArguments, limitOptions, parseLimits } from "./limits.ts";
import { networkArguments, networkOptions, parseNetworks } from "./networks.ts";
import {
  findSecretsKey,
  listenOptions,
  logLevelOption,
  parsePool,
  processLogger,
  publicUrlOption,
  secretsKeyOption,
  untrustedPoolOption,
} from "./server.ts";
import { aborted, StopSignals } from "./signals.ts";
import { parseStorage, storageArguments, storageOptions } from "./storage.ts";
import { parseUntrusted, untrustedOption } from "./untrusted.ts";
import { dataDirOption, exitCodes, findDataDir, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "up",
  summary: "Start server, agent and embedded Redis together",
  description: `
One process tree: a Redis on a private socket with its append-only file in the data directory, the server, and one agent.
A child that dies is started again. Builds queued when it stops run once it is back.

The first Ctrl-C (or SIGTERM) drains: running jobs finish. The second stops: they are canceled and run again next time.`,
  options: {
    ...listenOptions,
    "public-url": publicUrlOption,
    jobs: { short: "j", value: "N", help: "Jobs to run at the same time [default: one per core]" },
    allow: {
      value: "WEAKNESS",
      multiple: true,
      help: "Start although this is missing: no-cgroups (no memory, cpu and pids limits)",
    },
    ...networkOptions,
    ...limitOptions,
    untrusted: untrustedOption,
    "untrusted-pool": untrustedPoolOption,
    "secrets-key": secretsKeyOption,
    ...keepOptions,
    ...storageOptions,
    "data-dir": dataDirOption,
    "log-level": logLevelOption,
  },
  examples: [
    ["slipway up", "on http://127.0.0.1:7433"],
    ["slipway up --host 0.0.0.0 --port 80 --jobs 4", "for forges elsewhere"],
  ],
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  const dataDir = findDataDir(values, context);
  const untrustedPool = parsePool(values["untrusted-pool"]);
  const secretsKey = findSecretsKey(values, context);
  if (values.untrusted.length > 0) {
    const { defaultUntrustedPolicy } = await import("../agent/index.ts");
    parseUntrusted(values.untrusted, defaultUntrustedPolicy); // a mistake is told before anything is started
  }
  parseLimits(values, context); // as well
  parseKeep(values);
  parseStorage(values);
  const logger = processLogger("up", values["log-level"], context);
  using signals = new StopSignals();
  const { ProcessTree } = await import("./process-tree.ts");
  const tree = await ProcessTree.start({
    dataDir,
    host: values.host ?? "127.0.0.1",
    port: parseCount("--port", values.port ?? "7433", { least: 0, most: 65_535 }),
    jobs: parseCount("--jobs", values.jobs ?? String(availableParallelism()), { least: 1, most: 1000 }),
    allow: parseAllowed(values.allow),
    serverArguments: [
      ...(untrustedPool === undefined ? [] : ["--untrusted-pool", untrustedPool]),
      ...(secretsKey === undefined ? [] : ["--secrets-key", secretsKey]),
    ],
    agentArguments: [
      ...limitArguments(values),
      ...keepArguments(values),
      ...storageArguments(values),
      ...networkArguments(parseNetworks(values, context)),
      ...values.untrusted.flatMap((word) => ["--untrusted", word]),
      ...(untrustedPool === undefined ? [] : ["--pool", "default", "--pool", untrustedPool]),
    ],
    ...(values["public-url"] !== undefined && { publicUrl: values["public-url"] }),
    logLevel: values["log-level"] ?? "info",
    log: "inherit",
    environment: context.environment,
    logger,
    signal: signals.drain,
  });
  context.print(`Slipway is up: ${context.paint("bold", tree.url)}\n`);
  context.print(`  sign in with the token in ${join(dataDir, "admin-token")}\n`);
  context.print("  add a repository: slipway repo add NAME URL\n");
  await aborted(signals.drain);
  logger.info(
    { reason: (signals.drain.reason as Error).message },
    "draining: running jobs finish, a second signal cancels them",
  );
  await tree.drain(signals.stop);
  return exitCodes.success;
}

export const verbs: Readonly<Record<string, Verb>> = { up: { usage, run } };
