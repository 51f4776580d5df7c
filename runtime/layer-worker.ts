/** The worker thread behind `LayerWorkers`: takes one task at a time. */
import { closeSync, constants, openSync } from "node:fs";
import { basename, dirname } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import type { LayerTask, LayerTaskReply, LayerTaskRequest } from "./layer-workers.ts";
import { readAccounts } from "./layer-accounts.ts";
import { removeTree } from "./layer.ts";
import { copyShifted } from "./shifted-layers.ts";
import { decompressFile, detectKind, hashFile, readTree, unpackLayer } from "./unpack.ts";

if (parentPort === null) throw new Error("layer-worker.ts is the entry of a worker thread");
const port = parentPort;
const canceled = new Int32Array((workerData as { canceled: SharedArrayBuffer }).canceled);

class Canceled extends Error {}

function checkCanceled(): void {
  if (Atomics.load(canceled, 0) !== 0) throw new Canceled("canceled");
}

async function run(task: LayerTask): Promise<unknown> {
  switch (task.kind) {
    case "unpack":
      return removedOnError(task.request.directory, () => unpackLayer(task.request, checkCanceled));
    case "hash":
      return hashFile(task.source, checkCanceled);
    case "detect":
      return detectKind(task.source, task.limits, checkCanceled);
    case "decompress":
      return decompressFile(task.source, task.target, task.limits, checkCanceled);
    case "tree":
      return removedOnError(task.request.directory, () => readTree(task.request, checkCanceled));
    case "accounts":
      return readAccounts(task.layers, task.emptyDir);
    case "copy":
      return copyShifted(task.layer, task.target, task.range);
    case "remove":
      return remove(task.path);
  }
}

/** Leaves nothing half: whoever cancels has no thread left to clean up with. */
async function removedOnError<T>(directory: string | undefined, action: () => T | Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (directory !== undefined) remove(directory);
    throw error;
  }
}

function remove(path: string): void {
  const parent = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    removeTree(parent, basename(path));
  } finally {
    closeSync(parent);
  }
}

async function answer({ id, task }: LayerTaskRequest): Promise<LayerTaskReply> {
  try {
    return { id, result: await run(task) };
  } catch (error) {
    // An error loses its class and fields on the way to another thread.
    if (!(error instanceof Error)) return { id, error: { name: "Error", message: String(error) } };
    const code = "code" in error && typeof error.code === "string" ? { code: error.code } : {};
    return { id, error: { name: error.name, message: error.message, ...code } };
  }
}

port.on("message", (request: LayerTaskRequest) => {
  void answer(request).then((reply) => port.postMessage(reply));
});
