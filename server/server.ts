import { mkdirSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type FastifyError, type FastifyInstance, type FastifyReply, fastify } from "fastify";
import { type Logger, pino } from "pino";
import { type RedisConnection, checkRedis, connectRedis } from "../queue/index.ts";
import { Access } from "./access.ts";
import { serveAgents } from "./agent-api.ts";
import { serveApi } from "./api.ts";
import { FencedError } from "./attempts.ts";
import { BuildWatch } from "./build-watch.ts";
import { RedisDispatcher } from "./dispatcher.ts";
import { HttpError } from "./http-error.ts";
import { Inbox } from "./inbox.ts";
import { LogStore } from "./log-store.ts";
import { securityHeaders, servePages } from "./pages.ts";
import { Planner } from "./planner.ts";
import { Scheduler } from "./scheduler.ts";
import { SecretKeys } from "./secret-keys.ts";
import { serveSecrets } from "./secret-api.ts";
import { resealSecrets } from "./secrets.ts";
import { noteSession, serveShells } from "./shell-api.ts";
import { ShellRelay } from "./shell-relay.ts";
import { Store } from "./store.ts";
import { keepToken } from "./token.ts";
import { isWebSocket, WebSockets } from "./web-sockets.ts";
import { serveWebhooks } from "./webhook.ts";

export interface ServerOptions {
  /** Holds the database, logs, mirrors and tokens; made if missing. One server at a time. */
  readonly dataDir: string;
  /** Reading needs no token while this is a loopback address. @default "127.0.0.1" */
  readonly host?: string;
  /** 0 is any free one. @default 7433 */
  readonly port?: number;
  /** As `connectRedis` takes it. */
  readonly redisUrl: string;
  /** @default silent */
  readonly logger?: Logger;
  /** How others reach the server, `https://ci.example.com`, where that is not its address. */
  readonly publicUrl?: string;
  /** Signs `POST /hooks`, which registers repositories by itself; without it that address does not exist. */
  readonly webhookSecret?: string;
  /** An agent that has not answered for this long is lost. @default 30000 */
  readonly leaseMs?: number;
  /** Fetching a commit from its repository may take this long. @default 30000 */
  readonly fetchTimeoutMs?: number;
  /** Holds the keys that seal secrets in the database; must exist. @default `secrets-key` in the data directory, made if missing */
  readonly secretsKeyFile?: string;
  /** Where jobs of builds of strangers' commits go, whatever pool their pipeline names. @default the one it names */
  readonly untrustedPool?: string;
  /** A request must have arrived as a whole after this long. @default 120000 */
  readonly requestTimeoutMs?: number;
  /** One step's log ends at this size. @default 2147483648 (2 GiB) */
  readonly logLimitBytes?: number;
}

/** How often the queue in Redis is compared with the store. */
const reconcileMs = 2_000;

/** The server: webhooks, API, dashboard and scheduler on one port. Disposing it stops it; running jobs go on without it. */
export class Server implements AsyncDisposable {
  /** How others reach it: `publicUrl` or `address`. */
  readonly url: string;
  /** Where it listens: `http://127.0.0.1:7433`. */
  readonly address: string;
  readonly agentToken: string;
  readonly adminToken: string;
  readonly #resources: AsyncDisposableStack;

  private constructor(
    options: ServerOptions,
    parts: { address: string; access: Tokens; resources: AsyncDisposableStack },
  ) {
    this.address = parts.address;
    this.url = options.publicUrl?.replace(/\/$/, "") ?? parts.address;
    this.agentToken = parts.access.agentToken;
    this.adminToken = parts.access.adminToken;
    this.#resources = parts.resources;
  }

  /**
   * Starts a server and takes up what an earlier one left in the data directory.
   *
   * A Redis that is away does not keep it from starting: builds are accepted and wait.
   *
   * @throws {Error} If the port or the data directory is in use, or Redis would lose work (`maxmemory-policy`, version).
   */
  static async start(options: ServerOptions): Promise<Server> {
    await using resources = new AsyncDisposableStack();
    const logger = options.logger ?? pino({ level: "silent" });
    mkdirSync(options.dataDir, { recursive: true, mode: 0o700 });
    const store = resources.use(Store.open(join(options.dataDir, "slipway.sqlite")));
    const tokens = readTokens(options.dataDir);
    const keys = readKeys(options, store, logger);
    const logs = resources.use(
      new LogStore(join(options.dataDir, "logs"), { limitBytes: options.logLimitBytes ?? 2 ** 31 }),
    );
    const redis = resources.use(connectRedis(options.redisUrl, { name: "slipway-server" }));
    await requireFitRedis(redis, logger);
    const dispatcher = resources.use(new RedisDispatcher(redis));
    const planner = resources.use(
      new Planner(join(options.dataDir, "mirrors"), {
        fetchTimeoutMs: options.fetchTimeoutMs ?? 30_000,
        untrustedPool: options.untrustedPool,
      }),
    );
    const watch = new BuildWatch();
    const leaseMs = options.leaseMs ?? 30_000;
    const scheduler = resources.use(new Scheduler({ store, dispatcher, watch, logs, leaseMs, reconcileMs, logger }));
    const inbox = resources.use(new Inbox({ store, planner, scheduler, logger }));

    const host = options.host ?? "127.0.0.1";
    const access = new Access({ ...tokens, host, publicUrl: options.publicUrl });
    const app = createApp(options, logger);
    resources.defer(() => app.close());
    const sockets = resources.use(new WebSockets(app));
    const wake = (attemptId: string) => void dispatcher.wake(attemptId).catch(() => {}); // it asks by itself, later
    const relay = resources.use(
      new ShellRelay({
        wake,
        // An agent asks at a third of its lease.
        dialMs: leaseMs,
        onSession: (target, event) => {
          logger.info({ ...target, by: event.by }, `shell ${event.kind}`);
          const failed = (error: unknown) => logger.error({ err: error, ...target }, "cannot write to the step's log");
          noteSession({ store, logs }, target, event).catch(failed);
        },
        logger,
      }),
    );
    await app.register(servePages, { access });
    await app.register(serveWebhooks, { store, inbox, webhookSecret: options.webhookSecret });
    await app.register(serveSecrets, { store, keys, access });
    await app.register(serveAgents, { store, keys, logs, watch, scheduler, access, relay, leaseMs });
    await app.register(serveShells, { store, watch, access, relay, sockets, leaseMs, wake });
    await app.register(serveApi, { store, inbox, scheduler, planner, logs, watch, access });
    const address = await listen(app, host, options.port ?? 7433);
    scheduler.start();
    inbox.start();
    logger.info({ address }, "listening");
    return new Server(options, { address, access: tokens, resources: resources.move() });
  }

