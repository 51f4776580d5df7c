import { plainError, type RedisConnection, readyClient } from "./redis-connection.ts";

export interface RedisProblem {
  /** An `error` loses or blocks work; with a `warning` Slipway works, but a crash of Redis costs something. */
  readonly severity: "error" | "warning";
  readonly code: "unreachable" | "too-old" | "evicts" | "not-persistent" | "cannot-write" | "replica";
  /** What is wrong, what follows from it and how to mend it. */
  readonly message: string;
}

/** BullMQ's recommended minimum, and ioredis's supported one. */
const minimumVersion = [6, 2] as const;

/**
 * Says what about this Redis does not fit a job queue: an empty list is fit.
 *
 * Never throws; a Redis that does not answer is one of the problems.
 */
export async function checkRedis(connection: RedisConnection): Promise<readonly RedisProblem[]> {
  try {
    const client = await readyClient(connection);
    return judge(parseInfo(await client.info()), connection.address);
  } catch (error) {
    const { message } = plainError("check Redis", error, connection);
    return [{ severity: "error", code: "unreachable", message }];
  }
}

/** INFO rather than CONFIG GET: hosted Redis often forbids CONFIG. */
function judge(info: ReadonlyMap<string, string>, address: string): readonly RedisProblem[] {
  const problems: RedisProblem[] = [];
  const add = (severity: RedisProblem["severity"], code: RedisProblem["code"], message: string) =>
    problems.push({ severity, code, message: `Redis at "${address}" ${message}` });

  const version = info.get("redis_version") ?? "";
  // Valkey states the Redis version it is compatible with as redis_version, 7.2.4.
  if (isOlder(version)) {
    add("error", "too-old", `is version ${version}, older than ${minimumVersion.join(".")}: install a newer one`);
  }
  const policy = info.get("maxmemory_policy") ?? "noeviction";
  if (policy !== "noeviction") {
    add(
      "error",
      "evicts",
      `has maxmemory-policy "${policy}" and may throw queued jobs away: run CONFIG SET maxmemory-policy noeviction and write "maxmemory-policy noeviction" into its configuration file`,
    );
  }
  if (info.get("role") === "slave") {
    add("error", "replica", "is a read-only replica: give the address of the primary");
  }
  if (info.get("aof_enabled") === "0") {
    add(
      "warning",
      "not-persistent",
      'does not write an append-only file, so queued jobs wait for the server\'s reconciliation after a restart: run CONFIG SET appendonly yes and write "appendonly yes" into its configuration file',
    );
  } else if (info.get("aof_last_write_status") === "err") {
    add(
      "error",
      "cannot-write",
      "cannot write its append-only file and refuses new jobs: look at its log and its disk",
    );
  }
  return problems;
}

function parseInfo(text: string): ReadonlyMap<string, string> {
  const pairs = text.split(/\r?\n/).flatMap((line): [string, string][] => {
    const colon = line.indexOf(":");
    return colon > 0 ? [[line.slice(0, colon), line.slice(colon + 1)]] : [];
  });
  return new Map(pairs);
}

function isOlder(version: string): boolean {
  const [major, minor] = version.split(".").map(Number);
  if (major === undefined || minor === undefined || Number.isNaN(major) || Number.isNaN(minor)) return false;
  return major < minimumVersion[0] || (major === minimumVersion[0] && minor < minimumVersion[1]);
}
