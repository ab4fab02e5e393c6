// The page's state, and what changes it: sliders, pointers, keys, choices.

const data = JSON.parse(byId("data").textContent);
const KIND_NAMES = data.kinds.map((kind) => kind.name);
const AXES = data.axes.map((plain) => new Axis(plain));
const SAID_AFTER = 250; // milliseconds without a move until a screen reader is told
const PAGE = 8; // places that Page Up and Page Down move by

const state = {
  view: data.views[0],
  axes: [],
  side: "query",
  at: [],
  slices: [], // chosen places of the axes across planes; null follows the query
  viewports: {},
  isDragging: false, // then what a picture shows of a long axis stays
};
let pictures = []; // { picture, numbers, kind } of the chosen view
let later = 0;

/** Shows another plan, or another size of its grids. */
function choose(index) {
  state.view = data.views[index];
  state.axes = state.view.axes.map((number) => AXES[number]);
  state.viewports = {};
  state.at = middle();
  state.slices = state.axes.map(() => null);
  const plan = data.plans[state.view.plan];
  byId("mask").textContent = plan.mask;
  build();
  backendOptions(plan);
  planPanel(plan);
  candidatesPanel(plan);
  drawTiles();
  render();
}

const middle = () =>
  state.axes.map((axis) => axis[state.side].snap(Math.floor(axis.length(state.side) / 2)));

/** Moves the query or the key; slices follow it again. */
function move(at, way = 0) {
  const next = at.map((place, number) => {
    const axis = state.axes[number];
    const inside = clamp(place, 0, Math.max(0, axis.length(state.side) - 1));
    return axis[state.side].snap(inside, way);
  });
  if (next.some((place, number) => place !== state.at[number])) {
    state.slices = state.axes.map(() => null);
  }
  state.at = next;
  render();
}

/** Moves the other side: the key instead of the query, or the query instead of the key. */
function turn(side, at = null) {
  const places = at ?? state.axes.map((axis, number) => focus(axis, state.side, state.at[number]));
  state.side = side;
  state.at = places.map((place, number) => {
    const axis = state.axes[number];
    return axis[side].snap(clamp(place, 0, Math.max(0, axis.length(side) - 1)));
  });
  state.slices = state.axes.map(() => null);
  for (const input of document.querySelectorAll("input[name=side]")) {
    input.checked = input.value === side;
  }
  build();
  render();
}

// ---- what a view consists of

function build() {
  byId("sliders").replaceChildren(...state.axes.map(slider));
  const kept = state.axes.map(keptWords).filter(Boolean);
  byId("kept").textContent = kept.join(" ");
  byId("kept").hidden = !kept.length;
  pictures = state.axes.length === 1 ? [matrix()] : planes();
  const isLong = state.axes.some((axis) =>
    Math.max(axis.length("query"), axis.length("key")) > ALL);
  if (isLong) pictures.push(map());
  byId("planes").replaceChildren(...pictures.map(({ picture }) => picture.figure));
  byId("planes").className = `planes rank-${state.axes.length}${isLong ? " with-map" : ""}`;
  legend(byId("legend"), signsOfView());
}

function slider(axis, index) {
  const name = `${state.side}${state.axes.length > 1 ? ` on axis ${index}` : ""}`;
  const input = element("input", {
    type: "range", min: 0, max: Math.max(0, axis[state.side].count - 1), id: `at-${index}`,
  });
  input.addEventListener("input", () => {
    const at = [...state.at];
    at[index] = axis[state.side].at(Number(input.value));
    move(at);
  });
  const output = element("output", { for: `at-${index}`, id: `at-${index}-value` });
  const label = element("label", { for: `at-${index}` }, name[0].toUpperCase() + name.slice(1));
  return element("div", { class: "slider" }, label, input, output);
}

/** Which places of a long axis have rows on the page. */
function keptWords(axis, index) {
  const parts = axis[state.side];
  if (parts.isWhole) return "";
  const spans = parts.parts.map((part) => `${number(part.first)} to ${number(part.stop - 1)}`);
  const name = state.axes.length > 1 ? `Axis ${index}` : "This axis";
  const noun = state.side === "query" ? "queries" : "keys";
  return `${name} has ${number(axis.length(state.side))} ${noun}; the page has ${spans.join(", ")}.`;
}

