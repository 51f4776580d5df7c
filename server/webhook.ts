import type { FastifyInstance, FastifyRequest } from "fastify";
import type { IncomingHttpHeaders } from "node:http";
import { CloneUrlError } from "./clone-url.ts";
import { deliveryBuilds, storeDelivery } from "./deliveries.ts";
import {
  type ForgeEvent,
  type ForgeHeaders,
  PayloadError,
  isSigned,
  readForgeEvent,
  readForgeHeaders,
} from "./forge.ts";
import { HttpError } from "./http-error.ts";
import type { Inbox } from "./inbox.ts";
import { isRefName } from "./mirror.ts";
import { type Repository, addRepository, findRepository, findRepositoryByName } from "./repositories.ts";
import type { Store } from "./store.ts";
import { newId } from "./token.ts";

/** What GitHub caps a payload at. */
const maxBodyBytes = 25 << 20;

export interface WebhookOptions {
  readonly store: Store;
  readonly inbox: Inbox;
  /** Signs `POST /hooks`, which registers repositories by itself. */
  readonly webhookSecret?: string | undefined;
}

/**
 * Serves `POST /hooks/:repositoryId` and `POST /hooks`.
 *
 * A delivery is verified, stored and answered; it is evaluated afterwards, from the store. Nothing that is not signed
 * leaves a trace.
 */
export async function serveWebhooks(app: FastifyInstance, options: WebhookOptions): Promise<void> {
  const { store, webhookSecret } = options;
  app.removeAllContentTypeParsers();
  // The signature covers the bytes as they came, so nothing may parse them first.
  app.addContentTypeParser("*", { parseAs: "buffer", bodyLimit: maxBodyBytes }, (_request, body, done) =>
    done(null, body),
  );
  app.addHook("onRequest", async (request) => void envelope(request)); // Refused before its body is read.

  type Addressed = { Params: { repositoryId: string } };
  const addressed = ({ params: { repositoryId } }: FastifyRequest<Addressed>) => {
    const repository = findRepository(store, repositoryId);
    if (!repository) throw new HttpError(404, `There is no repository "${repositoryId.slice(0, 40)}"`);
    return repository;
  };
  app.post<Addressed>(
    "/hooks/:repositoryId",
    // Before the body, too: who does not know an address cannot make the server hold 25 MiB.
    { bodyLimit: maxBodyBytes, onRequest: async (request) => void addressed(request) },
    async (request, reply) => {
      const repository = addressed(request);
      const { headers, payload } = open(request, repository.secret);
      const event = readEvent(headers, payload);
      return answer(reply, receive(options, { request, headers, repository, event }));
    },
  );

  app.post("/hooks", { bodyLimit: maxBodyBytes }, async (request, reply) => {
    if (!webhookSecret) {
      throw new HttpError(
        404,
        "This server has no server-wide webhook secret: use the webhook address of the repository",
      );
    }
    const { headers, payload } = open(request, webhookSecret);
    const event = readEvent(headers, payload);
    if (!event.repository) {
      if ("ignored" in event.outcome)
        return reply.code(202).send({ status: "ignored", reason: event.outcome.ignored, builds: [] });
      throw new HttpError(400, 'Cannot read the payload: "repository" with "full_name" and "clone_url" is missing');
    }
    const repository = register(store, event.repository);
    return answer(reply, receive(options, { request, headers, repository, event }));
  });
}

interface Reception {
  readonly code: 200 | 202;
  readonly body: unknown;
}

function receive(
  { store, inbox }: WebhookOptions,
  given: { request: FastifyRequest; headers: ForgeHeaders; repository: Repository; event: ForgeEvent },
): Reception {
  const { request, headers, repository, event } = given;
  const { delivery, isRepeat } = storeDelivery(store, {
    repositoryId: repository.id,
    forge: headers.forge,
    // Without an id of the forge's there is nothing to recognise a repeat by.
    forgeDeliveryId: `${headers.forge}:${headers.deliveryId?.slice(0, 200) ?? newId("d")}`,
    event: headers.event.slice(0, 100),
    headers: keptHeaders(request.headers),
    body: request.body as Buffer,
    outcome: event.outcome,
  });
  if (delivery.status === "pending") inbox.wake(repository.id);
  return {
    code: isRepeat ? 200 : 202,
    body: {
      delivery: delivery.id,
      status: delivery.status,
      ...(delivery.reason && { reason: delivery.reason }),
      ...(isRepeat && { repeat: true }),
      builds: deliveryBuilds(store, delivery.seq),
    },
  };
}

