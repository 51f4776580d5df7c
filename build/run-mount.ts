/** `RUN --mount=type=cache,target=…`: what is mounted while a command runs, and is in no layer. */
import { didYouMean, type Problems, quote } from "../pipelines/index.ts";
import type { Word } from "./instruction.ts";

export type MountType = "bind" | "cache" | "tmpfs" | "secret" | "ssh";
export type CacheSharing = "shared" | "private" | "locked";

export interface RunMount {
  readonly type: MountType;
  /** A stage or an image; the build context if absent. */
  readonly from?: string;
  readonly source?: string;
  readonly target?: string;
  readonly readonly: boolean;
  readonly sizeBytes?: number;
  readonly id?: string;
  readonly sharing: CacheSharing;
  readonly required: boolean;
  /** The variable that gets a secret's content; "" is the name that its id makes. */
  readonly env?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
}

/** A mount that means nothing; the message says why. */
export class MountError extends Error {
  override readonly name = "MountError";
}

const types: readonly MountType[] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const sharings: readonly CacheSharing[] = ["shared", "private", "locked"];
const keys = [
  "type",
  "from",
  "source",
  "src",
  "target",
  "dst",
  "destination",
  "readonly",
  "ro",
  "readwrite",
  "rw",
  "required",
  "size",
  "id",
  "sharing",
  "mode",
  "uid",
  "gid",
  "env",
] as const;
const flags = new Set<string>(["readonly", "ro", "readwrite", "rw", "required"]);

/** Reports what is wrong with mounts whatever their variables hold. */
export function checkMounts(mounts: readonly Word[], problems: Problems): void {
  for (const { text, span } of mounts) {
    try {
      for (const [key, value] of fieldsOf(text)) {
        if (key === "from" && /\$./.test(value ?? "")) {
          problems.error(span, "from= of a mount cannot have variables", "name a stage there whose FROM has them");
        }
      }
      if (!text.includes("$")) parseMount(text, (value) => value);
    } catch (error) {
      if (!(error instanceof MountError)) throw error;
      problems.error(span, error.message);
    }
  }
}

/** The stage or image that a mount takes its files from, variables or not. */
export function mountSource(text: string): string | undefined {
  return fieldsOf(text).findLast(([key]) => key === "from")?.[1];
}

/**
 * Parses the value of `--mount`.
 *
 * @param expand Replaces variables in the value of a field.
 * @throws {MountError}
 */
export function parseMount(text: string, expand: (value: string) => string): RunMount {
  const fields = new Fields(text, expand);
  const type = oneOf(types, fields.text("type") ?? "bind", "type");
  fields.allowOnly(type);
  const sharing = fields.text("sharing");
  const size = fields.text("size");
  const writable = fields.flag("readwrite", "rw");
  const mount: RunMount = {
    type,
    ...optional("from", fields.text("from")),
    ...optional("source", fields.text("source", "src")),
    ...optional("target", fields.text("target", "dst", "destination")),
    ...optional("id", fields.text("id")),
    ...optional("env", fields.text("env")),
    ...optional("sizeBytes", size === undefined ? undefined : parseBytes(size)),
    ...optional("mode", fields.number("mode", 8)),
    ...optional("uid", fields.number("uid", 10)),
    ...optional("gid", fields.number("gid", 10)),
    sharing: sharing === undefined ? "shared" : oneOf(sharings, sharing, "sharing"),
    required: fields.flag("required") ?? false,
    readonly:
      fields.flag("readonly", "ro") ?? (writable === undefined ? type !== "cache" && type !== "tmpfs" : !writable),
  };
  checkMount(mount);
  return mount;
}

function checkMount({ type, source, target, id }: RunMount): void {
  if (type === "secret") {
    if (source === undefined && target === undefined && id === undefined) {
      throw new MountError("a secret needs an id or a target");
    }
    if (source !== undefined && id !== undefined) throw new MountError("a secret has an id or a source, not both");
  } else if (type !== "ssh" && target === undefined) {
    throw new MountError(`a mount of type ${type} needs a target`);
  }
}

/** The fields that only some types have. */
const typesOf: Partial<Record<(typeof keys)[number], readonly MountType[]>> = {
  from: ["bind", "cache"],
  source: ["bind", "cache", "secret"],
  src: ["bind", "cache", "secret"],
  size: ["tmpfs"],
  sharing: ["cache"],
  required: ["secret", "ssh"],
  mode: ["cache", "secret", "ssh"],
  uid: ["cache", "secret", "ssh"],
  gid: ["cache", "secret", "ssh"],
  env: ["secret"],
};

