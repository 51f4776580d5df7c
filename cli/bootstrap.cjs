"use strict";
// What `npm run demo`, `npm test`, `npm run check` and `npm run bench` start: installs the packages if they are missing or
// not those of package-lock.json, then goes on in tasks.ts on a Node that is new enough. Must itself run on any Node.

var childProcess = require("child_process");
var fs = require("fs");
var os = require("os");
var path = require("path");
var nodeVersion = require("./node-version.cjs");

var root = nodeVersion.root;

/** Why the packages must be installed, or undefined. */
function whyInstall() {
  var wanted = JSON.parse(fs.readFileSync(path.join(root, "package-lock.json"), "utf8")).packages;
  var installed;
  try {
    installed = JSON.parse(fs.readFileSync(path.join(root, "node_modules", ".package-lock.json"), "utf8")).packages;
  } catch (error) {
    return "node_modules is missing";
  }
  var names = Object.keys(wanted);
  for (var i = 0; i < names.length; i++) {
    var name = names[i];
    var have = installed[name];
    var optional = wanted[name].optional || wanted[name].devOptional;
    if (name === "" || (have === undefined && optional && !isForHere(wanted[name]))) continue;
    if (have === undefined || have.version !== wanted[name].version) {
      return "node_modules is not what package-lock.json names (" + name.replace(/^node_modules\//, "") + ")";
    }
  }
  return undefined;
}

/** Whether an optional package is native code for this machine; npm leaves it out where its own Node is too old for it. */
function isForHere(wanted) {
  if (wanted.os === undefined && wanted.cpu === undefined) return false;
  var libc = process.report.getReport().header.glibcVersionRuntime === undefined ? "musl" : "glibc";
  return [
    [wanted.os, process.platform],
    [wanted.cpu, process.arch],
    [wanted.libc, libc],
  ].every(function (pair) {
    return pair[0] === undefined || pair[0].indexOf(pair[1]) >= 0;
  });
}

/** Runs npm on a Node, which it also takes for the one that packages are for. Undefined: it has succeeded. */
function runNpm(node, args, cwd) {
  // npm tells its scripts where it is; without npm (node cli/bootstrap.cjs) it is looked up in PATH.
  var npm = process.env.npm_execpath;
  var viaNode = npm !== undefined && /\.c?js$/.test(npm);
  // No package needs its install script here: all native code comes prebuilt. They would run on a Node that may not start yet.
  args = args.concat(["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
  var result = childProcess.spawnSync(viaNode ? node : npm || "npm", viaNode ? [npm].concat(args) : args, {
    cwd: cwd,
    stdio: ["ignore", 2, 2],
    env: Object.assign({}, process.env, {
      PATH: path.dirname(node) + path.delimiter + process.env.PATH,
      NODE_NO_WARNINGS: "1",
    }),
  });
  if (result.error) return "Cannot run npm: " + result.error.message + "; install npm and try again";
  return result.status === 0 ? undefined : "Cannot install the packages: npm failed, see above";
}

/** Gets the Node that the project brings along before everything else, for npm to run on. @returns Where it is. */
function fetchNode(directory) {
  var name = "node-linux-" + process.arch;
  var wanted = JSON.parse(fs.readFileSync(path.join(root, "package-lock.json"), "utf8")).packages;
  fs.writeFileSync(path.join(directory, "package.json"), "{}");
  var failure = runNpm(process.execPath, ["install", name + "@" + wanted["node_modules/" + name].version], directory);
  if (failure !== undefined) nodeVersion.fail(failure);
  return nodeVersion.startable(path.join(directory, "node_modules", name, "bin", "node"), installLibatomic);
}

function install(reason) {
  process.stderr.write("slipway: " + reason + ": running npm ci\n");
  if (nodeVersion.isNewEnough()) return installOn(process.execPath);
  var directory = fs.mkdtempSync(path.join(os.tmpdir(), "slipway-node-"));
  // A failure ends with exit. `rm`, for fs.rmSync is missing in old versions.
  function remove() {
    childProcess.spawnSync("rm", ["-rf", "--", directory]);
  }
  process.on("exit", remove);
  installOn(fetchNode(directory));
  remove();
}

function installOn(node) {
  var failure = runNpm(node, ["ci"], root);
  if (failure !== undefined) nodeVersion.fail(failure);
}

/** The official builds of Node link libatomic, which a bare Debian or Ubuntu lacks. */
function installLibatomic(reason) {
  if (!/libatomic/.test(reason) || process.getuid() !== 0 || !fs.existsSync("/usr/bin/apt-get")) return;
  process.stderr.write("slipway: installing libatomic1, which Node needs (apt-get)\n");
  var options = { stdio: "ignore", env: Object.assign({}, process.env, { DEBIAN_FRONTEND: "noninteractive" }) };
  childProcess.spawnSync("apt-get", ["update", "-qq"], options);
  childProcess.spawnSync("apt-get", ["install", "-qq", "--yes", "--no-install-recommends", "libatomic1"], options);
}

if (process.platform !== "linux") nodeVersion.fail("Slipway runs on Linux only, this is " + process.platform);
var reason = whyInstall();
if (reason !== undefined) install(reason);
if (nodeVersion.isNewEnough()) {
  require("./tasks.ts");
} else {
  nodeVersion.become(
    nodeVersion.findNode(installLibatomic),
    [path.join(__dirname, "tasks.ts")].concat(process.argv.slice(2)),
  );
}
