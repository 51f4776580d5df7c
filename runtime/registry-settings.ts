/** What an agent is told about registries: mirrors, certificates, where plain HTTP is allowed, credentials. */
import { readFileSync } from "node:fs";
import { isAbsolute } from "node:path";
import { z } from "zod";

/** How to prove who one is. */
export type Credentials =
  | { readonly username: string; readonly password: string }
  /** A refresh token, as `docker login` leaves it for some registries. */
  | { readonly identityToken: string }
  /** Sent to the registry as it is. */
  | { readonly registryToken: string };

const hostSettings = z.strictObject({
  /** `mirror.example:5000` or with a path in front of every repository: `mirror.example/docker-hub`. Tried in order. */
  mirrors: z.array(z.string().regex(/^[^/\s]+(\/[^\s]+)?$/, "is not HOST or HOST/PATH")).optional(),
  /** A file of PEM certificates trusted for this host, besides the usual ones. */
  ca: z.string().refine(isAbsolute, "is not an absolute path").optional(),
  /** Talks HTTP to this host, unencrypted: whoever is in between reads and changes everything. */
  plainHttp: z.boolean().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  /** A file that holds the password. */
  passwordFile: z.string().refine(isAbsolute, "is not an absolute path").optional(),
});

/** What is said about one host. */
export type HostSettings = z.infer<typeof hostSettings>;

const settingsFile = z.record(z.string(), hostSettings);

/** All that is said about registries. */
export interface RegistrySettings {
  /** By host, with a port where the reference has one. Being listed also allows a host to be on this machine. */
  readonly hosts?: Readonly<Record<string, HostSettings>>;
  /** The `config.json` of `docker login`; need not exist. */
  readonly dockerConfig?: string;
  /** PATH and HOME for credential helpers; HTTPS_PROXY, HTTP_PROXY and NO_PROXY. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
}

/**
 * Reads the file in which an administrator says what holds for which registry.
 *
 * @param options.mustExist Whether a missing file is an error, and not an empty one. @default false
 * @throws {Error} Naming the first thing that is wrong in it.
 */
export function readRegistrySettings(
  path: string,
  options: { readonly mustExist?: boolean } = {},
): NonNullable<RegistrySettings["hosts"]> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT" && options.mustExist !== true) return {};
    throw new Error(`Cannot read the registries' settings: ${(error as Error).message}`, { cause: error });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`Cannot use the registries' settings "${path}": not JSON: ${(error as Error).message}`, {
      cause: error,
    });
  }
  const parsed = settingsFile.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new Error(
    `Cannot use the registries' settings "${path}": at ${issue?.path.map(String).join(" → ") || "the top"}: ${issue?.message}`,
  );
}
