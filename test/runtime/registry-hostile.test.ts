import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Writable } from "node:stream";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { digestOf } from "../../runtime/blob-store.ts";
import { isRoot, oneFileLayer, sha256 } from "./image-fixture.ts";
import { PullFixture } from "./pull-fixture.ts";
import { type Handler, ScriptedRegistry, selfSigned } from "./registry-fixture.ts";
import { tarArchive } from "./tar-archive.ts";

const manifestType = "application/vnd.oci.image.manifest.v1+json";
const indexType = "application/vnd.oci.image.index.v1+json";

function gzipLayer(tar: Buffer) {
  return { tar, blob: gzipSync(tar), mediaType: "application/vnd.oci.image.layer.v1.tar+gzip" };
}
const small = gzipLayer(oneFileLayer("usr/small", "small"));
/** Does not compress, so that it takes many pieces. */
const noise = Buffer.alloc(3_000_000);
for (let i = 0, x = 1; i < noise.length; i++) {
  x = (x * 1_103_515_245 + 12_345) & 0x7fff_ffff;
  noise[i] = x >>> 16;
}
const largeTar = tarArchive([{ name: "usr/large", content: noise }]);
const large = { tar: largeTar, blob: largeTar };

/** Answers requests whose line contains a word. */
function on(word: string, answer: (response: ServerResponse, range: string | undefined) => void): Handler {
  return (request, response) => {
    if (!`${request.method} ${request.url}`.includes(word)) return false;
    answer(response, request.headers.range);
    return true;
  };
}

/** Sends the same until nobody wants it any more. */
function flood(to: Writable, chunk: Buffer): void {
  const more = (error?: Error | null) => {
    if (!error && !to.destroyed) setImmediate(() => to.write(chunk, more));
  };
  to.on("error", () => {});
  more();
}

