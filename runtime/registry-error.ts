/** What goes wrong between us and a registry. */

/** The registry cannot be reached, or does not do what the specification says: neither the user's fault nor ours. */
export class RegistryError extends Error {
  override readonly name = "RegistryError";
  /** Of its answer; absent if there was none. */
  readonly status?: number;
  /** Whether the same request may succeed later. */
  readonly transient: boolean;
  /** How long the registry asks to wait. */
  readonly retryAfterMs?: number;

  constructor(
    message: string,
    options: {
      readonly status?: number | undefined;
      readonly transient: boolean;
      readonly retryAfterMs?: number | undefined;
      readonly cause?: unknown;
    },
  ) {
    super(message, { cause: options.cause });
    if (options.status !== undefined) this.status = options.status;
    if (options.retryAfterMs !== undefined) this.retryAfterMs = options.retryAfterMs;
    this.transient = options.transient;
  }
}

/** Text of strangers for a message of ours: one line, no control characters, at most 300 characters. */
export function cleanText(text: string): string {
  // oxlint-disable-next-line no-control-regex
  const line = text.replaceAll(/[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+/g, " ").trim();
  return line.length > 300 ? `${line.slice(0, 300).toWellFormed()}…` : line;
}

/** Says in words why a connection failed, and whether trying again makes sense. */
export function connectionError(error: unknown, host: string): RegistryError {
  const { code = "", message } = error as NodeJS.ErrnoException;
  const permanent = (reason: string) => new RegistryError(reason, { transient: false, cause: error });
  const transient = (reason: string) => new RegistryError(reason, { transient: true, cause: error });
  if (error instanceof RegistryError) return error;
  if ((error as Error).name === "ForbiddenAddressError") return permanent(message);
  switch (code) {
    case "ENOTFOUND":
      return permanent(`there is no host "${host}"`);
    case "EAI_AGAIN":
      return transient(`the name "${host}" cannot be resolved at the moment`);
    case "ECONNREFUSED":
      return transient(`"${host}" refuses the connection`);
    case "ECONNRESET":
    case "EPIPE":
      return transient(`"${host}" broke the connection`);
    case "ETIMEDOUT":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return transient(`"${host}" cannot be reached (${code})`);
    case "EPROTO":
    case "ERR_SSL_WRONG_VERSION_NUMBER":
    case "ERR_SSL_PACKET_LENGTH_TOO_LONG":
      return permanent(
        `"${host}" does not speak TLS; where plain HTTP is wanted, the registries' settings must allow it for this host ("plainHttp": true)`,
      );
    case "HPE_HEADER_OVERFLOW":
      return permanent(`"${host}" sends more than ${MAX_HEADER_BYTES} bytes of headers`);
    default:
  }
  if (code.startsWith("HPE_")) return permanent(`"${host}" does not speak HTTP: ${cleanText(message)}`);
  if (isCertificateError(code)) {
    return permanent(
      `the certificate of "${host}" is not trusted: ${cleanText(message)}; its authority can be given in the registries' settings ("ca")`,
    );
  }
  return transient(`"${host}": ${cleanText(message)}`);
}

/** Node's own codes and OpenSSL's names of verification results. */
function isCertificateError(code: string): boolean {
  return /^(ERR_TLS_CERT|CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|HOSTNAME_MISMATCH|INVALID_CA)/.test(code);
}

/** What a registry may send in front of a body. */
export const MAX_HEADER_BYTES = 65_536;
