/** The image cannot be used: missing, not an image, broken or hostile. The user's failure, not ours. */
export class ImageError extends Error {
  override readonly name = "ImageError";
}

/**
 * Quotes a name from an archive for an error message: UTF-8 where it is, control characters escaped, at most 200
 * characters.
 *
 * @param name Bytes as characters U+0000–U+00FF ("latin1"), the way `TarReader` hands them out.
 */
export function quoteName(name: string): string {
  const text = Buffer.from(name.slice(0, 1000), "latin1").toString("utf8");
  return JSON.stringify(text.length > 200 ? `${text.slice(0, 200).toWellFormed()}…` : text);
}

/** `1.5 GiB` for 1610612736. */
export function formatBytes(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : Number(value.toFixed(1))} ${units[unit]}`;
}
