/** .dockerignore, or .containerignore: what of a context no instruction sees. */
import { cleanPath, PathPatternError, PathPatterns } from "./pattern.ts";

/** What a context's ignore file may be called; the first that is there holds, as in buildah and podman. */
export const ignoreFileNames: readonly string[] = [".containerignore", ".dockerignore"];

/** More patterns than anybody writes; each path of the context is matched against all of them. */
const MAX_PATTERNS = 10_000;

/**
 * Reads the patterns of an ignore file, for `PathPatterns`, as moby/patternmatcher's ignorefile does: a `#` at the beginning of a line begins
 * a comment, a leading slash means the same as none.
 *
 * @throws {PathPatternError} Naming the line.
 */
export function readIgnoreFile(content: string): readonly string[] {
  const patterns: string[] = [];
  for (const [index, line] of content
    .replace(/^\ufeff/, "")
    .split("\n")
    .entries()) {
    if (line.startsWith("#") || line.trim() === "") continue;
    const text = line.trim();
    const isException = text.startsWith("!");
    const cleaned = clean(isException ? text.slice(1).trim() : text);
    const pattern = isException ? `!${cleaned}` : cleaned;
    try {
      // To be able to say in which line it is.
      void new PathPatterns([pattern]);
    } catch (error) {
      if (!(error instanceof PathPatternError)) throw error;
      throw new PathPatternError(`line ${index + 1}: the pattern ${JSON.stringify(text)}: ${error.message}`, {
        cause: error,
      });
    }
    patterns.push(pattern);
    if (patterns.length > MAX_PATTERNS) throw new PathPatternError(`it has more than ${MAX_PATTERNS} patterns`);
  }
  return patterns;
}

function clean(pattern: string): string {
  if (pattern === "") return pattern;
  const cleaned = cleanPath(pattern);
  return cleaned.length > 1 && cleaned.startsWith("/") ? cleaned.slice(1) : cleaned;
}
