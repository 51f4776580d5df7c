/** Why something is stopped, as the reason of its AbortSignal. */

/** The job's own time limit. */
export class JobTimeout extends Error {
  override readonly name = "JobTimeout";
}

/** The sentence that came with an abort. */
export function abortReason(signal: AbortSignal): string {
  const reason: unknown = signal.reason;
  if (reason instanceof DOMException && reason.name === "AbortError") return "canceled";
  if (reason instanceof Error) return reason.message;
  return typeof reason === "string" && reason !== "" ? reason : "canceled";
}
