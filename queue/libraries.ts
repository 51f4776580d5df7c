/**
 * BullMQ, ioredis and ws, loaded at first use: together they take a tenth of a second, which `slipway run` and `slipway lint`,
 * importing this folder without ever using them, would otherwise pay at every start.
 */
import { createRequire } from "node:module";
import type * as Bullmq from "bullmq";
import type * as Ioredis from "ioredis";
import type * as Ws from "ws";

// All are CommonJS inside, so that require() can load them without waiting.
const load: (name: string) => unknown = createRequire(import.meta.url);

export function loadIoredis(): typeof Ioredis {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what require() gives has no type
  return load("ioredis") as typeof Ioredis;
}

export function loadBullmq(): typeof Bullmq {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion
  return load("bullmq") as typeof Bullmq;
}

export function loadWs(): typeof Ws {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion
  return load("ws") as typeof Ws;
}
