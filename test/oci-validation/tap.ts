/** Reads what a test program prints in the Test Anything Protocol. @see https://testanything.org/tap-version-13-specification.html */

export type Verdict = "pass" | "fail" | "skip";

export interface TapResult {
  readonly verdict: Verdict;
  readonly checks: number;
  /** Of every failed check its text and the error told with it; of a program that broke off, what it said. */
  readonly failures: readonly string[];
}

/** A program passes if it ended well and no check of it failed; some tell of an error without making a check of it. */
export function readTap(
  output: string,
  { code, errors }: { readonly code: number | null; readonly errors: string },
): TapResult {
  const failures: string[] = [];
  let checks = 0;
  let skipped = 0;
  let diagnosed = false;
  for (const line of output.split("\n")) {
    const check = /^(not )?ok(?: \d+)?(?: - )?\s*(.*)$/.exec(line);
    if (check !== null) {
      checks++;
      const [, not, text = ""] = check;
      const isSkipped = /# ?skip/i.test(text);
      if (isSkipped) skipped++;
      diagnosed = not === undefined || isSkipped;
      if (!diagnosed) failures.push(text);
      continue;
    }
    const bail = /^Bail out!\s*(.*)$/.exec(line)?.[1];
    if (bail !== undefined) failures.push(bail);
    const [, key, error] = /"?(error|stderr)"?\s*: "?(.*?)"?,?$/.exec(line) ?? [];
    if (!error || diagnosed) continue;
    if (failures.length > 0) failures.push(`${failures.pop()}: ${error}`);
    else if (key === "error") failures.push(error);
  }
  const said = errors.trim().split("\n").at(-1) ?? "";
  if (code !== 0) failures.push(code === null ? "it was killed" : `it ended with exit code ${code}: ${said}`);
  const verdict = failures.length > 0 ? "fail" : checks > 0 && skipped === checks ? "skip" : "pass";
  return { verdict, checks, failures };
}
