/** Secrets in the store: set under a name for a repository or for several, and sealed. claim-secrets.ts says who gets them. */
import { checkGlob, checkSecretValue, didYouMean, matchGlob, quote } from "../pipelines/index.ts";
import { HttpError } from "./http-error.ts";
import { findRepositoryByName, type Repository } from "./repositories.ts";
import { SealError, type SecretKeys } from "./secret-keys.ts";
import type { SecretRules } from "./secret-rules.ts";
import type { Store } from "./store.ts";

/** A secret as it is shown. */
export interface SecretView extends SecretRules {
  /** The name of a repository, or a pattern of such. */
  readonly scope: string;
  readonly name: string;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
}

interface Row {
  readonly id: number;
  readonly repositoryId: string | null;
  readonly pattern: string | null;
  readonly repository: string | null;
  readonly name: string;
  readonly rules: string;
  readonly keyId: string;
  readonly sealed: Uint8Array;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
}

/** Whose a secret is: one repository's, or that of all whose names match. */
type Place =
  | { readonly repositoryId: string; readonly pattern: null }
  | { readonly repositoryId: null; readonly pattern: string };

const select = `SELECT secrets.id, repository_id AS repositoryId, pattern, repositories.name AS repository, secrets.name, rules,
  key_id AS keyId, sealed, secrets.created_at_ms AS createdAtMs, updated_at_ms AS updatedAtMs
  FROM secrets LEFT JOIN repositories ON repositories.id = repository_id`;

const namePattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$/;
/** Of one repository or pattern. */
const maxSecrets = 500;

/**
 * Sets a secret; one of the same scope and name is replaced, rules and all.
 *
 * @returns Whether there was none.
 * @throws {HttpError} 400 if it cannot be one, 404 if there is no such repository.
 */
