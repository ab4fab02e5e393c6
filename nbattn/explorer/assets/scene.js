// Turns the rows of a query or a key into scenes: what lies where, in cells of a picture.

const ALL = 64; // an axis of up to so many places is drawn as a whole
const NEAR = 40; // places around the query that are drawn of a longer one
const EDGE = 2;

/** The place of the opposite side that a picture is centred on. */
function focus(axis, side, place) {
  const runs = axis.runs(side, place) ?? [];
  const own = axis.own(side, place);
  if (own !== null && kindAt(runs, own) !== null) return own;
  const longest = runs.reduce((best, run) => (run.count > (best?.count ?? 0) ? run : best), null);
  if (longest) return longest.start + Math.floor(longest.count / 2) * longest.step;
  return clamp(own ?? 0, 0, Math.max(0, axis.length(opposite(side)) - 1));
}

/** The places `[from, to)` that a picture shows: as before, unless what it shows has left them. */
function viewport(length, centre, before, isDragging) {
  if (length <= ALL) return { from: 0, to: length, length };
  const isInside = before && before.from + EDGE <= centre && centre < before.to - EDGE;
  const isAtEnd = before && (centre < EDGE || centre >= length - EDGE);
  const isSeen = before && before.from <= centre && centre < before.to;
  if (before?.length === length && isSeen && (isInside || isAtEnd || isDragging)) return before;
  const from = clamp(centre - NEAR / 2, 0, length - NEAR);
  return { from, to: from + NEAR, length };
}

/** One axis, queries down and keys across: every row faint, that of the query in full. */
function matrixScene(state, id) {
  const [axis] = state.axes;
  const { side } = state;
  const at = state.at[0];
  const middle = focus(axis, side, at);
  const [query, key] = side === "query" ? [at, middle] : [middle, at];
  const views = state.viewports;
  const down = viewport(axis.length("query"), query, views[`${id} down`], state.isDragging);
  const across = viewport(axis.length("key"), key, views[`${id} across`], state.isDragging);
  views[`${id} down`] = down;
  views[`${id} across`] = across;
  const scene = { down, across, cells: [], ground: [], own: [], boxes: [] };
  for (let row = down.from; row < down.to; row++) matrixRow(scene, axis, row, side, at);
  if (side === "query") {
    scene.band = { x: across.from, y: at, w: across.to - across.from, h: 1 };
  } else {
    scene.band = { x: at, y: down.from, w: 1, h: down.to - down.from };
    for (const run of axis.runs("key", at) ?? []) {
      for (const [y, h] of stretches(run, down.from, down.to)) {
        scene.cells.push({ x: at, y, w: 1, h, kind: run.kind, lit: true });
      }
    }
  }
  return scene;
}

function matrixRow(scene, axis, row, side, at) {
  const { from, to } = scene.across;
  const runs = axis.runs("query", row);
  if (!runs) return;
  const isLit = side === "query" && row === at;
  for (const run of runs) {
    for (const [x, w] of stretches(run, from, to)) {
      scene.cells.push({ x, y: row, w, h: 1, kind: run.kind, lit: isLit });
    }
  }
  if (axis.step > 1) {
    const grid = { start: axis.firstOnGrid(row), count: Infinity, step: axis.step };
    for (const x of places(grid, from, to)) scene.ground.push({ x, y: row });
  }
  const own = axis.own("query", row);
  if (own === null || own < from || own >= to) return;
  const isChosen = side === "query" ? row === at : own === at;
  scene.own.push({ x: own, y: row, attended: kindAt(runs, own) !== null, lit: isChosen });
}

