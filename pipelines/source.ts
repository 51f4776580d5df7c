/** The text of a pipeline file, checked and divided into lines. */
import { isUtf8 } from "node:buffer";
import { LIMITS } from "./limits.ts";
import { formatBytes } from "./quantity.ts";

/** A half-open range of UTF-16 code units in the text. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** Why the bytes are not text that YAML allows. */
export interface SourceFault {
  readonly span: Span;
  readonly message: string;
  readonly suggestion?: string;
}

/** What YAML forbids (c-printable, YAML 1.2.2 §5.1), and a carriage return that ends no line. */
const forbidden =
  /[\0-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;

/** A text whose offsets can be turned into lines and columns. */
export class Source {
  readonly text: string;
  readonly #lineStarts: number[] = [0];

  constructor(text: string) {
    this.text = text;
    for (let at = text.indexOf("\n"); at !== -1; at = text.indexOf("\n", at + 1)) this.#lineStarts.push(at + 1);
  }

  /** Line and column of an offset, both counted from 1. An offset past the end is the end. */
  position(offset: number): { line: number; column: number } {
    const at = Math.max(0, Math.min(offset, this.text.length));
    let low = 0;
    let high = this.#lineStarts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#lineStarts[middle] ?? 0) <= at) low = middle;
      else high = middle - 1;
    }
    return { line: low + 1, column: at - (this.#lineStarts[low] ?? 0) + 1 };
  }

  /** The line without its end. Lines are counted from 1. */
  line(line: number): string {
    const start = this.#lineStarts[line - 1] ?? this.text.length;
    const next = this.#lineStarts[line];
    return this.text.slice(start, next === undefined ? this.text.length : next - 1);
  }

  /** The offset at which the line of `offset` begins. */
  lineStart(offset: number): number {
    return offset - this.position(offset).column + 1;
  }
}

/**
 * Decodes a pipeline file: UTF-8, with or without a byte order mark, lines ended by LF or CRLF.
 *
 * Line ends come back as LF. Where there is a fault, `source` is only good for showing it.
 */
export function readSource(input: string | Uint8Array): { source: Source; fault?: SourceFault } {
  const sizeFault = checkSize(input);
  if (sizeFault !== undefined) return { source: new Source(""), fault: sizeFault };
  const encodingFault = typeof input === "string" ? undefined : checkEncoding(input);
  const decoded = typeof input === "string" ? input : new TextDecoder("utf-8", { ignoreBOM: true }).decode(input);
  const source = new Source(decoded.replace(/^\ufeff/, "").replaceAll("\r\n", "\n"));
  const fault = encodingFault ?? checkCharacters(source.text);
  return fault === undefined ? { source } : { source, fault };
}

function checkSize(input: string | Uint8Array): SourceFault | undefined {
  // A string of n code units has at least n bytes, so a large one need not be measured.
  const bytes =
    typeof input !== "string" || input.length > LIMITS.fileBytes ? input.length : Buffer.byteLength(input, "utf8");
  if (bytes <= LIMITS.fileBytes) return undefined;
  return {
    span: { start: 0, end: 0 },
    message: `the file has ${formatBytes(bytes)}; a pipeline has at most ${formatBytes(LIMITS.fileBytes)}`,
    suggestion: "move scripts into files of the repository and run those",
  };
}

/** Finds the first byte that is not UTF-8; its place is counted in the decoded text, whose line ends are LF. */
function checkEncoding(bytes: Uint8Array): SourceFault | undefined {
  if (isUtf8(bytes)) return undefined;
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)) {
    return {
      span: { start: 0, end: 0 },
      message: "the file is UTF-16, not UTF-8",
      suggestion: "save it as UTF-8",
    };
  }
  // With `stream`, a character cut at the end is no fault, so "the prefix is valid" is monotone and can be bisected.
  let valid = 0;
  let invalid = bytes.length + 1;
  while (invalid - valid > 1) {
    const middle = (valid + invalid) >> 1;
    if (decodePrefix(bytes, middle) === undefined) invalid = middle;
    else valid = middle;
  }
  const decoded = decodePrefix(bytes, valid) ?? "";
  const before = decoded.replace(/^\ufeff/, "").replaceAll("\r\n", "\n");
  const offset = Buffer.byteLength(decoded);
  const byte = bytes[offset] ?? 0;
  return {
    span: { start: before.length, end: before.length + 1 },
    message: `the file is not UTF-8: byte 0x${byte.toString(16).padStart(2, "0")} at offset ${offset}`,
    suggestion: "save it as UTF-8",
  };
}

function decodePrefix(bytes: Uint8Array, length: number): string | undefined {
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    return decoder.decode(bytes.subarray(0, length), { stream: true });
  } catch {
    return undefined;
  }
}

function checkCharacters(text: string): SourceFault | undefined {
  const at = text.search(forbidden);
  if (at === -1) return undefined;
  const code = text.charCodeAt(at);
  const span = { start: at, end: at + 1 };
  const name = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  if (code === 0) {
    return {
      span,
      message: "the file contains a NUL byte, so it is not YAML text",
      suggestion: "save it as UTF-8 text",
    };
  }
  if (code === 0x0d) {
    return {
      span,
      message: "a carriage return (U+000D) stands here without a line feed",
      suggestion: "end lines with LF or CRLF",
    };
  }
  if (code === 0xfeff) {
    return {
      span,
      message: "a byte order mark (U+FEFF) stands inside the file",
      suggestion: "remove this invisible character",
    };
  }
  const lone = code >= 0xd800 && code <= 0xdfff;
  return {
    span,
    message: lone ? `half of a surrogate pair (${name}) is not text` : `the control character ${name} is not allowed`,
    suggestion: lone ? "save the file as UTF-8" : `remove it, or write "\\u${name.slice(2)}" in double quotes`,
  };
}
