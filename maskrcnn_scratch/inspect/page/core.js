// What every part of the page uses: the content, typed arrays, elements, formats, what is chosen.

const D = JSON.parse(document.getElementById("content").textContent);
const NOT_AVAILABLE = "not available for this component";

const ARRAYS = { f32: Float32Array, i32: Int32Array, u8: Uint8Array, u16: Uint16Array };

// {type, shape, data} -> {shape, values, at(...)}; null stays null.
function unpack(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const values = new ARRAYS[packed.type](bytes.buffer);
  const step = packed.levels ? 1 / packed.levels : 1;
  const width = packed.shape.slice(1).reduce((a, b) => a * b, 1);
  return {
    shape: packed.shape,
    length: packed.shape[0],
    values,
    get: (index) => values[index] * step,
    row: (index) => values.subarray(index * width, (index + 1) * width),
    step,
  };
}

// An element: el("p", {class: "note", onclick: f}, "text", child, null).
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const count = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, "\u2009");
const fixed = (x, digits = 2) => Number(x).toFixed(digits).replace("-", "−");
const times = (shape) => shape.join(" × ");
const boxText = (box) => box.map((x) => fixed(x, 1)).join(", ");

function seconds(s) {
  return s >= 1 ? `${fixed(s, 2)} s` : s >= 0.01 ? `${fixed(s * 1e3, 0)} ms` : `${fixed(s * 1e3, 2)} ms`;
}
function bytes(n) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (n >= 1024 && unit < 3) { n /= 1024; unit += 1; }
  return `${unit ? fixed(n, n < 10 ? 1 : 0) : n} ${units[unit]}`;
}
function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

const LEVEL_COLORS = ["#e4572e", "#2e86ab", "#3a9d5d", "#8e5bd0", "#c98a00", "#d6457f", "#00838f"];
const levelColor = (level) => LEVEL_COLORS[level % LEVEL_COLORS.length];
const CLASS_COLORS = ["#3b82f6", "#10b981", "#e879f9", "#facc15", "#f97316", "#22d3ee", "#a3e635", "#f472b6", "#818cf8"];
const classColor = (label) => CLASS_COLORS[(label - 1 + CLASS_COLORS.length * 10) % CLASS_COLORS.length];
// On pictures: the same in light and in dark mode.
const ON_IMAGE = { chosen: "#ffb020", suppressor: "#ff4d3d", truth: "#ffffff", other: "#5db4ff", anchor: "#c7f464" };
const className = (label) => D.classes[label] ?? `label ${label}`;

function area(box) { return Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]); }
function iou(a, b) {
  const overlap = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return overlap / (area(a) + area(b) - overlap) || 0;
}
const inside = (box, x, y) => x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];

// The stages' arrays, unpacked once.
function selectionOf(packed) {
  if (!packed) return null;
  const found = { threshold: packed.threshold, limit: packed.limit };
  for (const name of ["boxes", "scores", "groups", "parents", "kept", "rank", "suppressor", "iou"]) {
    found[name] = unpack(packed[name]);
  }
  // Candidates by score; those that were filtered out before NMS come last.
  found.order = Array.from({ length: found.scores.length }, (_, i) => i)
    .sort((a, b) => found.scores.values[b] - found.scores.values[a] || a - b);
  found.filtered = (i) => found.scores.values[i] < -1e30;
  return found;
}

const rpn = selectionOf(D.rpn);
const box = selectionOf(D.box);
const proposals = {
  boxes: unpack(D.proposals.boxes), scores: unpack(D.proposals.scores),
  anchors: unpack(D.proposals.anchors), candidates: unpack(D.proposals.candidates),
  levels: unpack(D.proposals.levels), pooled: unpack(D.proposals.pooled), pool: D.proposals.pool,
};
const boxHead = {
  scores: unpack(D.box_head.scores), labels: unpack(D.box_head.labels), refined: unpack(D.box_head.refined),
};
const detections = {
  count: D.detections.scores.length, boxes: unpack(D.detections.boxes),
  pageBoxes: unpack(D.detections.page_boxes), labels: D.detections.labels,
  scores: D.detections.scores, origins: D.detections.origins, masks: D.detections.masks,
};
const objects = D.objects;
const objectness = unpack(D.objectness);
const [RESIZED_H, RESIZED_W] = D.image.resized;

// The box of anchor (level, row, column, shape); null where the grid is not regular.
function anchorBox(level, row, column, shape) {
  const anchors = D.levels[level].anchors;
  if (!anchors) return null;
  const [dy, dx] = anchors.step;
  const base = anchors.base[shape];
  return [base[0] + column * dx, base[1] + row * dy, base[2] + column * dx, base[3] + row * dy];
}
// Level, row, column and shape of the anchor with this index; null where they are not known.
function anchorPlace(anchor) {
  for (let level = 0; level < D.levels.length; level += 1) {
    const { anchors, height, width } = D.levels[level];
    if (!anchors) continue;
    const offset = anchor - anchors.first;
    if (offset < 0 || offset >= height * width * anchors.count) continue;
    const location = Math.floor(offset / anchors.count);
    return { level, row: Math.floor(location / width), column: location % width, shape: offset % anchors.count };
  }
  return null;
}
function boxOfAnchor(anchor) {
  const place = anchorPlace(anchor);
  return place && anchorBox(place.level, place.row, place.column, place.shape);
}

// What is chosen, and all that it comes from. Fields that do not apply are null.
let chosen = {};
const listeners = [];
const onChoice = (listener) => listeners.push(listener);

function choose(what) {
  const next = { object: null, detection: null, classCandidate: null, proposal: null, candidate: null, anchor: null, ...what };
  if (next.object !== null) {
    const object = objects[next.object];
    next.detection ??= object.detection;
    next.classCandidate ??= object.class_candidate;
    next.proposal ??= object.proposal;
    next.candidate ??= object.candidate;
    if (next.proposal === null && next.candidate === null) next.anchor ??= object.anchor;
  }
  if (next.detection !== null) {
    next.proposal ??= detections.origins[next.detection].proposal;
    if (box) next.classCandidate ??= box.kept.values.indexOf(next.detection);
  } else if (next.classCandidate !== null) {
    next.proposal ??= box.parents.values[next.classCandidate];
    const detection = box.kept.values[next.classCandidate];
    if (detection >= 0 && next.object === null) next.detection = detection;
  }
  if (next.proposal !== null) {
    next.anchor ??= proposals.anchors.values[next.proposal];
    if (proposals.candidates) next.candidate ??= proposals.candidates.values[next.proposal];
  } else if (next.candidate !== null) {
    next.anchor ??= rpn.parents.values[next.candidate];
    const proposal = rpn.kept.values[next.candidate];
    if (proposal >= 0) next.proposal = proposal;
  }
  chosen = next;
  for (const listener of listeners) listener(chosen);
}
