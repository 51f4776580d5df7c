/** Threads that run modules of ours. */
import { fileURLToPath } from "node:url";
import { Worker, type WorkerOptions } from "node:worker_threads";

const loader = fileURLToPath(new URL("./load-typescript.cjs", import.meta.url));

/**
 * Starts a thread that runs a TypeScript module of this tree.
 *
 * Neither the agent's environment (it may hold tokens) nor its loader options are a thread's business.
 */
export function startThread(
  module: URL,
  options: Pick<WorkerOptions, "name" | "resourceLimits" | "workerData"> = {},
): Worker {
  // What was compiled is kept at once: a thread that is ended from outside would keep nothing.
  const keep = 'then(() => require("node:module").flushCompileCache())';
  const source = `require(${JSON.stringify(loader)}); import(${JSON.stringify(module.href)}).${keep};`;
  return new Worker(source, { ...options, eval: true, env: {}, execArgv: [] });
}
