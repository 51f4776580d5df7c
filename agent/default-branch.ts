/** Which branch of a repository is the one that counts. */
import type { ClaimedJob } from "../queue/index.ts";
import { parseCloneUrl } from "./clone-url.ts";
import { runGit } from "./git.ts";

const timeLimitMs = 60_000;

/**
 * Whether a build is of its repository's default branch, and nobody's but those who may push to it.
 *
 * @param options.directory Any directory: Git runs in it.
 * @throws {Error} If the repository cannot be asked.
 */
export async function isOfDefaultBranch(
  { build, repository }: Pick<ClaimedJob, "build" | "repository">,
  options: { readonly directory: string; readonly signal?: AbortSignal },
): Promise<boolean> {
  const { branch, pullRequest, untrusted, event } = build;
  if (branch === undefined || pullRequest !== undefined || untrusted === true || event === "pull_request") return false;
  const { directory, signal } = options;
  const remote = parseCloneUrl(repository.cloneUrl);
  const answer = await runGit(["ls-remote", "--symref", "--", remote.url, "HEAD"], {
    gitDir: directory,
    remote,
    // The job's own time limit is over when it has ended; over git:// and ssh nothing else would give up.
    signal: AbortSignal.any([AbortSignal.timeout(timeLimitMs), ...(signal === undefined ? [] : [signal])]),
  });
  return /^ref: refs\/heads\/(.+)\tHEAD$/m.exec(answer)?.[1] === branch;
}