/** The fields of one mount; the last one of a name holds. */
class Fields {
  readonly #values = new Map<(typeof keys)[number], string | true>();

  constructor(text: string, expand: (value: string) => string) {
    for (const [key, value] of fieldsOf(text)) {
      // Podman's way to have files relabeled for SELinux, written there for commands that run here as well.
      if (key === "z" && value === undefined) continue;
      const known = keys.find((each) => each === key);
      if (known === undefined) {
        const suggestion = didYouMean(key, keys);
        throw new MountError(`a mount has no field ${quote(key)}${suggestion === undefined ? "" : `; ${suggestion}`}`);
      }
      if (value === undefined && !flags.has(key)) {
        throw new MountError(`the field ${quote(key)} of a mount needs a value`);
      }
      this.#values.set(known, value === undefined ? true : expand(value));
    }
  }

  allowOnly(type: MountType): void {
    for (const key of this.#values.keys()) {
      if (typesOf[key]?.includes(type) === false)
        throw new MountError(`a mount of type ${type} has no field ${quote(key)}`);
    }
  }

  text(...names: (typeof keys)[number][]): string | undefined {
    const values = names.map((name) => this.#values.get(name));
    return values.find((value) => typeof value === "string");
  }

  flag(...names: (typeof keys)[number][]): boolean | undefined {
    const name = names.find((each) => this.#values.has(each));
    return name === undefined ? undefined : parseBoolean(name, this.#values.get(name) as string | true);
  }

  number(name: "mode" | "uid" | "gid", radix: 8 | 10): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const digits = radix === 8 ? /^[0-7]{1,11}$/ : /^\d{1,10}$/;
    const value = digits.test(text) ? Number.parseInt(text, radix) : Infinity;
    if (value <= 0xffff_ffff) return value;
    throw new MountError(`${name} of a mount is ${radix === 8 ? "an octal" : "a"} number; found ${quote(text)}`);
  }
}

function optional<Name extends string, T>(name: Name, value: T | undefined): Partial<Record<Name, T>> {
  return value === undefined ? {} : ({ [name]: value } as Partial<Record<Name, T>>);
}

/** Fields between commas, names in lower case; a field in double quotes may hold commas, as CSV has it (RFC 4180). */
function fieldsOf(text: string): [key: string, value: string | undefined][] {
  const fields: string[] = [];
  let at = 0;
  do {
    let field = "";
    if (text[at] === '"') {
      for (at++; ; at++) {
        if (at >= text.length) throw new MountError("a double quote of a mount is not closed");
        if (text[at] !== '"') field += text[at];
        else if (text[at + 1] === '"') field += text[at++];
        else break;
      }
      at++;
      if (at < text.length && text[at] !== ",")
        throw new MountError("a quoted field of a mount goes on behind its quote");
    } else {
      const comma = text.indexOf(",", at);
      field = text.slice(at, comma === -1 ? undefined : comma);
      at = comma === -1 ? text.length : comma;
    }
    fields.push(field);
  } while (at++ < text.length);
  return fields.map((field) => {
    const equals = field.indexOf("=");
    if (equals === -1) return [field.toLowerCase(), undefined];
    return [field.slice(0, equals).toLowerCase(), field.slice(equals + 1)];
  });
}

function oneOf<T extends string>(values: readonly T[], text: string, field: string): T {
  const found = values.find((value) => value === text.toLowerCase());
  if (found === undefined) throw new MountError(`${field} of a mount is ${values.join(", ")}; found ${quote(text)}`);
  return found;
}

function parseBoolean(name: string, value: string | true): boolean {
  if (value === true || /^(1|t|true)$/i.test(value)) return true;
  if (/^(0|f|false)$/i.test(value)) return false;
  throw new MountError(`${name} of a mount is true or false; found ${quote(value)}`);
}

/** A size as Docker reads it: units are binary. */
function parseBytes(text: string): number {
  const match = /^(\d{1,15}(?:\.\d{1,6})?) ?([kmgtp]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null) throw new MountError(`size of a mount is a number of bytes like 64m; found ${quote(text)}`);
  const [, amount, unit = ""] = match;
  return Math.floor(Number(amount) * 1024 ** ["", "k", "m", "g", "t", "p"].indexOf(unit.toLowerCase()));
}
