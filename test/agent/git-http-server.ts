/** Serves repositories over real smart HTTP (git http-backend) behind basic authentication, and their large files. */
import { spawn } from "node:child_process";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface GitHttpServer extends AsyncDisposable {
  /** `127.0.0.1:port` */
  readonly host: string;
  /** `METHOD path` of every request that had the right credentials. */
  readonly requests: readonly string[];
  /** Requests without or with wrong credentials. */
  readonly refused: readonly string[];
  /** Answers nothing more, but keeps connections open. */
  hang: boolean;
}

/** @param largeFiles SHA-256 to content. */
export async function startGitHttpServer(
  root: string,
  credentials: string,
  largeFiles: ReadonlyMap<string, string> = new Map(),
): Promise<GitHttpServer> {
  const requests: string[] = [];
  const refused: string[] = [];
  const state = { hang: false };
  const wanted = `Basic ${Buffer.from(credentials).toString("base64")}`;
  const server = createServer((request, response) => {
    const line = `${request.method} ${request.url}`;
    if (state.hang) return;
    if (request.headers.authorization !== wanted) {
      refused.push(line);
      response.writeHead(401, { "www-authenticate": 'Basic realm="git"' }).end();
      return;
    }
    requests.push(line);
    if (request.url?.includes("/info/lfs/") === true) void serveLargeFiles(request, response, largeFiles, wanted);
    else serveGit(request, response, root);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    refused,
    get hang() {
      return state.hang;
    },
    set hang(value) {
      state.hang = value;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function serveGit(request: IncomingMessage, response: ServerResponse, root: string): void {
  const url = new URL(request.url ?? "/", "http://localhost");
  const backend = spawn("git", ["http-backend"], {
    env: {
      PATH: process.env["PATH"] ?? "",
      GIT_PROJECT_ROOT: root,
      GIT_HTTP_EXPORT_ALL: "1",
      PATH_INFO: url.pathname,
      QUERY_STRING: url.search.slice(1),
      REQUEST_METHOD: request.method ?? "GET",
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      GIT_PROTOCOL: String(request.headers["git-protocol"] ?? ""),
      HTTP_CONTENT_ENCODING: request.headers["content-encoding"] ?? "",
    },
    stdio: ["pipe", "pipe", "ignore"],
  });
  request.pipe(backend.stdin);
  let head = Buffer.alloc(0);
  const onHead = (part: Buffer) => {
    head = Buffer.concat([head, part]);
    const end = head.indexOf("\r\n\r\n");
    if (end === -1) return;
    backend.stdout.off("data", onHead);
    const headers = head
      .toString("latin1", 0, end)
      .split("\r\n")
      .map((line) => line.split(": ") as [string, string]);
    const status = headers.find(([name]) => name.toLowerCase() === "status")?.[1];
    response.writeHead(Number.parseInt(status ?? "200", 10), Object.fromEntries(headers));
    response.write(head.subarray(end + 4));
    backend.stdout.pipe(response);
  };
  backend.stdout.on("data", onHead);
}

async function serveLargeFiles(
  request: IncomingMessage,
  response: ServerResponse,
  files: ReadonlyMap<string, string>,
  authorization: string,
): Promise<void> {
  const id = /\/info\/lfs\/content\/([0-9a-f]{64})$/.exec(request.url ?? "")?.[1];
  if (id !== undefined) {
    response.end(files.get(id));
    return;
  }
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  const { objects } = JSON.parse(Buffer.concat(parts).toString()) as { objects: { oid: string; size: number }[] };
  const href = (oid: string) => `http://${request.headers.host}/x/info/lfs/content/${oid}`;
  const header = { authorization };
  response.writeHead(200, { "content-type": "application/vnd.git-lfs+json" }).end(
    JSON.stringify({
      objects: objects.map(({ oid, size }) =>
        files.has(oid)
          ? { oid, size, actions: { download: { href: href(oid), header } } }
          : { oid, size, error: { code: 404, message: "Object does not exist" } },
      ),
    }),
  );
}
