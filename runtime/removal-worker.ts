/**
 * The worker thread behind `Removals`: deletes directory trees of strangers.
 *
 * Trees take turns, a few entries each, so that one of a million files holds up nobody. What steps made may have any name,
 * mode and depth; links are deleted, never followed.
 */
import { lstatSync } from "node:fs";
import { parentPort } from "node:worker_threads";
import { TreeRemoval } from "./tree-removal.ts";

/** What is to be deleted; trees must be gone from where anybody could use them. */
export interface Removal {
  readonly id: number;
  readonly tree: string;
}

/** What is left of it; nothing in the usual case. */
export interface RemovalReply {
  readonly id: number;
  readonly error?: string;
}

if (parentPort === null) throw new Error("removal-worker.ts is the entry of a worker thread");
const port = parentPort;

const entriesATurn = 200;

interface Turn {
  readonly removal: TreeRemoval;
  readonly ended: () => void;
}

const turns: Turn[] = [];

function takeTurns(): void {
  const turn = turns.shift();
  if (turn === undefined) return;
  if (turn.removal.step(entriesATurn)) turn.ended();
  else turns.push(turn);
  if (turns.length > 0) setImmediate(takeTurns);
}

/** @throws {Error} If it is still there. */
async function removeTree(path: string): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  using removal = new TreeRemoval(path);
  turns.push({ removal, ended: resolve });
  if (turns.length === 1) setImmediate(takeTurns);
  await promise;
  if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) {
    throw new Error(`Cannot remove "${path}": some of it stays`);
  }
}

port.on("message", ({ id, tree }: Removal) => {
  removeTree(tree).then(
    () => port.postMessage({ id } satisfies RemovalReply),
    (error: Error) => port.postMessage({ id, error: error.message } satisfies RemovalReply),
  );
});
