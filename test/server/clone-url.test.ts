import { describe, expect, test } from "vitest";
import { parseCloneUrl, redact, redactUrl } from "../../server/clone-url.ts";

describe("parseCloneUrl", () => {
  test.each([
    "https://git.example.com/o/r.git",
    "http://127.0.0.1:3000/o/r",
    "ssh://git@git.example.com:2222/o/r.git",
    "git@git.example.com:o/r.git",
    "git://git.example.com/r.git",
    "file:///srv/git/r.git",
    "/srv/git/r.git",
  ])("takes %s as it is", (url) => {
    expect(parseCloneUrl(url)).toEqual({ url, config: {}, secrets: [] });
  });

  test("parts the credentials of an http URL from it", () => {
    const source = parseCloneUrl("https://robot:p%40ss%3Aword@git.example.com:8443/o/r.git");
    const basic = Buffer.from("robot:p@ss:word").toString("base64");
    expect(source).toEqual({
      url: "https://git.example.com:8443/o/r.git",
      config: { "http.https://git.example.com:8443/.extraHeader": `Authorization: Basic ${basic}` },
      secrets: ["p%40ss%3Aword", "p@ss:word", basic],
    });
  });

  test("takes a lone user name of an http URL for a token", () => {
    expect(parseCloneUrl("https://ghp_abcdef@git.example.com/o/r").secrets).toContain("ghp_abcdef");
  });

  test.each([
    "",
    "-oProxyCommand=touch",
    "--upload-pack=touch",
    "ext::sh -c date",
    "ext::date",
    "fd::17",
    "transport::address",
    "ftp://example.com/x",
    "javascript://example.com/x",
    "ssh://-oProxyCommand=touch/x",
    "ssh://-x@example.com/x",
    "-x@example.com:y",
    "git@-oProxyCommand=x:y",
    "git@example.com:-x",
    "relative/path",
    "./x",
    "C:\\x y",
    "https://example.com/a b",
    "https://example.com/a\nb",
    "https://",
    "ssh://user:password@example.com/x",
    `https://example.com/${"x".repeat(3000)}`,
  ])("refuses %j", (url) => {
    expect(() => parseCloneUrl(url)).toThrow(/Cannot use clone URL/);
  });

  test("shows no password in what it refuses", () => {
    expect(() => parseCloneUrl("ssh://user:hunter2@example.com/x")).not.toThrow(/hunter2/);
    expect(() => parseCloneUrl("https://u:hunter2@example.com/a b")).not.toThrow(/hunter2/);
    expect(() => parseCloneUrl("ftp://u:hunter2@example.com/x")).not.toThrow(/hunter2/);
  });
});

describe("redact", () => {
  test.each([
    ["fatal: https://u:p@h/x denied", "fatal: https://***@h/x denied"],
    ["http://token@h/x and HTTPS://a:b@h/y", "http://***@h/x and HTTPS://***@h/y"],
    ["https://u:p@ss@h/x", "https://***@h/x"],
    ["ssh://git@h/x", "ssh://git@h/x"],
    ["ssh://git:pw@h/x", "ssh://git:***@h/x"],
    ["see https://h/x@y", "see https://h/x@y"],
  ])("makes %j into %j", (text, expected) => {
    expect(redactUrl(text)).toBe(expected);
  });

  test("removes the secrets themselves, too", () => {
    const source = parseCloneUrl("https://u:hunter22@h/x");
    expect(redact("remote: bad password hunter22", source)).toBe("remote: bad password ***");
  });
});
