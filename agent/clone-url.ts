/** How git may reach a repository: checked, and with the credentials taken out of the URL. */

export type Transport = "file" | "git" | "http" | "https" | "ssh";

export interface CloneUrl {
  readonly transport: Transport;
  /** For git's command line, a configuration file or a message: no password and no token. An ssh user name is neither. */
  readonly url: string;
  /** What was given, credentials included; relative submodule URLs are resolved against it. */
  readonly original: string;
  /** `Authorization: Basic …`, for `http.<origin>/.extraHeader` of one git process. */
  readonly header?: { readonly origin: string; readonly value: string };
  /** Git finds no credentials of the agent's either. */
  readonly isAnonymous?: true;
  /** What must never be printed. */
  readonly secrets: readonly string[];
}

/** Git must not be given this URL. The message holds no credentials. */
export class CloneUrlError extends Error {
  override readonly name = "CloneUrlError";
}

/**
 * Checks a clone URL. Accepted are http, https, ssh, git and file URLs, `user@host:path`, and absolute paths.
 *
 * @throws {CloneUrlError} For everything else: `ext::sh -c …` and its kin run programs, `-…` is an option to git.
 */
export function parseCloneUrl(text: string): CloneUrl {
  const refuse = (why: string) => new CloneUrlError(`Cannot use the URL "${redactUrls(text).slice(0, 200)}": ${why}`);
  if (text.length === 0 || text.length > 2000) throw refuse("a URL has 1 to 2000 characters");
  if (/[\p{Cc}\s]/u.test(text)) throw refuse("it contains a space or a control character");
  if (text.startsWith("-")) throw refuse("git would take it for an option");
  if (/^[\w.+-]*::/.test(text)) throw refuse("git would run a remote helper for it");
  const plain = { url: text, original: text, secrets: [] };
  if (text.startsWith("/")) return { transport: "file", ...plain };
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase();
  if (scheme === undefined) {
    // scp-like. The host may not begin with a dash, nor the path: both become arguments of ssh.
    if (/^(?:[\w.+][\w.+-]*@)?(?:[\w][\w.-]*|\[[0-9a-f:.%]+\]):(?!-).+$/i.test(text))
      return { transport: "ssh", ...plain };
    throw refuse("it is no http, https, ssh, git or file URL, no user@host:path and no absolute path");
  }
  switch (scheme) {
    case "file":
      // The empty host is this machine; git ignores any other and would open the path here.
      if (!text.slice("file://".length).startsWith("/")) throw refuse("a file URL has three slashes");
      return { transport: "file", ...plain };
    case "http":
    case "https":
    case "git":
    case "ssh":
      return parseNetworkUrl(text, scheme, refuse);
    default:
      throw refuse(`the transport "${scheme}" is not allowed; http, https, ssh, git and file are`);
  }
}

function parseNetworkUrl(
  text: string,
  transport: Exclude<Transport, "file">,
  refuse: (why: string) => CloneUrlError,
): CloneUrl {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw refuse("it is no URL");
  }
  if (!/^[\w[]/.test(url.hostname)) throw refuse("it has no host name");
  if (decode(url.username).startsWith("-")) throw refuse("its user name begins with a dash");
  if (transport === "ssh" || transport === "git") {
    if (url.password !== "") throw refuse(`git sends no password over ${transport}; use a key`);
    return { transport, url: text, original: text, secrets: [] };
  }
  const [user, password] = [decode(url.username), decode(url.password)];
  const encoded = [url.username, url.password];
  url.username = "";
  url.password = "";
  if (user === "" && password === "") return { transport, url: text, original: text, secrets: [] };
  const basic = Buffer.from(`${user}:${password}`).toString("base64");
  // A user name alone is a token (https://TOKEN@host/…) and as secret as a password.
  const secrets = password === "" ? [user, encoded[0]!, basic] : [password, encoded[1]!, basic];
  return {
    transport,
    url: url.href,
    original: text,
    header: { origin: url.origin, value: `Authorization: Basic ${basic}` },
    secrets: [...new Set(secrets)].filter((secret) => secret.length >= 4),
  };
}

/**
 * The same place, reached as anybody reaches it.
 *
 * @throws {CloneUrlError} If only the agent gets there: by its ssh keys, or on its machine.
 */
export function withoutCredentials({ transport, url }: CloneUrl): CloneUrl {
  if (transport === "ssh" || transport === "file") {
    const why = transport === "ssh" ? "the agent's keys are not used" : "the agent's files are not read";
    throw new CloneUrlError(`Cannot use the URL "${redactUrls(url).slice(0, 200)}": ${why} for a stranger's commit`);
  }
  return { transport, url, original: url, isAnonymous: true, secrets: [] };
}

/**
 * Finds where a submodule is, as `git submodule` does: a URL that begins with `./` or `../` is relative to its parent's, and
 * then keeps the parent's credentials. All others get none.
 *
 * @throws {CloneUrlError} If it is not allowed: only a parent on this machine may have a submodule on this machine.
 */
export function resolveSubmoduleUrl(parent: CloneUrl, url: string): CloneUrl {
  const resolved = parseCloneUrl(/^\.\.?\//.test(url) ? resolveRelative(parent.original, url) : url);
  if (resolved.transport === "file" && parent.transport !== "file") {
    throw new CloneUrlError(
      `Cannot use the submodule URL "${redactUrls(url).slice(0, 200)}": it names a directory of the agent's machine`,
    );
  }
  return resolved;
}

function resolveRelative(parent: string, relative: string): string {
  let base = parent.replace(/\/+$/, "");
  let rest = relative;
  for (;;) {
    if (rest.startsWith("./")) rest = rest.slice(2);
    else if (rest.startsWith("../")) {
      rest = rest.slice(3);
      base = dropLastPart(base, relative);
    } else break;
  }
  return base.endsWith(":") ? `${base}${rest}` : `${base}/${rest}`;
}

function dropLastPart(base: string, relative: string): string {
  const pathStart = /^[a-z][a-z0-9+.-]*:\/\/[^/]*/i.exec(base)?.[0].length ?? (base.startsWith("/") ? 0 : undefined);
  const slash = base.lastIndexOf("/");
  if (pathStart !== undefined && slash >= pathStart && base.length > pathStart) return base.slice(0, slash);
  if (pathStart === undefined && slash > 0) return base.slice(0, slash);
  // user@host:name has no slash left: what is beside `name` is at the colon.
  const colon = base.indexOf(":");
  if (pathStart === undefined && colon > 0 && colon < base.length - 1) return base.slice(0, colon + 1);
  throw new CloneUrlError(
    `Cannot use the submodule URL "${relative.slice(0, 200)}": it leads out of its parent's host`,
  );
}

/** Replaces user and password in every URL of a text; an ssh user name alone stays. */
export function redactUrls(text: string): string {
  return text
    .replaceAll(/\b(https?:\/\/)[^/?#\s"'@]*(?:@[^/?#\s"'@]*)*@/gi, "$1***@")
    .replaceAll(/\b((?!https?:)[a-z][a-z0-9+.-]*:\/\/[^/?#\s"':@]*):[^/?#\s"'@]*@/gi, "$1:***@");
}

/** Removes a URL's credentials from a text that came from git. */
export function redact(text: string, { secrets }: Pick<CloneUrl, "secrets">): string {
  return redactUrls(secrets.reduce((clean, secret) => clean.replaceAll(secret, "***"), text));
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
