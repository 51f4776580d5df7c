import { request } from "node:http";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isLoopback } from "../../server/access.ts";
import { Server } from "../../server/index.ts";
import { Harness, type TestRepository, twoJobs } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start({ publicUrl: "https://ci.example.com" });
  repository = await harness.repository();
  await repository.push(twoJobs);
});
afterAll(() => harness[Symbol.asyncDispose]());

/** fetch refuses to set Host. */
function statusOf(
  method: string,
  path: string,
  headers: Record<string, string>,
  address = harness.server.address,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const sent = request(address + path, { method, headers }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    sent.on("error", reject).end();
  });
}

describe("reading", () => {
  let local: Harness;
  let localBuild: string;
  beforeAll(async () => {
    local = await Harness.start();
    localBuild = (await (await local.repository()).push(twoJobs)).id;
  });
  afterAll(() => local[Symbol.asyncDispose]());

  test.each(["127.0.0.1:80", "localhost", "localhost:7433", "[::1]:1", "slipway.localhost"])(
    "is free on loopback for the host %s",
    async (host) => {
      for (const path of ["/api/builds", "/api/repositories", "/api/deliveries", `/api/builds/${localBuild}`]) {
        expect(await statusOf("GET", path, { host }, local.server.address)).toBe(200);
      }
    },
  );

  test.each(["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "ci.example.com"])(
    "needs the token for the host %s, whose name may have been rebound to us",
    async (host) => {
      for (const path of [
        "/api/builds",
        `/api/builds/${localBuild}/events`,
        `/api/builds/${localBuild}/log?job=first&step=0`,
      ]) {
        expect(await statusOf("GET", path, { host }, local.server.address)).toBe(401);
      }
      const authorization = `Bearer ${local.server.adminToken}`;
      expect(await statusOf("GET", "/api/builds", { host, authorization }, local.server.address)).toBe(200);
    },
  );

  test("needs the token on a server that is published under another name, whatever a proxy sends as Host", async () => {
    const dir = mkdtempSync(join(tmpdir(), "slipway-published-"));
    const options = { dataDir: dir, port: 0, redisUrl: harness.redis.url, publicUrl: "https://ci.example.com" };
    await using server = await Server.start(options);
    for (const host of ["ci.example.com", "127.0.0.1:7433", "localhost"]) {
      expect(await statusOf("GET", "/api/builds", { host }, server.address)).toBe(401);
      const authorization = `Bearer ${server.adminToken}`;
      expect(await statusOf("GET", "/api/builds", { host, authorization }, server.address)).toBe(200);
    }
    rmSync(dir, { recursive: true, force: true });
  });

  test("needs the token on a server that listens to others", async () => {
    const dir = mkdtempSync(join(tmpdir(), "slipway-open-"));
    await using server = await Server.start({ dataDir: dir, host: "0.0.0.0", port: 0, redisUrl: harness.redis.url });
    expect(await statusOf("GET", "/api/builds", {}, server.address)).toBe(401);
    expect(await statusOf("GET", "/", {}, server.address)).toBe(200);
    expect(await statusOf("GET", "/healthz", {}, server.address)).toBe(200);
    expect(await statusOf("GET", "/api/builds", { authorization: `Bearer ${server.adminToken}` }, server.address)).toBe(
      200,
    );
    rmSync(dir, { recursive: true, force: true });
  });
});

describe("changing", () => {
  const changes: readonly (readonly [string, string])[] = [
    ["POST", "/api/repositories"],
    ["DELETE", "/api/repositories/x"],
    ["POST", "/api/builds"],
    ["POST", "/api/builds/x/cancel"],
    ["POST", "/api/builds/x/rerun"],
  ];

  test.each(changes)("%s %s needs the admin token, even on loopback", async (method, path) => {
    expect((await harness.call(method, path, { headers: { authorization: undefined } })).status).toBe(401);
    expect((await harness.call(method, path, { headers: { authorization: "Bearer nope" } })).status).toBe(401);
    const agent = { authorization: `Bearer ${harness.server.agentToken}` };
    expect((await harness.call(method, path, { headers: agent })).status).toBe(401);
  });
});

describe("a session", () => {
  async function session(): Promise<string> {
    const answer = await harness.call("GET", `/login?token=${harness.server.adminToken}`, {
      headers: { authorization: undefined },
    });
    expect(answer.status).toBe(303);
    expect(answer.headers.get("location")).toBe("/");
    const cookie = answer.headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/; HttpOnly; SameSite=Strict; .*; Secure$/);
    expect(cookie).not.toContain(harness.server.adminToken);
    return cookie.split(";")[0] ?? "";
  }
  const cancel = (headers: Record<string, string>) =>
    harness.call("POST", "/api/builds/x/cancel", { headers: { authorization: undefined, ...headers } });

  test("lets changes through", async () => {
    const cookie = await session();
    expect((await cancel({ cookie })).status).toBe(404);
    expect((await cancel({ cookie, origin: harness.server.address })).status).toBe(404);
    expect((await cancel({ cookie, origin: "https://ci.example.com" })).status).toBe(404);
  });

  test("does not work for a page of another origin, another port of this host included", async () => {
    const cookie = await session();
    for (const origin of ["http://127.0.0.1:1", "https://evil.example", "null"]) {
      expect((await cancel({ cookie, origin })).status).toBe(403);
    }
  });

  test.each(["slipway-session=", "slipway-session=x", "other=1"])(
    "does not begin with the cookie %j",
    async (cookie) => {
      expect((await cancel({ cookie })).status).toBe(401);
    },
  );

  test("begins by POST, too, and not with a wrong token", async () => {
    const good = await harness.call("POST", "/login", { body: { token: harness.server.adminToken } });
    expect(good.status).toBe(204);
    expect(good.headers.get("set-cookie")).toContain("slipway-session=");
    for (const token of ["", "x", null, 7, harness.server.agentToken]) {
      const answer = await harness.call("POST", "/login", { body: { token } });
      expect(answer.status).toBe(401);
      expect(answer.headers.get("set-cookie")).toBeNull();
    }
    expect((await harness.call("GET", "/login?token=wrong")).status).toBe(401);
  });
});

