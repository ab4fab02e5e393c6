// Draws scenes as SVG, and tells which cell a pointer is on and which key is pressed.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 38; // pixels for the labels of rows, at least
const TOP = 20;
const LARGEST = 26; // pixels of a cell
const TALLEST = 560; // pixels of a picture
const LINED = 6; // pixels of a cell from which there are lines between cells
const DIGIT = 7; // pixels of a digit of the labels

function node(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A picture that can have the focus and be dragged in. */
class Picture {
  /** `moved(cell, event)` and `pressed(event)` are called for pointers and keys. */
  constructor(id, label, { moved, pressed, ended }) {
    this.id = id;
    this.caption = element("figcaption");
    this.svg = node("svg", { "aria-hidden": "true", focusable: "false" });
    this.frame = element("div", {
      class: "frame", tabindex: "0", role: "application",
      "aria-roledescription": "picture of a mask", "aria-label": label, "data-picture": id,
    }, this.svg);
    this.figure = element("figure", { class: "picture" }, this.caption, this.frame);
    this.frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.frame.setPointerCapture(event.pointerId);
      this.frame.focus({ preventScroll: true });
      event.preventDefault();
      moved(this.cell(event), event);
    });
    this.frame.addEventListener("pointermove", (event) => {
      if (this.frame.hasPointerCapture(event.pointerId)) moved(this.cell(event), event);
    });
    for (const name of ["pointerup", "pointercancel"]) this.frame.addEventListener(name, ended);
    this.frame.addEventListener("keydown", pressed);
  }

  /** The cell under a pointer, the nearest one if it is outside. */
  cell(event) {
    const box = this.svg.getBoundingClientRect();
    const { across, down } = this.scene;
    const x = Math.floor((event.clientX - box.left - this.left) / this.size[0]) + across.from;
    const y = Math.floor((event.clientY - box.top - TOP) / this.size[1]) + down.from;
    return {
      x: clamp(x, across.from, Math.max(across.from, across.to - 1)),
      y: clamp(y, down.from, Math.max(down.from, down.to - 1)),
    };
  }

  draw(scene, words) {
    this.scene = scene;
    this.caption.textContent = words.caption;
    this.frame.setAttribute("aria-label", words.label);
    const columns = Math.max(1, scene.across.to - scene.across.from);
    const rows = Math.max(1, scene.down.to - scene.down.from);
    this.left = Math.max(LEFT, DIGIT * labelOf(scene.down.to, scene.down).length + 10);
    const room = Math.max(120, this.figure.clientWidth - this.left - 6);
    this.size = this.sizes(columns, rows, room);
    const [width, height] = [columns * this.size[0], rows * this.size[1]];
    this.svg.setAttribute("width", this.left + width + 2);
    this.svg.setAttribute("height", TOP + height + 2);
    const cells = node("g", { transform: this.transform(scene) }, ...this.layers(scene));
    this.svg.replaceChildren(cells, ...this.labels(scene));
    this.svg.classList.toggle("off", Boolean(scene.isOff));
  }

  /** Pixels of a cell, across and down: square, unless one side is far longer. */
  sizes(columns, rows, room) {
    const across = Math.min(LARGEST, room / columns);
    const down = Math.min(LARGEST, TALLEST / rows);
    const square = Math.min(across, down);
    const isLong = Math.max(columns, rows) > 8 * Math.min(columns, rows);
    const size = isLong ? [across, down] : [square, square];
    return size.map((pixels) => (pixels >= LINED ? Math.floor(pixels) : pixels));
  }

  transform({ across, down }) {
    const [width, height] = this.size;
    const move = `translate(${this.left} ${TOP}) scale(${width} ${height})`;
    return `${move} translate(${-across.from} ${-down.from})`;
  }

  /** Everything in units of cells, from the bottom up. */
  layers(scene) {
    const { across, down } = scene;
    const [w, h] = [across.to - across.from, down.to - down.from];
    const area = { x: across.from, y: down.from, width: w, height: h };
    const layers = [node("rect", { ...area, class: scene.ground.length ? "offgrid" : "ground" })];
    if (scene.ground.length) layers.push(node("path", { class: "ground", d: squares(scene.ground) }));
    if (scene.shares) layers.push(this.sharesLayer(scene.shares));
    const cells = scene.cells.map((cell) => cellRect(cell));
    layers.push(node("g", { class: "cells" }, ...cells));
    if (Math.min(...this.size) >= LINED && !scene.shares) layers.push(node("path", { class: "lines", d: lines(scene) }));
    if (scene.band) layers.push(boxRect({ ...scene.band, look: "band" }));
    layers.push(...scene.boxes.map((box) => boxRect(inside(box, scene))).filter(Boolean));
    layers.push(...scene.own.filter((spot) => isIn(spot, scene)).map(ownMark));
    layers.push(node("rect", { ...area, class: "frame-line" }));
    return layers;
  }

  /** The tiles, drawn again only where they or their size changed: they may be thousands. */
  sharesLayer(shares) {
    const size = this.size.join();
    if (this.tiles?.shares !== shares || this.tiles.size !== size) {
      const drawn = node("g", {}, ...shares.map((tile) => shareArea(tile, this.size)));
      this.tiles = { shares, size, drawn };
    }
    return this.tiles.drawn;
  }

  labels({ across, down }) {
    const [w, h] = this.size;
    const columns = tickStep(across, w, DIGIT * labelOf(across.to, across).length + 8);
    const rows = tickStep(down, h, 16);
    const texts = [];
    for (let x = firstTick(across, columns); x < across.to; x += columns) {
      const at = this.left + (x - across.from + 0.5) * w;
      texts.push(node("text", { x: at, y: TOP - 6, "text-anchor": "middle" }, labelOf(x, across)));
    }
    for (let y = firstTick(down, rows); y < down.to; y += rows) {
      const at = TOP + (y - down.from + 0.5) * h;
      texts.push(node("text", { x: this.left - 6, y: at, dy: "0.35em", "text-anchor": "end" }, labelOf(y, down)));
    }
    return texts;
  }
}

