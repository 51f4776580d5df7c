/** The server as a child process: its command line, its start, its end. */
import { type ChildProcess, execFile } from "node:child_process";
import { connect } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

/** Redis writes out and fsyncs its file at SIGTERM; after this long it is killed. */
export const stopMs = 10_000;
/** Loading a large file says LOADING all the time; a server that says nothing at all for so long is stuck. */
const silentStartMs = 30_000;
export const pollMs = 5;

/** The command line: what a job queue needs of Redis, and nothing else listening. */
export function serverArguments(dir: string, socket: string): readonly string[] {
  const settings: Readonly<Record<string, string>> = {
    port: "0",
    unixsocket: socket,
    unixsocketperm: "700",
    dir,
    appendonly: "yes",
    appendfsync: "everysec",
    "aof-load-truncated": "yes",
    save: "",
    "maxmemory-policy": "noeviction",
    databases: "1",
    daemonize: "no",
  };
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
}

/**
 * The command that makes the kernel send SIGTERM to the server when we die, PR_SET_PDEATHSIG(2const); setpriv becomes the
 * server, so its pid and its exit are the server's. Empty where util-linux's setpriv is missing (BusyBox's cannot do it).
 */
export async function deathSignalLauncher(): Promise<readonly string[]> {
  const launcher = ["setpriv", "--pdeathsig", "TERM"];
  try {
    await promisify(execFile)("setpriv", ["--pdeathsig", "TERM", "true"], { timeout: 10_000 });
    return launcher;
  } catch {
    return [];
  }
}

/** Resolves, never rejects, with how the process ended: `was killed by SIGKILL`. */
export function exitOf(child: ChildProcess): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  child.once("error", (error) => resolve(`could not be started: ${error.message}`));
  child.once("exit", (code, signal) => resolve(signal === null ? `exited with ${code}` : `was killed by ${signal}`));
  return promise;
}

/**
 * Waits until the server takes commands.
 *
 * @throws {Error} If it dies or stays silent; the signal's reason if that aborts.
 */
export async function untilReady(
  socket: string,
  { died, signal }: { readonly died: Promise<string>; readonly signal: AbortSignal | undefined },
): Promise<void> {
  let heardAtMs = performance.now();
  for (;;) {
    signal?.throwIfAborted();
    const answer = await Promise.race([ping(socket), died.then((how) => ({ how }))]);
    if (typeof answer === "object") throw new Error(`the server ${answer.how}`);
    if (answer === "+PONG") return;
    // -LOADING: it reads its append-only file.
    if (answer !== undefined) heardAtMs = performance.now();
    if (performance.now() - heardAtMs > silentStartMs) {
      throw new Error(`the server did not answer within ${silentStartMs / 1_000} s`);
    }
    await Promise.race([delay(pollMs), died]);
  }
}

/** The first line of the answer to PING; `undefined` if nobody listens there or nobody answers. */
export async function ping(socket: string): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const stream = connect(socket);
  stream.setTimeout(1_000, () => resolve(undefined));
  stream.on("error", () => resolve(undefined));
  stream.on("close", () => resolve(undefined));
  stream.on("data", (data) => resolve(data.toString("latin1").split("\r\n")[0]));
  stream.write("PING\r\n");
  try {
    return await promise;
  } finally {
    stream.destroy();
  }
}

/** SIGTERM, then SIGKILL; resolves once the process is gone. */
export async function terminate(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), stopMs);
  await gone;
  clearTimeout(timer);
}
