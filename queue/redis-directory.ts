/** The directory of an embedded Redis: one owner at a time, what a killed owner left, where the socket is. */
import { mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { identify, isAlive, type ProcessIdentity } from "./process-identity.ts";
import { maxSocketPathBytes } from "./redis-address.ts";
import { ping, pollMs, stopMs } from "./redis-process.ts";

const socketName = "redis.sock";
const privateSocket = /^\/(?:run|tmp)\/slipway-redis-[A-Za-z0-9]{6}\/redis\.sock$/;

type Notice = ((message: string) => void) | undefined;

/**
 * Takes the directory for this process: an abstract Unix socket is a lock that the kernel releases however we die, and that
 * nobody can hold twice (unix(7)). Named after the inode, it does not care by which path the directory is reached.
 */
export async function lockDirectory(dir: string): Promise<Server> {
  const { dev, ino } = statSync(dir, { bigint: true });
  const server = createServer((client) => client.destroy());
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(`\0slipway-redis-${dev}-${ino}`, resolve);
  try {
    await promise;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EADDRINUSE") throw inUse(dir);
    throw error;
  }
  server.off("error", reject);
  server.unref();
  return server;
}

const pidFileSchema = z.object({
  server: z.object({ pid: z.number().int().positive(), startedAtTicks: z.string(), bootId: z.string() }),
  socket: z.string(),
});
type PidFile = z.infer<typeof pidFileSchema>;

/** Notes who serves, for the start after a kill -9 of this process. */
export function notePid(dir: string, note: { readonly pid: number | undefined; readonly socket: string }): void {
  const server = note.pid === undefined ? undefined : identify(note.pid);
  if (server === undefined) return; // It could not be spawned, or is dead: the wait for it says so.
  writeFileSync(`${pidFile(dir)}.new`, JSON.stringify({ server, socket: note.socket } satisfies PidFile), {
    mode: 0o600,
  });
  renameSync(`${pidFile(dir)}.new`, pidFile(dir));
}

/** Removes the note and the socket of a server that has stopped. */
export function tidyUp(dir: string, socket: string): void {
  rmSync(join(dir, socketName), { force: true });
  // The path may come from a note that was moved here with its directory: nothing but our own is ever removed.
  if (privateSocket.test(socket)) rmSync(dirname(socket), { recursive: true, force: true });
  rmSync(pidFile(dir), { force: true });
}

function pidFile(dir: string): string {
  return join(dir, "redis.pid.json");
}

/** Stops the server that an owner left behind when it was killed; we hold the lock, so that owner is dead. */
export async function stopOrphan(dir: string, onNotice: Notice): Promise<void> {
  const left = readPidFile(dir);
  if (left !== undefined) {
    if (isAlive(left.server)) {
      onNotice?.(`stopping the Redis (process ${left.server.pid}) that an earlier, killed owner left in "${dir}"`);
      await stopStranger(left.server);
    }
    tidyUp(dir, left.socket);
  }
  // The lock does not reach beyond this network namespace, a socket in a shared directory does.
  if ((await ping(join(dir, socketName))) !== undefined) throw inUse(dir);
}

function readPidFile(dir: string): PidFile | undefined {
  try {
    return pidFileSchema.parse(JSON.parse(readFileSync(pidFile(dir), "utf8")));
  } catch {
    return undefined; // Never written, or cut off: a server that is left shows at its socket.
  }
}

async function stopStranger(server: ProcessIdentity): Promise<void> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    const deadlineMs = performance.now() + stopMs;
    if (!isAlive(server)) return;
    try {
      process.kill(server.pid, signal);
    } catch {
      return; // It ended meanwhile.
    }
    while (isAlive(server) && performance.now() < deadlineMs) await delay(pollMs);
  }
}

/** `dir`'s own, or, where that path is too long for a socket, one in a new private directory. */
export async function chooseSocket(dir: string, onNotice: Notice): Promise<string> {
  const socket = join(dir, socketName);
  if (Buffer.byteLength(socket) <= maxSocketPathBytes) return socket;
  const elsewhere = join(privateDirectory(), socketName);
  onNotice?.(`the path "${socket}" is too long for a Unix socket: the socket of Redis is "${elsewhere}"`);
  return elsewhere;
}

function privateDirectory(): string {
  try {
    return mkdtempSync("/run/slipway-redis-");
  } catch {
    return mkdtempSync("/tmp/slipway-redis-"); // Only root writes to /run. mkdtemp makes it 0700.
  }
}

function inUse(dir: string): Error {
  return cannotStart(dir, "another process runs Redis there; stop that process, or use another directory");
}

/** The error of every start that fails. */
export function cannotStart(dir: string, reason: string): Error {
  return new Error(`Cannot start Redis in "${dir}": ${reason}`);
}
