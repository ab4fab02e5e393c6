// Fills the texts and tables around the pictures: numbers, runs, request, candidates, proof.

const SHARES = [0, 200, 400, 600, 800, 1001]; // per mille, ends of the classes of tiles

const byId = (id) => document.getElementById(id);

function shareClass(share) {
  if (!share) return "share-none";
  return `share-${SHARES.findIndex((end) => share < end) - 1}`;
}

function percent(part, whole) {
  const share = whole ? (100 * part) / whole : 0;
  return `${share >= 10 || !share ? share.toFixed(0) : share.toPrecision(2)}\u00a0%`;
}

const perMille = (share) => (share === null ? "no pairs" : percent(share, 1000));

/** A `<dl>` from names and values. */
function facts(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

const place = (at) => (at.length === 1 ? number(at[0]) : `(${at.map(number).join(", ")})`);

/** The runs of every axis in words. */
function runsWords(state, kinds) {
  return state.axes.map((axis, index) => {
    const runs = axis.runs(state.side, state.at[index]) ?? [];
    const words = runs.map((run) => {
      const kind = state.side === "query" && run.kind ? ` (${more(axis.words(run.kind, kinds))})` : "";
      return span(run) + kind;
    });
    const name = state.axes.length > 1 ? `axis ${index}: ` : "";
    return name + (words.join(" and ") || "none");
  });
}

/** What a sign says beside "attended". */
const more = (words) => words.replace(/^attended, /, "");

/** How many there are on the opposite side. */
function countOf(state) {
  return state.axes.reduce(
    (product, axis, index) => product * total(axis.runs(state.side, state.at[index]) ?? []), 1);
}

/** The query and its keys, or the key and its queries, as one sentence. */
function sentence(state, kinds) {
  if (state.axes.some((axis) => !axis.length(state.side))) {
    return `There are no ${state.side === "query" ? "queries" : "keys"}.`;
  }
  const found = countOf(state);
  const words = found ? `: ${runsWords(state, kinds).join("; ")}` : "";
  if (state.side === "key") {
    const noun = found === 1 ? "query" : "queries";
    return `Key ${place(state.at)}: ${number(found)} ${noun} attend to it${words}.`.replace(
      "1 query attend ", "1 query attends ");
  }
  const noun = found === 1 ? "key" : "keys";
  return `Query ${place(state.at)} attends to ${number(found)} ${noun}${words}. ${ownWords(state)}`;
}

function ownWords(state) {
  const own = state.axes.map((axis, index) => axis.own("query", state.at[index]));
  if (own.includes(null)) return "The mask has no alignment, so the query has no own position.";
  const isOn = own.every((at, index) => at >= 0 && at < state.axes[index].length("key"));
  if (!isOn) return `Its own position ${place(own)} lies outside of the keys.`;
  const isRead = state.axes.every(
    (axis, index) => kindAt(axis.runs("query", state.at[index]) ?? [], own[index]) !== null);
  return `Its own position ${place(own)} is ${isRead ? "attended to" : "not attended to"}.`;
}

function runsTable(table, state, kinds) {
  const isQuery = state.side === "query";
  const names = ["Axis", isQuery ? "Keys" : "Queries", "How many", ...(isQuery ? ["Sign"] : [])];
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  const rows = state.axes.flatMap((axis, index) => {
    const runs = axis.runs(state.side, state.at[index]) ?? [];
    if (!runs.length) return [runRow(index, ["none", "0", ...(isQuery ? [""] : [])])];
    return runs.map((run) => runRow(index, [
      span(run), number(run.count), ...(isQuery ? [axis.words(run.kind, kinds)] : []),
    ]));
  });
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function runRow(axis, cells) {
  const name = element("th", { scope: "row" }, String(axis));
  return element("tr", {}, name, ...cells.map((cell) => element("td", {}, cell)));
}

function numbersPanel(view, state) {
  const isQuery = state.side === "query";
  const spaces = ["query", "key"].map((side) =>
    state.axes.map((axis) => number(axis.length(side))).join(" × "));
  const found = countOf(state);
  const opposites = state.axes.reduce((all, axis) => all * axis.length(opposite(state.side)), 1);
  facts(byId("numbers"), [
    ["Queries", spaces[0]],
    ["Keys", spaces[1]],
    ["Pairs", `${number(view.pairs)} of ${number(view.all_pairs)}: ${percent(view.pairs, view.all_pairs)}`],
    ["Queries without keys", number(view.without_keys)],
    [isQuery ? "Keys of this query" : "Queries of this key",
      `${number(found)}: ${percent(found, opposites)} of all`],
    ...state.axes.map((axis, index) => [`Axis ${index}`, `${axis.plain.axis}: ${axis.plain.words}`]),
  ]);
  byId("runs-title").textContent = isQuery ? "Keys of this query" : "Queries of this key";
}

function planPanel(plan) {
  facts(byId("choice"), [
    ["Chosen", plan.chosen], ["Cost", plan.cost], ["Work", plan.work], ["Faster", plan.faster]]);
  facts(byId("request"), plan.request);
  byId("explain").textContent = plan.explain;
  byId("decided").textContent = plan.decided_by;
  const { exact, words } = plan.proof;
  const [sign, result] = exact === null ? ["–", "Proof"] : exact ? ["✓", "Proved exact"] : ["✗", "Not exact"];
  byId("proof").className = `proof ${exact === null ? "open" : exact ? "exact" : "wrong"}`;
  byId("proof").replaceChildren(
    element("span", { "aria-hidden": "true" }, `${sign} `),
    element("strong", {}, `${result}: `), words);
}

/** The rows of the candidates' table that a filter leaves, and how many they are. */
function candidatesPanel(plan) {
  const text = byId("text").value.trim().toLowerCase();
  const backend = byId("backend").value;
  const acceptedOnly = byId("accepted").checked;
  const left = plan.candidates.filter((candidate) => {
    const words = [candidate.name, candidate.state, candidate.cost, ...candidate.reasons];
    return (!acceptedOnly || candidate.cost)
      && (!backend || candidate.backend === backend)
      && words.join(" ").toLowerCase().includes(text);
  });
  byId("candidates").tBodies[0].replaceChildren(...left.map(candidateRow));
  byId("found").textContent = `${left.length} of ${plan.candidates.length} candidates`;
}

/** Roles are said, since a small screen shows rows as blocks. */
function candidateRow({ state, name, cost, times, reasons }) {
  const shown = times ? `${cost} (${times.toPrecision(3)}×)` : cost;
  const what = cost ? element("span", {}, reasons.join("; ")) : folded(reasons);
  return element("tr", { class: `state-${state.replace(" ", "-")}`, role: "row" },
    element("td", { role: "cell" }, element("span", { class: "badge" }, state)),
    element("th", { scope: "row", role: "rowheader" }, name),
    element("td", { role: "cell" }, shown),
    element("td", { role: "cell" }, what));
}

/** The reasons against a candidate, folded. */
function folded(reasons) {
  const count = `${reasons.length} ${reasons.length === 1 ? "reason" : "reasons"}`;
  const items = reasons.map((reason) => element("li", {}, reason));
  return element("details", {}, element("summary", {}, count), element("ul", {}, ...items));
}

function backendOptions(plan) {
  const names = [...new Set(plan.candidates.map((candidate) => candidate.backend))];
  byId("backend").replaceChildren(
    element("option", { value: "" }, "all"),
    ...names.map((name) => element("option", { value: name }, name)));
}

/** A legend of small pictures of cells with their words. */
function legend(list, entries) {
  list.replaceChildren(...entries.map(([drawn, words]) => {
    const svg = node("svg", { width: 18, height: 18, viewBox: "-0.05 -0.05 1.1 1.1",
      "aria-hidden": "true" }, ...drawn,
    node("rect", { x: 0, y: 0, width: 1, height: 1, class: "frame-line" }));
    return element("li", {}, svg, ` ${words}`);
  }));
}
