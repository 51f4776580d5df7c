/**
 * Turns terminal output into pieces of text with a style. Colours and weights are honoured; every other control sequence
 * (cursor, title, hyperlink, clipboard) is dropped.
 */

// CSI, OSC (ended by BEL or ST), DCS/PM/APC/SOS strings, two-character escapes.
const sequence =
  // eslint-disable-next-line no-control-regex
  /\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]/g;

export const plain = Object.freeze({});

/** The style after a text, without making pieces: for lines that are not shown. */
export function styleAfter(text, style) {
  if (!text.includes("\x1b[")) return style;
  let current = style;
  for (const match of text.matchAll(sequence)) if (match[2] === "m") current = applySgr(current, match[1]);
  return current;
}

/** Splits a line into `{ text, style }` pieces. */
export function pieces(line, style) {
  const result = [];
  let current = style;
  let from = 0;
  for (const match of line.matchAll(sequence)) {
    if (match.index > from) result.push({ text: line.slice(from, match.index), style: current });
    from = match.index + match[0].length;
    if (match[2] === "m") current = applySgr(current, match[1]);
  }
  if (from < line.length) result.push({ text: line.slice(from), style: current });
  return result;
}

function applySgr(style, parameters) {
  const codes = parameters === "" ? [0] : parameters.split(/[;:]/).map((code) => Number.parseInt(code || "0", 10));
  let next = { ...style };
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) next = {};
    else if (code === 1) next.bold = true;
    else if (code === 2) next.dim = true;
    else if (code === 3) next.italic = true;
    else if (code === 4) next.underline = true;
    else if (code === 7) next.inverse = true;
    else if (code === 9) next.strike = true;
    else if (code === 22) next.bold = next.dim = false;
    else if (code === 23) next.italic = false;
    else if (code === 24) next.underline = false;
    else if (code === 27) next.inverse = false;
    else if (code === 29) next.strike = false;
    else if (code >= 30 && code <= 37) next.fg = code - 30;
    else if (code >= 90 && code <= 97) next.fg = code - 82;
    else if (code >= 40 && code <= 47) next.bg = code - 40;
    else if (code >= 100 && code <= 107) next.bg = code - 92;
    else if (code === 39) next.fg = undefined;
    else if (code === 49) next.bg = undefined;
    else if (code === 38 || code === 48) {
      const [color, used] = extendedColor(codes, i + 1);
      if (code === 38) next.fg = color;
      else next.bg = color;
      i += used;
    }
  }
  return next;
}

/** `5;n` is one of 256 colours, `2;r;g;b` any. */
function extendedColor(codes, at) {
  if (codes[at] === 5) {
    const n = codes[at + 1] ?? 0;
    if (n < 16) return [n, 2];
    if (n > 255) return [undefined, 2];
    if (n > 231) return [rgb(...Array(3).fill(8 + (n - 232) * 10)), 2];
    const level = (value) => (value === 0 ? 0 : 55 + value * 40);
    const m = n - 16;
    return [rgb(level(Math.floor(m / 36)), level(Math.floor(m / 6) % 6), level(m % 6)), 2];
  }
  if (codes[at] === 2) return [rgb(codes[at + 1], codes[at + 2], codes[at + 3]), 4];
  return [undefined, 0];
}

function rgb(...channels) {
  return `rgb(${channels.map((channel) => Math.min(255, Math.max(0, Number(channel) || 0))).join(" ")})`;
}

/** Makes a span for a piece; text stays text. */
export function span(piece) {
  const { text, style } = piece;
  const element = document.createElement("span");
  element.textContent = text;
  const names = ["bold", "dim", "italic", "underline", "strike"]
    .filter((name) => style[name])
    .map((name) => `t-${name}`);
  let { fg, bg } = style;
  if (style.inverse) {
    [fg, bg] = [bg ?? "inverse-fg", fg ?? "inverse-bg"];
  }
  color(element, names, "fg", fg);
  color(element, names, "bg", bg);
  if (names.length > 0) element.className = names.join(" ");
  return element;
}

function color(element, names, kind, value) {
  if (value === undefined) return;
  if (typeof value === "number") names.push(`${kind}-${value}`);
  else if (value.startsWith("rgb(")) element.style[kind === "fg" ? "color" : "backgroundColor"] = value;
  else names.push(`t-${value}`);
}
