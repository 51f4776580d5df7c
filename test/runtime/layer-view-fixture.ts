/** Views of layers, for the tests of them. */
import { Worker } from "node:worker_threads";

/** Looks at layers and changes them in a thread of its own, as whoever uses a view must. */
const thread = `
  const { parentPort, workerData } = await import("node:worker_threads");
  const { openLayerView } = await import(workerData.view);
  const files = await import(workerData.files);
  const { layers, upper, work, emptyDir, byPath } = workerData;
  const root = openLayerView(layers, { emptyDir, byPath, ...(upper === undefined ? {} : { writable: { upper, work } }) });
  const answer = { names: files.namesOf(root), resolved: workerData.paths.map((path) => files.resolveInRoot(root, path)) };
  if (upper !== undefined) {
    const etc = files.openDirectoryBelow(root, "etc");
    files.unlinkAt(etc, "a");
    files.closeFile(files.openAt(etc, "new", 0o101, 0o600));
    files.closeFile(etc);
  }
  files.closeFile(root);
  parentPort.postMessage(answer);
`;

/** What a view of layers shows. */
export async function look(options: object): Promise<unknown> {
  const modules = ["layer-view", "file-at"].map((name) => new URL(`../../runtime/${name}.ts`, import.meta.url).href);
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(thread)}`), {
    workerData: { ...options, view: modules[0], files: modules[1] },
  });
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  worker.once("message", resolve).once("error", reject);
  try {
    return await promise;
  } finally {
    await worker.terminate();
  }
}
