import { spawnSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkout, type CheckoutOptions } from "../../agent/checkout.ts";
import { CheckoutError } from "../../agent/checkout-error.ts";
import { parseCloneUrl } from "../../agent/clone-url.ts";
import { Mirror } from "../../agent/mirror.ts";
import { startGitHttpServer } from "./git-http-server.ts";
import { commitFiles, commitTree, createRepository, git, temporaryDir } from "./git-fixture.ts";

let dir: ReturnType<typeof temporaryDir>;
let origin: string;
let head: string;
let count = 0;

beforeEach(() => {
  dir = temporaryDir();
  origin = join(dir.path, "origin");
  head = createRepository(origin, { "README.md": "hello\n", "src/a.txt": "a\n" });
});
afterEach(() => dir[Symbol.dispose]());

async function workspaceOf(commit: string, options: Partial<CheckoutOptions> = {}): Promise<string> {
  const workspaceDir = join(dir.path, `workspace-${count++}`);
  const mirrorsDir = join(dir.path, "mirrors");
  await checkout({ mirrorsDir, repositoryId: "1", cloneUrl: `file://${origin}`, commit, workspaceDir, ...options });
  return workspaceDir;
}

async function refusalOf(commit: string, options: Partial<CheckoutOptions> = {}): Promise<CheckoutError> {
  const error: unknown = await workspaceOf(commit, options).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(CheckoutError);
  return error as CheckoutError;
}

function mirrors(): string[] {
  return readdirSync(join(dir.path, "mirrors")).filter((name) => name.endsWith(".git"));
}

