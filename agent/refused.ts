/** Words for what a network has refused. */
import type { Refusals } from "../runtime/index.ts";

export function isEmpty({ destinations, unlistedCount }: Refusals): boolean {
  return destinations.length === 0 && unlistedCount === 0;
}

const shownLines = 10;

/** For the log: the first destinations, then how much more there is. */
export function describeRefused({ destinations, unlistedCount }: Refusals): string[] {
  const lines = destinations.slice(0, shownLines).map(({ address, port, protocol, count }) => {
    const target = `${address.includes(":") ? `[${address}]` : address}${port === 0 ? "" : `:${port}`}/${protocol}`;
    return `network: refused ${target} (${count} ${count === 1 ? "packet" : "packets"})`;
  });
  const rest = destinations.length - lines.length;
  if (rest > 0) lines.push(`network: refused ${rest} more destinations, which the step's result lists`);
  if (unlistedCount > 0) lines.push(`network: refused ${unlistedCount} packets to destinations that are not listed`);
  return lines;
}
