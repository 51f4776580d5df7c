/** EXPOSE: ports as the image configuration has them. */

/** A port that means nothing; the message says why. */
export class PortError extends Error {
  override readonly name = "PortError";
}

/** A range of more is a mistake; all there are is one. */
const MAX_PORTS = 65_536;

/**
 * Reads `80`, `80/udp`, `8000-8010/tcp`; what `docker run --publish` takes before a colon is checked and left out.
 *
 * @returns `80/tcp`, one for each port.
 * @throws {PortError}
 */
export function parsePorts(text: string): string[] {
  const shown = JSON.stringify(text.slice(0, 60));
  const parts = text.split(":");
  const [range = "", protocol = "", ...more] = (parts.at(-1) ?? "").split("/");
  const name = protocol.toLowerCase();
  if (more.length > 0 || !["", "tcp", "udp", "sctp"].includes(name)) {
    throw new PortError(`the port ${shown} has the protocol ${JSON.stringify(protocol)}: write tcp, udp or sctp`);
  }
  const ports = parseRange(range, shown);
  const host = parts.length > 1 ? parts.at(-2) : undefined;
  if (host !== undefined && host !== "") {
    const { first, last } = parseRange(host, shown);
    if (last - first !== ports.last - ports.first && ports.last !== ports.first) {
      throw new PortError(`the port ${shown} has two ranges of different length`);
    }
  }
  const count = ports.last - ports.first + 1;
  if (count > MAX_PORTS) throw new PortError(`the port ${shown} is a range of ${count}`);
  return Array.from({ length: count }, (_, index) => `${ports.first + index}/${name === "" ? "tcp" : name}`);
}

function parseRange(text: string, shown: string): { readonly first: number; readonly last: number } {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text);
  const first = Number(match?.[1] ?? NaN);
  const last = Number(match?.[2] ?? first);
  if (first <= 65_535 && last <= 65_535 && first <= last) return { first, last };
  throw new PortError(`the port ${shown} is no number from 0 to 65535, or range of them`);
}
