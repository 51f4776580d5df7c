/** Where a Redis is, parsed out of a URL or a socket path. */
export interface RedisAddress {
  /** Safe to print: no user, no password. */
  readonly display: string;
  /** Absolute path of a Unix socket; otherwise `host` and `port` are set. */
  readonly path?: string;
  readonly host?: string;
  readonly port?: number;
  readonly tls: boolean;
  readonly username?: string;
  readonly password?: string;
  readonly db: number;
}

/** `sun_path` has 108 bytes and ends with a zero, unix(7). */
export const maxSocketPathBytes = 107;

const forms = "redis://host:6379, rediss://host:6379, unix:///path/to/socket or /path/to/socket";

/**
 * Parses `redis://[user:password@]host[:port][/db]`, `rediss://…` (TLS), `unix://[user:password@]/path[?db=n]` or an
 * absolute path.
 *
 * @throws {Error} If it is none of these; the text never holds what stands before an `@`.
 */
export function parseRedisAddress(address: string): RedisAddress {
  if (address.startsWith("/")) return socketAddress(address, address, 0, {});
  const shown = withoutCredentials(address);
  if (/^unix:/i.test(address)) return parseSocketUrl(address, shown);
  const url = URL.parse(address);
  if (url === null) throw invalid(shown, "it is not a URL");
  switch (url.protocol) {
    case "redis:":
    case "rediss:": {
      if (url.hostname === "") throw invalid(shown, "it names no host");
      const port = url.port === "" ? 6379 : Number(url.port);
      const db = database(url.pathname.replace(/^\//, "") || (url.searchParams.get("db") ?? ""), shown);
      return {
        display: `${url.protocol}//${url.hostname}:${port}${db === 0 ? "" : `/${db}`}`,
        host: url.hostname.replace(/^\[(.*)\]$/, "$1"),
        port,
        tls: url.protocol === "rediss:",
        ...credentials(url.username, url.password, shown),
        db,
      };
    }
    default:
      throw invalid(shown, `"${url.protocol}" is not a known scheme`);
  }
}

/** By hand: to a URL parser credentials without a host are an error. */
function parseSocketUrl(address: string, shown: string): RedisAddress {
  const parts = /^unix:\/\/(?:(?<user>[^:@/]*)(?::(?<password>[^@/]*))?@)?(?<path>\/[^?]*)(?:\?(?<query>.*))?$/i.exec(
    address,
  );
  if (parts?.groups === undefined) {
    throw invalid(shown, "a socket path is absolute, so there are three slashes after unix:");
  }
  const { user = "", password = "", path = "", query = "" } = parts.groups;
  const db = database(new URLSearchParams(query).get("db") ?? "", shown);
  return socketAddress(decode(path, shown), shown, db, credentials(user, password, shown));
}

function credentials(username: string, password: string, shown: string): { username?: string; password?: string } {
  return {
    ...(username === "" ? {} : { username: decode(username, shown) }),
    ...(password === "" ? {} : { password: decode(password, shown) }),
  };
}

/** Replaces everything between `//` and the last `@` of its authority, also in text that is no valid URL. */
function withoutCredentials(address: string): string {
  const display = address.replace(/^([a-z+.-]*:?\/\/)?[^/]*(?:\/[^@]*)?@/i, "$1");
  return display.replace(/\?.*$/s, "").slice(0, 200);
}

function socketAddress(
  path: string,
  shown: string,
  db: number,
  login: { username?: string; password?: string },
): RedisAddress {
  const bytes = Buffer.byteLength(path);
  if (bytes > maxSocketPathBytes) {
    throw invalid(shown, `a Unix socket's path has at most ${maxSocketPathBytes} bytes, this one has ${bytes}`);
  }
  return { display: `unix://${path}`, path, tls: false, ...login, db };
}

function database(text: string, shown: string): number {
  if (text === "") return 0;
  if (!/^\d{1,5}$/.test(text)) throw invalid(shown, `the database "${text.slice(0, 20)}" is not a number`);
  return Number(text);
}

function decode(text: string, shown: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(shown, "it has a % that is not followed by two hexadecimal digits");
  }
}

function invalid(shown: string, reason: string): Error {
  return new Error(`Cannot use the Redis address "${shown}": ${reason}; give one like ${forms}`);
}