const firstTick = ({ from }, step) => Math.ceil(from / step) * step;

/** The distance of labels that leaves each the pixels it needs. */
function tickStep({ from, to }, size, pixels) {
  for (let step = 1; ; step *= 10) {
    for (const nice of [step, 2 * step, 4 * step, 8 * step]) {
      if (nice * size >= pixels || nice > to - from) return nice;
    }
  }
}

/** A place as a label: in thousands where a picture shows so many. */
function labelOf(place, { from, to }) {
  return to - from < 100_000 || !place ? String(place) : `${Math.round(place / 1000)}k`;
}

function cellRect({ x, y, w, h, kind, lit }) {
  const look = `cell ${KIND_NAMES[kind]}${lit ? " lit" : ""}`;
  return node("rect", { x, y, width: w, height: h, class: look });
}

/** A tile; a small one has no line around it, which would hide it. */
function shareArea({ parts, share }, size) {
  const [{ x, y, w, h }] = parts;
  const isSmall = Math.min(w * size[0], h * size[1]) < LINED;
  const look = `share ${shareClass(share)}${isSmall ? " small" : ""}`;
  if (parts.length === 1) return node("rect", { x, y, width: w, height: h, class: look });
  return node("path", { d: squares(parts), class: look });
}

function boxRect(box) {
  if (!box) return null;
  const { x, y, w, h, look } = box;
  return node("rect", { x, y, width: w, height: h, class: `box ${look}` });
}

/** The part of a box that a picture shows. */
function inside(box, { across, down }) {
  const [x, y] = [Math.max(box.x, across.from), Math.max(box.y, down.from)];
  const w = Math.min(box.x + box.w, across.to) - x;
  const h = Math.min(box.y + box.h, down.to) - y;
  return w > 0 && h > 0 ? { ...box, x, y, w, h } : null;
}

function isIn({ x, y }, { across, down }) {
  return x >= across.from && x < across.to && y >= down.from && y < down.to;
}

/** A diamond at the own position: filled where it is attended to. */
function ownMark({ x, y, attended, lit, isElsewhere }) {
  const look = ["own", attended ? "attended" : "", lit ? "lit" : "", isElsewhere ? "elsewhere" : ""];
  const shape = `M${x + 0.5} ${y + 0.14}l.36 .36l-.36 .36l-.36 -.36z`;
  return node("path", { d: shape, class: look.filter(Boolean).join(" ") });
}

const squares = (cells) =>
  cells.map(({ x, y, w = 1, h = 1 }) => `M${x} ${y}h${w}v${h}h${-w}z`).join("");

function lines({ across, down }) {
  let drawn = "";
  for (let x = across.from; x <= across.to; x++) drawn += `M${x} ${down.from}V${down.to}`;
  for (let y = down.from; y <= down.to; y++) drawn += `M${across.from} ${y}H${across.to}`;
  return drawn;
}
