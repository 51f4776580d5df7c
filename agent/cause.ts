/** What was thrown, as an Error: anything can be thrown, and system errors carry a `code`. */
export function asError(thrown: unknown): Error & { readonly code?: string } {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}
