/** A root file system with the host's shell and a few programs, as small as can be. */
import { execFileSync } from "node:child_process";
import { readFileSync, realpathSync } from "node:fs";
import { type Member, tarArchive } from "./tar-archive.ts";

const programs = ["sh", "cat", "env", "id", "ls", "stat", "touch", "true"];

/** A layer with `sh cat env id ls stat touch true`, their libraries, and what else is wanted. */
export function shellLayer(more: readonly Member[] = []): Buffer {
  const libraries = new Set(
    programs.flatMap((name) =>
      [...execFileSync("ldd", [`/bin/${name}`], { encoding: "utf8" }).matchAll(/(\/\S+) \(0x/g)].map(
        (match) => match[1] as string,
      ),
    ),
  );
  return tarArchive([
    ...["bin", "lib", "lib64"].map((name): Member => ({ name, type: "2", linkName: `usr/${name}` })),
    ...programs.map(
      (name): Member => ({ name: `usr/bin/${name}`, mode: 0o755, content: readFileSync(`/bin/${name}`) }),
    ),
    ...[...libraries].map(
      (path): Member => ({
        name: path.replace(/^\/lib/, "usr/lib").replace(/^\//, ""),
        mode: 0o755,
        content: readFileSync(realpathSync(path)),
      }),
    ),
    { name: "etc/passwd", content: "root:x:0:0::/root:/bin/sh\nada:x:1234:1235::/home/ada:/bin/sh\n" },
    { name: "etc/group", content: "root:x:0:\nada:x:1235:\nwheel:x:10:ada,root\n" },
    ...more,
  ]);
}
