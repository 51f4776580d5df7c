/** The keys with which secrets are sealed in the store: AES-256-GCM, each under a nonce of its own. */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";

const keyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;

/** A value as the store keeps it: nonce, tag, ciphertext. */
export interface Sealed {
  readonly keyId: string;
  readonly sealed: Uint8Array;
}

/** It cannot be opened: the key is not here, or it is not what was sealed for this place. */
export class SealError extends Error {
  override readonly name = "SealError";
}

export class SecretKeys {
  readonly #keys: ReadonlyMap<string, Buffer>;
  /** The id of the key that seals: the file's first. */
  readonly currentId: string;

  /** @param keys The first seals, all open. @throws {Error} If there is none. */
  constructor(keys: readonly Buffer[]) {
    this.#keys = new Map(keys.map((key) => [idOf(key), key]));
    const [first] = this.#keys.keys();
    if (first === undefined) throw new Error("There is no key for secrets");
    this.currentId = first;
  }

  /**
   * Reads a file with a key a line, base64 or hexadecimal; lines that begin with `#` are comments.
   *
   * @param options.make Makes the file, mode 0600, with a new key, if there is none.
   * @throws {Error} Saying what is wrong with the file, without what is in it.
   */
  static read(path: string, options: { readonly make: boolean }): SecretKeys {
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== "ENOENT" || !options.make) {
        throw new Error(`Cannot read the key for secrets: ${message}`, { cause: error });
      }
      text = writeKey(path);
    }
    const lines = text.split(/\r?\n/).map((line) => line.trim());
    const keys = lines.flatMap((line, index) => {
      if (line === "" || line.startsWith("#")) return [];
      const key = /^[0-9a-f]{64}$/i.test(line) ? Buffer.from(line, "hex") : readBase64(line);
      if (key?.length === keyBytes) return [key];
      const form = "a key is 32 bytes in base64 or hexadecimal (openssl rand -base64 32)";
      throw new Error(`Cannot use the key for secrets "${path}": line ${index + 1} holds no key; ${form}`);
    });
    if (keys.length === 0) throw new Error(`Cannot use the key for secrets "${path}": there is no key in it`);
    return new SecretKeys(keys);
  }

  /** @param place What the value is for: it can be opened for nothing else. */
  seal(value: Uint8Array, place: string): Sealed {
    const nonce = randomBytes(nonceBytes);
    const cipher = createCipheriv("aes-256-gcm", this.#keys.get(this.currentId) as Buffer, nonce);
    cipher.setAAD(Buffer.from(place));
    const content = Buffer.concat([cipher.update(value), cipher.final()]);
    return { keyId: this.currentId, sealed: Buffer.concat([nonce, cipher.getAuthTag(), content]) };
  }

  /** @throws {SealError} */
  open({ keyId, sealed }: Sealed, place: string): Buffer {
    const key = this.#keys.get(keyId);
    if (key === undefined) throw new SealError(`it is sealed with the key ${keyId}, which the server does not have`);
    const bytes = Buffer.from(sealed);
    try {
      const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(0, nonceBytes), { authTagLength: tagBytes });
      decipher.setAAD(Buffer.from(place));
      decipher.setAuthTag(bytes.subarray(nonceBytes, nonceBytes + tagBytes));
      return Buffer.concat([decipher.update(bytes.subarray(nonceBytes + tagBytes)), decipher.final()]);
    } catch (error) {
      throw new SealError("it is damaged, or was changed or moved in the database", { cause: error });
    }
  }
}

/** Recognises a key and tells nothing of it. */
function idOf(key: Buffer): string {
  return createHash("sha256").update("slipway secret key\0").update(key).digest("hex").slice(0, 12);
}

function readBase64(line: string): Buffer | undefined {
  return /^[A-Za-z0-9+/_-]{43}=?$/.test(line) ? Buffer.from(line, "base64") : undefined;
}

/** Written beside and renamed: a crash never leaves half a key, and secrets sealed with it. */
function writeKey(path: string): string {
  const text = `${randomBytes(keyBytes).toString("base64")}\n`;
  const fd = openSync(`${path}.new`, "w", 0o600);
  writeSync(fd, text);
  fsyncSync(fd);
  closeSync(fd);
  renameSync(`${path}.new`, path);
  return text;
}