/** Two axes of the side that lights up, at a place of the third one if there is one. */
function planeScene(state, id, [first, second, third]) {
  const { axes, side, at } = state;
  const other = opposite(side);
  const [down, across] = [first, second].map((number) => {
    const centre = focus(axes[number], side, at[number]);
    const name = `${id} ${number}`;
    const before = state.viewports[name];
    const length = axes[number].length(other);
    state.viewports[name] = viewport(length, centre, before, state.isDragging);
    return state.viewports[name];
  });
  const rows = axes[first].runs(side, at[first]) ?? [];
  const columns = axes[second].runs(side, at[second]) ?? [];
  const slice = third === undefined ? 0 : sliceOf(state, third);
  const depth = third === undefined ? 0 : kindAt(axes[third].runs(side, at[third]) ?? [], slice);
  const scene = { down, across, cells: [], ground: [], own: [], boxes: [], isOff: depth === null };
  if (depth !== null) scene.cells = products(rows, columns, down, across, depth);
  if (side === "query" && Math.max(axes[first].step, axes[second].step) > 1) {
    scene.ground = groundOf(axes, at, [first, second], down, across);
  }
  const own = [first, second].map((number) => axes[number].own(side, at[number]));
  if (own.every((place) => place !== null)) {
    const isHere = third === undefined || axes[third].own(side, at[third]) === slice;
    const attended = isHere && isAttended(rows, columns, own) && depth !== null;
    scene.own.push({ x: own[1], y: own[0], attended, lit: true, isElsewhere: !isHere });
  }
  return scene;
}

const isAttended = (rows, columns, [y, x]) =>
  kindAt(rows, y) !== null && kindAt(columns, x) !== null;

/** A key has the last kind of those on its axes. */
function products(rows, columns, down, across, depth) {
  const cells = [];
  for (const row of rows) {
    for (const column of columns) {
      const kind = Math.max(row.kind, column.kind, depth);
      for (const [y, h] of stretches(row, down.from, down.to)) {
        for (const [x, w] of stretches(column, across.from, across.to)) {
          cells.push({ x, y, w, h, kind, lit: true });
        }
      }
    }
  }
  return cells;
}

/** The cells on the dilation grid of the query. */
function groundOf(axes, at, numbers, down, across) {
  const [ys, xs] = numbers.map((number, place) => {
    const start = axes[number].firstOnGrid(at[number]);
    const { from, to } = place ? across : down;
    return places({ start, count: Infinity, step: axes[number].step }, from, to);
  });
  return ys.flatMap((y) => xs.map((x) => ({ x, y })));
}

/** The place of the axis across a plane: the chosen one, or where the query is. */
function sliceOf(state, number) {
  return state.slices[number] ?? focus(state.axes[number], state.side, state.at[number]);
}

/** The small picture of a long axis, or of a large grid, in which a query can go far. */
function mapScene(state) {
  const { axes, side, at } = state;
  const whole = (length) => ({ from: 0, to: length, length });
  if (axes.length === 1) {
    const [axis] = axes;
    const { every, samples } = axis.plain;
    const scene = {
      down: whole(axis.length("query")),
      across: whole(axis.length("key")),
      cells: samples.flatMap((flat, index) => sampleCells(flat, index * every, every, axis)),
      ground: [], own: [], boxes: [],
    };
    addView(scene, state.viewports["matrix down"], state.viewports["matrix across"]);
    scene.band = side === "query" ? { x: 0, y: at[0], w: axis.length("key"), h: 1 }
      : { x: at[0], y: 0, w: 1, h: axis.length("query") };
    return scene;
  }
  const [first, second] = [axes.length - 2, axes.length - 1];
  const other = opposite(side);
  const scene = {
    down: whole(axes[first].length(other)),
    across: whole(axes[second].length(other)),
    cells: [], ground: [], own: [], boxes: [],
  };
  for (const row of axes[first].runs(side, at[first]) ?? []) {
    for (const column of axes[second].runs(side, at[second]) ?? []) {
      const kind = Math.max(row.kind, column.kind);
      scene.cells.push({ ...hull(row, "y", "h"), ...hull(column, "x", "w"), kind, lit: true });
    }
  }
  const id = `${first}${second}`;
  addView(scene, state.viewports[`${id} ${first}`], state.viewports[`${id} ${second}`]);
  return scene;
}

