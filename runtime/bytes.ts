/** Writes bytes for a person: `512 MiB`, `2.1 GiB`, `300 bytes`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} bytes`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number(value.toFixed(1))} ${units[unit]}`;
}

/**
 * Gives the memory behind a buffer back at once: the garbage collector does not see how much that is, and leaves hundreds of
 * megabytes of it.
 *
 * Nobody may use the memory any more, through whatever view of it: all of them are empty now.
 */
export function freeMemory({ buffer }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer) buffer.transfer(0);
}
