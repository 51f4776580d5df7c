import { X509Certificate, createPrivateKey, randomUUID, sign } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import {
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isRoot, oneFileLayer } from "./image-fixture.ts";
import { PullFixture } from "./pull-fixture.ts";
import { DebianRegistry, password, ScriptedRegistry, selfSigned, type TlsFiles } from "./registry-fixture.ts";

const tar = oneFileLayer("usr/file", "content");
const layer = { tar, blob: gzipSync(tar), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "slipway-access-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function serve(answer: Parameters<Server["on"]>[1]): Promise<AsyncDisposable & { readonly host: string }> {
  const server = createServer();
  server.on("request", answer);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** What `docker login` leaves. */
function dockerConfig(config: object): string {
  const path = join(directory, `config-${randomUUID()}.json`);
  writeFileSync(path, JSON.stringify(config));
  return path;
}
const ali = Buffer.from(`ali:${password}`).toString("base64");

describe.skipIf(!isRoot)("a registry that wants to know who asks", () => {
  test("is told by config.json, by a credential helper, or by the settings; nobody is denied by its own words", async () => {
    await using registry = await DebianRegistry.start({ auth: "basic" });
    registry.push("t:1", [layer]);
    await using fixture = new PullFixture();
    const name = `${registry.host}/t:1`;
    const deny = "denies access";
    await expect(fixture.pull(name)).rejects.toThrow(deny);
    const wrong = dockerConfig({ auths: { [registry.host]: { auth: Buffer.from("ali:x").toString("base64") } } });
    await expect(fixture.pull(name, { settings: { dockerConfig: wrong } })).rejects.toThrow(deny);
    const helper = join(directory, "docker-credential-test");
    const answer = JSON.stringify({ Username: "ali", Secret: password });
    writeFileSync(helper, `#!/bin/sh\nread host; [ "$1 $host" = "get ${registry.host}" ] && echo '${answer}'\n`);
    chmodSync(helper, 0o755);
    const environment = { PATH: `${directory}:/usr/bin:/bin` };
    for (const settings of [
      { dockerConfig: dockerConfig({ auths: { [registry.host]: { auth: ali } } }) },
      { dockerConfig: dockerConfig({ credHelpers: { [registry.host]: "test" } }), environment },
      { dockerConfig: dockerConfig({ credsStore: "test" }), environment },
      { hosts: { [registry.host]: { username: "ali", password } } },
    ]) {
      await using own = new PullFixture();
      expect((await own.pull(name, { settings })).layers).toHaveLength(1);
    }
    const missing = { dockerConfig: dockerConfig({ credHelpers: { [registry.host]: "no" } }), environment };
    await expect(fixture.pull(name, { settings: missing })).rejects.toThrow('"docker-credential-no"');
  });

  test("is shown the token of the realm that it names, which the realm gives for the repository asked for", async () => {
    const files = selfSigned(directory);
    const asked: string[] = [];
    await using realm = await serve((request: IncomingMessage, response: ServerResponse) => {
      const url = new URL(request.url ?? "", "http://realm");
      asked.push(`${url.searchParams.get("service")} ${url.searchParams.get("scope")}`);
      if (request.headers.authorization !== `Basic ${ali}`) return void response.writeHead(401).end();
      response.end(JSON.stringify({ token: token(files, url.searchParams.get("scope") ?? ""), expires_in: 300 }));
    });
    const auth = `auth:\n  token:\n    realm: http://${realm.host}/token\n    service: tests\n    issuer: realm\n    rootcertbundle: ${files.cert}\n`;
    await using registry = await DebianRegistry.start({ auth });
    await using fixture = new PullFixture();
    const settings = { hosts: { [registry.host]: { username: "ali", password } } };
    // There is no such image, which nobody is told who may not ask.
    await expect(fixture.pull(`${registry.host}/a/b:1`, { settings })).rejects.toThrow("does not have it");
    expect(new Set(asked)).toEqual(new Set(["tests repository:a/b:pull"]));
    await expect(fixture.pull(`${registry.host}/a/b:1`)).rejects.toThrow(/denied|unauthorized|401|token/i);
  });
});

/** As the registry's documentation says: signed with a certificate that it knows. */
function token({ cert, key }: TlsFiles, scope: string): string {
  const [type = "", name = "", actions = ""] = scope.split(":");
  const now = Math.floor(Date.now() / 1000);
  const x5c = [new X509Certificate(readFileSync(cert)).raw.toString("base64")];
  const claims = { iss: "realm", sub: "ali", aud: "tests", exp: now + 300, nbf: now - 10, iat: now, jti: randomUUID() };
  const access = [{ type, name, actions: actions.split(",") }];
  const text = [
    { typ: "JWT", alg: "ES256", x5c },
    { ...claims, access },
  ]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".");
  const signature = sign("sha256", Buffer.from(text), {
    key: createPrivateKey(readFileSync(key)),
    dsaEncoding: "ieee-p1363",
  });
  return `${text}.${signature.toString("base64url")}`;
}

