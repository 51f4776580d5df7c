/** Redis: connection, embedded server, BullMQ queues, cancel channel; and the protocol between server and agent. */
export * from "./protocol.ts";
