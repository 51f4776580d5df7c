/** Programs of the host that the runtime makes use of where they are installed. */
import { accessSync, constants } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";

const usualDirectories = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/sbin"];

/**
 * Finds a program in PATH or where distributions put it.
 *
 * @param path The value of PATH; relative entries are skipped.
 */
export function findProgram(name: string, path: string | undefined): string | undefined {
  const directories = [
    ...(path ?? "").split(delimiter).filter((directory) => isAbsolute(directory)),
    ...usualDirectories,
  ];
  return directories.map((directory) => join(directory, name)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
