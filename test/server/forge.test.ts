import { describe, expect, test } from "vitest";
import { isSigned, readForgeHeaders } from "../../server/forge.ts";

describe("readForgeHeaders", () => {
  const headers = {
    "x-github-event": "push",
    "x-gogs-event": "push",
    "x-gitea-event": "push",
    "x-forgejo-event": "push",
  };

  test("prefers the most particular name", () => {
    const names: string[] = [];
    const rest: Record<string, string> = { ...headers, "x-hub-signature-256": "sha256=00" };
    for (const name of ["x-forgejo-event", "x-gitea-event", "x-gogs-event", "x-github-event"]) {
      names.push(readForgeHeaders(rest)?.forge ?? "none");
      delete rest[name];
    }
    expect(names).toEqual(["forgejo", "gitea", "gogs", "github"]);
    expect(readForgeHeaders(rest)).toBeUndefined();
  });

  test("takes bare and prefixed signatures", () => {
    expect(readForgeHeaders({ "x-gitea-event": "push", "x-gitea-signature": "ab" })?.signature).toBe("ab");
    expect(readForgeHeaders({ "x-github-event": "push", "x-hub-signature-256": "sha256=ab" })?.signature).toBe("ab");
    expect(readForgeHeaders({ "x-github-event": "push" })?.signature).toBeUndefined();
  });
});

describe("isSigned", () => {
  const signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
  const body = Buffer.from("Hello, World!");
  const secret = "It's a Secret to Everybody";

  test("agrees with GitHub's test vector", () => {
    expect(isSigned(body, signature, secret)).toBe(true);
    expect(isSigned(body, signature.toUpperCase(), secret)).toBe(true);
  });
  test.each([
    "",
    "00",
    signature.slice(2),
    `${signature}00`,
    signature.replace("7", "8"),
    "g".repeat(64),
    "0".repeat(64),
  ])("does not take %j", (wrong) => {
    expect(isSigned(body, wrong, secret)).toBe(false);
  });
});
