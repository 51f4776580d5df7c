/** How git may reach a repository, taken apart so that no credential is ever on a command line or in a message. */
export interface CloneSource {
  /** What git gets as its URL: without credentials. */
  readonly url: string;
  /** Configuration for this one git process, handed over in its environment. */
  readonly config: Readonly<Record<string, string>>;
  /** What must never be printed. */
  readonly secrets: readonly string[];
}

/** The transports git may use, for GIT_ALLOW_PROTOCOL: everything else, `ext::` above all, runs programs. */
export const allowedTransports = "file:git:http:https:ssh";

/**
 * Checks a clone URL and parts its credentials from it.
 *
 * Accepted are http, https, ssh, git and file URLs, `user@host:path`, and absolute paths. Credentials of an http URL become
 * an `Authorization` header that is sent to that origin only.
 *
 * @throws {CloneUrlError} If git must not be given this.
 */
export function parseCloneUrl(cloneUrl: string): CloneSource {
  const refuse = (reason: string) =>
    new CloneUrlError(`Cannot use clone URL "${redactUrl(cloneUrl).slice(0, 200)}": ${reason}`);
  if (cloneUrl.length === 0 || cloneUrl.length > 2000) throw refuse("it must have 1 to 2000 characters");
  if (/[\s\p{Cc}]/u.test(cloneUrl)) throw refuse("it holds a space or a control character");
  if (cloneUrl.startsWith("-")) throw refuse("git would read it as an option");
  if (cloneUrl.startsWith("/")) return { url: cloneUrl, config: {}, secrets: [] };
  if (/^[\w.+-]+::/.test(cloneUrl)) throw refuse("remote helpers (`name::address`) are not allowed");
  if (!cloneUrl.includes("://")) {
    if (/^(?:[\w.+-]+@)?[A-Za-z0-9][\w.-]*:(?!-)\S+$/.test(cloneUrl)) return { url: cloneUrl, config: {}, secrets: [] };
    throw refuse("use an http, https, ssh, git or file URL, user@host:path, or an absolute path");
  }
  let url: URL;
  try {
    url = new URL(cloneUrl);
  } catch {
    throw refuse("it is not a URL");
  }
  const scheme = url.protocol.slice(0, -1);
  if (!allowedTransports.split(":").includes(scheme)) throw refuse(`"${scheme}" is not http, https, ssh, git or file`);
  if (scheme !== "file" && !/^[A-Za-z0-9[]/.test(url.hostname)) throw refuse("its host name is not one");
  if (url.username.startsWith("-")) throw refuse("its user name begins with a dash");
  if (url.username === "" && url.password === "") return { url: cloneUrl, config: {}, secrets: [] };
  if (scheme !== "http" && scheme !== "https") {
    if (url.password !== "") throw refuse(`a password cannot be used with ${scheme}; use a key`);
    return { url: cloneUrl, config: {}, secrets: [] };
  }
  return withoutCredentials(url);
}

/** Git must not be given this URL. */
export class CloneUrlError extends Error {
  override readonly name = "CloneUrlError";
}

/** Replaces the user and password in every URL of a text; an ssh user name alone is kept, it is no secret. */
export function redactUrl(text: string): string {
  return text
    .replaceAll(/\b(https?:\/\/)[^/?#\s"'@]*(?:@[^/?#\s"'@]*)*@/gi, "$1***@")
    .replaceAll(/\b([a-z][a-z0-9+.-]*:\/\/[^/?#\s"':@]*):[^/?#\s"'@]*@/gi, (whole, user: string) =>
      /^https?:/i.test(whole) ? whole : `${user}:***@`,
    );
}

/** Removes credentials from a text that came from git or a forge. */
export function redact(text: string, source: CloneSource): string {
  let clean = text;
  for (const secret of source.secrets) clean = clean.replaceAll(secret, "***");
  return redactUrl(clean);
}

function withoutCredentials(url: URL): CloneSource {
  const user = decode(url.username);
  const password = decode(url.password);
  const basic = Buffer.from(`${user}:${password}`).toString("base64");
  // A lone user name over http is a token (https://TOKEN@host/…): as secret as a password.
  const secrets = password === "" ? [url.username, user] : [url.password, password];
  url.username = "";
  url.password = "";
  return {
    url: url.href,
    config: { [`http.${url.origin}/.extraHeader`]: `Authorization: Basic ${basic}` },
    secrets: [...new Set([...secrets, basic])].filter((secret) => secret.length >= 4),
  };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
