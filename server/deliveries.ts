import type { EventKind } from "../pipelines/index.ts";
import { newId } from "./token.ts";
import type { Store } from "./store.ts";

/** What a delivery asks to have built; `commit` is absent where the ref is still to be resolved. */
export interface Trigger {
  readonly kind: EventKind;
  /** A full ref name. */
  readonly ref: string;
  readonly commit?: string;
  /** A person has named the commit, see `PipelineEvent`. */
  readonly byCommit?: true;
  readonly branch?: string;
  readonly tag?: string;
  readonly pullRequest?: { readonly number: number; readonly fromFork: boolean };
  /** The commit's first line. */
  readonly title?: string;
  readonly author?: string;
  /** The build this one repeats. */
  readonly rerunOf?: string;
}

/** `pending` → `built` (a build exists, whatever became of it), `ignored` or `error` (the reason says why). */
export type DeliveryStatus = "pending" | "built" | "ignored" | "error";

export interface Delivery {
  readonly seq: number;
  readonly id: string;
  readonly repositoryId: string;
  readonly forge: string;
  readonly event: string;
  readonly status: DeliveryStatus;
  readonly reason: string | null;
  readonly tries: number;
  readonly receivedAtMs: number;
  readonly processedAtMs: number | null;
}

export interface NewDelivery {
  readonly repositoryId: string;
  readonly forge: string;
  readonly forgeDeliveryId: string;
  readonly event: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
  /** What to build, or why nothing is. */
  readonly outcome: { readonly trigger: Trigger } | { readonly ignored: string };
}

const columns = `seq, id, repository_id AS repositoryId, forge, event, status, reason, tries,
  received_at_ms AS receivedAtMs, processed_at_ms AS processedAtMs`;

/**
 * Stores a delivery so that it survives a power cut, before it is answered. One that is known by the forge's id is not
 * stored again.
 */
export function storeDelivery(
  store: Store,
  given: NewDelivery,
): { readonly delivery: Delivery; readonly isRepeat: boolean } {
  return store.transaction(
    () => {
      const known = store.get<Delivery>(
        `SELECT ${columns} FROM deliveries WHERE repository_id = ? AND forge_delivery_id = ?`,
        given.repositoryId,
        given.forgeDeliveryId,
      );
      if (known) return { delivery: known, isRepeat: true };
      const nowMs = Date.now();
      const trigger = "trigger" in given.outcome ? JSON.stringify(given.outcome.trigger) : null;
      const ignored = "ignored" in given.outcome ? given.outcome.ignored : null;
      const id = newId("d");
      store.run(
        `INSERT INTO deliveries (id, repository_id, forge, forge_delivery_id, event, headers, body, trigger, status, reason,
           received_at_ms, processed_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        id,
        given.repositoryId,
        given.forge,
        given.forgeDeliveryId,
        given.event,
        JSON.stringify(given.headers),
        given.body,
        trigger,
        trigger ? "pending" : "ignored",
        ignored,
        nowMs,
        trigger ? null : nowMs,
      );
      return { delivery: findDelivery(store, id) as Delivery, isRepeat: false };
    },
    { durable: true },
  );
}

export function findDelivery(store: Store, id: string): Delivery | undefined {
  return store.get<Delivery>(`SELECT ${columns} FROM deliveries WHERE id = ?`, id);
}

/** Lists deliveries, newest first. */
export function listDeliveries(
  store: Store,
  options: { readonly limit: number; readonly repositoryId?: string | undefined },
) {
  const repositoryId = options.repositoryId ?? null;
  return store.all<Delivery>(
    `SELECT ${columns} FROM deliveries WHERE (? IS NULL OR repository_id = ?) ORDER BY seq DESC LIMIT ?`,
    repositoryId,
    repositoryId,
    options.limit,
  );
}

/** Lists what is stored but not evaluated yet, oldest first. */
export function pendingDeliveries(store: Store): Pick<Delivery, "seq" | "id" | "repositoryId">[] {
  return store.all(
    "SELECT seq, id, repository_id AS repositoryId FROM deliveries WHERE status = 'pending' ORDER BY seq",
  );
}

/** Counts a try at a delivery and returns what it asks for. */
export function beginDelivery(
  store: Store,
  seq: number,
): { readonly trigger: Trigger; readonly tries: number } | undefined {
  const row = store.get<{ trigger: string; tries: number }>(
    "UPDATE deliveries SET tries = tries + 1 WHERE seq = ? AND status = 'pending' RETURNING trigger, tries",
    seq,
  );
  return row && { trigger: JSON.parse(row.trigger) as Trigger, tries: row.tries };
}

/** Marks a delivery as evaluated. */
export function settleDelivery(store: Store, seq: number, outcome: { status: DeliveryStatus; reason?: string }): void {
  store.run(
    "UPDATE deliveries SET status = ?, reason = ?, processed_at_ms = ? WHERE seq = ?",
    outcome.status,
    outcome.reason ?? null,
    Date.now(),
    seq,
  );
}

/** Lists the builds a delivery led to. */
export function deliveryBuilds(store: Store, seq: number): string[] {
  return store.all<{ id: string }>("SELECT id FROM builds WHERE delivery_seq = ?", seq).map((row) => row.id);
}
