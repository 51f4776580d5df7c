/** The worker thread behind `MeasuringThread`: takes one request at a time. */
import { parentPort } from "node:worker_threads";
import { measure, type MeasureRequest } from "./tree-size.ts";

if (parentPort === null) throw new Error("measuring-worker.ts is the entry of a worker thread");
const port = parentPort;

port.on("message", (request: MeasureRequest) => port.postMessage(measure(request)));