function answer(reply: { code(code: number): { send(body: unknown): unknown } }, { code, body }: Reception): unknown {
  return reply.code(code).send(body);
}

const contentTypes = ["application/json", "application/x-www-form-urlencoded"];

/** Checks what can be checked before the body is read. */
function envelope(request: FastifyRequest): ForgeHeaders & { readonly signature: string; readonly isForm: boolean } {
  const type = (request.headers["content-type"] ?? "").split(";")[0]?.trim().toLowerCase() ?? "";
  if (!contentTypes.includes(type)) {
    throw new HttpError(
      415,
      `Cannot read content type "${type.slice(0, 100)}": set the webhook's content type to application/json or application/x-www-form-urlencoded`,
    );
  }
  const headers = readForgeHeaders(request.headers);
  if (!headers) {
    throw new HttpError(400, "This is not a webhook: X-GitHub-Event, X-Gitea-Event or X-Forgejo-Event is missing");
  }
  if (!headers.signature) {
    throw new HttpError(
      401,
      "The webhook is not signed: X-Hub-Signature-256 is missing; set the webhook's secret in the forge",
    );
  }
  return { ...headers, signature: headers.signature, isForm: type === contentTypes[1] };
}

/** Verifies the signature, then parses. */
function open(request: FastifyRequest, secret: string): { readonly headers: ForgeHeaders; readonly payload: unknown } {
  const headers = envelope(request);
  const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0);
  const text = headers.isForm
    ? (new URLSearchParams(body.toString("utf8")).get("payload") ?? "")
    : body.toString("utf8");
  const signed =
    isSigned(body, headers.signature, secret) ||
    // Gitea and its forks sign the JSON inside the form; GitHub signs the form.
    (headers.isForm && headers.forge !== "github" && isSigned(Buffer.from(text), headers.signature, secret));
  if (!signed) {
    throw new HttpError(401, "The webhook's signature is wrong: the secret in the forge and the one here differ");
  }
  try {
    return { headers, payload: JSON.parse(text) };
  } catch (error) {
    const where = headers.isForm ? 'The form field "payload"' : "The body";
    throw new HttpError(400, `${where} is not JSON: ${error instanceof Error ? error.message.slice(0, 200) : ""}`);
  }
}

function readEvent(headers: ForgeHeaders, payload: unknown): ForgeEvent {
  try {
    const event = readForgeEvent(headers.event, payload);
    if ("trigger" in event.outcome && !isRefName(event.outcome.trigger.ref)) {
      throw new PayloadError(`Cannot read the ${headers.event} event: "ref" is not a ref name git allows`);
    }
    return event;
  } catch (error) {
    if (error instanceof PayloadError) throw new HttpError(400, error.message);
    throw error;
  }
}

function register(store: Store, repository: { readonly name: string; readonly cloneUrl: string }): Repository {
  try {
    return findRepositoryByName(store, repository.name) ?? addRepository(store, repository);
  } catch (error) {
    if (error instanceof CloneUrlError) throw new HttpError(400, error.message);
    throw error;
  }
}

/** The headers worth keeping with a delivery; no signature, no token. */
function keptHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  const kept = Object.entries(headers).filter(
    (entry): entry is [string, string] =>
      typeof entry[1] === "string" &&
      /^(?:content-type|user-agent|x-(?:git|gogs|forgejo|hub).*)$/.test(entry[0]) &&
      !/token|signature/.test(entry[0]),
  );
  return Object.fromEntries(kept.map(([name, value]) => [name, value.slice(0, 500)]));
}