function sampleCells(flat, row, every, axis) {
  const cells = [];
  for (let n = 0; n < flat.length; n += 3) {
    const run = { start: flat[n + 1], count: flat[n + 2], step: axis.step };
    cells.push({ ...hull(run, "x", "w"), y: row, h: every, kind: flat[n], lit: true });
  }
  return cells;
}

const hull = (run, from, size) => ({ [from]: run.start, [size]: last(run) - run.start + 1 });

function addView(scene, down, across) {
  const box = { x: across.from, y: down.from, w: across.to - across.from, h: down.to - down.from };
  scene.boxes.push({ ...box, look: "view" });
}

/** Boxes around the keys that the tiles of the query visit. */
function addTileBoxes(scene, groups, numbers, state) {
  for (const [queries, , tiles] of groups) {
    for (const [, boxes] of tiles) {
      for (const box of boxes) {
        const parts = numbers.map((number) => asRun(box[number]));
        if (state.axes.length === 1) {
          const rows = asRun(queries[0]);
          scene.boxes.push({ ...hull(rows, "y", "h"), ...hull(parts[0], "x", "w"), look: "tile" });
        } else {
          scene.boxes.push({ ...hull(parts[0], "y", "h"), ...hull(parts[1], "x", "w"), look: "tile" });
        }
      }
    }
  }
}

/** The groups of tiles that compute a query. */
function groupsOf(tiles, at) {
  return (tiles.groups ?? []).filter(([queries]) =>
    queries.every((part, number) => holds(asRun(part), at[number])),
  );
}

/** All tiles by their useful share: with one axis queries and keys, else the queries. */
function tilesScene(view, state) {
  const rank = state.axes.length;
  const [first, second] = rank === 1 ? [0, 0] : [rank - 2, rank - 1];
  const whole = (length) => ({ from: 0, to: length, length });
  return {
    down: whole(state.axes[first].length("query")),
    across: whole(state.axes[second].length(rank === 1 ? "key" : "query")),
    cells: [], ground: [], own: [], boxes: [], shares: sharesOf(view, state, first, second),
  };
}

/** The areas of the tiles, made once for each slice, so that a picture can keep what it drew. */
function sharesOf(view, state, first, second) {
  const rank = state.axes.length;
  const slice = rank === 3 && state.side === "query" ? state.at[0] : null;
  if (view.shares?.slice === slice) return view.shares.areas;
  const found = [];
  for (const [queries, share, tiles] of view.tiles.groups) {
    if (slice !== null && !holds(asRun(queries[0]), slice)) continue;
    const rows = asRun(queries[first]);
    if (rank > 1) found.push({ parts: areas(rows, asRun(queries[second])), share });
    for (const [part, boxes] of rank > 1 ? [] : tiles) {
      for (const [box] of boxes) found.push({ parts: areas(rows, asRun(box)), share: part });
    }
  }
  view.shares = { slice, areas: found.filter(({ parts }) => parts.length) };
  return view.shares.areas;
}

/** How many places of the opposite side a picture of one axis does not show. */
function outside(scene, axis, side, at) {
  const { from, to } = side === "query" ? scene.across : scene.down;
  const runs = axis.runs(side, at) ?? [];
  const shown = runs.flatMap((run) => stretches(run, from, to)).reduce((sum, [, n]) => sum + n, 0);
  return total(runs) - shown;
}

/** A tile as rectangles: one, or its cells where a dilation sets them apart. */
function areas(rows, columns) {
  const ys = stretches(rows, 0, Infinity);
  const xs = stretches(columns, 0, Infinity);
  if (ys.length * xs.length > 4096) return [{ ...hull(rows, "y", "h"), ...hull(columns, "x", "w") }];
  return ys.flatMap(([y, h]) => xs.map(([x, w]) => ({ x, y, w, h })));
}
