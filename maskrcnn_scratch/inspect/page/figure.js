// A picture with a drawing on it, in the pixels of that picture; and small controls.

const redrawAll = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redrawAll.forEach((f) => f.redraw()));

// Draws in picture coordinates; line widths and text are in CSS pixels.
class Pen {
  constructor(context, scale, view) {
    this.c = context;
    this.scale = scale;
    this.view = view; // (x1, y1, x2, y2) that is shown
    this.tags = [];
  }
  box(b, { color = ON_IMAGE.other, width = 1.5, alpha = 1, dashed = false, halo = false, fill = null } = {}) {
    const [x1, y1, x2, y2] = b.map ? b.map((v) => v * this.scale) : Array.from(b, (v) => v * this.scale);
    const c = this.c;
    c.save();
    c.globalAlpha = alpha;
    if (fill) { c.fillStyle = fill; c.fillRect(x1, y1, x2 - x1, y2 - y1); }
    c.setLineDash(dashed ? [5, 4] : []);
    if (halo) { c.strokeStyle = "#000a"; c.lineWidth = width + 2.5; c.strokeRect(x1, y1, x2 - x1, y2 - y1); }
    c.strokeStyle = color;
    c.lineWidth = width;
    c.strokeRect(x1, y1, x2 - x1, y2 - y1);
    c.restore();
  }
  dot(x, y, { color = ON_IMAGE.chosen, radius = 3.5, halo = true, alpha = 1 } = {}) {
    const c = this.c;
    c.save();
    c.globalAlpha = alpha;
    c.beginPath();
    c.arc(x * this.scale, y * this.scale, radius, 0, 7);
    if (halo) { c.strokeStyle = "#000b"; c.lineWidth = 2.5; c.stroke(); }
    c.fillStyle = color;
    c.fill();
    c.restore();
  }
  line(x1, y1, x2, y2, { color = "#fff", width = 1, alpha = 1 } = {}) {
    const c = this.c;
    c.save();
    c.globalAlpha = alpha;
    c.strokeStyle = color;
    c.lineWidth = width;
    c.beginPath();
    c.moveTo(x1 * this.scale, y1 * this.scale);
    c.lineTo(x2 * this.scale, y2 * this.scale);
    c.stroke();
    c.restore();
  }
  // From the centre of one box to that of another, with a head.
  arrow(from, to, { color = ON_IMAGE.chosen, width = 1.5, alpha = 1, halo = false } = {}) {
    const [ax, ay, bx, by] = [(from[0] + from[2]) / 2, (from[1] + from[3]) / 2, (to[0] + to[2]) / 2, (to[1] + to[3]) / 2];
    if (halo) this.arrow(from, to, { color: "#000", width: width + 2, alpha: alpha * 0.6 });
    this.line(ax, ay, bx, by, { color, width, alpha });
    const length = Math.hypot(bx - ax, by - ay) * this.scale;
    if (length < 4) return;
    const angle = Math.atan2(by - ay, bx - ax);
    const head = Math.min(7, length / 2);
    for (const turn of [2.6, -2.6]) {
      const [hx, hy] = [Math.cos(angle + turn) * head / this.scale, Math.sin(angle + turn) * head / this.scale];
      this.line(bx, by, bx + hx, by + hy, { color, width, alpha });
    }
  }
  // Text on a filled rectangle, kept inside the picture; not drawn where it would cover another.
  tag(text, x, y, color = ON_IMAGE.chosen, below = false) {
    const c = this.c;
    c.save();
    c.font = "600 12px ui-sans-serif, system-ui, 'Liberation Sans', sans-serif";
    const width = c.measureText(text).width + 12;
    const [viewX1, viewY1, viewX2, viewY2] = this.view.map((v) => v * this.scale);
    const left = Math.max(viewX1 + 2, Math.min(x * this.scale, viewX2 - width - 2));
    const wanted = below ? y * this.scale + 3 : y * this.scale - 22;
    const top = Math.max(viewY1 + 2, Math.min(wanted, viewY2 - 22));
    if (this.tags.some(([l, t, w]) => left < l + w && l < left + width && Math.abs(top - t) < 20)) return c.restore();
    this.tags.push([left, top, width]);
    c.fillStyle = color;
    c.beginPath();
    c.roundRect(left, top, width, 19, 4);
    c.fill();
    c.fillStyle = "#16181c";
    c.textBaseline = "middle";
    c.fillText(text, left + 6, top + 10);
    return c.restore();
  }
  image(source, b, { alpha = 1, smooth = false } = {}) {
    const [x1, y1, x2, y2] = b.map((v) => v * this.scale);
    this.c.save();
    this.c.globalAlpha = alpha;
    this.c.imageSmoothingEnabled = smooth;
    this.c.drawImage(source, x1, y1, x2 - x1, y2 - y1);
    this.c.restore();
  }
}

