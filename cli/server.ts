/** `slipway server`: webhooks, API, dashboard, scheduler. */
import { mkdirSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArguments, parseChoice, parseCount, UsageError, type Usage } from "./arguments.ts";
import { createLogger, logLevels } from "./log.ts";
import { isFile, LogFile } from "./log-file.ts";
import { forgetServerUrl, rememberServerUrl } from "./server-url.ts";
import { aborted, StopSignals } from "./signals.ts";
import { painter, wantsColours } from "./terminal.ts";
import { dataDirOption, exitCodes, findDataDir, type Context, type Verb } from "./verb.ts";

/** What listening verbs have in common. */
export const listenOptions = {
  host: { value: "HOST", help: "Address to listen on [default: 127.0.0.1]" },
  port: { value: "PORT", help: "Port to listen on, 0 for any free one [default: 7433]" },
} as const;

export const untrustedPoolOption = {
  value: "NAME",
  help: "The pool for jobs of strangers' pull requests, whatever pool their pipeline names\n[default: the one it names]",
} as const;

export const secretsKeyOption = {
  value: "FILE",
  help: "The keys that seal secrets in the database (SLIPWAY_SECRETS_KEY_FILE)\n[default: secrets-key in the data directory, made if missing]",
} as const;

/** The file of the option or environment variable, if either is given; absolute. */
export function findSecretsKey(
  values: { readonly "secrets-key": string | undefined },
  { environment, directory }: Context,
): string | undefined {
  const given = values["secrets-key"] ?? (environment["SLIPWAY_SECRETS_KEY_FILE"] || undefined);
  return given === undefined ? undefined : resolve(directory, given);
}

/** Where others reach the server. */
export const publicUrlOption = {
  value: "URL",
  help: "How others reach the server, if not by its own address",
} as const;

export const logLevelOption = {
  value: "LEVEL",
  help: `How much to log: ${logLevels.join(", ")} [default: info]`,
} as const;

const usage = {
  name: "server",
  summary: "Start the server: webhooks, API, dashboard",
  description: `
Receives webhooks, plans builds, hands jobs to agents through Redis and keeps logs and results. Redis must keep what it is
given: append-only file on, maxmemory-policy noeviction; the server refuses another policy. The first start makes two
tokens in the data directory, readable by their owner only: admin-token for the API and the dashboard, agent-token for agents.
SLIPWAY_WEBHOOK_SECRET signs webhooks to /hooks, which add their repository by themselves; without it every repository is
added with slipway repo add and has its own address and secret.

The first SIGINT or SIGTERM lets open requests finish and stops; the second stops at once.`,
  options: {
    ...listenOptions,
    redis: {
      value: "URL",
      help: "redis://HOST:PORT, rediss://HOST:PORT or a socket's path (SLIPWAY_REDIS_URL)\n[default: redis://127.0.0.1:6379]",
    },
    "public-url": publicUrlOption,
    "untrusted-pool": untrustedPoolOption,
    "secrets-key": secretsKeyOption,
    "agent-token-file": {
      value: "FILE",
      help: "Write the agent token here too, for an agent that must not see the data directory",
    },
    "data-dir": dataDirOption,
    "log-level": logLevelOption,
  },
  examples: [
    ["slipway server", "on http://127.0.0.1:7433, with the Redis of this machine"],
    ["slipway server --host 0.0.0.0 --redis redis://redis:6379", "for agents and forges elsewhere"],
  ],
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  const dataDir = findDataDir(values, context);
  const port = parseCount("--port", values.port ?? "7433", { least: 0, most: 65_535 });
  const logger = processLogger("server", values["log-level"], context);
  const redisUrl = values.redis ?? context.environment["SLIPWAY_REDIS_URL"] ?? "redis://127.0.0.1:6379";
  using signals = new StopSignals();
  const { Server } = await import("../server/index.ts");
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const webhookSecret = context.environment["SLIPWAY_WEBHOOK_SECRET"];
  const publicUrl = values["public-url"];
  const untrustedPool = parsePool(values["untrusted-pool"]);
  const secretsKeyFile = findSecretsKey(values, context);
  const server = await Server.start({
    dataDir,
    host: values.host ?? "127.0.0.1",
    port,
    redisUrl,
    logger,
    ...(webhookSecret && { webhookSecret }),
    ...(publicUrl !== undefined && { publicUrl: parsePublicUrl(publicUrl) }),
    ...(untrustedPool !== undefined && { untrustedPool }),
    ...(secretsKeyFile !== undefined && { secretsKeyFile }),
  });
  const tokenFile = values["agent-token-file"];
  if (tokenFile !== undefined) writeFileSync(tokenFile, `${server.agentToken}\n`, { mode: 0o600 });
  rememberServerUrl(dataDir, server.address);
  announce({ url: server.address });
  await aborted(signals.drain);
  logger.info({ reason: String((signals.drain.reason as Error).message) }, "stopping");
  forgetServerUrl(dataDir);
  await Promise.race([server[Symbol.asyncDispose](), aborted(signals.stop)]);
  return exitCodes.success;
}

/** @throws {UsageError} If it cannot be one's name. */
export function parsePool(name: string | undefined): string | undefined {
  if (name === undefined || /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$/.test(name)) return name;
  throw new UsageError(`--untrusted-pool must be the name of a pool, not ${JSON.stringify(name)}`);
}

function parsePublicUrl(text: string): string {
  if (/^https?:$/.test(URL.parse(text)?.protocol ?? "")) return text;
  throw new UsageError(`--public-url must begin with http:// or https://, not ${JSON.stringify(text)}`);
}

/**
 * The logger of a long-running verb: on standard error, for people if that is a terminal. Where that is a file and its disk is full,
 * it goes on, and says how many lines are missing once there is room again.
 */
export function processLogger(component: string, level: string | undefined, context: Context) {
  const isTerminal = process.stderr.isTTY === true || context.environment["SLIPWAY_LOG_FORMAT"] === "text";
  const file = isFile(2)
    ? new LogFile(2, ({ count, code }) =>
        logger.warn({ count, code }, "lines of this log are lost: it could not be written"),
      )
    : undefined;
  const logger = createLogger({
    component,
    level: parseChoice("--log-level", level ?? "info", logLevels),
    ...(isTerminal ? { paint: painter(wantsColours(context.environment, process.stderr.isTTY === true)) } : {}),
    write: (line) => void (file === undefined ? process.stderr.write(line) : file.write(line)),
  });
  return logger;
}

/** Tells `slipway up`, if it is our parent, that we are ready. */
export function announce(message: { readonly url?: string }): void {
  if (process.connected) process.send?.({ ready: true, ...message });
}

export const verbs: Readonly<Record<string, Verb>> = { server: { usage, run } };
