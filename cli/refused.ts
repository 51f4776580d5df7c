/** What a network has refused, as lists of builds show it. */
import type { StepView } from "../server/index.ts";

const shown = 5;

/** One line: the most frequent destinations, and how many more there are. */
export function listRefused({ destinations, unlistedCount }: NonNullable<StepView["refused"]>): string {
  const targets = destinations.slice(0, shown).map(({ address, port, protocol, count }) => {
    const host = address.includes(":") ? `[${address}]` : address;
    return `${host}${port === 0 ? "" : `:${port}`}/${protocol}${count === 1 ? "" : ` (${count} times)`}`;
  });
  const more = Math.max(0, destinations.length - shown);
  if (more > 0) targets.push(`${more} more destinations`);
  if (unlistedCount > 0) targets.push(`${unlistedCount} packets to others`);
  return `network refused ${targets.join(", ")}`;
}