export function setSecret(
  store: Store,
  keys: SecretKeys,
  secret: { readonly scope: string; readonly name: string; readonly value: Uint8Array; readonly rules: SecretRules },
): boolean {
  const { scope, name, value, rules } = secret;
  if (!namePattern.test(name)) {
    const help = "a name has 1 to 100 letters, digits, _, . and -, and begins with a letter, digit or _";
    throw new HttpError(400, `A secret cannot be called ${quote(name.slice(0, 200))}: ${help}`);
  }
  const problem = checkSecretValue(value);
  if (problem !== undefined) throw new HttpError(400, `The secret ${quote(name)} ${problem}`);
  for (const pattern of [...(rules.branches ?? []), ...(rules.tags ?? []), ...(rules.images ?? [])])
    checkPattern(pattern);
  return store.transaction(
    () => {
      const place = placeOf(store, scope);
      const known = find(store, place, name);
      const text = JSON.stringify(rules);
      const { keyId, sealed } = keys.seal(value, sealedFor(place, name, text));
      const nowMs = Date.now();
      if (known !== undefined) {
        const columns = "rules = ?, key_id = ?, sealed = ?, updated_at_ms = ?";
        store.run(`UPDATE secrets SET ${columns} WHERE id = ?`, text, keyId, sealed, nowMs, known.id);
        return false;
      }
      const { count } = store.get<{ count: number }>(
        "SELECT count(*) AS count FROM secrets WHERE repository_id IS ? AND pattern IS ?",
        place.repositoryId,
        place.pattern,
      ) ?? { count: 0 };
      if (count >= maxSecrets)
        throw new HttpError(400, `${quote(scope)} has ${count} secrets; at most ${maxSecrets} are allowed`);
      store.run(
        `INSERT INTO secrets (repository_id, pattern, name, rules, key_id, sealed, created_at_ms, updated_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
        place.repositoryId,
        place.pattern,
        name,
        text,
        keyId,
        sealed,
        nowMs,
        nowMs,
      );
      return true;
    },
    { durable: true },
  );
}

/** A secret as the claim of a job finds it. */
export interface FoundSecret {
  readonly name: string;
  /** Undefined for one of the repository itself. */
  readonly pattern: string | undefined;
  readonly rules: SecretRules;
  /** @throws {SealError} */
  readonly open: (keys: SecretKeys) => Buffer;
}

/** All that pipelines of a repository can name: its own, and those of patterns. */
export function secretsOf(store: Store, repository: Pick<Repository, "id" | "name">): FoundSecret[] {
  return store
    .all<Row>(`${select} WHERE repository_id = ? OR pattern IS NOT NULL`, repository.id)
    .filter(({ pattern }) => pattern === null || isOf(pattern, repository.name))
    .map((row) => ({
      name: row.name,
      pattern: row.pattern ?? undefined,
      rules: JSON.parse(row.rules) as SecretRules,
      open: (keys) => keys.open(row, sealedFor(row as Place, row.name, row.rules)),
    }));
}

/** Lists secrets without their values: all, or what a repository (or pattern) has. @throws {HttpError} 404 */
export function listSecrets(store: Store, scope?: string): SecretView[] {
  const rows = store.all<Row>(`${select} ORDER BY coalesce(pattern, repositories.name), secrets.name`);
  if (scope === undefined) return rows.map(viewSecret);
  const place = placeOf(store, scope);
  return rows
    .filter(({ repositoryId, pattern }) =>
      place.repositoryId === null
        ? pattern === place.pattern
        : repositoryId === place.repositoryId || (pattern !== null && isOf(pattern, scope)),
    )
    .map(viewSecret);
}

/** Removes a secret. @throws {HttpError} 404 if there is none. */
export function removeSecret(store: Store, scope: string, name: string): void {
  store.transaction(
    () => {
      const known = find(store, placeOf(store, scope), name);
      if (known === undefined) {
        throw new HttpError(
          404,
          `There is no secret ${quote(name.slice(0, 200))} set for ${quote(scope.slice(0, 300))}`,
        );
      }
      store.run("DELETE FROM secrets WHERE id = ?", known.id);
    },
    { durable: true },
  );
}

/**
 * Seals all secrets with the first of the keys that are sealed with another one: then the others can be thrown away.
 *
 * @returns How many were sealed anew, and those that cannot be opened.
 */
export function resealSecrets(
  store: Store,
  keys: SecretKeys,
): { readonly resealed: number; readonly lost: readonly string[] } {
  const lost: string[] = [];
  let resealed = 0;
  store.transaction(
    () => {
      for (const row of store.all<Row>(`${select} WHERE key_id <> ?`, keys.currentId)) {
        const place = sealedFor(row as Place, row.name, row.rules);
        try {
          const { keyId, sealed } = keys.seal(keys.open(row, place), place);
          store.run("UPDATE secrets SET key_id = ?, sealed = ? WHERE id = ?", keyId, sealed, row.id);
          resealed++;
        } catch (error) {
          if (!(error instanceof SealError)) throw error;
          lost.push(`${row.name} of ${row.repository ?? row.pattern}: ${error.message}`);
        }
      }
    },
    { durable: true },
  );
  return { resealed, lost };
}

function viewSecret({ repository, pattern, name, rules, createdAtMs, updatedAtMs }: Row): SecretView {
  return { scope: repository ?? pattern ?? "", name, ...(JSON.parse(rules) as SecretRules), createdAtMs, updatedAtMs };
}

/** @throws {HttpError} 404 if it is neither a repository nor a pattern. */
function placeOf(store: Store, scope: string): Place {
  const repository = findRepositoryByName(store, scope);
  if (repository !== undefined) return { repositoryId: repository.id, pattern: null };
  if (!/[*?[]/.test(scope)) {
    const names = store.all<{ name: string }>("SELECT name FROM repositories").map(({ name }) => name);
    throw new HttpError(404, `There is no repository ${quote(scope.slice(0, 300))}${meant("; ", scope, names)}`);
  }
  checkPattern(scope);
  return { repositoryId: null, pattern: scope };
}

function checkPattern(pattern: string): void {
  const fault = checkGlob(pattern);
  if (fault === undefined) return;
  throw new HttpError(
    400,
    `The pattern ${quote(pattern.slice(0, 300))} cannot be used: ${fault.problem}; ${fault.suggestion}`,
  );
}

/** What was probably meant, between two texts; nothing if nothing is near. */
export function meant(before: string, word: string, candidates: readonly string[], after = ""): string {
  const suggestion = didYouMean(word, candidates);
  return suggestion === undefined ? "" : `${before}${suggestion}${after}`;
}

/** `*` alone is all of them. */
function isOf(pattern: string, repository: string): boolean {
  return pattern === "*" || matchGlob(pattern, repository);
}

function find(store: Store, { repositoryId, pattern }: Place, name: string): Row | undefined {
  const place = "repository_id IS ? AND pattern IS ? AND secrets.name = ?";
  return store.get<Row>(`${select} WHERE ${place}`, repositoryId, pattern, name);
}

/** Is authenticated with the value: whoever can write the database cannot give a secret to another repository, or widen its rules. */
function sealedFor({ repositoryId, pattern }: Place, name: string, rules: string): string {
  return JSON.stringify(["slipway secret 1", repositoryId, pattern, name, rules]);
}
