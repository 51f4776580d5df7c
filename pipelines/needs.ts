/** The checks on the graph of jobs that one job alone does not show: unknown needs and cycles. */
import type { DictionaryEntry } from "./collection.ts";
import type { JobFields } from "./language.ts";
import type { Problems } from "./problems.ts";
import type { Located } from "./shape.ts";
import { didYouMean, enumerate, quote } from "./suggestion.ts";

type JobEntry = DictionaryEntry<JobFields>;

/** Reports needs that name no job, the job itself or one job twice, and every cycle at the need that closes it. */
export function checkNeeds(jobs: readonly JobEntry[], problems: Problems): void {
  const needs = new Map<string, readonly Located<string>[]>();
  for (const job of jobs) needs.set(job.name, []);
  for (const job of jobs) needs.set(job.name, checkJob(job, needs, problems));
  reportCycles(needs, problems);
}

/** Returns the needs that are edges of the graph. */
function checkJob(job: JobEntry, known: ReadonlyMap<string, unknown>, problems: Problems): readonly Located<string>[] {
  const seen = new Set<string>();
  return (job.value?.needs?.value ?? []).filter((need) => {
    const owner = `job ${quote(job.name)}`;
    if (need.value === job.name) {
      problems.error(need.span, `${owner} needs itself`, "remove this need");
      return false;
    }
    if (!known.has(need.value)) {
      problems.error(need.span, `${owner} needs ${quote(need.value)}, which is no job`, () => {
        const others = [...known.keys()].filter((name) => name !== job.name);
        const listed = others.length <= 10 ? others : [...others.slice(0, 9), `${others.length - 9} more`];
        const fallback = listed.length === 0 ? "there is no other job" : `the other jobs are ${enumerate(listed)}`;
        return didYouMean(need.value, others) ?? fallback;
      });
      return false;
    }
    if (seen.has(need.value)) {
      problems.warning(need.span, `${owner} needs ${quote(need.value)} twice`, "remove one");
      return false;
    }
    seen.add(need.value);
    return true;
  });
}

/** Walks depth first; an edge back into the path that led to it closes a cycle. Iterative: a chain may be 500 jobs long. */
function reportCycles(needs: ReadonlyMap<string, readonly Located<string>[]>, problems: Problems): void {
  const finished = new Set<string>();
  for (const root of needs.keys()) {
    if (finished.has(root)) continue;
    const path = [{ name: root, next: 0 }];
    const onPath = new Set([root]);
    for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
      const need = needs.get(top.name)?.[top.next];
      top.next += 1;
      if (need === undefined) {
        finished.add(top.name);
        onPath.delete(top.name);
        path.pop();
      } else if (onPath.has(need.value)) {
        const start = path.findIndex((entry) => entry.name === need.value);
        const cycle = [...path.slice(start).map((entry) => entry.name), need.value];
        problems.error(need.span, `jobs need each other in a cycle: ${drawCycle(cycle)}`, "remove one of these needs");
      } else if (!finished.has(need.value)) {
        path.push({ name: need.value, next: 0 });
        onPath.add(need.value);
      }
    }
  }
}

function drawCycle(cycle: readonly string[]): string {
  if (cycle.length <= 20) return cycle.join(" → ");
  return [...cycle.slice(0, 10), `(${cycle.length - 15} more)`, ...cycle.slice(-5)].join(" → ");
}
