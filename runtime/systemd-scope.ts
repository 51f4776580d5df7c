/**
 * A cgroup of our own from the user's systemd: what `systemd-run --user --scope -p Delegate=yes` does, for this process.
 *
 * A login session's cgroup belongs to root, and nobody else may move a process out of it; the user's service manager may,
 * by way of the system's. It is asked over D-Bus, on its private socket, which is there without a message bus, too.
 *
 * @see {@link https://systemd.io/CGROUP_DELEGATION/}
 * @see {@link https://dbus.freedesktop.org/doc/dbus-specification.html}
 */
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/** Names of the scopes begin so; whatever is in one was started by Slipway. */
export const scopePrefix = "slipway-";

const answerTimeoutMs = 10_000;

/** Whether this user has a service manager, and where it listens. */
export function findUserManager(uid = process.geteuid?.() ?? 0): string | undefined {
  const path = `/run/user/${uid}/systemd/private`;
  return existsSync(path) ? path : undefined;
}

/**
 * Moves this process into a new scope, with the right to arrange what is below it (`Delegate`). The scope ends with the last
 * process in it.
 *
 * @throws {Error} If the service manager refuses or does not answer.
 */
export async function enterScope(socketPath: string): Promise<void> {
  const name = `${scopePrefix}${process.pid}-${randomBytes(4).toString("hex")}.scope`;
  const connection = await connect(socketPath);
  try {
    await call(connection, startTransientUnit(name, process.pid));
  } finally {
    connection.destroy();
  }
  // The answer says that there is a job; the move comes a little later.
  const deadline = Date.now() + answerTimeoutMs;
  while (!readFileSync("/proc/self/cgroup", "utf8").includes(`/${name}`)) {
    if (Date.now() > deadline) throw new Error(`systemd has not moved this process into "${name}" in time`);
    await delay(2);
  }
}

/** Authenticates as whoever this process is. */
async function connect(path: string): Promise<Socket> {
  const socket = createConnection({ path });
  const uid = Buffer.from(`${process.geteuid?.() ?? 0}`).toString("hex");
  socket.write(`\0AUTH EXTERNAL ${uid}\r\n`);
  const answer = await receive(socket, (bytes) => (bytes.includes("\r\n") ? bytes : undefined));
  if (!answer.toString("latin1").startsWith("OK ")) {
    socket.destroy();
    throw new Error(`systemd does not talk to this user: ${answer.toString("latin1").trim()}`);
  }
  socket.write("BEGIN\r\n");
  return socket;
}

/** Sends a message with the serial number 1 and awaits its answer. */
async function call(socket: Socket, message: Buffer): Promise<void> {
  socket.write(message);
  let rest: Buffer = Buffer.alloc(0);
  await receive(socket, (bytes) => {
    rest = bytes;
    for (let next = takeMessage(rest); next !== undefined; next = takeMessage(rest)) {
      rest = rest.subarray(next.bytes);
      if (next.replyTo !== 1) continue; // a signal
      if (next.error !== undefined) throw new Error(`systemd refuses a scope: ${next.error}`);
      return rest;
    }
    return undefined;
  });
}

/** Collects what comes until `take` makes something of it. */
function receive(socket: Socket, take: (bytes: Buffer) => Buffer | undefined): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    let bytes = Buffer.alloc(0);
    const end = (error: Error) => {
      socket.removeAllListeners();
      socket.on("error", () => {});
      reject(error);
    };
    socket.setTimeout(answerTimeoutMs, () => end(new Error("systemd does not answer")));
    socket.on("error", end);
    socket.on("close", () => end(new Error("systemd has closed the connection")));
    socket.on("data", (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
      try {
        const taken = bytes.length > maxAnswerBytes ? bytes : take(bytes);
        if (taken === undefined) return;
        socket.setTimeout(0);
        socket.removeAllListeners();
        resolve(taken);
      } catch (error) {
        end(error as Error);
      }
    });
  });
}

const maxAnswerBytes = 1 << 20;

/** Message types and header fields of D-Bus that are of use here. */
const METHOD_CALL = 1;
const ERROR = 3;
const field = { path: 1, interface: 2, member: 3, replySerial: 5, destination: 6, signature: 8 } as const;

