/** Quoting what the user wrote and guessing what was meant. */

/** The text in double quotes, escaped and cut, so that a message stays one line. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 59)}…` : text);
}

/** `a, b and c` */
export function enumerate(words: readonly string[], conjunction: "and" | "or" = "and"): string {
  const last = words.at(-1);
  if (last === undefined) return "";
  return words.length === 1 ? last : `${words.slice(0, -1).join(", ")} ${conjunction} ${last}`;
}

/** `did you mean "steps"?`, if some candidate is near enough to be what was meant. */
export function didYouMean(word: string, candidates: Iterable<string>): string | undefined {
  const match = nearest(word, candidates);
  return match === undefined ? undefined : `did you mean ${quote(match)}?`;
}

/**
 * The candidate with the fewest typing errors from `word`, at most one for three letters and three in all.
 *
 * Case, `-` and `_` count as no error. The first of equals wins.
 */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  const folded = fold(word);
  let best: string | undefined;
  let bestDistance = Math.min(3, Math.max(1, Math.ceil(folded.length / 3))) + 1;
  for (const candidate of candidates) {
    const distance = typingDistance(folded, fold(candidate), bestDistance - 1);
    // A candidate that shares no letter with a short word is not what was meant.
    if (distance < bestDistance && distance < Math.max(folded.length, candidate.length)) {
      best = candidate;
      bestDistance = distance;
    }
    if (bestDistance === 0) break;
  }
  return best;
}

function fold(word: string): string {
  return word.slice(0, 200).toLowerCase().replaceAll("-", "_");
}

/**
 * Counts inserted, missing, wrong and swapped letters (optimal string alignment) up to `limit`; more is Infinity.
 *
 * Only the diagonal band that can stay within the limit is computed: linear in the length of the words.
 */
export function typingDistance(left: string, right: string, limit: number): number {
  if (limit < 0 || Math.abs(left.length - right.length) > limit) return Infinity;
  let beforeLast: number[] = [];
  let last: number[] = [];
  for (let column = 0; column <= Math.min(right.length, limit); column += 1) last[column] = column;
  for (let row = 1; row <= left.length; row += 1) {
    const current: number[] = [];
    if (row <= limit) current[0] = row;
    for (let column = Math.max(1, row - limit); column <= Math.min(right.length, row + limit); column += 1) {
      const same = left[row - 1] === right[column - 1];
      let distance = Math.min(
        (last[column] ?? Infinity) + 1,
        (current[column - 1] ?? Infinity) + 1,
        (last[column - 1] ?? Infinity) + (same ? 0 : 1),
      );
      if (row > 1 && column > 1 && left[row - 1] === right[column - 2] && left[row - 2] === right[column - 1]) {
        distance = Math.min(distance, (beforeLast[column - 2] ?? Infinity) + 1);
      }
      current[column] = distance;
    }
    beforeLast = last;
    last = current;
  }
  const distance = last[right.length] ?? Infinity;
  return distance <= limit ? distance : Infinity;
}
