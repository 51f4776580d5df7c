/** The dashboard: which page is shown, and what all pages share. */
import { signIn } from "./api.js";
import { buildPage } from "./build.js";
import { buildsPage } from "./builds.js";
import { h } from "./dom.js";
import { repositoriesPage } from "./repositories.js";

const main = document.getElementById("main");
/** Each page returns what to do when it is left. */
let leave;

async function show() {
  leave?.();
  leave = undefined;
  const { pathname } = location;
  const build = /^\/builds\/([\w-]+)$/.exec(pathname)?.[1];
  const name = build ? "builds" : pathname === "/repositories" ? "repositories" : "builds";
  for (const link of document.querySelectorAll("[data-nav]")) {
    link.classList.toggle("current", link.dataset.nav === name);
  }
  main.replaceChildren();
  main.className = build ? "wide" : "";
  document.title = "Slipway";
  try {
    leave = build ? buildPage(main, build) : name === "repositories" ? repositoriesPage(main) : buildsPage(main);
  } catch (error) {
    main.replaceChildren(h("p", { class: "empty" }, String(error.message ?? error)));
  }
}

/** Goes to a page of ours without loading the document again. */
export function go(path) {
  history.pushState(null, "", path);
  void show();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-link]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", () => void show());

document.getElementById("sign-in").addEventListener("click", () => void signIn());
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("slipway-theme", root.dataset.theme);
});

void show();
