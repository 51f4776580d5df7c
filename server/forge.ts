import { createHmac, timingSafeEqual } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { z } from "zod";
import type { Trigger } from "./deliveries.ts";

/** Who sent a webhook, as its headers tell. */
export interface ForgeHeaders {
  readonly forge: "forgejo" | "gitea" | "gogs" | "github";
  readonly event: string;
  readonly deliveryId: string | undefined;
  /** Hexadecimal, without a prefix; `undefined` if there is none. */
  readonly signature: string | undefined;
}

/** Forgejo also sends Gitea's headers, Gitea also Gogs's and GitHub's: the most particular name wins. */
const forges = [
  ["forgejo", "x-forgejo", "x-forgejo-signature"],
  ["gitea", "x-gitea", "x-gitea-signature"],
  ["gogs", "x-gogs", "x-gogs-signature"],
  ["github", "x-github", "x-hub-signature-256"],
] as const;

/** Reads a forge's headers; `undefined` if the request is no webhook of a forge we know. */
export function readForgeHeaders(headers: IncomingHttpHeaders): ForgeHeaders | undefined {
  const text = (name: string) => (typeof headers[name] === "string" ? headers[name] : undefined);
  for (const [forge, prefix, signatureHeader] of forges) {
    const event = text(`${prefix}-event`);
    if (!event) continue;
    // GitHub's header is also sent by Gitea and by hooks written by hand that follow GitHub's example.
    const signature = text(signatureHeader) ?? text("x-hub-signature-256");
    return { forge, event, deliveryId: text(`${prefix}-delivery`), signature: signature?.replace(/^sha256=/, "") };
  }
  return undefined;
}

/**
 * Tells whether `signature` is the HMAC-SHA256 of the bytes. Takes the same time for every wrong one, short or long.
 *
 * @see {@link https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries}
 */
export function isSigned(body: Uint8Array, signature: string, secret: string): boolean {
  const expected = createHmac("sha256", secret).update(body).digest();
  const given = Buffer.alloc(expected.length);
  const isHex = /^[0-9a-fA-F]{64}$/.test(signature);
  if (isHex) given.write(signature, "hex");
  return timingSafeEqual(given, expected) && isHex;
}

/** The body is not what its event says; the message names the field. */
export class PayloadError extends Error {
  override readonly name = "PayloadError";
}

/** What a webhook says: what to build, or why nothing is; and which repository it is about. */
export interface ForgeEvent {
  readonly outcome: { readonly trigger: Trigger } | { readonly ignored: string };
  readonly repository?: { readonly name: string; readonly cloneUrl: string };
}

const hash = z.string().regex(/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/, "must be 40 or 64 hexadecimal digits");
const repositorySchema = z.object({ full_name: z.string().min(1).max(300), clone_url: z.string().min(1).max(2000) });
const anySchema = z.object({ repository: repositorySchema.optional().catch(undefined) });
const pushSchema = z.object({
  ref: z.string().min(1).max(1000),
  after: hash,
  deleted: z.boolean().optional(),
  head_commit: z
    .object({ id: hash, message: z.string().optional(), author: z.object({ name: z.string().nullish() }).nullish() })
    .nullish()
    .catch(undefined),
});
const sideSchema = z.object({ ref: z.string(), sha: hash, repo: z.object({ full_name: z.string() }).nullish() });
const pullRequestSchema = z.object({
  action: z.string(),
  number: z.int().positive(),
  pull_request: z.object({
    title: z.string().nullish(),
    user: z.object({ login: z.string().nullish() }).nullish(),
    head: sideSchema,
    base: sideSchema,
  }),
});

/**
 * Reads a webhook's payload.
 *
 * @throws {PayloadError} If a field this event must have is missing or wrong.
 */
export function readForgeEvent(event: string, payload: unknown): ForgeEvent {
  const { repository } = parse(anySchema, event, payload);
  const about = repository && { repository: { name: repository.full_name, cloneUrl: repository.clone_url } };
  switch (event) {
    case "push":
      return { ...about, outcome: readPush(parse(pushSchema, event, payload)) };
    case "pull_request":
      return { ...about, outcome: readPullRequest(parse(pullRequestSchema, event, payload)) };
    case "ping":
      return { ...about, outcome: { ignored: "ping: the webhook works" } };
    default:
      return { ...about, outcome: { ignored: `event "${event.slice(0, 100)}" starts no builds` } };
  }
}

function readPush(push: z.infer<typeof pushSchema>): ForgeEvent["outcome"] {
  if (push.deleted || /^0+$/.test(push.after)) return { ignored: `${push.ref} was deleted` };
  const message = push.head_commit?.message;
  const author = push.head_commit?.author?.name;
  const common = {
    ref: push.ref,
    // For an annotated tag `after` is the tag object: it is followed to its commit when it is fetched.
    commit: push.after,
    ...(message && { title: firstLine(message) }),
    ...(author && { author: author.slice(0, 200) }),
  };
  if (push.ref.startsWith("refs/heads/")) {
    return { trigger: { ...common, kind: "push", branch: push.ref.slice("refs/heads/".length) } };
  }
  if (push.ref.startsWith("refs/tags/")) {
    return { trigger: { ...common, kind: "tag", tag: push.ref.slice("refs/tags/".length) } };
  }
  return { ignored: `${push.ref} is neither a branch nor a tag` };
}

/** Gitea and Forgejo write `synchronized` where GitHub writes `synchronize`. */
const buildingActions = new Set(["opened", "synchronize", "synchronized", "reopened"]);

function readPullRequest(event: z.infer<typeof pullRequestSchema>): ForgeEvent["outcome"] {
  const { head, base, title, user } = event.pull_request;
  if (event.action === "closed") return { ignored: `pull request ${event.number} was closed` };
  if (!buildingActions.has(event.action))
    return { ignored: `pull request action "${event.action.slice(0, 100)}" starts no builds` };
  return {
    trigger: {
      kind: "pull_request",
      ref: `refs/pull/${event.number}/head`,
      commit: head.sha,
      branch: base.ref,
      // A deleted fork has no repository any more: it is a stranger's all the same.
      pullRequest: { number: event.number, fromFork: !head.repo || head.repo.full_name !== base.repo?.full_name },
      ...(title && { title: firstLine(title) }),
      ...(user?.login && { author: user.login.slice(0, 200) }),
    },
  };
}

function parse<T>(schema: z.ZodType<T>, event: string, payload: unknown): T {
  const result = schema.safeParse(payload);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue?.path.join(".") || "the payload";
  throw new PayloadError(`Cannot read the ${event.slice(0, 100)} event: "${field}": ${issue?.message ?? "wrong"}`);
}

function firstLine(text: string): string {
  return (text.trimStart().split("\n")[0] ?? "").slice(0, 500);
}
