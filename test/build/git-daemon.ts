/** Serves repositories by Git's own protocol. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";

/** Serves those below a directory until it is disposed of, on a port that nobody else can have taken meanwhile: one daemon for each connection. */
export async function serveGit(directory: string): Promise<AsyncDisposable & { readonly url: string }> {
  const args = ["daemon", "--inetd", "--export-all", `--base-path=${directory}`];
  const server = createServer({ pauseOnConnect: true }, (socket) => {
    spawn("git", args, { stdio: [socket, socket, "ignore"] });
    socket.destroy();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `git://127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      server.close();
      await once(server, "close");
    },
  };
}
