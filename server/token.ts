import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { join } from "node:path";

const alphabet = "0123456789abcdefghjkmnpqrstvwxyz";

/**
 * Makes an id that sorts by creation time: a letter for its kind, 10 characters of time, 8 random ones.
 *
 * Fit for URLs, file names and BullMQ job ids (no colon, never an integer). Not a secret.
 */
export function newId(kind: "r" | "d" | "b" | "a"): string {
  let id = "";
  for (let time = Date.now(), i = 0; i < 10; i++, time = Math.floor(time / 32)) id = alphabet[time % 32] + id;
  for (const byte of randomBytes(8)) id += alphabet[byte % 32];
  return kind + id;
}

/** Makes a secret of 256 bits. */
export function newToken(): string {
  return randomBytes(32).toString("base64url");
}

/** What the store keeps of a token: enough to recognise it, not enough to use it. */
export function hashToken(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}

/** Compares in a time that depends on neither where nor whether they differ, nor on the lengths. */
export function sameToken(given: string, expected: string): boolean {
  return timingSafeEqual(hashToken(given), hashToken(expected));
}

/** The value of the session cookie: follows from the admin token, so a new admin token ends every session. */
export function sessionValue(adminToken: string): string {
  return createHmac("sha256", adminToken).update("slipway session").digest("base64url");
}

/**
 * Reads the token kept in `<dir>/<name>`, or makes one there with mode 0600.
 *
 * @throws {Error} If the file is there but holds no usable token.
 */
export function keepToken(dir: string, name: string): string {
  const path = join(dir, name);
  try {
    const token = readFileSync(path, "utf8").trim();
    if (!/^[\w.~+/=-]{16,200}$/.test(token)) {
      throw new Error(
        `Cannot use "${path}": it must hold one token of 16 to 200 characters; delete it to get a new one`,
      );
    }
    return token;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  const token = newToken();
  // Written beside and renamed: a crash never leaves an empty token file.
  const fd = openSync(`${path}.new`, "w", 0o600);
  writeSync(fd, `${token}\n`);
  fsyncSync(fd);
  closeSync(fd);
  renameSync(`${path}.new`, path);
  return token;
}
