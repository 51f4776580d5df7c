/** The names of signals, as people, Dockerfiles and OCI callers write them. */
import { constants } from "node:os";

/** glibc's and musl's differ by one: they keep some for themselves. Docker's and runc's names count from glibc's. @see signal(7) */
const SIGRTMIN = 34;
const SIGRTMAX = 64;

/** A signal's number by its name, with or without SIG (`SIGTERM`, `quit`, `SIGRTMIN+3`), or number; undefined if there is none. */
export function parseSignal(text: string): number | undefined {
  if (/^\d{1,2}$/.test(text)) return Number(text) <= SIGRTMAX ? Number(text) : undefined;
  const name = text.toUpperCase().replace(/^SIG/, "");
  const realTime = /^(?:RTMIN(?:\+(\d{1,2}))?|RTMAX(?:-(\d{1,2}))?)$/.exec(name);
  if (realTime !== null) {
    const [, above = 0, below = 0] = realTime;
    const number = name.startsWith("RTMIN") ? SIGRTMIN + Number(above) : SIGRTMAX - Number(below);
    return number >= SIGRTMIN && number <= SIGRTMAX ? number : undefined;
  }
  const numbers: Readonly<Record<string, number>> = constants.signals;
  return Object.hasOwn(numbers, `SIG${name}`) ? numbers[`SIG${name}`] : undefined;
}
