import { expect, test } from "vitest";
import { didYouMean } from "../../cli/did-you-mean.ts";

test.for([
  ["lnit", "lint"],
  ["lin", "lint"],
  ["lints", "lint"],
  ["docter", "doctor"],
  ["buidl", "build"],
] as const)("%s is %s", ([word, meant]) => {
  expect(didYouMean(word, ["run", "lint", "doctor", "build"])).toBe(` (did you mean ${meant}?)`);
});

test("a word that is nothing like the others gets no suggestion", () => {
  expect(didYouMean("frobnicate", ["run", "lint", "doctor"])).toBe("");
});
