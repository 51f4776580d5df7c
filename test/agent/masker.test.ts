import { describe, expect, test } from "vitest";
import { Masker, maskText, SecretIndex } from "../../agent/masker.ts";
import { secretForms } from "../../agent/secret-forms.ts";

/** What masking means, written as slowly and plainly as possible. */
function maskPlainly(text: Buffer, forms: readonly Uint8Array[]): string {
  const covered = Array.from(text, () => false);
  for (const form of forms) {
    for (let at = text.indexOf(form); at !== -1; at = text.indexOf(form, at + 1))
      covered.fill(true, at, at + form.length);
  }
  let out = "";
  for (let at = 0; at < text.length; at++) {
    if (!covered[at]) out += String.fromCharCode(text[at]!);
    else if (at === 0 || !covered[at - 1]) out += "***";
  }
  return out;
}

function maskInChunks(chunks: readonly Uint8Array[], index: SecretIndex): string {
  const masker = new Masker(index);
  let out = "";
  const emit = (bytes: Uint8Array) => (out += Buffer.from(bytes).toString("latin1"));
  for (const chunk of chunks) masker.write(chunk, emit);
  masker.end(emit);
  return out;
}

function pseudoRandom(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
}

describe("Masker", () => {
  test("hides a secret at every split in two and byte by byte", () => {
    const index = new SecretIndex(secretForms(["hunter2-hunter2"]));
    const text = Buffer.from("a hunter2-hunter2 b hunter2-hunter2hunter2-hunter2 hunter2-hunter");
    const want = "a *** b *** hunter2-hunter";
    for (let at = 0; at <= text.length; at++) {
      expect(maskInChunks([text.subarray(0, at), text.subarray(at)], index)).toBe(want);
    }
    expect(
      maskInChunks(
        [...text].map((byte) => Uint8Array.of(byte)),
        index,
      ),
    ).toBe(want);
  });

  test("covers secrets that overlap or contain each other", () => {
    const index = new SecretIndex([Buffer.from("abcdefgh"), Buffer.from("fghijklm"), Buffer.from("cdefgh")]);
    expect(maskInChunks([Buffer.from("1 abcdefghijklm 2 cdefgh 3")], index)).toBe("1 *** 2 *** 3");
  });

  test("agrees with the plain definition on small alphabets and random chunks", () => {
    for (let seed = 1; seed <= 300; seed++) {
      const random = pseudoRandom(seed * 7919);
      const word = (length: number) => Buffer.from(Array.from({ length }, () => 97 + Math.floor(random() * 2)));
      const forms = Array.from({ length: 1 + Math.floor(random() * 4) }, () => word(3 + Math.floor(random() * 6)));
      const text = word(200);
      const chunks: Buffer[] = [];
      for (let at = 0; at < text.length; ) {
        const length = Math.floor(random() * 12);
        chunks.push(text.subarray(at, at + length));
        at += length;
      }
      expect(maskInChunks(chunks, new SecretIndex(forms)), `seed ${seed}`).toBe(maskPlainly(text, forms));
    }
  });

  test("keeps nothing of a chunk, whose owner uses it again", () => {
    const masker = new Masker(new SecretIndex(secretForms(["hunter2-hunter2"])));
    const chunk = Buffer.from("hunter2-");
    const out: string[] = [];
    masker.write(chunk, (bytes) => out.push(Buffer.from(bytes).toString()));
    chunk.write("another!");
    masker.write(chunk, (bytes) => out.push(Buffer.from(bytes).toString()));
    masker.end((bytes) => out.push(Buffer.from(bytes).toString()));
    expect(out.join("")).toBe("hunter2-another!");
  });

  test("holds back only what may begin a secret", () => {
    const masker = new Masker(new SecretIndex(secretForms(["sesame-open"])));
    const out: string[] = [];
    masker.write(Buffer.from("progress 50% ses"), (bytes) => out.push(Buffer.from(bytes).toString()));
    expect(out.join("")).toBe("progress 50% ");
    masker.write(Buffer.from("sions\n"), (bytes) => out.push(Buffer.from(bytes).toString()));
    expect(out.join("")).toBe("progress 50% sessions\n");
  });
});

describe("secretForms", () => {
  const secret = "p@ss/wörd + ?more=<&>";
  const index = new SecretIndex(secretForms([secret]));

  test.each([
    ["as it is", secret],
    ["URL-encoded", encodeURIComponent(secret)],
    ["form-encoded", encodeURIComponent(secret).replaceAll("%20", "+")],
    ["base64", Buffer.from(secret).toString("base64")],
    ["base64url", Buffer.from(secret).toString("base64url")],
  ])("hides it %s", (_name, spelling) => {
    expect(maskText(`[${spelling}]`, index)).toBe("[***]");
  });

  test.each(["x", "xy", "xyz", "user:"])("hides it inside the base64 of a longer text behind %s", (before) => {
    const encoded = Buffer.from(`${before}${secret}${before}`).toString("base64");
    const masked = maskText(encoded, index);
    expect(masked).toContain("***");
    // At most the characters that share bits with the neighbours stay.
    expect(masked.length).toBeLessThanOrEqual(Buffer.from(before).toString("base64").length * 2 + 3 + 4);
  });

  test("hides the lines of a secret of several lines, not the armour of PEM", () => {
    const pem = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n";
    const lines = new SecretIndex(secretForms([pem]));
    expect(maskText("-----BEGIN KEY----- MIIEvQIBADANBg kqhkiG9w0BAQEF", lines)).toBe("-----BEGIN KEY----- *** ***");
    expect(maskText(`x ${pem}y`, lines)).toBe("x ***\ny");
  });

  test("leaves values of fewer than six characters alone", () => {
    expect(secretForms(["short", ""])).toEqual([]);
  });
});
