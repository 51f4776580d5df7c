/** The values of `slipway image build` that are more than one word: secrets, ssh agents, outputs. */
import { readFileSync, statSync } from "node:fs";
import { isIP } from "node:net";
import { resolve } from "node:path";
import type { BuildOutput, CachePlace, ContextSource, SecretSource } from "../build/index.ts";
import { UsageError } from "./arguments.ts";
import type { Context } from "./verb.ts";

/** Reads `key=value,key=value` as Docker does: a field in double quotes may hold commas, `""` in it is a quote. */
export function parseFields(option: string, text: string): Map<string, string> {
  const fields: string[] = [];
  const field = /(?:^|,)(?:"((?:[^"]|"")*)"(?=,|$)|((?:[^,"][^,]*)?))/gy;
  for (let end = 0; end < text.length || fields.length === 0; end = field.lastIndex) {
    field.lastIndex = end;
    const match = field.exec(text);
    if (match === null || (field.lastIndex === end && end < text.length))
      throw new UsageError(`${option} must be like key=value,key=value, not ${JSON.stringify(text)}`);
    fields.push(match[1]?.replaceAll('""', '"') ?? match[2] ?? "");
  }
  const values = new Map<string, string>();
  for (const each of fields) {
    const equals = each.indexOf("=");
    const key = equals === -1 ? each : each.slice(0, equals);
    if (values.has(key)) throw new UsageError(`${option} has ${JSON.stringify(key)} twice`);
    values.set(key, equals === -1 ? "" : each.slice(equals + 1));
  }
  return values;
}

/** `KEY=VALUE`, or `KEY` alone for what the environment has under that name. What the environment lacks is left out. */
export function parseBuildArgs(texts: readonly string[], { environment }: Context): Map<string, string> {
  const args = new Map<string, string>();
  for (const text of texts) {
    const equals = text.indexOf("=");
    const name = equals === -1 ? text : text.slice(0, equals);
    if (name === "") throw new UsageError(`--build-arg must be NAME=VALUE or NAME, not ${JSON.stringify(text)}`);
    const value = equals === -1 ? environment[name] : text.slice(equals + 1);
    if (value !== undefined) args.set(name, value);
  }
  return args;
}

/** `KEY=VALUE`, both as they are. */
export function parsePairs(option: string, texts: readonly string[]): Record<string, string> | undefined {
  if (texts.length === 0) return undefined;
  const pairs = texts.map((text): [string, string] => {
    const equals = text.indexOf("=");
    if (equals === 0) throw new UsageError(`${option} must be KEY=VALUE, not ${JSON.stringify(text)}`);
    return equals === -1 ? [text, ""] : [text.slice(0, equals), text.slice(equals + 1)];
  });
  return Object.fromEntries(pairs);
}

/** A secret is read when a command needs it, and only that it can be read is asked now. */
const MAX_SECRET_BYTES = 500 * 1024;

/** `id=ID,src=FILE`, `id=ID,env=NAME`, or `id=ID`: the variable of that name, or else the file. */
export function parseSecrets(texts: readonly string[], context: Context): Map<string, SecretSource> {
  const secrets = new Map<string, SecretSource>();
  for (const text of texts) {
    const fields = parseFields("--secret", text);
    const take = (...names: readonly string[]) => {
      const found = names.find((name) => fields.has(name));
      const value = found === undefined ? undefined : fields.get(found);
      for (const name of names) fields.delete(name);
      return value;
    };
    const id = take("id") ?? "";
    const type = take("type");
    const file = take("src", "source");
    const variable = take("env");
    if (id === "" || fields.size > 0 || (file !== undefined && variable !== undefined)) {
      throw new UsageError(`--secret must be id=ID,src=FILE or id=ID,env=NAME, not ${JSON.stringify(text)}`);
    }
    const fromFile = file !== undefined || type === "file" || (variable ?? id) === "";
    const name = variable ?? (!fromFile && (type === "env" || context.environment[id] !== undefined) ? id : undefined);
    secrets.set(id, name === undefined ? secretFile(file ?? id, context) : secretVariable(name, context));
  }
  return secrets;
}

function secretVariable(name: string, { environment }: Context): SecretSource {
  const value = environment[name];
  if (value === undefined) throw new UsageError(`The environment has no ${name}, which --secret names`);
  return () => Promise.resolve(Buffer.from(value));
}

