/** The worker thread behind `FileWorkers`: takes one task at a time. */
import { parentPort } from "node:worker_threads";
import { doFileTask, type FileTaskKind, type FileTaskSpec } from "./file-tasks.ts";

/** A task, and the flag that cancels it. */
export interface FileRequest {
  readonly kind: FileTaskKind;
  readonly spec: FileTaskSpec<FileTaskKind>;
  readonly canceled: Int32Array;
}

export type FileReply =
  | { readonly result: unknown }
  | { readonly error: { readonly name: string; readonly message: string; readonly code?: string } };

if (parentPort === null) throw new Error("file-worker.ts is the entry of a worker thread");
const port = parentPort;

port.on("message", (request: FileRequest) => {
  void answer(request).then((reply) => port.postMessage(reply));
});

async function answer({ kind, spec, canceled }: FileRequest): Promise<FileReply> {
  const checkCanceled = () => {
    if (Atomics.load(canceled, 0) !== 0) throw new Error("canceled");
  };
  try {
    return { result: await doFileTask(kind, spec, checkCanceled) };
  } catch (error) {
    // An error loses its class and fields on the way to another thread.
    const { name, message, code } = error as NodeJS.ErrnoException;
    return { error: { name, message, ...(typeof code === "string" && { code }) } };
  }
}
