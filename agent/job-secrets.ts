/** The secrets of one job: who gets which, as what, and why not. */
import {
  checkSecretValue,
  formatBytes,
  type JobSpec,
  LIMITS,
  secretText,
  type SecretUse,
  secretUses,
  type StepSecret,
} from "../pipelines/index.ts";
import { StepFiles, type StepMount } from "../runtime/index.ts";

/** What whoever starts a job has found out about the secrets that it names. */
export interface GivenSecrets {
  /** By name. */
  readonly values: ReadonlyMap<string, Uint8Array>;
  /** Why some are not among them: whole sentences, which do not have values. */
  readonly problems: readonly string[];
  /** How to mend that there is none of a name. */
  readonly help: (name: string) => string;
}

/** Where steps find secrets that they have as files. */
export const secretsTarget = "/run/secrets";

/** The secrets that a job names, checked. */
export class JobSecrets {
  readonly #values: ReadonlyMap<string, Uint8Array>;
  /** Why the job cannot be run; the first one if there are several. */
  readonly problem: string | undefined;

  constructor(job: JobSpec, given: GivenSecrets | undefined) {
    this.#values = given?.values ?? new Map();
    this.problem = given?.problems[0];
    for (const use of secretUses(job)) this.problem ??= checkUse(use, this.#values.get(use.secret), given);
  }

  /** Stands in for the secrets of a job where only their places matter. */
  static hidden(job: JobSpec): JobSecrets {
    const values = new Map(secretUses(job).map(({ secret }) => [secret, Buffer.from("******")]));
    return new JobSecrets(job, { values, problems: [], help: () => "" });
  }

  /** All that must not be seen in a log. */
  get maskedValues(): readonly Uint8Array[] {
    return [...this.#values.values()];
  }

  /** @throws {Error} If there is none of the name, which `problem` has said. */
  value(name: string): Uint8Array {
    const value = this.#values.get(name);
    if (value === undefined) throw new Error(`There is no secret ${JSON.stringify(name)}`);
    return value;
  }

  /** The same as text. */
  text(name: string): string {
    return Buffer.from(this.value(name)).toString();
  }

  /** Those of a step that are variables. */
  variables(secrets: readonly StepSecret[] = []): Record<string, string> {
    return Object.fromEntries(secrets.flatMap((use) => ("env" in use ? [[use.env, this.text(use.secret)]] : [])));
  }

  /** A mount with those that are files; none if there are none. */
  mounts(secrets: readonly StepSecret[] = []): readonly StepMount[] {
    const files = secrets.flatMap((use) => ("file" in use ? [[use.file, this.value(use.secret)] as const] : []));
    return files.length === 0 ? [] : [{ type: "files", target: secretsTarget, files: new StepFiles(new Map(files)) }];
  }
}

/** Why a secret cannot be given to who wants it, if so; its value is not in the answer. */
function checkUse(
  { secret, by, as }: SecretUse,
  value: Uint8Array | undefined,
  given: GivenSecrets | undefined,
): string | undefined {
  const wants = `${by} wants the secret ${JSON.stringify(secret)}`;
  if (value === undefined) {
    const help = given?.help(secret);
    return `${wants}, which is not there${help === undefined ? "" : `; ${help}`}`;
  }
  const problem = checkSecretValue(value);
  if (problem !== undefined) return `${wants}, which ${problem}`;
  if (as === "file" || as === "build") return undefined;
  const text = secretText(value);
  if (as === "registry") {
    // oxlint-disable-next-line no-control-regex -- they are what is refused
    const isLine = text !== undefined && !/[\0-\x1f\x7f]/.test(text.replace(/\r?\n$/, ""));
    return isLine ? undefined : `${wants}, which is not one line of text`;
  }
  const mend = "let the step have it as a file: { secret: NAME, file: true }";
  if (text === undefined) return `${wants} as a variable, but it is not text; ${mend}`;
  if (text.includes("\0")) return `${wants} as a variable, but it holds a NUL; ${mend}`;
  if (value.length <= LIMITS.envValueBytes) return undefined;
  const most = `variables have at most ${formatBytes(LIMITS.envValueBytes)}`;
  return `${wants} as a variable, but it has ${formatBytes(value.length)}, and ${most}; ${mend}`;
}