function secretFile(file: string, { directory }: Context): SecretSource {
  const path = resolve(directory, file);
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isFile() !== true) throw new UsageError(`There is no file ${JSON.stringify(file)}, which --secret names`);
  if (stat.size > MAX_SECRET_BYTES) {
    throw new UsageError(`The secret ${JSON.stringify(file)} is larger than ${MAX_SECRET_BYTES / 1024} KiB`);
  }
  return async () => readFileSync(path);
}

/** `default`, `ID` or `ID=SOCKET`: ssh agents by their sockets. */
export function parseSsh(texts: readonly string[], context: Context): Map<string, string> {
  const agents = new Map<string, string>();
  for (const text of texts) {
    const equals = text.indexOf("=");
    const id = equals === -1 ? text : text.slice(0, equals);
    const socket = equals === -1 ? context.environment["SSH_AUTH_SOCK"] : text.slice(equals + 1);
    if (socket === undefined || socket === "") {
      throw new UsageError(`--ssh ${id} needs an ssh agent: SSH_AUTH_SOCK is not set (eval "$(ssh-agent)"; ssh-add)`);
    }
    const path = resolve(context.directory, socket);
    if (statSync(path, { throwIfNoEntry: false })?.isSocket() !== true) {
      throw new UsageError(
        `--ssh takes the socket of an ssh agent, which ${JSON.stringify(socket)} is not; a key is given to one with ssh-add`,
      );
    }
    agents.set(id, path);
  }
  return agents;
}

/** `NAME:ADDRESS` or `NAME=ADDRESS`. @returns Lines of /etc/hosts. */
export function parseHosts(texts: readonly string[]): readonly string[] {
  return texts.map((text) => {
    const [, name = "", given = ""] = /^([^:=\s]+)[:=](.*)$/.exec(text) ?? [];
    const address = given.replace(/^\[(.*)\]$/, "$1");
    if (/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}$/.test(name) && isIP(address) !== 0 && !address.includes("%"))
      return `${address} ${name}`;
    const why =
      address === "host-gateway" ? "the host is not reached from a build's network" : "NAME:ADDRESS is wanted";
    throw new UsageError(`--add-host cannot be ${JSON.stringify(text)}: ${why}`);
  });
}

/** A context that is given a name, or an OCI layout to be imported for it. */
export type NamedSource = ContextSource | { readonly kind: "layout"; readonly path: string; readonly digest?: string };

/** What stands for files somewhere else: Docker takes `github.com/` for a repository, too. */
export function isRemoteContext(text: string): boolean {
  return /^(?:https?|git|ssh):\/\//.test(text) || /^git@[^/:]+:/.test(text) || text.startsWith("github.com/");
}

