import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import type { FastifyInstance, FastifyReply } from "fastify";
import type { Access } from "./access.ts";
import { HttpError } from "./http-error.ts";

const webDir = fileURLToPath(new URL("../web/", import.meta.url));

const contentTypes: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
};

/**
 * What every answer carries. Scripts and styles come from here only, so that text which slipped through as HTML could still
 * not run.
 */
export const securityHeaders: Readonly<Record<string, string>> = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
};

/** Serves the dashboard's files and signing in. The pages hold no data: what they show they ask the API for. */
export async function servePages(app: FastifyInstance, { access }: { readonly access: Access }): Promise<void> {
  const files = readFiles();
  const page = (reply: FastifyReply) => send(reply, files, "index.html");
  app.get("/", async (_request, reply) => page(reply));
  app.get("/builds/:id", async (_request, reply) => page(reply));
  app.get("/repositories", async (_request, reply) => page(reply));
  app.get<{ Params: { name: string } }>("/assets/:name", async (request, reply) =>
    send(reply, files, request.params.name),
  );

  app.get<{ Querystring: { token?: string } }>("/login", async (request, reply) => {
    if (request.query.token === undefined) return page(reply);
    if (!access.signIn(request.query.token, reply)) throw new HttpError(401, "The admin token is wrong");
    // Away from the address that holds the token.
    return reply.redirect("/", 303);
  });
  app.post<{ Body: { token?: unknown } | null }>("/login", async (request, reply) => {
    if (!access.signIn(request.body?.token, reply)) throw new HttpError(401, "The admin token is wrong");
    return reply.code(204).send();
  });
}

interface WebFile {
  readonly body: Buffer;
  readonly type: string;
  readonly etag: string;
}

function readFiles(): ReadonlyMap<string, WebFile> {
  const files = new Map<string, WebFile>();
  for (const name of readdirSync(webDir)) {
    const type = contentTypes[extname(name)];
    if (type === undefined) continue;
    const body = readFileSync(new URL(name, new URL("../web/", import.meta.url)));
    files.set(name, { body, type, etag: `"${createHash("sha256").update(body).digest("base64url").slice(0, 20)}"` });
  }
  return files;
}

function send(reply: FastifyReply, files: ReadonlyMap<string, WebFile>, name: string): FastifyReply {
  const file = files.get(name);
  if (!file) throw new HttpError(404, `There is no file "${name.slice(0, 100)}"`);
  void reply.header("content-type", file.type).header("etag", file.etag).header("cache-control", "no-cache");
  if (reply.request.headers["if-none-match"] === file.etag) return reply.code(304).send();
  return reply.send(file.body);
}
