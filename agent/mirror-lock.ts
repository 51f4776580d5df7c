/** One writer at a time for a mirror: in this process by a queue, among the agents of one data directory by a lock file. */
import { randomUUID } from "node:crypto";
import { link, open, readFile, readlink, rename, rm, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";

const queues = new Map<string, Promise<void>>();
const pollMs = 25;
/** A holder in another pid namespace cannot be asked whether it lives; longer than any fetch may take, it does not. */
const foreignHolderMs = 60 * 60_000;

/**
 * Runs `task` while nobody else holds the lock.
 *
 * Only writers need it: readers of a mirror see whole packs and whole refs at any time.
 *
 * @param path The lock file.
 * @throws The signal's reason, if it was aborted while waiting.
 */
export async function withMirrorLock<T>(path: string, task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  const before = queues.get(path) ?? Promise.resolve();
  const { promise: turnOver, resolve: pass } = Promise.withResolvers<void>();
  const mine = before.then(() => turnOver);
  queues.set(path, mine);
  try {
    await orAborted(before, signal);
    const release = await lockFile(path, signal);
    try {
      return await task();
    } finally {
      await release();
    }
  } finally {
    pass();
    if (queues.get(path) === mine) queues.delete(path);
  }
}

async function lockFile(path: string, signal: AbortSignal | undefined): Promise<() => Promise<void>> {
  const token = JSON.stringify({ ...(await ownIdentity()), nonce: randomUUID() });
  for (;;) {
    signal?.throwIfAborted();
    try {
      const file = await open(path, "wx", 0o600);
      await file.writeFile(token);
      await file.close();
      return () => rm(path, { force: true });
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error;
    }
    if (!(await breakDeadLock(path))) await delay(pollMs, undefined, signal === undefined ? {} : { signal });
  }
}

interface Identity {
  readonly pid: number;
  /** In clock ticks since boot; tells a process from a later one with its pid. */
  readonly startTime: string;
  readonly pidNamespace: string;
  readonly bootId: string;
}

async function ownIdentity(): Promise<Identity> {
  const [startTime, pidNamespace, bootId] = await Promise.all([
    startTimeOf(process.pid),
    readlink("/proc/self/ns/pid"),
    readFile("/proc/sys/kernel/random/boot_id", "utf8"),
  ]);
  return { pid: process.pid, startTime: startTime ?? "", pidNamespace, bootId: bootId.trim() };
}

/** Field 22 of /proc/PID/stat; the second field, in parentheses, may hold spaces and parentheses (proc_pid_stat(5)). */
async function startTimeOf(pid: number): Promise<string | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}

/** Removes the lock of a killed agent; answers whether it is worth trying again at once. */
async function breakDeadLock(path: string): Promise<boolean> {
  const token = await readOrNothing(path);
  if (token === undefined) return true;
  if (!(await isDead(path, token))) return false;
  const aside = `${path}.${randomUUID()}`;
  try {
    await rename(path, aside);
  } catch {
    return true; // Somebody else was quicker.
  }
  // Somebody else may have broken the dead lock and taken a new one since it was read: that one goes back.
  if ((await readOrNothing(aside)) !== token) await link(aside, path).catch(() => {});
  await rm(aside, { force: true });
  return true;
}

async function isDead(path: string, token: string): Promise<boolean> {
  const own = await ownIdentity();
  const ageMs = Date.now() - (await stat(path).catch(() => ({ mtimeMs: Date.now() }))).mtimeMs;
  let holder: Identity;
  try {
    holder = JSON.parse(token);
  } catch {
    // Between its creation and its content, or cut off by a crash in just that moment.
    return ageMs > 10_000;
  }
  if (holder.bootId !== own.bootId) return true;
  if (holder.pidNamespace !== own.pidNamespace) return ageMs > foreignHolderMs;
  return (await startTimeOf(holder.pid)) !== holder.startTime;
}

async function readOrNothing(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(() => undefined);
}

async function orAborted(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return promise;
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const stop = () => reject(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  try {
    await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
