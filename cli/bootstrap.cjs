"use strict";
// What `npm run demo`, `npm test`, `npm run check` and `npm run bench` start: installs the packages if they are missing or
// not those of package-lock.json, then goes on in tasks.ts on a Node that is new enough. Must itself run on any Node.

var childProcess = require("child_process");
var fs = require("fs");
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
    if (name === "" || (have === undefined && (wanted[name].optional || wanted[name].devOptional))) continue;
    if (have === undefined || have.version !== wanted[name].version) {
      return "node_modules is not what package-lock.json names (" + name.replace(/^node_modules\//, "") + ")";
    }
  }
  return undefined;
}

function install(reason) {
  process.stderr.write("slipway: " + reason + ": running npm ci\n");
  // npm tells its scripts where it is; without npm (node cli/bootstrap.cjs) it is looked up in PATH.
  var npm = process.env.npm_execpath;
  var viaNode = npm !== undefined && /\.c?js$/.test(npm);
  // No package needs its install script here: all native code comes prebuilt. They would run on a Node that may not start yet.
  var args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  var result = childProcess.spawnSync(viaNode ? process.execPath : npm || "npm", viaNode ? [npm].concat(args) : args, {
    cwd: root,
    stdio: ["ignore", 2, 2],
  });
  if (result.error) nodeVersion.fail("Cannot run npm: " + result.error.message + "; install npm and try again");
  if (result.status !== 0) nodeVersion.fail("Cannot install the packages: npm ci failed, see above");
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