describe("tokens", () => {
  test("are kept with mode 0600 and survive a restart, as does nothing readable by others", async () => {
    const { adminToken, agentToken } = harness.server;
    expect(adminToken).not.toBe(agentToken);
    for (const [name, token] of Object.entries({ "admin-token": adminToken, "agent-token": agentToken })) {
      expect(readFileSync(join(harness.dataDir, name), "utf8")).toBe(`${token}\n`);
    }
    await harness.stopServer();
    await harness.startServer();
    expect(harness.server).toMatchObject({ adminToken, agentToken });
    for (const name of ["admin-token", "agent-token", "slipway.sqlite"]) {
      expect(statSync(join(harness.dataDir, name)).mode & 0o077).toBe(0);
    }
    expect(statSync(harness.dataDir).mode & 0o077).toBe(0);
  });
});

describe("pages", () => {
  test.each(["/", `/builds/b1`, "/repositories", "/login", "/assets/app.js", "/assets/style.css"])(
    "%s allows scripts from here only and cannot be framed",
    async (path) => {
      const answer = await harness.call("GET", path, { headers: { authorization: undefined } });
      expect(answer.status).toBe(200);
      const policy = answer.headers.get("content-security-policy") ?? "";
      expect(policy).toMatch(/default-src 'none'; script-src 'self';/);
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).not.toContain("unsafe");
      expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
      expect(answer.headers.get("referrer-policy")).toBe("no-referrer");
    },
  );

  test.each([
    "/assets/../server/server.ts",
    "/assets/..%2fpackage.json",
    "/assets/%2e%2e%2fpackage.json",
    "/assets/nothing.js",
  ])("%s is answered 404", async (path) => {
    expect(await statusOf("GET", path, {})).toBe(404);
  });

  test("use no inline scripts or styles, which the policy forbids", async () => {
    const { text } = await harness.call("GET", "/");
    expect(text).not.toMatch(/<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style/i);
  });
});

describe("isLoopback", () => {
  test.each(["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "a.localhost"])("%s is", (host) => {
    expect(isLoopback(host)).toBe(true);
  });
  test.each(["0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "128.0.0.1", ""])(
    "%s is not",
    (host) => {
      expect(isLoopback(host)).toBe(false);
    },
  );
});
