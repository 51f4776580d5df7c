/** Registries for the tests: Debian's `docker-registry`, and one that does whatever a test wants. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import {
  createServer,
  type IncomingMessage,
  request as httpRequest,
  type Server,
  type ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { type OciLayer, ociLayout, sha256 } from "./image-fixture.ts";

/** The bcrypt hash of "open sesame" for the user "ali". */
const htpasswd = "ali:$2b$04$EYRcykKrZAbVSSO9QWYv4Oeh9nYN4No/2Ixt0CAjStEQyEEG652f2\n";
export const password = "open sesame";

/** Debian's registry on a port of its own. */
export class DebianRegistry implements AsyncDisposable {
  /** `127.0.0.1:PORT` */
  readonly host: string;
  readonly #directory: string;
  readonly #stop: () => Promise<void>;
  readonly #isBasic: boolean;

  private constructor(host: string, directory: string, stop: () => Promise<void>, isBasic: boolean) {
    this.host = host;
    this.#isBasic = isBasic;
    this.#directory = directory;
    this.#stop = stop;
  }

  /** @param options.auth Lines of the configuration's `auth`, or "basic" for the user ali. */
  static async start(options: { readonly auth?: string; readonly tls?: TlsFiles } = {}): Promise<DebianRegistry> {
    const directory = mkdtempSync(join(tmpdir(), "registry-test-"));
    writeFileSync(join(directory, "htpasswd"), htpasswd);
    const basic = `auth:\n  htpasswd:\n    realm: test\n    path: ${directory}/htpasswd\n`;
    const auth = options.auth === "basic" ? basic : (options.auth ?? "");
    const tls =
      options.tls === undefined ? "" : `  tls:\n    certificate: ${options.tls.cert}\n    key: ${options.tls.key}\n`;
    writeFileSync(
      join(directory, "config.yml"),
      `version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage:\n  delete: {enabled: true}\n  filesystem: {rootdirectory: ${directory}/data}\nhttp:\n  addr: 127.0.0.1:0\n${tls}${auth}`,
    );
    const child = spawn("docker-registry", ["serve", join(directory, "config.yml")], {
      stdio: ["ignore", "ignore", "pipe"],
      env: { PATH: process.env["PATH"], OTEL_TRACES_EXPORTER: "none" },
    });
    const lines: string[] = [];
    for await (const line of createInterface(child.stderr)) {
      lines.push(line);
      const host = /listening on (127\.0\.0\.1:\d+)/.exec(line)?.[1];
      if (host === undefined) continue;
      child.stderr.resume();
      const stop = async () => {
        child.kill("SIGKILL");
        if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      };
      return new DebianRegistry(host, directory, stop, options.auth === "basic");
    }
    throw new Error(`docker-registry does not start:\n${lines.join("\n")}`);
  }

