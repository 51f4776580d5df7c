/** Why something is stopped, as the reason of its AbortSignal. */

/** The job's own time limit. */
export class JobTimeout extends Error {
  override readonly name = "JobTimeout";
}

/** A service of the job has ended before its time. */
export class ServiceFailure extends Error {
  override readonly name = "ServiceFailure";
  /** Whose failure it is: the user's, or ours. */
  readonly status: "failure" | "error";

  constructor(message: string, status: "failure" | "error") {
    super(message);
    this.status = status;
  }
}

/** The sentence that came with an abort. */
export function abortReason(signal: AbortSignal): string {
  const reason: unknown = signal.reason;
  if (reason instanceof DOMException && reason.name === "AbortError") return "canceled";
  if (reason instanceof Error) return reason.message;
  return typeof reason === "string" && reason !== "" ? reason : "canceled";
}
