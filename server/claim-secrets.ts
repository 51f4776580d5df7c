/** Which secrets a job gets with its claim, and why not others. */
import {
  formatBytes,
  type JobSpec,
  type PipelineEvent,
  quote,
  type SecretUse,
  secretUses,
} from "../pipelines/index.ts";
import type { Repository } from "./repositories.ts";
import { SealError, type SecretKeys } from "./secret-keys.ts";
import { refuseUse } from "./secret-rules.ts";
import { type FoundSecret, meant, secretsOf } from "./secrets.ts";
import type { Store } from "./store.ts";
import { isUntrusted } from "./trust.ts";

/** What one job is given, together. */
const maxJobBytes = 8 * 2 ** 20;

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
  const own = secretsOf(store, repository);
  const values = new Map<string, Buffer>();
  const problems: string[] = [];
  for (const use of uses) {
    const wants = `${use.by} wants the secret ${quote(use.secret)}, which`;
    const command = `slipway secret set ${shellWord(repository.name)} ${use.secret}`;
    const found = particular(own, use.secret);
    const refused = strangers
      ? "commits of strangers do not get"
      : isUnseen(store, event, repository)
        ? "a commit that was named by hand does not get unless a push of it is known: build the branch or tag it is on"
        : found === undefined
          ? `is not set for ${repository.name}${meant(
              " (",
              use.secret,
              own.map(({ name }) => name),
              ")",
            )}; set it: ${command}`
          : refuseRules(found, event, use, command);
    if (refused !== undefined) problems.push(`${wants} ${refused}`);
    if (refused !== undefined || found === undefined || values.has(use.secret)) continue;
    try {
      values.set(use.secret, found.open(keys));
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

function refuseRules(
  { rules }: FoundSecret,
  event: PipelineEvent,
  use: SecretUse,
  command: string,
): string | undefined {
  const refused = refuseUse(rules, event, use);
  if (refused === undefined) return undefined;
  return `${refused}; take it out of what this event runs, or set it for more: ${command}`;
}

/** Of those of one name: the repository's own, else the longest pattern's. */
function particular(rows: readonly FoundSecret[], name: string): FoundSecret | undefined {
  return rows
    .filter((each) => each.name === name)
    .reduce<FoundSecret | undefined>(
      (best, row) => (best === undefined || rank(row) > rank(best) ? row : best),
      undefined,
    );
}

function rank({ pattern }: FoundSecret): number {
  return pattern === undefined ? Infinity : pattern.length;
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

/** For a command that is to be copied. */
function shellWord(text: string): string {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