  /** Puts an image there with skopeo. */
  push(name: string, layers: readonly OciLayer[], options: Parameters<typeof ociLayout>[1] = {}): void {
    const layout = join(this.#directory, `layout-${crypto.randomUUID()}`);
    for (const { name: path, content } of ociLayout(layers, options)) {
      mkdirSync(dirname(join(layout, path)), { recursive: true });
      writeFileSync(join(layout, path), content ?? "");
    }
    const credentials = this.#isBasic ? [`--dest-creds=ali:${password}`] : [];
    const target = `docker://${this.host}/${name}`;
    this.skopeo("copy", "--dest-tls-verify=false", ...credentials, `oci:${layout}`, target);
  }

  skopeo(verb: string, ...args: readonly string[]): string {
    return execFileSync("skopeo", [verb, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
}

/** A certificate for 127.0.0.1 and localhost that nobody else trusts. */
export function selfSigned(directory: string): TlsFiles {
  const files = { cert: join(directory, "cert.pem"), key: join(directory, "key.pem") };
  execFileSync(
    "openssl",
    // biome-ignore format: a command line
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test",
      "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", files.key, "-out", files.cert],
    { stdio: "ignore" },
  );
  return files;
}

/** Answers a request, or leaves it to the next one by returning false. */
export type Handler = (request: IncomingMessage, response: ServerResponse) => boolean | void;

/** A registry of this process that serves what it was given, unless a test's own handlers answer first. */
export class ScriptedRegistry implements AsyncDisposable {
  readonly host: string;
  /** `GET /v2/t/blobs/sha256:…`, in the order they came. */
  readonly requests: string[] = [];
  readonly headers: IncomingMessage["headers"][] = [];
  readonly handlers: Handler[] = [];
  readonly blobs = new Map<string, Buffer>();
  /** By tag and by digest. */
  readonly manifests = new Map<string, { readonly type: string; readonly content: Buffer }>();
  readonly #server: Server;
  readonly #uploads = new Map<string, Buffer>();

  private constructor(server: Server, host: string) {
    this.#server = server;
    this.host = host;
    server.on("request", (request, response) => this.#answer(request, response));
  }

  static async start(
    options: { readonly tls?: { readonly cert: Buffer; readonly key: Buffer } } = {},
  ): Promise<ScriptedRegistry> {
    const server = options.tls === undefined ? createServer() : createTlsServer(options.tls);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new ScriptedRegistry(server, `127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  /** Adds an image. @returns Its manifest's digest. */
  add(tag: string, layers: readonly OciLayer[], options: Parameters<typeof ociLayout>[1] = {}): string {
    const members = ociLayout(layers, options);
    for (const { name, content } of members) {
      if (name.startsWith("blobs/")) this.blobs.set(name.slice(6).replace("/", ":"), Buffer.from(content ?? ""));
    }
    const index = JSON.parse(String(members[1]?.content)) as { manifests: { digest: string }[] };
    const digest = index.manifests[0]?.digest as string;
    this.addManifest(tag, this.blobs.get(digest) as Buffer, "application/vnd.oci.image.manifest.v1+json");
    return digest;
  }

  addManifest(tag: string, content: Buffer, type: string): string {
    for (const key of [tag, sha256(content)]) this.manifests.set(key, { type, content });
    return sha256(content);
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    this.requests.push(`${request.method} ${request.url}`);
    this.headers.push(request.headers);
    for (const handler of this.handlers) if (handler(request, response) !== false) return;
    if (request.method !== "GET" && request.method !== "HEAD") return this.#upload(request, response);
    if (request.url?.includes("/blobs/uploads/")) return this.#uploadState(request, response);
    const [, kind, name] = /^\/v2\/.+\/(manifests|blobs)\/([^/?]+)/.exec(request.url ?? "") ?? [];
    const manifest = kind === "manifests" ? this.manifests.get(name ?? "") : undefined;
    const content = manifest?.content ?? (kind === "blobs" ? this.blobs.get(name ?? "") : undefined);
    if (content === undefined) {
      response
        .writeHead(404)
        .end(JSON.stringify({ errors: [{ code: "MANIFEST_UNKNOWN", message: "manifest unknown" }] }));
      return;
    }
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
    const from = range === null ? 0 : Number(range[1]);
    response.writeHead(range === null ? 200 : 206, {
      "content-length": content.length - from,
      "content-type": manifest?.type ?? "application/octet-stream",
      ...(manifest === undefined ? {} : { "docker-content-digest": sha256(content) }),
      ...(range === null ? {} : { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` }),
    });
    response.end(request.method === "HEAD" ? undefined : content.subarray(from));
  }

  /** What the specification says of uploads; what a broken connection has brought is kept. */
  #upload(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? "", "http://t");
    const id = url.pathname.slice(url.pathname.lastIndexOf("/") + 1);
    if (request.method === "POST") {
      const session = crypto.randomUUID();
      this.#uploads.set(session, Buffer.alloc(0));
      response.writeHead(202, { location: `${url.pathname}${session}` }).end();
      return;
    }
    const before = this.#uploads.get(id)?.length ?? 0;
    const start = Number(/^(\d+)-/.exec(request.headers["content-range"] ?? "")?.[1] ?? before);
    if (start !== before) {
      response.writeHead(416).end();
      return;
    }
    let content = url.pathname.includes("/uploads/") ? (this.#uploads.get(id) as Buffer) : Buffer.alloc(0);
    request.on("data", (chunk: Buffer) => {
      content = Buffer.concat([content, chunk]);
      this.#uploads.set(id, content);
    });
    request.on("end", () => {
      const digest = url.searchParams.get("digest");
      if (digest !== null) this.blobs.set(digest, content);
      else if (request.method === "PUT") this.addManifest(id, content, request.headers["content-type"] ?? "");
      const created = request.method === "PUT" ? 201 : 202;
      response
        .writeHead(digest !== null && sha256(content) !== digest ? 400 : created, { location: url.pathname })
        .end();
    });
    request.on("error", () => {});
  }

  #uploadState(request: IncomingMessage, response: ServerResponse): void {
    const content = this.#uploads.get(request.url?.slice(request.url.lastIndexOf("/") + 1) ?? "");
    if (content === undefined) response.writeHead(404).end();
    else response.writeHead(204, { location: request.url, range: `0-${Math.max(0, content.length - 1)}` }).end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}

/** Stands between a client and a real registry, counts what passes, and breaks connections where a test wants it. */
export class FaultyProxy implements AsyncDisposable {
  readonly host: string;
  readonly requests: string[] = [];
  /** Bytes of bodies that clients have sent. */
  sentBytes = 0;
  /** Called for each request: after how many bytes of its body the connection is to break. */
  breakAfter: (line: string) => number | undefined = () => undefined;
  readonly #server: Server;

  private constructor(server: Server, target: string) {
    this.#server = server;
    this.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on("request", (request: IncomingMessage, response: ServerResponse) => {
      this.#forward(request, response, target);
    });
  }

  static async start(target: string): Promise<FaultyProxy> {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new FaultyProxy(server, target);
  }

  #forward(request: IncomingMessage, response: ServerResponse, target: string): void {
    const line = `${request.method} ${request.url}`;
    this.requests.push(line);
    const limit = this.breakAfter(line);
    // The registry makes addresses of uploads out of the host it is asked by.
    const headers = { ...request.headers, host: this.host };
    const forwarded = httpRequest({
      host: "127.0.0.1",
      port: target.split(":")[1],
      path: request.url,
      method: request.method,
      headers,
    });
    forwarded.on("response", (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    forwarded.on("error", () => response.destroy());
    let bytes = 0;
    request.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      this.sentBytes += chunk.length;
      if (limit !== undefined && bytes >= limit) {
        // What has come so far reaches the registry.
        forwarded.write(chunk, () => {
          forwarded.destroy();
          request.destroy();
        });
        request.pause();
        return;
      }
      if (!forwarded.write(chunk)) {
        request.pause();
        forwarded.once("drain", () => request.resume());
      }
    });
    request.on("end", () => forwarded.end());
    request.on("error", () => forwarded.destroy());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}