/** The URL of files somewhere else. */
export function remoteUrl(text: string): string {
  if (!text.startsWith("github.com/")) return text;
  const [, repository, fragment = ""] = /^([^#]*)(#.*)?$/s.exec(text) as unknown as [string, string, string?];
  return `https://${repository.replace(/(?:\.git)?\/?$/, ".git")}${fragment}`;
}

/** `NAME=DIRECTORY`, `NAME=docker-image://IMAGE`, `NAME=oci-layout://PATH` or `NAME=URL`. */
export function parseContexts(texts: readonly string[], { directory }: Context): Map<string, NamedSource> {
  const contexts = new Map<string, NamedSource>();
  for (const text of texts) {
    const equals = text.indexOf("=");
    const name = text.slice(0, Math.max(0, equals));
    const value = text.slice(equals + 1);
    if (name === "" || value === "")
      throw new UsageError(`--build-context must be NAME=PLACE, not ${JSON.stringify(text)}`);
    if (contexts.has(name)) throw new UsageError(`--build-context has ${JSON.stringify(name)} twice`);
    contexts.set(name, namedSource(value, directory));
  }
  return contexts;
}

function namedSource(value: string, directory: string): NamedSource {
  const image = /^(?:docker-image|container-image|docker):\/\/(.+)$/.exec(value)?.[1];
  if (image !== undefined) return { kind: "image", name: image };
  const layout = /^oci-layout:(?:\/\/)?(.+?)(?:@(sha256:[0-9a-f]{64}))?$/.exec(value);
  if (layout !== null) {
    const [, path = "", digest] = layout;
    return { kind: "layout", path: resolve(directory, path), ...(digest !== undefined && { digest }) };
  }
  if (isRemoteContext(value)) return { kind: "url", url: remoteUrl(value) };
  const path = resolve(directory, value);
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return { kind: "directory", directory: path };
  throw new UsageError(
    `--build-context: there is no directory ${JSON.stringify(value)}; an image is docker-image://NAME, a layout oci-layout://PATH`,
  );
}

/** `REFERENCE`, a path with a slash in front, or `type=registry,ref=…` and `type=local,dest=…` (or src) as BuildKit has them. */
export function parseCaches(option: string, texts: readonly string[], { directory }: Context): CachePlace[] {
  return texts.map((text) => {
    if (!text.includes("=")) {
      return /^\.{0,2}\//.test(text)
        ? { kind: "directory", path: resolve(directory, text) }
        : { kind: "registry", name: text };
    }
    const fields = parseFields(option, text);
    const type = fields.get("type") ?? (fields.has("ref") ? "registry" : "local");
    const path = fields.get("dest") ?? fields.get("src");
    const name = fields.get("ref");
    if (type === "registry" && name !== undefined && name !== "") return { kind: "registry", name };
    if (type === "local" && path !== undefined && path !== "")
      return { kind: "directory", path: resolve(directory, path) };
    throw new UsageError(`${option} must be a name, a path, or type=registry,ref=NAME, not ${JSON.stringify(text)}`);
  });
}

/** What is to become of what was built. */
export interface Outputs {
  readonly outputs: readonly BuildOutput[];
  /** Also under these names. */
  readonly names: readonly string[];
  readonly compression: "gzip" | "zstd" | "none" | undefined;
}

const compressions: Readonly<Record<string, "gzip" | "zstd" | "none">> = {
  gzip: "gzip",
  zstd: "zstd",
  uncompressed: "none",
};

/** `type=TYPE,dest=PATH`, or a path alone: a directory for the image's files. */
export function parseOutputs(texts: readonly string[], context: Context): Outputs {
  const outputs: BuildOutput[] = [];
  const names: string[] = [];
  let compression: Outputs["compression"];
  for (const text of texts) {
    const fields = parseOutput(text);
    const given = fields.get("compression");
    if (given !== undefined) {
      compression = Object.hasOwn(compressions, given) ? compressions[given] : undefined;
      if (compression === undefined)
        throw new UsageError(`An output's compression is gzip, zstd or uncompressed, not ${JSON.stringify(given)}`);
    }
    const name = fields.get("name");
    if (name !== undefined && name !== "") names.push(...name.split(","));
    const output = readOutput(text, fields, context);
    if (output !== undefined) outputs.push(output);
  }
  return { outputs, names, compression };
}

/** `-` is an archive on standard output, and what has neither a type nor several fields is a directory. */
function parseOutput(text: string): Map<string, string> {
  if (/^type=|[,"]/.test(text)) return parseFields("--output", text);
  const type = text === "-" ? "docker" : "local";
  return new Map(Object.entries({ type, dest: text }));
}

const known = new Set(["type", "dest", "tar", "push", "name", "compression"]);

function readOutput(text: string, fields: ReadonlyMap<string, string>, context: Context): BuildOutput | undefined {
  for (const key of fields.keys()) {
    if (!known.has(key)) throw new UsageError(`--output ${text}: there is no ${JSON.stringify(key)}`);
  }
  const dest = fields.get("dest");
  const path = () => {
    if (dest === undefined || dest === "") throw new UsageError(`--output ${text} needs a dest=PATH`);
    if (dest !== "-") return resolve(context.directory, dest);
    if (process.stdout.isTTY) throw new UsageError("An archive is nothing for a terminal: redirect the output");
    return process.stdout;
  };
  const type = fields.get("type") ?? "";
  switch (type) {
    case "image":
      return isTrue(fields.get("push")) ? { kind: "registry" } : undefined;
    case "registry":
      return { kind: "registry" };
    case "docker":
      return { kind: "docker", path: path() };
    case "tar":
      return { kind: "tar", path: path() };
    case "oci": {
      const to = path();
      if (isTrue(fields.get("tar") ?? "true") && !(typeof to === "string" && dest?.endsWith("/")))
        return { kind: "oci", path: to, isDirectory: false };
      if (typeof to !== "string") throw new UsageError("A directory cannot be written to standard output");
      return { kind: "oci", path: to, isDirectory: true };
    }
    case "local": {
      const directory = path();
      if (typeof directory !== "string") throw new UsageError("Files cannot be written to standard output");
      return { kind: "local", directory };
    }
    default:
      throw new UsageError(
        `--output has no type ${JSON.stringify(type)}; there are image, registry, oci, docker, tar and local`,
      );
  }
}

function isTrue(text: string | undefined): boolean {
  return text === "true" || text === "1" || text === "";
}
