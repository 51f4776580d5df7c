/** Where the server of a data directory listens, so that `slipway build list` on the same machine needs no address. */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const fileName = "server-url";

/** Writes down the address of the running server. */
export function rememberServerUrl(dataDir: string, url: string): void {
  writeFileSync(join(dataDir, fileName), `${url}\n`);
}

/** Called when the server stops. */
export function forgetServerUrl(dataDir: string): void {
  rmSync(join(dataDir, fileName), { force: true });
}

/** The address written down last, or undefined. It may be out of date: a killed server forgets nothing. */
export function recallServerUrl(dataDir: string): string | undefined {
  try {
    return readFileSync(join(dataDir, fileName), "utf8").trim() || undefined;
  } catch {
    return undefined;
  }
}
