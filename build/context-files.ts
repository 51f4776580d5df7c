/** What a build reads out of a context before anything is built: the Dockerfile, and what no instruction sees. */
import { fileAt } from "../runtime/files.ts";
import { ignoreFileNames, readIgnoreFile } from "./ignore-file.ts";
import { LIMITS } from "./limits.ts";
import { PathPatternError } from "./pattern.ts";
import { BuildError } from "./report.ts";

/** A Dockerfile in the context, by its path; or its content, and what messages call it. */
export type DockerfileSource =
  | string
  | { readonly content: Uint8Array; readonly name: string; readonly ignore?: string | undefined };

export interface ReadDockerfile {
  readonly content: string | Uint8Array;
  readonly name: string;
  /** Patterns. */
  readonly ignored: readonly string[];
}

/** The first that is there, if none is named. */
const dockerfileNames = ["Dockerfile", "Containerfile"];

/**
 * Reads a Dockerfile and its ignore file: `X.dockerignore` beside the Dockerfile X, or else that of the context.
 *
 * @throws {BuildError} If there is none, or they cannot be used.
 */
export function readDockerfile(contextDir: string, dockerfile: DockerfileSource | undefined): ReadDockerfile {
  return withContext(contextDir, (files) => {
    const source = dockerfile ?? dockerfileNames.find((name) => files.isThere(name)) ?? (dockerfileNames[0] as string);
    const name = typeof source === "string" ? source : source.name;
    const content = typeof source === "string" ? files.read(source) : source.content;
    if (content === undefined) {
      throw new BuildError(`there is no ${JSON.stringify(name)} in the build context, or it is no readable file`);
    }
    const own = typeof source === "string" ? files.readIgnored(`${source}.dockerignore`) : source.ignore;
    const ignored = own === undefined ? readFirstIgnored(files) : parseIgnored(own, `${name}.dockerignore`);
    return { content, name, ignored };
  });
}

/** Reads the patterns of a context's ignore file. @throws {BuildError} If it cannot be used. */
export function readIgnored(directory: string): readonly string[] {
  return withContext(directory, readFirstIgnored);
}

function readFirstIgnored(files: ContextFiles): readonly string[] {
  for (const name of ignoreFileNames) {
    const text = files.readIgnored(name);
    if (text !== undefined) return parseIgnored(text, name);
  }
  return [];
}

/** A context of a stranger's: none of its links leads out of it. */
class ContextFiles {
  readonly #root: number;

  constructor(root: number) {
    this.#root = root;
  }

  isThere(path: string): boolean {
    return fileAt.statAt(this.#root, fileAt.byteString(path)) !== undefined;
  }

  /** Undefined if there is none, or it is no file, or too large. */
  read(path: string): string | undefined {
    return fileAt.readTextInRoot(this.#root, fileAt.byteString(path), LIMITS.fileBytes);
  }

  /** What cannot be read ignores nothing, and files would get into the image that were to stay out. */
  readIgnored(path: string): string | undefined {
    const found = this.read(path);
    if (found !== undefined || !this.isThere(path)) return found;
    throw new BuildError(
      `${JSON.stringify(path)} cannot be used: it is no file in the build context of at most ${LIMITS.fileBytes >> 20} MiB; make it one, or remove it`,
    );
  }
}

function withContext<T>(directory: string, use: (files: ContextFiles) => T): T {
  let root: number;
  try {
    root = fileAt.openRoot(directory);
  } catch (error) {
    throw new BuildError(
      `the build context ${JSON.stringify(directory)} cannot be opened: ${(error as NodeJS.ErrnoException).code}`,
      { cause: error },
    );
  }
  try {
    return use(new ContextFiles(root));
  } finally {
    fileAt.closeFile(root);
  }
}

function parseIgnored(content: string, name: string): readonly string[] {
  try {
    return readIgnoreFile(content);
  } catch (error) {
    if (error instanceof PathPatternError) throw new BuildError(`${name}: ${error.message}`, { cause: error });
    throw error;
  }
}
