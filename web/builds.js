/** The list of builds, newest first, kept up to date. */
import { api } from "./api.js";
import { h, refChip, statusIcon } from "./dom.js";
import { ago, elapsed } from "./format.js";

const pageSize = 50;
const refreshMs = 2000;

export function buildsPage(main) {
  const list = h("ul", { class: "builds" });
  const more = h("button", { class: "plain", type: "button", hidden: true }, "Show older builds");
  const filter = new URLSearchParams(location.search).get("repository");
  const title = h("h1", {}, "Builds");
  main.append(h("div", { class: "page-head" }, title), list, h("div", { class: "center" }, more));
  const rows = new Map();
  let builds = [];
  let older = [];
  let gone = false;
  let timer;

  async function refresh() {
    clearTimeout(timer);
    try {
      if (!document.hidden)
        ({ builds } = await api("GET", `/api/builds?limit=${pageSize}${filter ? `&repository=${filter}` : ""}`));
      if (gone) return;
      draw();
      main.classList.remove("stale");
    } catch (error) {
      main.classList.add("stale");
      if (rows.size === 0)
        list.replaceChildren(h("li", { class: "empty" }, `Cannot load the builds: ${error.message}`));
    }
    if (!gone) timer = setTimeout(() => void refresh(), refreshMs);
  }

  function draw() {
    const ids = new Set(builds.map((build) => build.id));
    const all = [...builds, ...older.filter((build) => !ids.has(build.id))];
    more.hidden = all.length < pageSize;
    if (all.length === 0) return list.replaceChildren(emptyList());
    for (const [id, row] of rows) {
      if (all.some((build) => build.id === id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    if (rows.size === 0) list.replaceChildren();
    all.forEach((build, at) => {
      let row = rows.get(build.id);
      if (!row || row.version !== build.version || row.isLive) {
        const element = buildRow(build);
        row?.element.replaceWith(element);
        rows.set(build.id, (row = { element, version: build.version, isLive: build.finishedAtMs === undefined }));
      } else {
        row.element.querySelector("time").textContent = ago(build.createdAtMs);
      }
      if (list.children[at] !== row.element) list.insertBefore(row.element, list.children[at] ?? null);
    });
  }

  more.addEventListener("click", async () => {
    const last = [...builds, ...older].at(-1);
    const answer = await api(
      "GET",
      `/api/builds?limit=${pageSize}&before=${last.id}${filter ? `&repository=${filter}` : ""}`,
    );
    older = [...older, ...answer.builds];
    draw();
    more.hidden = answer.builds.length < pageSize;
  });
  const shown = () => !document.hidden && void refresh();
  document.addEventListener("visibilitychange", shown);
  void refresh();
  return () => {
    gone = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", shown);
  };
}

function buildRow(build) {
  return h(
    "li",
    { class: `build ${build.status}` },
    h(
      "a",
      { href: `/builds/${build.id}`, "data-link": true },
      statusIcon(build.status),
      h(
        "span",
        { class: "what" },
        h("span", { class: "title" }, build.title ?? build.event.commit.slice(0, 12)),
        h(
          "span",
          { class: "sub" },
          h("span", { class: "repo" }, build.repository.name),
          h("span", { class: "number" }, `#${build.number}`),
          refChip(build.event),
          build.untrusted && h("span", { class: "note" }, "untrusted"),
          h("code", {}, build.event.commit.slice(0, 8)),
          build.author && h("span", { class: "author" }, build.author),
          build.reason && h("span", { class: "reason" }, build.reason.split("\n")[0]),
        ),
      ),
      h(
        "span",
        { class: "when" },
        h("span", { class: "took" }, elapsed(build) || (build.finishedAtMs === undefined ? "waiting" : "")),
        h(
          "time",
          { datetime: new Date(build.createdAtMs).toISOString(), title: new Date(build.createdAtMs).toLocaleString() },
          ago(build.createdAtMs),
        ),
      ),
    ),
  );
}

function emptyList() {
  return h(
    "li",
    { class: "empty" },
    h("strong", {}, "No builds yet"),
    h("p", {}, "Add a repository, set its webhook, and push a commit that has a ", h("code", {}, ".slipway.yml"), "."),
    h("a", { class: "primary", href: "/repositories", "data-link": true }, "Add a repository"),
  );
}
