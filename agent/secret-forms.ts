/** The spellings of a secret that a log may show: as it is, line by line, JSON-, URL- and base64-encoded. */

/** Shorter values would turn ordinary words of a log into asterisks. */
export const secretMinimumCharacters = 6;

/**
 * Lists every byte string to mask for these values, without repeats.
 *
 * Values and derived forms of fewer than six characters are left out. Base64 is listed in its three alignments, so that a
 * secret in the middle of an encoded text (`user:password` of a basic authorization) is found as well.
 */
export function secretForms(values: readonly string[]): Uint8Array[] {
  const forms = new Map<string, Uint8Array>();
  for (const value of values) {
    for (const text of [value, ...lines(value)]) {
      const trimmed = text.replace(/[\r\n]+$/, "");
      if (trimmed.length < secretMinimumCharacters) continue;
      for (const form of spellings(trimmed)) {
        if (form.length < secretMinimumCharacters) continue;
        const bytes = Buffer.from(form, "utf8");
        forms.set(bytes.toString("latin1"), bytes);
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
  const percent = encodeURIComponent(text);
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
