import { describe, expect, test } from "vitest";
import { isRefName } from "../../server/mirror.ts";

describe("isRefName", () => {
  test.each([
    "refs/heads/main",
    "refs/heads/a/b",
    "refs/tags/v1.0",
    "refs/heads/--x",
    "refs/heads/ünï",
    "HEAD",
    "refs/pull/1/head",
  ])("%s is one", (ref) => {
    expect(isRefName(ref)).toBe(true);
  });
  test.each([
    "main",
    "refs/heads",
    "refs/heads/",
    "refs/heads/a..b",
    "refs/heads/.a",
    "refs/heads/a.lock/b",
    "refs/heads/a@{1}",
    "-x",
    "refs/heads/a\\b",
    "refs/heads/a^",
    "refs//heads/a",
    "refs/heads/a\n",
  ])("%j is none", (ref) => {
    expect(isRefName(ref)).toBe(false);
  });
});
