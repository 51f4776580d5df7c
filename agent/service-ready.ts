/** When a service is ready: it listens, and its script succeeds. */
import { open } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { ReadySpec } from "../pipelines/index.ts";

/** How often is looked, at first and at last. */
const firstDelayMs = 10;
const longestDelayMs = 1000;
/** Listening sockets stand first in the kernel's list. */
const listBytes = 256 * 1024;

/** One try of a service's script: why it is not ready, or undefined. */
export type ReadyScript = (script: string, timeoutMs: number) => Promise<string | undefined>;

/**
 * Waits until a service is ready.
 *
 * @param options.pid Any process in the network of the job.
 * @returns Why it is not, when its time is over; undefined if it is.
 * @throws {unknown} The signal's reason.
 */
export async function waitUntilReady(
  ready: ReadySpec,
  options: { readonly pid: number; readonly runScript: ReadyScript; readonly signal: AbortSignal },
): Promise<string | undefined> {
  const { signal } = options;
  const endMs = performance.now() + ready.timeoutMs;
  let waitMs = firstDelayMs;
  for (;;) {
    const problem = await findProblem(ready, endMs - performance.now(), options);
    signal.throwIfAborted();
    if (problem === undefined) return undefined;
    if (performance.now() + waitMs >= endMs) return problem;
    await delay(waitMs, undefined, { signal });
    waitMs = Math.min(waitMs * 1.5, longestDelayMs);
  }
}

async function findProblem(
  { ports, run }: ReadySpec,
  leftMs: number,
  { pid, runScript }: { readonly pid: number; readonly runScript: ReadyScript },
): Promise<string | undefined> {
  const listening = ports.length === 0 ? new Set<number>() : await listeningPorts(pid);
  const silent = ports.filter((port) => !listening.has(port));
  if (silent.length > 0) return `nothing listens on port ${silent.join(", ")}`;
  return run === undefined ? undefined : runScript(run, leftMs);
}

/** The TCP ports on which somebody listens in the network namespace of a process. @see proc_pid_net(5) */
export async function listeningPorts(pid: number): Promise<ReadonlySet<number>> {
  const ports = new Set<number>();
  for (const file of ["tcp", "tcp6"]) {
    for (const line of (await readStart(`/proc/${pid}/net/${file}`)).split("\n").slice(1)) {
      // sl local_address rem_address st …, and state 0A is TCP_LISTEN.
      const [, local = "", , state] = line.trim().split(/\s+/);
      if (state === "0A") ports.add(Number.parseInt(local.slice(local.lastIndexOf(":") + 1), 16));
    }
  }
  return ports;
}

/** Empty where there is nothing: the process has ended, or the kernel has no IPv6. */
async function readStart(path: string): Promise<string> {
  try {
    await using file = await open(path, "r");
    const buffer = Buffer.alloc(listBytes);
    let length = 0;
    while (length < buffer.length) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return buffer.toString("latin1", 0, length);
  } catch {
    return "";
  }
}
