/** Secrets in the store: set under a name for a repository or for several, sealed, and given to jobs that name them. */
import {
  checkGlob,
  checkSecretValue,
  didYouMean,
  formatBytes,
  type JobSpec,
  matchGlob,
  type PipelineEvent,
  quote,
  secretUses,
} from "../pipelines/index.ts";
import { HttpError } from "./http-error.ts";
import { findRepositoryByName, type Repository } from "./repositories.ts";
import { SealError, type SecretKeys } from "./secret-keys.ts";
import { refuseUse, type SecretRules } from "./secret-rules.ts";
import type { Store } from "./store.ts";
import { isUntrusted } from "./trust.ts";

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
/** What one job is given, together. */
const maxJobBytes = 8 * 2 ** 20;

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

/** What a job gets with its claim. */
export interface ClaimedSecrets {
  /** By name, base64. */
  readonly secrets?: Readonly<Record<string, string>>;
  readonly secretProblems?: readonly string[];
}

/** Finds the secrets that a job names and may have; if it may not have one of them, it gets none, and is told why. */
export function claimSecrets(
  store: Store,
  keys: SecretKeys,
  { job, event, repository }: { readonly job: JobSpec; readonly event: PipelineEvent; readonly repository: Repository },
): ClaimedSecrets {
  const strangers = isUntrusted(event);
  // Strangers ask registries as nobody.
  const uses = secretUses(job).filter(({ as }) => !strangers || as !== "registry");
  if (uses.length === 0) return {};
  const rows = store.all<Row>(`${select} WHERE repository_id = ? OR pattern IS NOT NULL`, repository.id);
  const own = rows.filter(({ pattern }) => pattern === null || isOf(pattern, repository.name));
  const values = new Map<string, Buffer>();
  const problems: string[] = [];
  for (const use of uses) {
    const wants = `${use.by} wants the secret ${quote(use.secret)}, which`;
    const command = `slipway secret set ${shellWord(repository.name)} ${use.secret}`;
    const row = particular(own, use.secret);
    const refused = strangers
      ? "commits of strangers do not get"
      : isUnseen(store, event, repository)
        ? "a commit that was named by hand does not get unless a push of it is known: build the branch or tag it is on"
        : row === undefined
          ? `is not set for ${repository.name}${meant(
              " (",
              use.secret,
              own.map(({ name }) => name),
              ")",
            )}; set it: ${command}`
          : refuseRow(row, event, use, command);
    if (refused !== undefined) problems.push(`${wants} ${refused}`);
    if (refused !== undefined || row === undefined || values.has(use.secret)) continue;
    try {
      values.set(use.secret, keys.open(row, sealedFor(row as Place, row.name, row.rules)));
    } catch (error) {
      if (!(error instanceof SealError)) throw error;
      problems.push(`${wants} cannot be read: ${error.message}; set it again: ${command}`);
    }
  }
  const bytes = [...values.values()].reduce((sum, { length }) => sum + length, 0);
  if (bytes > maxJobBytes) {
    problems.push(`The secrets of the job have ${formatBytes(bytes)}; at most ${formatBytes(maxJobBytes)} are allowed`);
  }
  if (problems.length > 0) return { secretProblems: problems };
  return { secrets: Object.fromEntries([...values].map(([name, value]) => [name, value.toString("base64")])) };
}

function refuseRow(
  row: Row,
  event: PipelineEvent,
  use: Parameters<typeof refuseUse>[2],
  command: string,
): string | undefined {
  const refused = refuseUse(JSON.parse(row.rules) as SecretRules, event, use);
  if (refused === undefined) return undefined;
  return `${refused}; take it out of what this event runs, or set it for more: ${command}`;
}

/** Of those of one name: the repository's own, else the longest pattern's. */
function particular(rows: readonly Row[], name: string): Row | undefined {
  return rows
    .filter((row) => row.name === name)
    .reduce<Row | undefined>((best, row) => (best === undefined || rank(row) > rank(best) ? row : best), undefined);
}

function rank({ pattern }: Row): number {
  return pattern === null ? Infinity : pattern.length;
}

/**
 * Whether anybody may have written the commit, for all that is known: whoever asks for it by hand names a commit, and forges show those
 * of forks, too.
 */
function isUnseen(store: Store, { kind, byCommit, commit }: PipelineEvent, { id }: Repository): boolean {
  if (kind !== "manual" || byCommit !== true) return false;
  const known = store.get<{ seen: number }>(
    `SELECT 1 AS seen FROM builds WHERE repository_id = ? AND json_extract(event, '$.commit') = ?
       AND json_extract(event, '$.kind') IN ('push', 'tag') LIMIT 1`,
    id,
    commit,
  );
  return known === undefined;
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
function meant(before: string, word: string, candidates: readonly string[], after = ""): string {
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

/** For a command that is to be copied. */
function shellWord(text: string): string {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
