/** Answers a request with a status and one sentence; thrown by handlers, sent by the server's error handler. */
export class HttpError extends Error {
  override readonly name = "HttpError";
  readonly statusCode: number;
  /** More fields of the answer's JSON object. */
  readonly fields: Readonly<Record<string, unknown>>;

  constructor(statusCode: number, message: string, fields: Readonly<Record<string, unknown>> = {}) {
    super(message);
    this.statusCode = statusCode;
    this.fields = fields;
  }
}
