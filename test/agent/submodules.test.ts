import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkout } from "../../agent/checkout.ts";
import { startGitHttpServer } from "./git-http-server.ts";
import { commitFiles, commitTree, createRepository, git, temporaryDir } from "./git-fixture.ts";

let dir: ReturnType<typeof temporaryDir>;
let parent: string;
let library: string;
let libraryHead: string;

beforeEach(() => {
  dir = temporaryDir();
  parent = join(dir.path, "parent");
  library = join(dir.path, "library");
  libraryHead = createRepository(library, { "lib.txt": "library\n" });
  createRepository(parent);
});
afterEach(() => dir[Symbol.dispose]());

let count = 0;
async function workspaceOf(commit: string, cloneUrl = `file://${parent}`): Promise<string> {
  const workspaceDir = join(dir.path, `workspace-${count++}`);
  await checkout({ mirrorsDir: join(dir.path, "mirrors"), repositoryId: "1", cloneUrl, commit, workspaceDir });
  return workspaceDir;
}

function addSubmodule(repository: string, path: string, url: string, commit: string): string {
  commitFiles(repository, { ".gitmodules": `[submodule "${path}"]\n\tpath = ${path}\n\turl = ${url}\n` });
  git(repository, "update-index", "--add", "--cacheinfo", `160000,${commit},${path}`);
  git(repository, "commit", "-q", "-m", "submodule");
  return git(repository, "rev-parse", "HEAD");
}

describe("checkoutSubmodules", () => {
  test("checks out a relative submodule, and git sees it as clean", async () => {
    const workspace = await workspaceOf(addSubmodule(parent, "third-party/lib", "../library", libraryHead));
    expect(readFileSync(join(workspace, "third-party/lib/lib.txt"), "utf8")).toBe("library\n");
    expect(git(join(workspace, "third-party/lib"), "rev-parse", "HEAD")).toBe(libraryHead);
    expect(git(workspace, "status", "--porcelain")).toBe("");
  });

  test("checks out submodules of submodules", async () => {
    const middle = join(dir.path, "middle");
    createRepository(middle);
    const middleHead = addSubmodule(middle, "inner", "../library", libraryHead);
    const workspace = await workspaceOf(addSubmodule(parent, "outer", `file://${middle}`, middleHead));
    expect(readFileSync(join(workspace, "outer/inner/lib.txt"), "utf8")).toBe("library\n");
  });

  test("keeps the mirrors of different repositories apart", async () => {
    const commit = addSubmodule(parent, "lib", "../library", libraryHead);
    await workspaceOf(commit);
    const before = readdirSync(join(dir.path, "mirrors")).filter((name) => name.startsWith("library-")).length;
    const workspaceDir = join(dir.path, "other");
    const options = { mirrorsDir: join(dir.path, "mirrors"), cloneUrl: `file://${parent}`, commit, workspaceDir };
    await checkout({ ...options, repositoryId: "2" });
    const after = readdirSync(join(dir.path, "mirrors")).filter((name) => name.startsWith("library-")).length;
    expect([before, after]).toEqual([1, 2]);
  });

  test("ignores entries of .gitmodules that are no submodules, and submodules without an entry", async () => {
    commitFiles(parent, { ".gitmodules": '[submodule "x"]\n\tpath = README.md\n\turl = ext::touch pwned\n' });
    git(parent, "update-index", "--add", "--cacheinfo", `160000,${libraryHead},orphan`);
    git(parent, "commit", "-q", "-m", "orphan");
    const workspace = await workspaceOf(git(parent, "rev-parse", "HEAD"));
    expect(readdirSync(join(workspace, "orphan"))).toEqual([]);
  });

  test.each([
    ["a remote helper", "ext::sh -c 'touch pwned'", /git would run a remote helper|contains a space/],
    ["an option", "--upload-pack=touch", /git would take it for an option/],
    ["an unknown transport", "gopher://host/x", /transport "gopher" is not allowed/],
    ["a missing repository", "../none", /submodule "sub": Cannot fetch/],
  ])("refuses %s", async (_name, url, message) => {
    await expect(workspaceOf(addSubmodule(parent, "sub", url, libraryHead))).rejects.toThrow(message);
    expect(existsSync("pwned")).toBe(false);
  });

  test("refuses a missing commit as the repository's matter", async () => {
    const commit = addSubmodule(parent, "sub", "../library", "0123456789012345678901234567890123456789");
    await expect(workspaceOf(commit)).rejects.toMatchObject({
      status: "failure",
      message: /submodule "sub": Cannot find/,
    });
  });

  test("refuses a repository that contains itself", async () => {
    // A commit cannot contain its own id, but a chain of commits can nest deeper than anybody means it.
    let commit = libraryHead;
    for (let depth = 0; depth < 10; depth++)
      commit = addSubmodule(parent, "again", `file://${depth === 0 ? library : parent}`, commit);
    await expect(workspaceOf(commit)).rejects.toThrow(/nested deeper than 8/);
  });

  test("never writes through a link where a submodule should be", async () => {
    const outside = join(dir.path, "outside");
    mkdirSync(outside);
    const modules = `[submodule "x"]\n\tpath = link/sub\n\turl = ../library\n[submodule "y"]\n\tpath = link\n\turl = ../library\n`;
    const commit = commitTree(parent, [
      { mode: "100644", name: ".gitmodules", content: modules },
      { mode: "120000", name: "link", content: outside },
    ]);
    await workspaceOf(commit);
    expect(readdirSync(outside)).toEqual([]);
  });
});

describe("a stranger's commit", () => {
  const untrusted = { repositoryId: "1", untrusted: true };

  test("gets no submodule with the agent's credentials, nor one that was fetched with them before", async () => {
    await using server = await startGitHttpServer(dir.path, "ada:s3cret-word");
    const cloneUrl = `http://ada:s3cret-word@${server.host}/parent/.git`;
    const commit = addSubmodule(parent, "lib", "../../library/.git", libraryHead);
    const workspace = await workspaceOf(commit, cloneUrl);
    expect(readFileSync(join(workspace, "lib/lib.txt"), "utf8")).toBe("library\n");
    const [mirrorsDir, workspaceDir] = [join(dir.path, "mirrors"), join(dir.path, "stranger")];
    await expect(checkout({ ...untrusted, mirrorsDir, cloneUrl, commit, workspaceDir })).rejects.toThrow(
      /^submodule "lib": Cannot fetch/,
    );
    expect(server.refused.some((line) => line.includes("/library/"))).toBe(true);
    expect(existsSync(join(workspaceDir, "lib/lib.txt"))).toBe(false);
  });

  test.each([
    ["by ssh", "ssh://git@example.org/team/private.git", /the agent's keys are not used for a stranger's commit/],
    ["on the agent's machine", "../library", /the agent's files are not read for a stranger's commit/],
  ])("gets no submodule %s", async (_how, url, message) => {
    const commit = addSubmodule(parent, "lib", url, libraryHead);
    const [mirrorsDir, workspaceDir] = [join(dir.path, "mirrors"), join(dir.path, "stranger")];
    const cloneUrl = `file://${parent}`;
    await expect(checkout({ ...untrusted, mirrorsDir, cloneUrl, commit, workspaceDir })).rejects.toThrow(message);
  });
});
