/**
 * The commit could not be checked out. The message is for the build's page: no credentials, no control characters.
 *
 * `status` says whose matter it is. `failure`: the repository's; trying again will not help (the commit does not exist, a
 * submodule is missing or not allowed, git refuses a path). `error`: Slipway's or its operator's (the host is away or refuses the
 * credentials, time ran out, the disk is full).
 */
export class CheckoutError extends Error {
  override readonly name = "CheckoutError";
  readonly status: "failure" | "error";

  constructor(status: "failure" | "error", message: string, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
  }
}
