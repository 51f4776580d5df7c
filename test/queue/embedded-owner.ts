/** Runs an embedded Redis until it is killed: node embedded-owner.ts DIR BINARY. Prints the server's pid. */
import { startEmbeddedRedis } from "../../queue/index.ts";

const [dir = "", binary = ""] = process.argv.slice(2);
const redis = await startEmbeddedRedis({ dir, binary });
console.log(redis.pid);