  /** Lets open requests finish and stops. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

interface Tokens {
  readonly adminToken: string;
  readonly agentToken: string;
}

function readTokens(dataDir: string): Tokens {
  return { adminToken: keepToken(dataDir, "admin-token"), agentToken: keepToken(dataDir, "agent-token") };
}

/** Secrets are sealed with the first key from now on; those that no key opens are told of, and fail who wants them. */
function readKeys({ dataDir, secretsKeyFile }: ServerOptions, store: Store, logger: Logger): SecretKeys {
  const keys = SecretKeys.read(secretsKeyFile ?? join(dataDir, "secrets-key"), { make: secretsKeyFile === undefined });
  const { resealed, lost } = resealSecrets(store, keys);
  if (resealed > 0) logger.info({ count: resealed, key: keys.currentId }, "secrets sealed with the new key");
  for (const secret of lost) logger.warn(`Cannot open the secret ${secret}; set it again`);
  return keys;
}

/** A Redis that throws jobs away is refused; one that is away is waited for. */
async function requireFitRedis(redis: RedisConnection, logger: Logger): Promise<void> {
  const problems = await checkRedis(redis);
  const fatal = problems.filter(({ severity, code }) => severity === "error" && code !== "unreachable");
  if (fatal.length > 0) throw new Error(`Cannot use Redis: ${fatal.map(({ message }) => message).join("; ")}`);
  for (const { message } of problems) logger.warn(message);
}

function createApp(options: ServerOptions, logger: Logger): FastifyInstance {
  const requestTimeout = options.requestTimeoutMs ?? 120_000;
  const app = fastify({
    bodyLimit: 1 << 20,
    requestTimeout,
    // Node looks for late requests this often.
    http: {
      connectionsCheckingInterval: Math.min(requestTimeout, 10_000),
      // Node swaps the two if the headers have longer than the whole.
      headersTimeout: Math.min(requestTimeout, 60_000),
      // Every other upgrade (h2c) is declined by answering as if it had not been asked for.
      shouldUpgradeCallback: isWebSocket,
    },
    // Followers of a build would else keep the server from stopping.
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 300 },
    // What cannot even be routed is answered like everything else.
    frameworkErrors: (error, request, reply) => {
      const why = error.statusCode === 414 ? "a part of it is too long" : "its percent-encoding is wrong";
      // Its type is that of a route, which this request has none of.
      void (reply as FastifyReply)
        .code(error.statusCode ?? 400)
        .headers(securityHeaders)
        .send({ error: `Cannot read the address of this ${request.method} request: ${why}` });
    },
  });
  app.addHook("onRequest", async (_request, reply) => void reply.headers(securityHeaders));
  app.addHook("onResponse", async (request, reply) => {
    // Without its query: it may hold a token.
    const path = request.url.split("?")[0];
    logger.debug(
      { method: request.method, path, status: reply.statusCode, ms: Math.round(reply.elapsedTime) },
      "request",
    );
  });
  app.setNotFoundHandler(async (request, reply) => {
    const path = (request.url.split("?")[0] ?? "").slice(0, 200);
    return reply.code(404).send({ error: `There is nothing at ${request.method} ${path}` });
  });
  app.setErrorHandler<FastifyError | HttpError | FencedError>((error, request, reply) => {
    if (error instanceof HttpError) return reply.code(error.statusCode).send({ error: error.message, ...error.fields });
    if (error instanceof FencedError) return reply.code(409).send({ error: error.message });
    const status = error.statusCode ?? 500;
    if (status === 413) {
      return reply.code(413).send({ error: `The body has more than ${request.routeOptions.bodyLimit} bytes` });
    }
    if (status < 500) return reply.code(status).send({ error: error.message });
    logger.error({ err: error }, "a request failed");
    return reply.code(500).send({ error: "Slipway's own error; the server's log has it" });
  });
  app.get("/healthz", async () => ({ status: "ok" }));
  return app;
}

async function listen(app: FastifyInstance, host: string, port: number): Promise<string> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const mend =
      code === "EADDRINUSE" ? "another program listens there; choose another port" : (error as Error).message;
    throw new Error(`Cannot listen on ${host} port ${port}: ${mend}`, { cause: error });
  }
  const { address, family, port: bound } = app.server.address() as AddressInfo;
  const name = address === "0.0.0.0" || address === "::" ? "127.0.0.1" : family === "IPv6" ? `[${address}]` : address;
  return `http://${name}:${bound}`;
}
