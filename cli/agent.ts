/** `slipway agent`: runs jobs on this machine. */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { availableParallelism } from "node:os";
import { join, resolve } from "node:path";
import type { RedisAddress } from "../queue/index.ts";
import type { Withheld } from "../runtime/index.ts";
import { parseArguments, parseCount, UsageError, type Usage } from "./arguments.ts";
import { keepOptions, parseKeep } from "./keep.ts";
import { limitOptions, parseLimits } from "./limits.ts";
import { networkOptions, parseNetworks } from "./networks.ts";
import { findRegistrySettings, imageStoreDir, registriesOption } from "./registries.ts";
import { announce, logLevelOption, processLogger } from "./server.ts";
import { recallServerUrl } from "./server-url.ts";
import { aborted, StopSignals } from "./signals.ts";
import { parseStorage, storageOptions } from "./storage.ts";
import { parseUntrusted, untrustedOption } from "./untrusted.ts";
import { dataDirOption, exitCodes, findDataDir, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "agent",
  summary: "Start an agent: runs jobs on this machine",
  description: `
Takes jobs of its pools from Redis, checks out the commit and runs every step in its own fresh container. Needs root (or
CAP_SYS_ADMIN and what slipway doctor lists); refuses to start where it would have to isolate less.

The first SIGINT or SIGTERM drains: running jobs finish, no new one is taken. The second stops: running jobs are canceled,
and the server gives them to another agent.`,
  options: {
    server: {
      value: "URL",
      help: "The server (SLIPWAY_SERVER)\n[default: the one running with this data directory, else http://127.0.0.1:7433]",
    },
    redis: { value: "URL", help: "The server's Redis (SLIPWAY_REDIS_URL) [default: redis://127.0.0.1:6379]" },
    "token-file": {
      value: "FILE",
      help: "A file with the agent token; SLIPWAY_AGENT_TOKEN holds the token itself\n[default: agent-token in the data directory]",
    },
    pool: { value: "NAME", multiple: true, help: "Pool to take jobs from, may be repeated [default: default]" },
    jobs: { short: "j", value: "N", help: "Jobs to run at the same time [default: one per core]" },
    name: { value: "NAME", help: "What the server calls this agent [default: this host's name]" },
    allow: {
      value: "WEAKNESS",
      multiple: true,
      help: "Start although this is missing: no-cgroups (no memory, cpu and pids limits)",
    },
    ...networkOptions,
    ...limitOptions,
    registries: registriesOption,
    untrusted: untrustedOption,
    ...keepOptions,
    ...storageOptions,
    "data-dir": dataDirOption,
    "log-level": logLevelOption,
  },
  examples: [
    ["slipway agent", "beside slipway server, same data directory"],
    [
      "SLIPWAY_AGENT_TOKEN=… slipway agent --server https://ci.example.org --redis rediss://ci.example.org:6380",
      "elsewhere",
    ],
    ["slipway agent --pool default --pool big --jobs 4", "two pools, four jobs at once"],
  ],
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  // As dockerd: checkouts have the modes that Git gives them, on every agent, and steps of any user read them. What nobody
  // else is to see says so itself.
  process.umask(0o022);
  const { environment } = context;
  const dataDir = findDataDir(values, context);
  const logger = processLogger("agent", values["log-level"], context);
  const jobs = parseCount("--jobs", values.jobs ?? String(availableParallelism()), { least: 1, most: 1000 });
  const allow = parseAllowed(values.allow);
  const networks = parseNetworks(values, context);
  const limits = parseLimits(values, context);
  const keep = parseKeep(values);
  const { imageBudgetBytes, containerCacheBytes } = parseStorage(values);
  const pools = values.pool.length > 0 ? values.pool : ["default"];
  const serverUrl =
    values.server ?? environment["SLIPWAY_SERVER"] ?? recallServerUrl(dataDir) ?? "http://127.0.0.1:7433";
  const redisUrl = values.redis ?? environment["SLIPWAY_REDIS_URL"] ?? "redis://127.0.0.1:6379";
  const token = findAgentToken(values["token-file"], dataDir, context);
  using signals = new StopSignals();
  const settings = await findRegistrySettings(values, context);
  const [{ Agent, defaultUntrustedPolicy }, { parseRedisAddress }, { Host, RegistryClient, testHost }] =
    await Promise.all([import("../agent/index.ts"), import("../queue/index.ts"), import("../runtime/index.ts")]);
  using registry = new RegistryClient(settings);
  await using host = await Host.open({
    stateDir: join(dataDir, "agent"),
    imageStoreDir: imageStoreDir(values, context),
    allow,
    networks: { ...networks, withheld: redisServers(parseRedisAddress(redisUrl)) },
    ceiling: limits.together,
    ...(containerCacheBytes !== undefined && { containerCacheBytes }),
  });
  const tested = await testHost(host);
  if (!tested.ok) {
    const mend = tested.mend === undefined ? "" : `; ${tested.mend}`;
    throw new Error(`Cannot start containers on this host: ${tested.found}${mend}`);
  }
  // Jobs whose steps have no network still run; the others fail with the same words.
  await host.openNetworks().catch((error: Error) => logger.warn(error.message));
  const name = values.name ?? hostname();
  const agent = new Agent({
    serverUrl,
    token,
    redisUrl,
    host,
    registry,
    dataDir: join(dataDir, "agent"),
    pools,
    jobs,
    name,
    untrusted: parseUntrusted(values.untrusted, defaultUntrustedPolicy),
    ceiling: limits.each,
    keep,
    ...(imageBudgetBytes !== undefined && { imageBudgetBytes }),
    logger,
  });
  await agent.start();
  announce({});
  await aborted(signals.drain);
  logger.info(
    { reason: (signals.drain.reason as Error).message },
    "draining: running jobs finish, a second signal cancels them",
  );
  const drained = agent.drain().then(() => true);
  if (!(await Promise.race([drained, aborted(signals.stop).then(() => false)]))) {
    logger.info("stopping: running jobs are canceled");
  }
  await agent.stop();
  return exitCodes.success;
}

/** Redis is the agents': whoever can write to it makes them work. */
function redisServers({ host, port }: RedisAddress): Withheld[] {
  return host === undefined || port === undefined ? [] : [{ host, port }];
}

/** Weaker isolation accepted explicitly. */
export function parseAllowed(words: readonly string[]): "no-cgroups"[] {
  return words.map((word) => {
    if (word === "no-cgroups") return word;
    throw new UsageError(`--allow knows no-cgroups only, not ${JSON.stringify(word)}`);
  });
}

function findAgentToken(file: string | undefined, dataDir: string, { environment, directory }: Context): string {
  const given = environment["SLIPWAY_AGENT_TOKEN"];
  if (file === undefined && given) return given;
  const path = file === undefined ? join(dataDir, "agent-token") : resolve(directory, file);
  try {
    const token = readFileSync(path, "utf8").trim();
    if (token !== "") return token;
  } catch (error) {
    const { message } = error as Error;
    const mend = "start the server once, or give --token-file or SLIPWAY_AGENT_TOKEN";
    throw new Error(`Cannot read the agent token: ${message}; ${mend}`, { cause: error });
  }
  throw new Error(`Cannot use the agent token in "${path}": the file is empty`);
}

export const verbs: Readonly<Record<string, Verb>> = { agent: { usage, run } };