function matrix() {
  const picture = new Picture("matrix", "", {
    moved: (cell, event) => {
      state.isDragging = true;
      inMatrix(cell, isTurning(event));
    },
    pressed: (event) => pressed(event, [0, 0]),
    ended: released,
  });
  return { picture, kind: "matrix", numbers: [0] };
}

function planes() {
  const orders = state.axes.length === 2 ? [[0, 1]] : [[1, 2, 0], [0, 2, 1], [0, 1, 2]];
  return orders.map((numbers) => {
    const picture = new Picture(numbers.slice(0, 2).join(""), "", {
      moved: (cell, event) => {
        state.isDragging = true;
        inPlane(cell, isTurning(event), numbers);
      },
      pressed: (event) => pressed(event, numbers),
      ended: released,
    });
    if (numbers.length === 3) picture.figure.append(sliceSlider(numbers[2]));
    return { picture, kind: "plane", numbers };
  });
}

const isTurning = (event) => event.shiftKey && event.type === "pointerdown";

/** Moves to the row of a cell, or to its column; or turns to the other side there. */
function inMatrix({ x, y }, isTurn) {
  const [own, other] = state.side === "query" ? [y, x] : [x, y];
  if (isTurn) turn(opposite(state.side), [other]);
  else move([own]);
}

/** Moves to the query whose own position is nearest to a cell; or turns to the cell itself. */
function inPlane({ x, y }, isTurn, numbers) {
  const cells = state.axes.map((axis, number) => {
    if (number === numbers[0]) return y;
    if (number === numbers[1]) return x;
    return isTurn ? sliceOf(state, number) : null;
  });
  if (isTurn) return turn(opposite(state.side), cells);
  return move(cells.map((cell, number) =>
    cell === null ? state.at[number] : state.axes[number].owner(state.side, cell)));
}

function sliceSlider(number) {
  const axis = state.axes[number];
  const noun = opposite(state.side);
  const id = `slice-${number}`;
  const input = element("input", { type: "range", min: 0, id,
    max: Math.max(0, axis.length(noun) - 1) });
  input.addEventListener("input", () => {
    state.slices[number] = Number(input.value);
    render();
  });
  return element("div", { class: "slider slice" },
    element("label", { for: id }, `Slice: ${noun} on axis ${number}`), input,
    element("output", { for: id, id: `${id}-value` }));
}

function map() {
  const rank = state.axes.length;
  const numbers = rank === 1 ? [0, 0] : [rank - 2, rank - 1];
  const picture = new Picture("map", "", {
    moved: (cell) => (rank === 1 ? inMatrix(cell, false) : inPlane(cell, false, numbers)),
    pressed: (event) => pressed(event, numbers),
    ended: released,
  });
  return { picture, kind: "map", numbers };
}

function signsOfView() {
  const runs = state.axes.flatMap((axis) => axis.plain.rows.flatMap((part) => part.runs));
  const seen = new Set(runs.flatMap((flat) => flat.filter((_, n) => n % 3 === 0)));
  const cell = (look) => [node("rect", { x: 0, y: 0, width: 1, height: 1, class: look })];
  const mark = (attended) => ownMark({ x: 0, y: 0, attended, lit: true });
  if (state.side === "key") return [[cell("cell read lit"), "attends to the key"],
    [cell("ground"), "does not"]];
  const kinds = data.kinds.map((kind, index) => [index, kind]).filter(([index]) => seen.has(index));
  const words = (index) => {
    const all = state.axes.map((axis) => axis.words(index, data.kinds));
    const found = [...new Set(all)].filter((text) => text !== "attended");
    return `attended, ${found.map(more).join(" or ")}`;
  };
  return [
    ...kinds.map(([index]) => [cell(`cell ${KIND_NAMES[index]} lit`),
      index ? words(index) : data.kinds[index].words]),
    [cell("ground"), "not attended"],
    ...(state.axes.some((axis) => axis.step > 1)
      ? [[cell("offgrid"), "not on the query's dilation grid"]] : []),
    [[...cell("cell read lit"), mark(true)], "own position, attended"],
    [[...cell("ground"), mark(false)], "own position, not attended"],
    ...(state.view.tiles.groups ? [[cell("box tile"), "keys that the tiles of the query visit"]] : []),
  ];
}

// ---- pointers and keys

function released() {
  if (!state.isDragging) return;
  state.isDragging = false;
  render();
}

const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
};