/** Writes values as D-Bus lays them out: little-endian, each aligned to its size. */
class Marshal {
  #bytes = Buffer.alloc(1024);
  #length = 0;

  align(to: number): this {
    this.#length = Math.ceil(this.#length / to) * to;
    return this;
  }

  byte(value: number): this {
    this.#bytes.writeUInt8(value, this.#length++);
    return this;
  }

  u32(value: number): this {
    this.align(4);
    this.#bytes.writeUInt32LE(value, this.#length);
    this.#length += 4;
    return this;
  }

  string(value: string): this {
    this.u32(Buffer.byteLength(value));
    this.#length += this.#bytes.write(`${value}\0`, this.#length);
    return this;
  }

  signature(value: string): this {
    this.byte(value.length);
    this.#length += this.#bytes.write(`${value}\0`, this.#length);
    return this;
  }

  /** An array whose length in bytes does not count the padding before its first element. */
  array(alignment: number, write: () => void): this {
    this.u32(0);
    const at = this.#length - 4;
    this.align(alignment);
    const start = this.#length;
    write();
    this.#bytes.writeUInt32LE(this.#length - start, at);
    return this;
  }

  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }
}

function startTransientUnit(name: string, pid: number): Buffer {
  const body = new Marshal();
  const property = (key: string, signature: string, write: () => void) => {
    body.align(8).string(key).signature(signature);
    write();
  };
  body.string(name).string("fail");
  body.array(8, () => {
    property("Description", "s", () => body.string("Slipway"));
    property("PIDs", "au", () => body.array(4, () => body.u32(pid)));
    property("Delegate", "b", () => body.u32(1));
    property("CollectMode", "s", () => body.string("inactive-or-failed"));
  });
  body.array(8, () => {}); // auxiliary units
  const header = new Marshal();
  header.byte("l".charCodeAt(0)).byte(METHOD_CALL).byte(0).byte(1).u32(body.bytes.length).u32(1);
  header.array(8, () => {
    const text = (code: number, type: string, value: string) =>
      header.align(8).byte(code).signature(type).string(value);
    text(field.path, "o", "/org/freedesktop/systemd1");
    text(field.interface, "s", "org.freedesktop.systemd1.Manager");
    text(field.member, "s", "StartTransientUnit");
    text(field.destination, "s", "org.freedesktop.systemd1");
    header.align(8).byte(field.signature).signature("g").signature("ssa(sv)a(sa(sv))");
  });
  header.align(8);
  return Buffer.concat([header.bytes, body.bytes]);
}

/** Looks at the message at the start of `bytes`; undefined if it is not all there. */
function takeMessage(bytes: Buffer): { bytes: number; replyTo?: number; error?: string } | undefined {
  if (bytes.length < 16) return undefined;
  const fieldsEnd = 16 + bytes.readUInt32LE(12);
  const bodyAt = Math.ceil(fieldsEnd / 8) * 8;
  const total = bodyAt + bytes.readUInt32LE(4);
  if (bytes.length < total) return undefined;
  let replyTo: number | undefined;
  for (let at = 16; at < fieldsEnd; at = Math.ceil(at / 8) * 8) {
    const code = bytes.readUInt8(at);
    const signatureBytes = bytes.readUInt8(at + 1);
    const type = bytes.toString("latin1", at + 2, at + 2 + signatureBytes);
    at += signatureBytes + 3;
    if (type === "g") {
      at += bytes.readUInt8(at) + 2;
      continue;
    }
    at = Math.ceil(at / 4) * 4;
    const value = bytes.readUInt32LE(at);
    at += type === "u" ? 4 : value + 5; // else a string or path
    if (code === field.replySerial) replyTo = value;
  }
  const isError = bytes.readUInt8(1) === ERROR;
  const body = bytes.subarray(bodyAt, total);
  const text = body.length > 4 ? body.toString("utf8", 4, 4 + body.readUInt32LE(0)) : "no reason given";
  return { bytes: total, ...(replyTo === undefined ? {} : { replyTo }), ...(isError ? { error: text } : {}) };
}