// size: (height, width) in the units that draw(pen) and point(x, y) use. zoom() gives the boxes that
// the button in the corner zooms to, or an empty list.
class Figure {
  constructor({ source, size, label, draw, point = null, hover = null, keys = null, tall = 560, zoom = null }) {
    this.size = size;
    this.draw = draw;
    this.zoom = zoom;
    this.zoomed = false;
    const [height, width] = size;
    this.image = source ? el("img", { src: source, alt: "", draggable: "false" }) : null;
    this.canvas = el("canvas", { tabindex: point || keys ? 0 : null, role: "img", "aria-label": label });
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.host = el("div", { class: "picture" }, this.image, this.canvas);
    // Tall pictures become narrower, so that a whole one fits into a window.
    this.host.style.maxWidth = `max(96px, ${Math.round(tall * width / height)}px)`;
    if (point || hover) this.host.classList.add("pointing");
    const at = (event) => {
      const rect = this.canvas.getBoundingClientRect();
      const [x1, y1, x2, y2] = this.view();
      return [x1 + (event.clientX - rect.left) / rect.width * (x2 - x1), y1 + (event.clientY - rect.top) / rect.height * (y2 - y1)];
    };
    if (zoom) {
      this.button = el("button", { type: "button", class: "zoom", onclick: () => { this.zoomed = !this.zoomed; this.redraw(); } }, "Zoom");
      this.host.append(this.button);
    }
    if (point) this.canvas.addEventListener("click", (event) => point(...at(event)));
    if (hover) this.canvas.addEventListener("pointermove", (event) => hover(...at(event)));
    if (keys) {
      this.canvas.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!move) return;
        event.preventDefault();
        keys(...move);
      });
    }
    redrawAll.add(this);
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
  }
  redraw() {
    const rect = this.canvas.getBoundingClientRect();
    if (!rect.width) return;
    const ratio = Math.min(2, devicePixelRatio || 1);
    this.canvas.width = Math.round(rect.width * ratio);
    this.canvas.height = Math.round(rect.height * ratio);
    const view = this.view();
    const scale = rect.width / (view[2] - view[0]);
    if (this.button) this.button.setAttribute("aria-pressed", this.zoomed);
    if (this.image) {
      this.image.style.transform = `scale(${this.size[1] / (view[2] - view[0])}) translate(${-100 * view[0] / this.size[1]}%, ${-100 * view[1] / this.size[0]}%)`;
      this.host.classList.toggle("sharp", scale * this.size[1] / (this.image.naturalWidth || this.size[1]) > 2.5);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, -view[0] * scale * ratio, -view[1] * scale * ratio);
    this.draw(new Pen(context, scale, view));
  }
  // What is shown, (x1, y1, x2, y2): all of it, or the surroundings of some boxes, in the same shape.
  view() {
    const [height, width] = this.size;
    const boxes = this.zoomed ? this.zoom() : [];
    if (!boxes.length) return [0, 0, width, height];
    const [x1, y1] = [0, 1].map((k) => Math.min(...boxes.map((b) => b[k])));
    const [x2, y2] = [2, 3].map((k) => Math.max(...boxes.map((b) => b[k])));
    const share = Math.min(1, Math.max((x2 - x1) / width, (y2 - y1) / height, 0.02) * 1.7);
    const left = Math.max(0, Math.min(width * (1 - share), (x1 + x2) / 2 - width * share / 2));
    const top = Math.max(0, Math.min(height * (1 - share), (y1 + y2) / 2 - height * share / 2));
    return [left, top, left + width * share, top + height * share];
  }
}

// A picture of the image in the pixels of the resized image.
function imageFigure(options) {
  return new Figure({ source: D.image.source, size: [RESIZED_H, RESIZED_W], ...options });
}

// Numbers [height, width] as a picture: color(value, index) -> [r, g, b, a].
function raster(height, width, color) {
  const canvas = el("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < height * width; i += 1) pixels.data.set(color(i), 4 * i);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// From dark violet over orange to light yellow, for values in 0-1.
function heat(value) {
  const stops = [[13, 8, 40], [92, 22, 110], [187, 55, 84], [249, 142, 9], [252, 255, 164]];
  const at = Math.max(0, Math.min(1, value)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((c, k) => c + (stops[low + 1][k] - c) * (at - low));
}

function segments(labels, current, change, label) {
  const buttons = labels.map((text, index) => el("button", { type: "button", onclick: () => set(index) }, text));
  const set = (index, silent = false) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === index));
    if (!silent) change(index);
  };
  set(current, true);
  return { host: el("div", { class: "segments", role: "group", "aria-label": label }, buttons), set };
}

function slider(label, most, value, change) {
  const output = el("output", {}, count(value));
  const input = el("input", { type: "range", min: Math.min(1, most), max: most, value, "aria-label": label });
  input.addEventListener("input", () => { output.textContent = count(input.value); change(Number(input.value)); });
  return el("label", {}, label, input, output);
}

function checkbox(label, value, change) {
  const input = el("input", { type: "checkbox" });
  input.checked = value;
  input.addEventListener("change", () => change(input.checked));
  return el("label", {}, input, label);
}

function legend(...entries) {
  return el("div", { class: "legend" }, entries.map(([text, color, dashed]) =>
    el("span", {}, el("i", { style: `border-color:${color === ON_IMAGE.truth ? "var(--faint)" : color}`, class: dashed ? "dashed" : null }), text)));
}

function table(heads, rows) {
  return el("table", {},
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", {}, head)))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.chosen ? "chosen" : null }, row.cells.map((cell) => el("td", {}, cell))))));
}

const notAvailable = (what) => el("p", { class: "missing" }, `${what}: ${NOT_AVAILABLE}`);

// Boxes of the objects, dashed, in every figure of the image.
function drawObjects(pen) {
  if (!objects) return;
  objects.forEach((object, index) => pen.box(object.box, {
    color: index === chosen.object ? ON_IMAGE.chosen : ON_IMAGE.truth, width: index === chosen.object ? 2 : 1.2, dashed: true, halo: true, alpha: 0.9,
  }));
}