/** Arrow keys move in the picture, Page Up and Page Down on the axis across it or further down. */
function pressed(event, [down, across, third]) {
  const steps = keySteps(event, down, across, third);
  if (!steps) return;
  event.preventDefault();
  const at = [...state.at];
  let way = 0;
  for (const [number, step] of steps) {
    at[number] += step;
    way = Math.sign(step);
  }
  move(at, way);
}

function keySteps(event, down, across, third) {
  const far = Infinity;
  const all = state.axes.map((_, number) => number);
  if (event.altKey || event.metaKey) return null;
  if (event.key in STEPS) {
    const [y, x] = STEPS[event.key];
    return y ? [[down, y]] : [[across, x]];
  }
  const ends = { Home: -far, End: far }[event.key];
  if (ends) return (event.ctrlKey ? all : [across]).map((number) => [number, ends]);
  const page = { PageUp: -1, PageDown: 1 }[event.key];
  if (page) return third === undefined ? [[down, PAGE * page]] : [[third, page]];
  return null;
}

// ---- drawing

function render() {
  const groups = groupsOf(state.view.tiles, state.at);
  const drawn = state.side === "query" ? groups : [];
  for (const { picture, kind, numbers } of pictures) {
    const scene = sceneOf(kind, picture.id, numbers);
    if (kind !== "map" && state.axes.length <= 2) addTileBoxes(scene, drawn, numbers, state);
    if (kind === "plane" && numbers.length === 3) {
      const here = sliceOf(state, numbers[2]);
      addTileBoxes(scene, drawn.map((group) => tilesAt(group, numbers[2], here)), numbers.slice(0, 2), state);
    }
    picture.draw(scene, wordsOf(kind, numbers, scene));
  }
  updateSliders();
  byId("said").textContent = sentence(state, data.kinds);
  runsTable(byId("runs"), state, data.kinds);
  numbersPanel(state.view, state);
  markTiles(groups);
  clearTimeout(later);
  later = setTimeout(() => { byId("live").textContent = byId("said").textContent; }, SAID_AFTER);
}

function sceneOf(kind, id, numbers) {
  if (kind === "matrix") return matrixScene(state, id);
  return kind === "map" ? mapScene(state) : planeScene(state, id, numbers);
}

/** A group with the boxes of keys that lie on a slice. */
function tilesAt([queries, share, tiles], axis, slice) {
  const here = tiles.map(([part, boxes]) =>
    [part, boxes.filter((box) => holds(asRun(box[axis]), slice))]);
  return [queries, share, here];
}

function wordsOf(kind, numbers, scene) {
  const noun = state.side === "query" ? "keys" : "queries";
  const label = `${sentence(state, data.kinds)} Arrow keys move the ${state.side}.`;
  if (kind === "matrix") {
    const beyond = outside(scene, state.axes[0], state.side, state.at[0]);
    const more = beyond ? `; ${number(beyond)} more ${noun} lie outside of the picture` : "";
    return { caption: `Queries ↓ keys →${more}`, label };
  }
  if (kind === "map") {
    const axis = state.axes[0];
    const every = state.axes.length === 1
      ? `queries ↓ keys →, every ${ordinal(axis.plain.every)} query` : `all ${noun}`;
    return { caption: `The whole: ${every}`, label: `The whole. ${label}` };
  }
  const [down, across] = numbers;
  return { caption: `${noun[0].toUpperCase()}${noun.slice(1)}: axis ${down} ↓ axis ${across} →`, label };
}

function updateSliders() {
  state.axes.forEach((axis, index) => {
    const input = byId(`at-${index}`);
    const value = number(state.at[index]);
    input.value = axis[state.side].index(state.at[index]);
    input.setAttribute("aria-valuetext", `${state.side} ${value} of ${number(axis.length(state.side))}`);
    byId(`at-${index}-value`).textContent = value;
    const slice = byId(`slice-${index}`);
    if (!slice) return;
    const here = sliceOf(state, index);
    const isRead = kindAt(axis.runs(state.side, state.at[index]) ?? [], here) !== null;
    slice.value = here;
    slice.setAttribute("aria-valuetext", `${number(here)}${isRead ? "" : ", not attended"}`);
    byId(`slice-${index}-value`).textContent = number(here) + (isRead ? "" : " (none)");
  });
}

// ---- tiles

let tilesPicture = null;

