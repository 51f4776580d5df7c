/** The API of secrets: to set, list and remove them; their values never come back. docs/api.md describes it. */
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Access } from "./access.ts";
import { parse } from "./agent-api.ts";
import { HttpError } from "./http-error.ts";
import type { SecretKeys } from "./secret-keys.ts";
import { secretRulesSchema } from "./secret-rules.ts";
import { listSecrets, removeSecret, setSecret } from "./secrets.ts";
import type { Store } from "./store.ts";

export interface SecretApiOptions {
  readonly store: Store;
  readonly keys: SecretKeys;
  readonly access: Access;
}

/** A value at its largest in base64, and what stands around it. */
const bodyLimit = 1 << 20;

const placeSchema = z.object({ scope: z.string().min(1).max(300), name: z.string().min(1).max(300) });
const newSecretSchema = secretRulesSchema
  .extend({
    ...placeSchema.shape,
    value: z.string().optional(),
    valueBase64: z.base64().optional(),
  })
  .refine(({ value, valueBase64 }) => (value === undefined) !== (valueBase64 === undefined), {
    error: 'give "value" or "valueBase64"',
  });

export async function serveSecrets(app: FastifyInstance, { store, keys, access }: SecretApiOptions): Promise<void> {
  // Their names tell something, too.
  app.addHook("onRequest", async (request) => access.requireAdmin(request));

  app.get("/api/secrets", async (request) => {
    const { scope } = parse(z.object({ scope: z.string().min(1).max(300).optional() }), request.query);
    return { secrets: listSecrets(store, scope) };
  });

  app.post("/api/secrets", { bodyLimit }, async (request, reply) => {
    const { scope, name, value, valueBase64, ...rules } = parse(newSecretSchema, request.body);
    const bytes = value === undefined ? Buffer.from(valueBase64 ?? "", "base64") : Buffer.from(value);
    const isNew = setSecret(store, keys, { scope, name, value: bytes, rules });
    const [shown] = listSecrets(store, scope).filter((secret) => secret.name === name && secret.scope === scope);
    if (shown === undefined) throw new HttpError(404, "It was removed meanwhile");
    return reply.code(isNew ? 201 : 200).send(shown);
  });

  app.delete("/api/secrets", async (request, reply) => {
    const { scope, name } = parse(placeSchema, request.query);
    removeSecret(store, scope, name);
    return reply.code(204).send();
  });
}
