/**
 * An ssh agent that lets its clients sign, and nothing else: a command of a build may not add, remove or lock keys.
 *
 * @see {@link https://datatracker.ietf.org/doc/html/draft-miller-ssh-agent}
 */
import { closeSync, openSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { basename, dirname } from "node:path";

const SSH_AGENTC_REQUEST_IDENTITIES = 11;
const SSH_AGENTC_SIGN_REQUEST = 13;
/** An answer of length 1: SSH_AGENT_FAILURE. */
const failure = Buffer.from([0, 0, 0, 1, 5]);
/** OpenSSH's own limit, AGENT_MAX_LEN. */
const MAX_MESSAGE = 256 * 1024;

/**
 * Listens on `path`, which must not exist, and passes what is allowed on to the agent at `agent`.
 *
 * Disposing it ends all connections and removes the socket.
 */
export async function forwardAgent(agent: string, path: string): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    sockets.add(client);
    client.once("close", () => sockets.delete(client));
    const upstream = createConnection(agent);
    sockets.add(upstream);
    upstream.once("close", () => sockets.delete(upstream));
    const end = () => {
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) socket.on("error", end).on("close", end);
    upstream.pipe(client);
    forward(client, upstream, end);
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  // The path of a socket has at most 107 bytes (unix(7)): seen from its directory it is short.
  const directory = openSync(dirname(path), "r");
  try {
    server.once("error", reject).listen(`/proc/self/fd/${directory}/${basename(path)}`, resolve);
    await promise;
  } catch (error) {
    closeSync(directory);
    throw error;
  }
  return {
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((done) => server.close(() => done()));
      closeSync(directory);
    },
  };
}

/** Passes on requests that are allowed, whole, and refuses the others. */
function forward(client: Socket, upstream: Socket, end: () => void): void {
  let pending = Buffer.alloc(0);
  client.on("data", (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= 5) {
      const length = pending.readUInt32BE(0);
      if (length === 0 || length > MAX_MESSAGE) return end();
      if (pending.length < 4 + length) return;
      const message = pending.subarray(0, 4 + length);
      const kind = message[4];
      // Clients wait for an answer before they ask again, so that no answer overtakes another.
      const isAllowed = kind === SSH_AGENTC_REQUEST_IDENTITIES || kind === SSH_AGENTC_SIGN_REQUEST;
      const [to, what] = isAllowed ? [upstream, message] : [client, failure];
      if (!to.write(what)) {
        // Whoever asks and does not read the answers costs no memory.
        client.pause();
        to.once("drain", () => client.resume());
      }
      pending = pending.subarray(4 + length);
    }
  });
}