function drawTiles() {
  tilesPicture = null;
  const { tiles } = state.view;
  if (!tiles.groups) {
    byId("tiles").replaceChildren();
    byId("tiles-legend").replaceChildren();
    byId("tiles-words").textContent = `Not drawn: ${tiles.reason}.`;
    return;
  }
  const rank = state.axes.length;
  const numbers = rank === 1 ? [0, 0] : [rank - 2, rank - 1];
  tilesPicture = new Picture("tiles", "", {
    moved: ({ x, y }) => {
      if (state.side === "key") turn("query");
      const at = [...state.at];
      if (rank === 1) at[0] = y;
      else [at[rank - 2], at[rank - 1]] = [y, x];
      move(at);
    },
    pressed: (event) => {
      if (state.side === "query") pressed(event, rank === 3 ? [...numbers, 0] : numbers);
    },
    ended: () => {},
  });
  byId("tiles").replaceChildren(tilesPicture.figure);
  legend(byId("tiles-legend"), SHARES.slice(1).map((end, index) => [
    [node("rect", { x: 0, y: 0, width: 1, height: 1, class: `share share-${index}` })],
    `${SHARES[index] / 10} to ${Math.min(end, 1000) / 10} %`,
  ]));
}

/** Draws the tiles, those of the query with a thick line, and says their useful share. */
function markTiles(groups) {
  if (!tilesPicture) return;
  const rank = state.axes.length;
  const scene = tilesScene(state.view, state);
  const isQuery = state.side === "query";
  if (isQuery) {
    addOwnTiles(scene, groups);
    const [y, x] = rank === 1 ? [state.at[0], null] : state.at.slice(-2);
    if (x !== null) scene.own.push({ x, y, attended: true, lit: true });
    else scene.band = { x: 0, y, w: scene.across.to, h: 1 };
  }
  const slice = rank === 3 ? `, at query ${number(isQuery ? state.at[0] : 0)} of axis 0` : "";
  const sides = rank === 1 ? "Queries ↓ keys →" : `Queries: axis ${rank - 2} ↓ axis ${rank - 1} →${slice}`;
  const words = tilesWords(isQuery ? groups : []);
  byId("tiles-words").textContent = words;
  tilesPicture.draw(scene, { caption: sides, label: words });
}

/** The tiles of the query: one box each, or their cells where a dilation sets them apart. */
function addOwnTiles(scene, groups) {
  const rank = state.axes.length;
  for (const [queries, , tiles] of groups) {
    const rows = asRun(queries[Math.max(0, rank - 2)]);
    const columns = rank > 1 ? [asRun(queries[rank - 1])]
      : tiles.flatMap(([, boxes]) => boxes.map(([box]) => asRun(box)));
    const found = columns.flatMap((column) => areas(rows, column));
    scene.boxes.push(...found.map((area) => ({ ...area, look: "chosen" })));
  }
}

function tilesWords(groups) {
  const { tiles } = state.view;
  const plan = data.plans[state.view.plan];
  const all = `${plan.chosen} visits ${number(tiles.tiles)} ${tiles.tiles === 1 ? "tile" : "tiles"}.`;
  if (!groups.length) return `${all} Colours tell how many of their pairs the mask has.`;
  const own = groups.reduce((sum, [, , found]) => sum + found.length, 0);
  const shares = groups.map(([, share]) => perMille(share)).join(" and ");
  const noun = own === 1 ? "of its pairs" : "of their pairs";
  return `${all} The query is in ${number(own)}; the mask has ${shares} ${noun}.`;
}

// ---- choices

function start() {
  data.views.forEach((view, index) =>
    byId("views").append(element("option", { value: index }, view.name)));
  byId("views-row").hidden = data.views.length < 2;
  byId("views").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const input of document.querySelectorAll("input[name=side]")) {
    input.addEventListener("change", () => turn(input.value));
  }
  const filtered = () => candidatesPanel(data.plans[state.view.plan]);
  byId("filters").addEventListener("input", filtered);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  theme();
  choose(0);
  new ResizeObserver(render).observe(byId("planes"));
}

/** The button starts as the system is, and then decides. */
function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  const show = (isDark) => {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(isDark));
  };
  let isChosen = false;
  dark.addEventListener("change", (event) => isChosen || show(event.matches));
  button.addEventListener("click", () => {
    isChosen = true;
    show(button.getAttribute("aria-pressed") !== "true");
  });
  show(dark.matches);
}

start();
