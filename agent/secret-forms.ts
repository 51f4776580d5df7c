/** The spellings of a secret that a log may show: as it is, line by line, JSON-, URL- and base64-encoded. */

import { LIMITS, secretText } from "../pipelines/index.ts";

const { secretMinCharacters } = LIMITS;

/** Longer values are looked for piece by piece: a search costs what its longest pattern has. A multiple of three, for base64. */
const pieceLength = 3072;
/** Of one value, in all spellings; so many more as they are. */
const spelledLines = 200;
const plainLines = 1000;

/**
 * Lists every byte string to mask for these values, without repeats.
 *
 * Values and derived forms of fewer than six characters are left out. Base64 is listed in its three alignments, so that a
 * secret in the middle of an encoded text (`user:password` of a basic authorization) is found as well. Bytes that are no text are
 * looked for as they are and in base64.
 */
export function secretForms(values: readonly (string | Uint8Array)[]): Uint8Array[] {
  const forms = new Map<string, Uint8Array>();
  const add = (form: Uint8Array) => {
    if (form.length >= secretMinCharacters) forms.set(Buffer.from(form).toString("latin1"), form);
  };
  for (const value of values) {
    const text = typeof value === "string" ? value : secretText(value);
    if (text === undefined) {
      for (let at = 0; at < value.length; at += pieceLength) {
        const piece = Buffer.from((value as Uint8Array).subarray(at, at + pieceLength));
        add(piece);
        for (const form of base64Forms(piece)) if (form.length >= secretMinCharacters) add(Buffer.from(form));
      }
      continue;
    }
    for (const [index, part] of [text, ...lines(text)].slice(0, plainLines + 1).entries()) {
      const trimmed = part.replace(/[\r\n]+$/, "");
      if (trimmed.length < secretMinCharacters) continue;
      for (let at = 0; at < trimmed.length; at += pieceLength) {
        const piece = trimmed.slice(at, at + pieceLength);
        const spelled = index <= spelledLines ? spellings(piece) : [piece];
        for (const form of spelled) if (form.length >= secretMinCharacters) add(Buffer.from(form));
      }
    }
  }
  return [...forms.values()];
}

/** A shell that expands a secret unquoted prints its lines apart. PEM's own lines are no secret. */
function lines(value: string): string[] {
  const parts = value.split(/[\r\n]+/);
  return parts.length > 1 ? parts.filter((line) => !line.startsWith("-----")) : [];
}

function spellings(text: string): string[] {
  const percent = encodeURIComponent(text.toWellFormed());
  return [
    text,
    JSON.stringify(text).slice(1, -1),
    percent,
    // RFC 3986 §2.2 reserves these, encodeURIComponent leaves them; curl and Python encode them.
    percent.replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`),
    percent.replace(/%[0-9A-F]{2}/g, (escape) => escape.toLowerCase()),
    percent.replaceAll("%20", "+"),
    ...base64Forms(Buffer.from(text, "utf8")),
  ];
}

function base64Forms(secret: Buffer): string[] {
  const forms = [secret.toString("base64"), secret.toString("base64url")];
  for (const shift of [0, 1, 2]) {
    const bytes = Buffer.concat([Buffer.alloc(shift), secret]);
    // Only characters whose six bits all come from the secret are the same whatever stands around it.
    const first = Math.ceil((shift * 8) / 6);
    const end = Math.floor((bytes.length * 8) / 6);
    const encoded = bytes.toString("base64").slice(first, end);
    forms.push(encoded, encoded.replaceAll("+", "-").replaceAll("/", "_"));
  }
  return forms;
}