describe.skipIf(!isRoot)("pullImage", () => {
  let registry: ScriptedRegistry;
  let fixture: PullFixture;
  const pull = (options: Parameters<PullFixture["pull"]>[1] = {}) => fixture.pull(`${registry.host}/t:1`, options);
  const blobRequests = () => registry.requests.filter((request) => request.includes(sha256(large.blob)));

  beforeEach(async () => {
    registry = await ScriptedRegistry.start();
    fixture = new PullFixture();
  });
  afterEach(async () => {
    await fixture[Symbol.asyncDispose]();
    await registry[Symbol.asyncDispose]();
  });

  describe("goes on after", () => {
    test("connections that break, from where they broke", async () => {
      registry.add("1", [large]);
      let sent = 0;
      registry.handlers.push(
        on(`blobs/${sha256(large.blob)}`, (response, range) => {
          const from = Number(/\d+/.exec(range ?? "0")?.[0]);
          response.writeHead(range === undefined ? 200 : 206, {
            "content-length": large.blob.length - from,
            "content-range": `bytes ${from}-${large.blob.length - 1}/${large.blob.length}`,
          });
          const to = Math.min(from + 500_000, large.blob.length);
          sent += to - from;
          response.write(large.blob.subarray(from, to), () =>
            to === large.blob.length ? response.end() : response.destroy(),
          );
        }),
      );
      await pull();
      expect(blobRequests().length).toBeGreaterThanOrEqual(7);
      // What the kernel had taken but not sent when the connection broke comes again.
      expect(sent).toBeLessThan(large.blob.length * 1.5);
    });

    test("a connection that breaks at a registry that knows no ranges", async () => {
      registry.add("1", [large]);
      let breaks = 2;
      registry.handlers.push(
        on(`blobs/${sha256(large.blob)}`, (response) => {
          response.writeHead(200, { "content-length": large.blob.length });
          if (breaks-- > 0) response.write(large.blob.subarray(0, 1_000_000), () => response.destroy());
          else response.end(large.blob);
        }),
      );
      await pull();
      expect(blobRequests()).toHaveLength(3);
    });

    test("answers of an overloaded registry, no sooner than it says", async () => {
      registry.add("1", [small]);
      const refusals = [500, 503, 429];
      const times: number[] = [];
      registry.handlers.push((request, response) => {
        if (!request.url?.includes("manifests")) return false;
        times.push(performance.now());
        const status = refusals.pop();
        if (status === undefined) return false;
        response.writeHead(status, status === 429 ? { "retry-after": "1" } : {}).end();
        return true;
      });
      await pull();
      expect((times[1] as number) - (times[0] as number)).toBeGreaterThan(990);
    });

    test("a blob that was damaged on the way, once", async () => {
      registry.add("1", [large]);
      const damaged = Buffer.from(large.blob);
      damaged[1_000_000] = 1 + (damaged[1_000_000] as number);
      let times = 1;
      registry.handlers.push((request, response) => {
        if (!request.url?.includes(`blobs/${sha256(large.blob)}`) || times-- <= 0) return false;
        response.writeHead(200, { "content-length": damaged.length }).end(damaged);
        return true;
      });
      await pull();
      expect(blobRequests()).toHaveLength(2);
    });
  });

  describe("refuses", () => {
    /** What a registry does, and what is said of it. */
    const faults: Record<
      string,
      {
        readonly handlers: (registry: ScriptedRegistry) => Handler[];
        readonly error: RegExp;
        /** Where it is what the test waits for; else this process may come to its own registry's answer later than that. */
        readonly stallMs?: number;
      }
    > = {
      "a manifest without end": {
        handlers: () => [
          on("GET /v2/t/manifests", (response) => {
            response.writeHead(200, { "content-type": manifestType });
            flood(response, Buffer.alloc(65_536, 32));
          }),
        ],
        error: /sends more than 4 MiB where that is the most allowed/,
      },
      "a manifest that announces 5 GB": {
        handlers: () => [
          on("GET /v2/t/manifests", (response) => void response.writeHead(200, { "content-length": 5e9 }).write("{")),
        ],
        error: /sends more than 4 MiB/,
      },
      "a manifest that is another one": {
        handlers: (served) => [
          on("GET /v2/t/manifests/sha256", (response) => {
            response.writeHead(200, { "content-type": manifestType }).end(served.manifests.get("other")?.content);
          }),
        ],
        error: /sends a manifest with the digest sha256:\w+ as sha256:\w+/,
      },
      "a manifest that says it is an index": {
        handlers: (served) => [
          on("GET /v2/t/manifests", (response) => {
            response.writeHead(200, { "content-type": indexType }).end(served.manifests.get("1")?.content);
          }),
        ],
        error: /its manifest is of type|is not as expected at manifests/,
      },
      "a page of HTML": {
        handlers: () => [on("GET /v2/t/manifests", (response) => void response.writeHead(200).end("<html>"))],
        error: /sends a manifest with the digest|not JSON/,
      },
      "a layer that is longer than the manifest says": {
        handlers: () => [
          on("GET /v2/t/blobs", (response) => {
            response.writeHead(200);
            flood(response, Buffer.alloc(65_536));
          }),
        ],
        error: /sends more bytes as the blob/,
      },
      "a layer whose length is announced wrong": {
        handlers: () => [
          on("GET /v2/t/blobs", (response) => void response.writeHead(200, { "content-length": 7 }).end("1234567")),
        ],
        error: /sends 7 bytes as the blob/,
      },
      "a layer that stalls": {
        stallMs: 500,
        handlers: () => [on("GET /v2/t/blobs", (response) => void response.writeHead(200).write("x"))],
        error: /stalls: nothing came for 0.5 s/,
      },
      "a registry that does not answer": {
        stallMs: 500,
        handlers: () => [on("GET /v2/t/blobs", () => {})],
        error: /does not answer within 0.5 s/,
      },
      "headers without end": {
        handlers: () => [
          on("HEAD /v2/t/manifests", (response) => {
            response.socket?.write("HTTP/1.1 200 OK\r\n");
            flood(response.socket as Socket, Buffer.from(`x: ${"y".repeat(10_000)}\r\n`));
          }),
        ],
        error: /more than 65536 bytes of headers|broke the connection/,
      },
      "a redirect to a file": {
        handlers: () => [
          on("GET /v2/t/blobs", (response) => void response.writeHead(307, { location: "file:///etc/shadow" }).end()),
        ],
        error: /leads to "file:\/\/": only https is followed/,
      },
      "a redirect to the cloud's credentials": {
        handlers: () => [
          on(
            "GET /v2/t/blobs",
            (response) => void response.writeHead(307, { location: "https://169.254.169.254/latest/" }).end(),
          ),
        ],
        error: /"169.254.169.254" is link-local, where clouds keep credentials, where an image must not lead/,
      },
      "a redirect in a circle": {
        handlers: () => [
          on("GET /v2/t/blobs", (response) => void response.writeHead(302, { location: "/v2/t/blobs/again" }).end()),
        ],
        error: /redirects more than 5 times/,
      },
      "a realm that is a file": {
        handlers: () => [
          on(
            "/v2/t/",
            (response) =>
              void response.writeHead(401, { "www-authenticate": 'Bearer realm="file:///etc/passwd"' }).end(),
          ),
        ],
        error: /names the realm "file:\/\/\/etc\/passwd", which is no web address/,
      },
      "a realm where clouds keep credentials": {
        handlers: () => [
          on(
            "/v2/t/",
            (response) =>
              void response.writeHead(401, { "www-authenticate": 'Bearer realm="http://169.254.169.254/token"' }).end(),
          ),
        ],
        error: /169.254.169.254.*(only https is followed|link-local)/,
      },
      "a token without end": {
        handlers: (served) => [
          on(
            "/v2/t/",
            (response) =>
              void response.writeHead(401, { "www-authenticate": `Bearer realm="http://${served.host}/token"` }).end(),
          ),
          on("/token", (response) => {
            response.writeHead(200);
            flood(response, Buffer.alloc(65_536, 32));
          }),
        ],
        error: /sends more than 1 MiB/,
      },
      "a token that ends its header": {
        handlers: (served) => [
          on(
            "/v2/t/",
            (response) =>
              void response.writeHead(401, { "www-authenticate": `Bearer realm="http://${served.host}/token"` }).end(),
          ),
          on("/token", (response) => void response.end(JSON.stringify({ token: "x\r\nHost: y" }))),
        ],
        error: /answers without a token that can be used/,
      },
      "what it may not have": {
        handlers: () => [
          on("/v2/t/", (response) => {
            response.writeHead(401, { "www-authenticate": 'Basic realm="x"' });
            response.end(JSON.stringify({ errors: [{ code: "UNAUTHORIZED", message: "who\u001b[31m are\nyou" }] }));
          }),
        ],
        error: /denies access to "t" \(401.*\); if it is private, give credentials/,
      },
      "an overloaded registry that wants an hour": {
        handlers: () => [on("/v2/t/", (response) => void response.writeHead(429, { "retry-after": "3600" }).end())],
        error: /limits how much may be asked \(429\); it asks to wait 60 minutes/,
      },
    };

    test.for(Object.entries(faults))("%s", async ([, { handlers, error, stallMs = 30_000 }]) => {
      registry.add("other", [large]);
      registry.add("1", [small]);
      registry.handlers.push(...handlers(registry));
      await expect(pull({ clientOptions: { stallMs, attempts: 2 } })).rejects.toThrow(error);
      expect(fixture.layers()).toEqual([]);
    });

    test("indexes in indexes without end", async () => {
      let digest = registry.add("1", [small]);
      let size = registry.manifests.get("1")?.content.length as number;
      let mediaType = manifestType;
      for (let i = 0; i < 8; i++) {
        const content = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType, digest, size }] }));
        digest = registry.addManifest("1", content, indexType);
        size = content.length;
        mediaType = indexType;
      }
      await expect(pull()).rejects.toThrow("its indexes are nested more than 4 deep");
    });

    test("hostile layers, one of which is named, and stops the others", async () => {
      const hostile = gzipLayer(tarArchive([{ name: "../../x" }]));
      registry.add("1", [small, hostile, large]);
      await expect(pull()).rejects.toThrow(`layer ${sha256(hostile.blob)}: the entry "../../x" has a name with a ".."`);
      expect(fixture.layers()).not.toContain(sha256(hostile.tar).replace(":", "-"));
    });

    test("a decompression bomb, without unpacking it", async () => {
      const size = 320 * 2 ** 20;
      const header = tarArchive([{ name: "usr/zeros", content: "", size }]).subarray(0, 512);
      const zeros = gzipSync(Buffer.alloc(2 ** 20));
      const blob = Buffer.concat([gzipSync(header), ...Array.from({ length: 320 }, () => zeros)]);
      registry.add("1", [{ ...small, blob }]);
      await expect(pull()).rejects.toThrow("decompression bomb");
      expect(fixture.layers()).toEqual([]);
    });

    test("a layer that is not what the configuration says", async () => {
      registry.add("1", [{ ...small, tar: large.tar }]);
      await expect(pull()).rejects.toThrow("digest of the decompressed layer");
    });

    test("plain HTTP where TLS is spoken, and certificates of nobody", async () => {
      const directory = mkdtempSync(join(tmpdir(), "tls-test-"));
      try {
        const files = selfSigned(directory);
        await using secure = await ScriptedRegistry.start({
          tls: { cert: readFileSync(files.cert), key: readFileSync(files.key) },
        });
        secure.add("1", [small]);
        const name = `${secure.host}/t:1`;
        await expect(fixture.pull(name)).rejects.toThrow(/is not trusted: .*its authority can be given/);
        const plain = { hosts: { [secure.host]: { plainHttp: true } } };
        await expect(fixture.pull(name, { settings: plain, clientOptions: { attempts: 1 } })).rejects.toThrow(
          secure.host,
        );
        const trusted = { hosts: { [secure.host]: { ca: files.cert } } };
        expect((await fixture.pull(name, { settings: trusted })).layers).toHaveLength(1);
      } finally {
        rmSync(directory, { recursive: true });
      }
    });
  });

  test("does not send its authorization where it is redirected to", async () => {
    await using store = await ScriptedRegistry.start();
    const digest = digestOf(small.blob);
    registry.add("1", [small]);
    store.blobs.set(digest, small.blob);
    registry.handlers.push((request, response) => {
      if (request.headers.authorization !== "Basic YWxpOnNlY3JldA==") {
        response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
        return true;
      }
      if (!request.url?.includes(digest)) return false;
      response.writeHead(307, { location: `http://${store.host}/v2/t/blobs/${digest}` }).end();
      return true;
    });
    const settings = { hosts: { [registry.host]: { username: "ali", password: "secret" } } };
    await pull({ settings });
    expect(store.requests).toHaveLength(1);
    expect(store.headers[0]?.authorization).toBeUndefined();
  });

  test("is canceled while it waits for a registry", async () => {
    registry.add("1", [large]);
    const cancel = new AbortController();
    registry.handlers.push(
      on("GET /v2/t/blobs/sha256", (response) => {
        response.writeHead(200).write("x");
        setImmediate(() => cancel.abort(new Error("the build was canceled")));
      }),
    );
    await expect(pull({ signal: cancel.signal })).rejects.toThrow("the build was canceled");
  });
});
