/** Who we are for a registry: the settings, `docker login`'s file, credential helpers. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { z } from "zod";
import { cleanText } from "./registry-error.ts";
import { dockerHub } from "./registry-reference.ts";
import type { Credentials, RegistrySettings } from "./registry-settings.ts";

const authSchema = z.object({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
});
type Auth = z.infer<typeof authSchema>;

const configSchema = z.object({
  auths: z.record(z.string(), authSchema).nullish(),
  credHelpers: z.record(z.string(), z.string()).nullish(),
  credsStore: z.string().nullish(),
});

/** The address under which Docker keeps what belongs to its own registry. */
const dockerHubKey = "https://index.docker.io/v1/";
const HELPER_TIMEOUT_MS = 30_000;
const MAX_HELPER_BYTES = 1 << 20;
const MAX_CONFIG_BYTES = 1 << 20;

/**
 * Finds the credentials for a repository: what the settings say of the host, else what `docker login` has left.
 *
 * The file is read anew each time: tokens in it are renewed from outside.
 *
 * @param registry As in a reference: `docker.io`.
 * @returns undefined if there are none: then the registry is asked as nobody.
 * @throws {Error} If the settings, the file or the helper are broken: falling back to nobody would hide that.
 */
export async function findCredentials(
  settings: RegistrySettings,
  registry: string,
  repository: string,
): Promise<Credentials | undefined> {
  const host = settings.hosts?.[registry];
  if (host?.username !== undefined) {
    const password = host.passwordFile === undefined ? host.password : readFileSync(host.passwordFile, "utf8").trim();
    return { username: host.username, password: password ?? "" };
  }
  if (settings.dockerConfig === undefined) return undefined;
  const config = readConfig(settings.dockerConfig);
  if (config === undefined) return undefined;
  const key = registry === dockerHub ? dockerHubKey : registry;
  const helper = config.credHelpers?.[registry] ?? config.credHelpers?.[key] ?? config.credsStore ?? undefined;
  const helped = helper ? await askHelper(helper, key, settings.environment) : undefined;
  if (helped !== undefined) return helped;
  const auth = findAuth(config.auths ?? {}, registry, repository);
  return auth === undefined ? undefined : readAuth(auth, registry, settings.dockerConfig);
}

function readConfig(path: string): z.infer<typeof configSchema> | undefined {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new Error(`Cannot read the registries' credentials: ${message}`, { cause: error });
  }
  if (text.length > MAX_CONFIG_BYTES)
    throw new Error(`Cannot use the registries' credentials "${path}": it is too large`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    // The parser's message would quote the file.
    throw new Error(`Cannot use the registries' credentials "${path}": it is not JSON`, { cause: error });
  }
  const parsed = configSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new Error(
    `Cannot use the registries' credentials "${path}": at ${issue?.path.map(String).join(" → ")}: ${issue?.message}`,
  );
}

/** The most particular entry: Podman's file may name repositories and parts of them. */
function findAuth(auths: Readonly<Record<string, Auth>>, registry: string, repository: string): Auth | undefined {
  const names = new Map(Object.entries(auths).map(([key, auth]) => [hostAndPath(key), auth]));
  const parts = [registry, ...repository.split("/")];
  for (let length = parts.length; length > 0; length--) {
    const auth = names.get(parts.slice(0, length).join("/"));
    if (auth !== undefined && Object.keys(auth).length > 0) return auth;
  }
  return undefined;
}

/** `https://registry.example/v2/` and `registry.example` are the same; Docker's own has several addresses. */
function hostAndPath(key: string): string {
  const plain = key.replace(/^https?:\/\//, "").replace(/\/(v[12]\/?)?$/, "");
  return plain.replace(/^(index\.docker\.io|registry-1\.docker\.io)(?=\/|$)/, dockerHub);
}

function readAuth(auth: Auth, registry: string, path: string): Credentials | undefined {
  if (auth.identitytoken) return { identityToken: auth.identitytoken };
  if (auth.registrytoken) return { registryToken: auth.registrytoken };
  if (auth.auth) {
    const decoded = Buffer.from(auth.auth, "base64").toString("utf8").replace(/\0+$/, "");
    const colon = decoded.indexOf(":");
    if (colon < 1) throw new Error(`Cannot use the registries' credentials "${path}": "auth" of ${registry} is broken`);
    return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  return auth.username === undefined ? undefined : { username: auth.username, password: auth.password ?? "" };
}

const helperAnswer = z.object({ Username: z.string(), Secret: z.string() });

/**
 * Asks `docker-credential-NAME get`.
 *
 * @see {@link https://github.com/docker/docker-credential-helpers}
 */
async function askHelper(
  name: string,
  server: string,
  environment: RegistrySettings["environment"] = {},
): Promise<Credentials | undefined> {
  const fail = (why: string): never => {
    throw new Error(`Cannot ask the credential helper "docker-credential-${cleanText(name)}" for "${server}": ${why}`);
  };
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) fail("that is no name of a program");
  const { code, output, error } = await runHelper(`docker-credential-${name}`, server, environment);
  if (error !== undefined) return fail(error);
  if (code !== 0) {
    // The protocol's only way to say that there are none.
    if (/credentials not found/i.test(output)) return undefined;
    return fail(cleanText(output) || `it ended with exit code ${code}`);
  }
  let answer: z.infer<typeof helperAnswer>;
  try {
    answer = helperAnswer.parse(JSON.parse(output));
  } catch {
    return fail("its answer is not what the protocol says");
  }
  if (answer.Username === "<token>") return { identityToken: answer.Secret };
  return { username: answer.Username, password: answer.Secret };
}

function runHelper(
  program: string,
  input: string,
  environment: Readonly<Record<string, string | undefined>>,
): Promise<{ readonly code: number | null; readonly output: string; readonly error?: string }> {
  const { promise, resolve } = Promise.withResolvers<{ code: number | null; output: string; error?: string }>();
  const child = spawn(program, ["get"], {
    env: { ...environment },
    stdio: ["pipe", "pipe", "ignore"],
    timeout: HELPER_TIMEOUT_MS,
    killSignal: "SIGKILL",
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    output += chunk;
    if (output.length > MAX_HELPER_BYTES) child.kill("SIGKILL");
  });
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  child.once("error", (error: NodeJS.ErrnoException) =>
    resolve({ code: null, output, error: error.code === "ENOENT" ? "it is not in PATH" : error.message }),
  );
  child.once("close", (code, signal) =>
    resolve({ code, output, ...(signal === null ? {} : { error: `it was killed by ${signal}` }) }),
  );
  return promise;
}
