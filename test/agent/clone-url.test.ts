import { describe, expect, test } from "vitest";
import { CloneUrlError, parseCloneUrl, redact, redactUrls, resolveSubmoduleUrl } from "../../agent/clone-url.ts";

describe("parseCloneUrl", () => {
  test.each([
    ["https://host/a/b.git", "https"],
    ["http://127.0.0.1:3000/a", "http"],
    ["ssh://git@host:22/a/b.git", "ssh"],
    ["git@host:a/b.git", "ssh"],
    ["host:a", "ssh"],
    ["git://host/a", "git"],
    ["file:///srv/a.git", "file"],
    ["/srv/a.git", "file"],
  ])("takes %s", (text, transport) => {
    expect(parseCloneUrl(text)).toMatchObject({ transport, url: text, secrets: [] });
  });

  test.each([
    "",
    "-x",
    "--upload-pack=x",
    "ext::sh -c id",
    "ext::id",
    "::id",
    "fd::17",
    "ftp://host/a",
    "file://host/a",
    "relative/a",
    "./a",
    "-oProxyCommand=id:a",
    "git@-oProxyCommand=id:a",
    "-git@host:a",
    "git@host:-a",
    "ssh://-oProxyCommand=id/a",
    "ssh://-o@host/a",
    "ssh://git:password@host/a",
    "https://host/a\nb",
    "https://host/a b",
  ])("refuses %j", (text) => {
    expect(() => parseCloneUrl(text)).toThrow(CloneUrlError);
  });

  test("takes the credentials out of the URL", () => {
    const parsed = parseCloneUrl("https://user:p%40ss@host/a.git");
    expect(parsed.url).toBe("https://host/a.git");
    expect(parsed.header).toEqual({
      origin: "https://host",
      value: `Authorization: Basic ${Buffer.from("user:p@ss").toString("base64")}`,
    });
    expect(parsed.secrets).toContain("p@ss");
    expect(parsed.secrets).toContain("p%40ss");
  });

  test("takes a lone user name for the token it is", () => {
    const parsed = parseCloneUrl("https://ghp_token@host/a.git");
    expect(parsed.url).toBe("https://host/a.git");
    expect(parsed.secrets).toContain("ghp_token");
  });

  test("prints no credentials when it refuses", () => {
    expect(() => parseCloneUrl("https://user:secret@host/a b")).toThrow(/^(?!.*secret)/);
    expect(() => parseCloneUrl("ssh://user:secret@host/a")).toThrow(/^(?!.*secret)/);
  });
});

describe("resolveSubmoduleUrl", () => {
  test.each([
    ["https://host/a/b.git", "../c.git", "https://host/a/c.git"],
    ["https://host/a/b.git/", "../../x/c", "https://host/x/c"],
    ["https://host/a/b", "./c", "https://host/a/b/c"],
    ["git@host:a/b.git", "../c.git", "git@host:a/c.git"],
    ["git@host:b.git", "../c.git", "git@host:c.git"],
    ["/srv/a.git", "../c.git", "/srv/c.git"],
    ["file:///srv/a.git", "../c.git", "file:///srv/c.git"],
    ["https://host/a/b", "ssh://git@other/c", "ssh://git@other/c"],
  ])("%s and %s make %s", (parent, url, want) => {
    expect(resolveSubmoduleUrl(parseCloneUrl(parent), url).url).toBe(want);
  });

  test("gives the parent's credentials to relative URLs only", () => {
    const parent = parseCloneUrl("https://user:secret@host/a/b");
    expect(resolveSubmoduleUrl(parent, "../c").header).toEqual(parent.header);
    expect(resolveSubmoduleUrl(parent, "https://host/a/c").header).toBeUndefined();
    expect(resolveSubmoduleUrl(parent, "https://other/a/c").header).toBeUndefined();
  });

  test.each([
    ["https://host/a", "/etc"],
    ["https://host/a", "file:///etc"],
    ["git@host:a", "file:///etc"],
    ["https://host/a", "../../../c"],
    ["git@host:a", "../../c"],
    ["https://host/a", "ext::id"],
  ])("a submodule of %s may not be at %s", (parent, url) => {
    expect(() => resolveSubmoduleUrl(parseCloneUrl(parent), url)).toThrow(CloneUrlError);
  });
});

describe("redact", () => {
  test("removes credentials wherever they stand", () => {
    const source = parseCloneUrl("https://user:hunter22@host/a");
    expect(redact("fatal: https://user:hunter22@host/a: hunter22 refused", source)).toBe(
      "fatal: https://***@host/a: *** refused",
    );
    expect(redactUrls("see https://a@b@host/ and ssh://git@host and ssh://u:p@host")).toBe(
      "see https://***@host/ and ssh://git@host and ssh://u:***@host",
    );
  });
});