describe("checkout", () => {
  test("writes the files of the commit and a repository in which git works without the mirror", async () => {
    git(origin, "tag", "-a", "v1", "-m", "first");
    git(origin, "branch", "other");
    const second = commitFiles(origin, { "src/b.txt": "b\n" });
    const workspace = await workspaceOf(second, { ref: "refs/heads/main" });
    rmSync(join(dir.path, "mirrors"), { recursive: true });
    rmSync(origin, { recursive: true });
    expect(readFileSync(join(workspace, "src/b.txt"), "utf8")).toBe("b\n");
    expect(git(workspace, "status", "--porcelain")).toBe("");
    expect(git(workspace, "log", "--format=%H")).toBe(`${second}\n${head}`);
    expect(git(workspace, "describe")).toMatch(/^v1-1-g/);
    expect(git(workspace, "diff", "--stat", "origin/other")).toContain("src/b.txt");
    expect(git(workspace, "fsck", "--full")).toBe("");
  });

  test("puts the event's branch at the event's commit, though the branch has moved on", async () => {
    commitFiles(origin, { "later.txt": "later\n" });
    const workspace = await workspaceOf(head, { ref: "refs/heads/main" });
    expect(git(workspace, "rev-parse", "HEAD", "origin/main")).toBe(`${head}\n${head}`);
    expect(existsSync(join(workspace, "later.txt"))).toBe(false);
  });

  test("asks the origin for nothing when the mirror has the commit", async () => {
    await workspaceOf(head);
    rmSync(origin, { recursive: true });
    const workspace = await workspaceOf(head);
    expect(readFileSync(join(workspace, "README.md"), "utf8")).toBe("hello\n");
  });

  test("finds a commit that no branch contains", async () => {
    const orphan = commitFiles(origin, { "x.txt": "x\n" });
    git(origin, "reset", "-q", "--hard", head);
    expect(git(await workspaceOf(orphan), "rev-parse", "HEAD")).toBe(orphan);
  });

  test("finds a commit by its ref where the host does not give out commits by id", async () => {
    const commit = commitFiles(origin, { "pull.txt": "x\n" });
    git(origin, "update-ref", "refs/pull/7/head", commit);
    git(origin, "reset", "-q", "--hard", head);
    // The old protocol gives out what is advertised only; a pull request's commit is, by its ref.
    git(origin, "config", "protocol.version", "0");
    const workspace = await workspaceOf(commit, { ref: "refs/pull/7/head" });
    expect(git(workspace, "rev-parse", "HEAD")).toBe(commit);
  });

  test("copes with a branch whose name was a directory of branches", async () => {
    git(origin, "branch", "a");
    await workspaceOf(head);
    git(origin, "branch", "-D", "a");
    git(origin, "branch", "a/b");
    const second = commitFiles(origin, { "b.txt": "b\n" });
    expect(git(await workspaceOf(second), "rev-parse", "origin/a/b")).toBe(head);
  });

  test("serves many jobs of one repository at once", async () => {
    const commits = [head, ...Array.from({ length: 4 }, (_, n) => commitFiles(origin, { "n.txt": String(n) }))];
    const workspaces = await Promise.all([...commits, ...commits].map((commit) => workspaceOf(commit)));
    expect(workspaces.map((workspace) => git(workspace, "rev-parse", "HEAD"))).toEqual([...commits, ...commits]);
    expect(mirrors()).toHaveLength(1);
  });

  test("gives a workspace files of its own, which a step may change and delete", async () => {
    const workspace = await workspaceOf(head);
    const packs = join(workspace, ".git/objects/pack");
    expect(readdirSync(packs).length).toBeGreaterThan(0);
    for (const name of readdirSync(packs)) expect(statSync(join(packs, name)).nlink).toBe(1);
  });

  test("makes a damaged mirror anew", async () => {
    await workspaceOf(head);
    const packs = join(dir.path, "mirrors", mirrors()[0]!, "objects/pack");
    for (const name of readdirSync(packs)) if (name.endsWith(".pack")) truncateSync(join(packs, name), 20);
    expect(git(await workspaceOf(head), "status", "--porcelain")).toBe("");
  });

  test("repacks and packs refs in the background, and forgets nothing", async () => {
    for (let n = 0; n < 210; n++) git(origin, "update-ref", `refs/tags/t${n}`, head);
    const commits = Array.from({ length: 42 }, (_, n) => commitFiles(origin, { "n.txt": String(n) }));
    const url = parseCloneUrl(`file://${origin}`);
    const mirror = new Mirror({ mirrorsDir: join(dir.path, "mirrors"), repositoryId: "1", url });
    for (const commit of commits) {
      git(origin, "update-ref", "refs/heads/main", commit);
      await mirror.fetch({ commit, timeoutMs: 60_000 });
      await mirror.tidied;
    }
    const packs = readdirSync(join(mirror.dir, "objects/pack")).filter((name) => name.endsWith(".pack"));
    expect(packs.length).toBeLessThan(16);
    expect(existsSync(join(mirror.dir, "packed-refs"))).toBe(true);
    expect(mirror.refs().get("refs/tags/t99")).toBe(head);
    expect(git(await workspaceOf(commits[3]!), "fsck", "--full")).toBe("");
  });

  test("stops when it is canceled, with the reason it was given", async () => {
    const reason = new Error("canceled by a person");
    await expect(workspaceOf(head, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });

  test("checks out SHA-256 repositories", async () => {
    const modern = join(dir.path, "modern");
    mkdirSync(modern);
    git(modern, "init", "-q", "--object-format=sha256", "-b", "main");
    const commit = commitFiles(modern, { "a.txt": "a\n" });
    const workspace = await workspaceOf(commit, { cloneUrl: `file://${modern}` });
    expect(git(workspace, "status", "--porcelain")).toBe("");
    expect(git(workspace, "rev-parse", "HEAD")).toBe(commit);
  });
});

describe("checkout refuses", () => {
  test("a commit that does not exist, as the repository's matter", async () => {
    const commit = "0123456789012345678901234567890123456789";
    const error = await refusalOf(commit);
    expect(error.status).toBe("failure");
    expect(error.message).toContain(`Cannot find commit ${commit} in "file://${origin}"`);
  });

  test("what is no commit id", async () => {
    expect((await refusalOf("--upload-pack=x")).message).toContain("hexadecimal");
  });

  test("a repository that is not there, as the operator's matter", async () => {
    const error = await refusalOf(head, { cloneUrl: `file://${dir.path}/none` });
    expect(error.status).toBe("error");
    expect(error.message).toMatch(/Cannot fetch ".*none": .*does not appear to be a git repository/);
  });

  test("a tree with a .git in it", async () => {
    const blob = commitTree(origin, [
      { mode: "100644", name: "x", content: "[core]\n\tfsmonitor = touch /tmp/pwned\n" },
    ]);
    const tree = git(origin, "rev-parse", `${blob}^{tree}`);
    for (const name of [".git", ".GIT", "git~1"]) {
      const commit = commitTree(origin, [{ mode: "40000", name, content: tree }]);
      const error = await refusalOf(commit);
      expect(error.status).toBe("failure");
      expect(error.message).toContain("invalid path");
    }
  });

  test.each([
    "ext::sh -c 'touch pwned'",
    "ext::touch%20pwned",
    "-uhttp://x",
    "ftp://h/x",
    "--upload-pack=x",
    "relative/path",
  ])("the clone URL %s", async (cloneUrl) => {
    const error = await refusalOf(head, { cloneUrl });
    expect(error.status).toBe("error");
    expect(error.message).toContain("Cannot use the URL");
  });
});

describe("checkout takes no harm from", () => {
  test("a branch whose name looks like an option, or a ref that is none", async () => {
    git(origin, "update-ref", "refs/heads/--upload-pack=touch", head);
    for (const ref of ["refs/heads/--upload-pack=touch", "--upload-pack=touch pwned", "refs/heads/a:refs/heads/b"]) {
      expect(git(await workspaceOf(head, { ref }), "rev-parse", "HEAD")).toBe(head);
    }
    const second = commitFiles(origin, { "b.txt": "b" });
    const workspace = await workspaceOf(second, { ref: "refs/heads/--upload-pack=touch" });
    expect(git(workspace, "rev-parse", "refs/remotes/origin/--upload-pack=touch")).toBe(second);
  });

  test("hooks, filters and configuration that a repository brings along", async () => {
    const commit = commitFiles(origin, {
      ".gitattributes": "* filter=evil\n*.txt diff=evil\n",
      ".githooks/post-checkout": "#!/bin/sh\ntouch pwned\n",
      ".gitconfig": "[core]\n\thooksPath = .githooks\n",
      "a.txt": "text\n",
    });
    const workspace = await workspaceOf(commit);
    expect(readFileSync(join(workspace, "a.txt"), "utf8")).toBe("text\n");
    expect(existsSync(join(workspace, "pwned"))).toBe(false);
  });

  test("symbolic links that point out of the workspace", async () => {
    const outside = join(dir.path, "outside");
    mkdirSync(outside);
    writeFileSync(join(outside, "gitmodules"), '[submodule "x"]\n\tpath = link\n\turl = file:///\n');
    const commit = commitTree(origin, [
      { mode: "120000", name: ".gitattributes", content: "/dev/zero" },
      { mode: "120000", name: "link", content: outside },
    ]);
    const workspace = await workspaceOf(commit);
    expect(lstatSync(join(workspace, "link")).isSymbolicLink()).toBe(true);
    expect(readdirSync(outside)).toEqual(["gitmodules"]);
  });
});

describe("checkout over HTTP", () => {
  test("sends credentials to the host, and leaves them nowhere", async () => {
    await using server = await startGitHttpServer(dir.path, "ada:s3cret-word");
    const cloneUrl = `http://ada:s3cret-word@${server.host}/origin/.git`;
    const workspace = await workspaceOf(head, { cloneUrl });
    expect(git(workspace, "config", "remote.origin.url")).toBe(`http://${server.host}/origin/.git`);
    // With the first request already: asking without them first would cost a round trip.
    expect(server.refused).toEqual([]);
    const basic = Buffer.from("ada:s3cret-word").toString("base64");
    const found = spawnSync("grep", ["-rlaF", "-e", "s3cret-word", "-e", basic, dir.path], { encoding: "utf8" });
    expect(found.stdout).toBe("");
  });

  test("says that the host refuses, without the credentials", async () => {
    await using server = await startGitHttpServer(dir.path, "ada:s3cret-word");
    const error = await refusalOf(head, { cloneUrl: `http://ada:wr0ng-word@${server.host}/origin/.git` });
    expect(error.status).toBe("error");
    expect(error.message).toMatch(/Authentication failed.*check the credentials/);
    expect(error.message).not.toContain("wr0ng");
  });

  test("gives up a host that does not answer in time, and one whose job is canceled", async () => {
    await using server = await startGitHttpServer(dir.path, "ada:s3cret-word");
    server.hang = true;
    const cloneUrl = `http://ada:s3cret-word@${server.host}/origin/.git`;
    const late = await refusalOf(head, { cloneUrl, timeoutMs: 300 });
    expect(late).toMatchObject({ status: "error", message: /it was not done within/ });
    const cancel = new AbortController();
    const canceled = workspaceOf(head, { cloneUrl, signal: cancel.signal });
    setTimeout(() => cancel.abort(new Error("canceled by Ada")), 100);
    await expect(canceled).rejects.toThrow("canceled by Ada");
  });
});
