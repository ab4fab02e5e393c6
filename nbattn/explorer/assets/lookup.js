// Looks up the rows of the axes in the page's data. What a mask means was computed in Python.

/** Rows `[first, stop)` of one direction of an axis, as they are in the data. */
class Parts {
  constructor(parts) {
    this.parts = parts.map((part) => ({ ...part, stop: part.first + part.runs.length }));
  }

  find(place) {
    return this.parts.find((part) => part.first <= place && place < part.stop) ?? null;
  }

  /** The nearest place that has a row; `way` is the direction of the move, or 0. */
  snap(place, way = 0) {
    if (this.find(place)) return place;
    const ends = this.parts
      .filter((part) => part.stop > part.first)
      .flatMap((part) => [part.first, part.stop - 1]);
    const ahead = way ? ends.filter((end) => (end - place) * way > 0) : ends;
    const from = ahead.length ? ahead : ends;
    return from.reduce(
      (best, end) => (Math.abs(end - place) < Math.abs(best - place) ? end : best),
      from[0] ?? 0,
    );
  }

  get isWhole() {
    return this.parts.length === 1;
  }

  get count() {
    return this.parts.reduce((sum, part) => sum + part.runs.length, 0);
  }

  /** The place of a slider's step, and back. */
  at(index) {
    let rest = index;
    for (const part of this.parts) {
      if (rest < part.runs.length) return part.first + rest;
      rest -= part.runs.length;
    }
    return this.snap(Infinity);
  }

  index(place) {
    let before = 0;
    for (const part of this.parts) {
      if (place < part.stop) return before + Math.max(0, place - part.first);
      before += part.runs.length;
    }
    return before - 1;
  }
}

/** One axis. A side is "query" or "key"; what a side attends to, or is attended by, is opposite. */
class Axis {
  constructor(plain) {
    this.plain = plain;
    this.step = plain.step;
    this.query = new Parts(plain.rows);
    this.key = new Parts(plain.readers);
  }

  length(side) {
    return side === "query" ? this.plain.queries : this.plain.keys;
  }

  /** The place on the opposite side where a query or a key lies; null where it has none. */
  own(side, place) {
    if (this.plain.own === null) return null;
    return side === "query" ? place + this.plain.own : place - this.plain.own;
  }

  /** The place whose own position is nearest to a cell of the opposite side. */
  owner(side, cell) {
    const length = this.length(side);
    const other = this.length(opposite(side));
    const place =
      this.plain.own === null
        ? Math.floor(((cell + 0.5) * length) / Math.max(1, other))
        : this.own(opposite(side), cell);
    return this[side].snap(clamp(place, 0, length - 1));
  }

  /** Runs `{kind, start, count}` on the opposite side; null where the page has no row. */
  runs(side, place) {
    const part = this[side].find(place);
    if (!part) return null;
    const flat = part.runs[place - part.first];
    const size = side === "query" ? 3 : 2;
    const runs = [];
    for (let at = 0; at < flat.length; at += size) {
      const [start, count] = flat.slice(at + size - 2, at + size);
      runs.push({ kind: size === 3 ? flat[at] : 0, start, count, step: this.step });
    }
    return runs;
  }

  /** The first key on the dilation grid of a query. */
  firstOnGrid(query) {
    const part = this.query.find(query);
    return part?.classes?.[query - part.first] ?? 0;
  }

  words(kind, kinds) {
    return kinds[kind].name === "moved" ? this.plain.moved : kinds[kind].words;
  }
}

const opposite = (side) => (side === "query" ? "key" : "query");
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const last = (run) => run.start + (run.count - 1) * run.step;

function holds(run, place) {
  return place >= run.start && place <= last(run) && (place - run.start) % run.step === 0;
}

const kindAt = (runs, place) => runs.find((run) => holds(run, place))?.kind ?? null;
const total = (runs) => runs.reduce((sum, run) => sum + run.count, 0);

/** The places of a run inside of `[from, to)`. */
function places(run, from, to) {
  const found = [];
  const skip = Math.max(0, Math.ceil((from - run.start) / run.step));
  for (let n = skip; n < run.count && run.start + n * run.step < to; n++) {
    found.push(run.start + n * run.step);
  }
  return found;
}

/** The cells of a run inside of `[from, to)` as `[start, length]`: one if they lie side by side. */
function stretches(run, from, to) {
  if (run.step > 1 && run.count > 1) return places(run, from, to).map((place) => [place, 1]);
  const start = Math.max(run.start, from);
  const stop = Math.min(run.start + run.count, to);
  return start < stop ? [[start, stop - start]] : [];
}

/** A run of `[start, count, step]`, as tiles have them. */
const asRun = ([start, count, step]) => ({ start, count, step: count > 1 ? step : 1 });

const number = (value) => value.toLocaleString("en-US");

function span(run) {
  if (run.count === 1) return number(run.start);
  const every = run.step > 1 ? `, every ${ordinal(run.step)}` : "";
  return `${number(run.start)} to ${number(last(run))}${every}`;
}

function ordinal(n) {
  const ending = { 1: "st", 2: "nd", 3: "rd" }[n % 10];
  return `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : (ending ?? "th")}`;
}
