/**
 * The worker thread behind `Removals`: deletes directory trees of strangers, and cgroups.
 *
 * Trees take turns, a few entries each, so that one of a million files holds up nobody. What steps made may have any name,
 * mode and depth; links are deleted, never followed.
 */
import { readdirSync, renameSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parentPort } from "node:worker_threads";
import { AT_FDCWD, AT_REMOVEDIR, EISDIR, ENOENT } from "./linux.ts";
import { SyscallError, trySyscall } from "./syscall.ts";

/** What is to be deleted; trees must be gone from where anybody could use them. */
export interface Removal {
  readonly id: number;
  /** Without processes; the kernel may need a moment to notice. */
  readonly cgroups?: readonly string[];
  readonly tree?: string;
}

/** What is left of it; nothing in the usual case. */
export interface RemovalReply {
  readonly id: number;
  readonly error?: string;
}

if (parentPort === null) throw new Error("removal-worker.ts is the entry of a worker thread");
const port = parentPort;

/** Paths longer than the kernel's 4096 bytes cannot be named: what lies deeper is moved up first. */
const longestPath = 3000;
const entriesATurn = 200;
let sequence = 0;

/** Deletes a tree, in steps of one entry. @throws {SyscallError} What cannot be deleted stays, with the directories above. */
function* removeTree(path: Buffer, trash: string): Generator<void, void> {
  yield;
  // System calls without exceptions: most answers here are "that is a directory" and "it is not empty".
  const asFile = unlinkAt(path, 0);
  if (asFile === 0 || asFile === -ENOENT) return;
  if (asFile !== -EISDIR) throw new SyscallError("unlink", -asFile, `remove "${path.toString()}"`);
  const asEmpty = unlinkAt(path, AT_REMOVEDIR);
  if (asEmpty === 0 || asEmpty === -ENOENT) return;
  if (path.length > longestPath) {
    const moved = Buffer.from(`${trash}/deep-${process.pid}-${++sequence}`);
    renameSync(path, moved);
    yield* removeTree(moved, trash);
    return;
  }
  const slash = Buffer.from("/");
  for (const name of readdirSync(path, { encoding: "buffer" })) {
    yield* removeTree(Buffer.concat([path, slash, name]), trash);
  }
  const removed = unlinkAt(path, AT_REMOVEDIR);
  if (removed !== 0 && removed !== -ENOENT) throw new SyscallError("rmdir", -removed, `remove "${path.toString()}"`);
}

const nul = Buffer.alloc(1);

function unlinkAt(path: Buffer, flags: number): number {
  return trySyscall("unlinkat", AT_FDCWD, Buffer.concat([path, nul]), flags);
}

const mostAttempts = 200;

async function removeCgroup(directory: string): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    const removed = unlinkAt(Buffer.from(directory), AT_REMOVEDIR);
    if (removed === 0 || removed === -ENOENT) return;
    if (attempt === mostAttempts) {
      throw new Error(`Cannot remove cgroup "${directory}": it is still in use after a second`);
    }
    await delay(5);
  }
}

interface Turn {
  readonly steps: Generator<void, void>;
  readonly ended: (error?: unknown) => void;
}

const turns: Turn[] = [];

function takeTurns(): void {
  const turn = turns.shift();
  if (turn === undefined) return;
  try {
    for (let i = 0; i < entriesATurn; i++) {
      if (turn.steps.next().done) {
        turn.ended();
        if (turns.length > 0) setImmediate(takeTurns);
        return;
      }
    }
    turns.push(turn);
  } catch (error) {
    turn.ended(error);
  }
  if (turns.length > 0) setImmediate(takeTurns);
}

async function remove({ cgroups = [], tree }: Removal): Promise<void> {
  const trees =
    tree === undefined
      ? undefined
      : new Promise<void>((resolve, reject) => {
          const ended = (error?: unknown) => (error === undefined ? resolve() : reject(error));
          turns.push({ steps: removeTree(Buffer.from(tree), dirname(tree)), ended });
          if (turns.length === 1) takeTurns();
        });
  trees?.catch(() => undefined); // told below
  for (const directory of cgroups) await removeCgroup(directory);
  await trees;
}

port.on("message", (removal: Removal) => {
  const { id } = removal;
  remove(removal).then(
    () => port.postMessage({ id } satisfies RemovalReply),
    (error: Error) => port.postMessage({ id, error: error.message } satisfies RemovalReply),
  );
});
