/** What every root file system has below its image: the directories to mount on, and files that a program looks for. */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";

/** Makes it, or completes it. */
export function writeSkeleton(directory: string): void {
  for (const name of ["dev", "etc", "proc", "sys", "tmp", "workspace"]) {
    mkdirSync(`${directory}/${name}`, { recursive: true });
    chmodSync(`${directory}/${name}`, name === "tmp" ? 0o1777 : 0o755);
  }
  chmodSync(directory, 0o755);
  const hosts = "127.0.0.1\tlocalhost slipway\n::1\tlocalhost ip6-localhost ip6-loopback\n";
  for (const [name, content] of [
    ["hosts", hosts],
    ["hostname", "slipway\n"],
    ["resolv.conf", resolvConf()],
  ] as const) {
    const path = `${directory}/etc/${name}`;
    writeFileSync(path, content);
    chmodSync(path, 0o644); // whatever the umask says: steps of any user read them
  }
}

/** The host's name servers, search domains and options; nothing else that may stand in the file. */
function resolvConf(): string {
  try {
    const lines = readFileSync("/etc/resolv.conf", "utf8").split("\n");
    return `${lines.filter((line) => /^(nameserver|search|domain|options)\s/.test(line)).join("\n")}\n`;
  } catch {
    return "";
  }
}
