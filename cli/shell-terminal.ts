/** What a shell elsewhere has to know of this terminal. */
import type { Context } from "./verb.ts";

/** Its size in characters. */
export function terminalSize(): { readonly rows: number; readonly columns: number } {
  return { rows: process.stdout.rows || 24, columns: process.stdout.columns || 80 };
}

/** TERM, by which programs look up what they may send. */
export function terminalName({ environment }: Context): string {
  const term = environment["TERM"] ?? "";
  return /^[\w.+-]{1,64}$/.test(term) ? term : "xterm-256color";
}