describe.skipIf(!isRoot)("pullImage", () => {
  test("asks mirrors in their order, with their paths, and then the registry", async () => {
    await using broken = await ScriptedRegistry.start();
    broken.handlers.push((_, response) => void response.writeHead(500).end());
    await using cache = await ScriptedRegistry.start();
    cache.add("1", [layer]);
    await using origin = await ScriptedRegistry.start();
    origin.add("2", [layer]);
    await using fixture = new PullFixture();
    const settings = { hosts: { [origin.host]: { mirrors: [broken.host, `${cache.host}/hub/`] } } };
    await fixture.pull(`${origin.host}/t:1`, { settings });
    expect(broken.requests[0]).toBe("HEAD /v2/t/manifests/1");
    expect(cache.requests[0]).toBe("HEAD /v2/hub/t/manifests/1");
    expect(origin.requests).toEqual([]);
    await fixture.pull(`${origin.host}/t:2`, { settings });
    expect(origin.requests.some((line) => line.endsWith("manifests/2"))).toBe(true);
  });

  test("speaks no plain HTTP where that is not allowed, and goes through the proxy where there is one", async () => {
    await using registry = await ScriptedRegistry.start();
    registry.add("1", [layer]);
    await using fixture = new PullFixture();
    const never = { hosts: { [registry.host]: { plainHttp: false } } };
    const once = { clientOptions: { attempts: 1 } };
    await expect(fixture.pull(`${registry.host}/t:1`, { settings: never, ...once })).rejects.toThrow(registry.host);
    expect(registry.requests).toEqual([]);
    const passed: string[] = [];
    await using proxy = await serve((request: IncomingMessage, response: ServerResponse) => {
      passed.push(request.url ?? "");
      const { pathname } = new URL(request.url ?? "");
      const forwarded = httpRequest(`http://${registry.host}${pathname}`, {
        method: request.method,
        headers: request.headers,
      });
      forwarded.on("response", (answer) => answer.pipe(response.writeHead(answer.statusCode ?? 502, answer.headers)));
      forwarded.end();
    });
    const settings = {
      hosts: { "registry.test": { plainHttp: true } },
      environment: { HTTP_PROXY: `http://${proxy.host}` },
    };
    await fixture.pull("registry.test/t:1", { settings });
    expect(passed.length).toBeGreaterThan(2);
    expect(passed.every((url) => url.startsWith("http://registry.test/v2/t/"))).toBe(true);
    const exempt = { ...settings, environment: { ...settings.environment, NO_PROXY: "registry.test" } };
    passed.length = 0;
    await expect(fixture.pull("registry.test/t:2", { settings: exempt, ...once })).rejects.toThrow("registry.test");
    expect(passed).toEqual([]);
  });

  test("fetches each blob once, however many jobs want it at the same time", async () => {
    await using registry = await ScriptedRegistry.start();
    const other = oneFileLayer("usr/other");
    registry.add("1", [layer]);
    registry.add("2", [layer, { ...layer, tar: other, blob: gzipSync(other) }]);
    await using fixture = new PullFixture();
    await Promise.all(["1", "2", "1", "2"].map((tag) => fixture.pull(`${registry.host}/t:${tag}`)));
    const layers = registry.requests.filter((line) => line.startsWith("GET") && line.includes("blobs"));
    const counts = Map.groupBy(layers, (line) => line);
    // Configurations are small, and may be asked for by each.
    const large = [...counts].filter(([line]) => registry.blobs.get(line.slice(line.indexOf("sha256:")))?.[0] === 0x1f);
    expect(large.map(([, lines]) => lines.length)).toEqual([1, 1]);
  });
});
