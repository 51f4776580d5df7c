/** What can be a secret at all. */
import { LIMITS } from "./limits.ts";
import { formatBytes } from "./quantity.ts";

/** Bytes as text; undefined for what is not UTF-8. */
export function secretText(value: Uint8Array): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
  } catch {
    return undefined;
  }
}

/** Why bytes can be no secret, if so: what it has, and how to mend it; without the value. */
export function checkSecretValue(value: Uint8Array): string | undefined {
  if (value.length > LIMITS.secretBytes) {
    const most = formatBytes(LIMITS.secretBytes);
    return `has ${formatBytes(value.length)}; at most ${most} are allowed: keep data elsewhere, encrypted with a secret`;
  }
  const { length } = Array.from(secretText(value)?.trimEnd() ?? Buffer.from(value).toString("latin1"));
  if (length >= LIMITS.secretMinCharacters) return undefined;
  const has = length === 1 ? "1 character" : `${length} characters`;
  return `has ${has}; below ${LIMITS.secretMinCharacters} it cannot be masked without making logs unreadable: choose a longer one`;
}
