// Box head, mask head and the result.

function boxHeadStage() {
  const bars = el("div", { class: "bars" });
  const caption = el("p", { class: "caption" });
  let all = false;
  const more = el("button", { type: "button", class: "plain", style: "margin-top:10px", onclick: () => { all = !all; update(); } });
  const figure = imageFigure({
    label: "The proposal and its refined box",
    zoom: () => (chosen.proposal === null ? [] : [Array.from(proposals.boxes.row(chosen.proposal)), refinedBox()].filter(Boolean)),
    draw: (pen) => {
      drawObjects(pen);
      if (chosen.proposal === null) return;
      const from = Array.from(proposals.boxes.row(chosen.proposal));
      const to = refinedBox();
      pen.box(from, { color: ON_IMAGE.other, width: 2, halo: true, dashed: true });
      if (!to) return;
      pen.box(to, { color: ON_IMAGE.chosen, width: 2.5, halo: true });
      // One arrow for each corner shows the change of size as well.
      const corner = (b, i, j) => [b[i], b[j], b[i], b[j]];
      for (const [i, j] of [[0, 1], [2, 1], [0, 3], [2, 3]]) pen.arrow(corner(from, i, j), corner(to, i, j), { color: "#fff", width: 1.5, halo: true });
    },
  });
  // For the class of the chosen candidate, of the chosen object, or the proposal's best class.
  function refinedBox() {
    if (chosen.classCandidate !== null && chosen.classCandidate >= 0 && box) return Array.from(box.boxes.row(chosen.classCandidate));
    if (chosen.object !== null && objects[chosen.object].refined) return objects[chosen.object].refined;
    return boxHead.refined ? Array.from(boxHead.refined.row(chosen.proposal)) : null;
  }
  figure.zoomed = true;
  function update() {
    figure.redraw();
    bars.replaceChildren();
    more.hidden = true;
    if (chosen.proposal === null) { caption.textContent = "Choose a detection or a proposal."; return; }
    const scores = Array.from(boxHead.scores.row(chosen.proposal), (v) => v * boxHead.scores.step);
    const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
    const own = chosen.classCandidate !== null && chosen.classCandidate >= 0 ? box.groups.values[chosen.classCandidate] : null;
    const truth = chosen.object === null ? null : objects[chosen.object].label;
    const shown = all ? order : order.slice(0, 14);
    for (const label of shown) {
      const kind = label === own ? " strong" : label === truth ? " truth" : "";
      bars.append(el("span", {}, className(label)), el("div", { class: `bar${kind}`, style: `width:${Math.max(0.3, 100 * scores[label])}%` }), el("span", {}, fixed(scores[label], 3)));
    }
    more.hidden = order.length <= 14;
    more.textContent = all ? "Show the best 14" : `Show all ${order.length} classes`;
    const to = refinedBox();
    const moved = to ? `IoU of proposal and refined box ${fixed(iou(Array.from(proposals.boxes.row(chosen.proposal)), to))}.` : `Refined box: ${NOT_AVAILABLE}.`;
    caption.textContent = `Proposal ${chosen.proposal}, refined for class ${className(own ?? truth ?? boxHead.labels.values[chosen.proposal])}. ${moved}`;
  }
  onChoice(update);
  return el("div", { class: "row" },
    el("div", { class: "c7" }, figure.host, caption, legend(["proposal", ON_IMAGE.other, true], ["refined box", ON_IMAGE.chosen], ...(objects ? [["object", ON_IMAGE.truth, true]] : []))),
    el("div", { class: "c5 panel" }, el("h3", {}, "Class scores of the proposal"), bars, more));
}

// COCO's compressed run lengths: (size, text) -> Uint8Array of the pixels, row by row.
function decodeRuns([height, width], text) {
  const runs = [];
  for (let p = 0; p < text.length;) {
    let [value, shift, more] = [0, 0, true];
    while (more) {
      const c = text.charCodeAt(p) - 48;
      value |= (c & 0x1f) << (5 * shift);
      more = Boolean(c & 0x20);
      p += 1;
      shift += 1;
      if (!more && c & 0x10) value |= -1 << (5 * shift);
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  const pixels = new Uint8Array(height * width);
  let at = 0;
  runs.forEach((length, index) => {
    if (index % 2) for (let k = at; k < at + length; k += 1) pixels[(k % height) * width + Math.floor(k / height)] = 1;
    at += length;
  });
  return pixels;
}

// A thresholded mask in a colour, with an outline; made once.
const maskPictures = new Map();
function maskPicture(pasted, color) {
  const key = `${color} ${pasted.corner} ${pasted.counts}`;
  if (!maskPictures.has(key)) {
    const { hard_size: [h, w], counts } = pasted;
    const pixels = decodeRuns([h, w], counts);
    const value = parseInt(color.slice(1), 16);
    const rgb = (value & 255) << 16 | (value & 0xff00) | value >> 16; // a pixel's bytes are r, g, b, a
    const canvas = el("canvas");
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(w, h);
    const words = new Uint32Array(picture.data.buffer);
    for (let r = 0, i = 0; r < h; r += 1) {
      for (let c = 0; c < w; c += 1, i += 1) {
        if (!pixels[i]) continue;
        // Pixels at the border are opaque: an outline.
        const within = r > 0 && r < h - 1 && c > 0 && c < w - 1 && pixels[i - 1] && pixels[i + 1] && pixels[i - w] && pixels[i + w];
        words[i] = rgb | (within ? 120 : 255) << 24;
      }
    }
    context.putImageData(picture, 0, 0);
    maskPictures.set(key, canvas);
  }
  return maskPictures.get(key);
}

function drawMask(pen, pasted, color, alpha = 1) {
  const { corner: [left, top], size: [h, w] } = pasted;
  pen.image(maskPicture(pasted, color), [left, top, left + w, top + h], { alpha });
}

function heatPicture(values, height, width) {
  return raster(height, width, (i) => [...heat(values[i] / 255), 255]);
}

function maskHeadStage() {
  const masks = detections.masks;
  if (!masks) return el("p", { class: "note" }, "This model has no mask branch.");
  const own = unpack(masks.own);
  const classes = masks.classes ? { labels: unpack(masks.classes.labels), masks: unpack(masks.classes.masks) } : null;
  const body = el("div", {});
  const image = picture(D.image.source, () => update());
  function update() {
    const index = chosen.detection;
    if (index === null) return body.replaceChildren(el("p", { class: "note" }, detections.count ? "Choose a detection." : "There are no detections."));
    const side = own.shape[1];
    const label = detections.labels[index];
    const raw = heatPicture(own.row(index), side, side);
    raw.className = "big";
    const { corner: [left, top], size: [h, w], soft } = masks.pasted[index];
    const values = unpack(soft);
    const pasted = heatPicture(values.values, values.shape[0], values.shape[1]);
    const b = Array.from(detections.pageBoxes.row(index));
    const crop = (draw, name) => new Figure({ size: [h, w], label: name, tall: 300, draw });
    const softFigure = crop((pen) => {
      pen.image(pasted, [0, 0, w, h]);
      // The mask's own pixels over those of the image.
      const [x, y] = [b[0] - left, b[1] - top];
      for (let k = 0; k <= side; k += 1) {
        const [gx, gy] = [x + (b[2] - b[0]) * k / side, y + (b[3] - b[1]) * k / side];
        pen.line(gx, y, gx, y + b[3] - b[1], { alpha: 0.22 });
        pen.line(x, gy, x + b[2] - b[0], gy, { alpha: 0.22 });
      }
      pen.box([x, y, x + b[2] - b[0], y + b[3] - b[1]], { color: ON_IMAGE.chosen, width: 2 });
    }, "The pasted mask");
    const hardFigure = crop((pen) => {
      const ratio = image.naturalWidth / D.image.page[1];
      pen.c.imageSmoothingEnabled = false;
      if (image.naturalWidth) pen.c.drawImage(image, left * ratio, top * ratio, w * ratio, h * ratio, 0, 0, w * pen.scale, h * pen.scale);
      pen.image(maskPicture(masks.pasted[index], ON_IMAGE.chosen), [0, 0, w, h]);
    }, "The thresholded mask");
    const others = [];
    if (classes && index < classes.labels.length) {
      const labels = classes.labels.row(index);
      const size = side * side;
      labels.forEach((other, k) => others.push(el("figure", { class: other === label ? "chosen" : null },
        heatPicture(classes.masks.row(index).subarray(k * size, (k + 1) * size), side, side),
        className(other))));
    }
    const shown = classes ? classes.labels.shape[1] : 0;
    const title = shown === D.classes.length - 1 ? "The masks of all classes" : `The masks of the ${shown} classes with the best scores, of ${D.classes.length - 1}`;
    body.replaceChildren(
      el("div", { class: "row" },
        el("div", { class: "c4" }, raw, el("p", { class: "caption" }, `Probabilities, ${side} × ${side}, for class ${className(label)}`)),
        el("div", { class: "c4" }, softFigure.host, el("p", { class: "caption" }, `Pasted into ${h} × ${w} pixels; the grid is that of the ${side} × ${side} mask`)),
        el("div", { class: "c4" }, hardFigure.host, el("p", { class: "caption" }, "At least 0.5"))),
      el("h3", { style: "margin:18px 0 10px" }, others.length ? title : ""),
      others.length ? el("div", { class: "masks" }, others) : notAvailable("Masks of other classes"));
  }
  onChoice(update);
  return body;
}

function resultStage() {
  const [pageH, pageW] = D.image.page;
  let least = detections.scores.some((score) => score >= 0.5) ? 0.5 : 0;
  let withMasks = true;
  const figure = new Figure({
    source: D.image.source, size: [pageH, pageW], label: "Detections. Click one.", tall: 640,
    zoom: () => (chosen.detection !== null ? [Array.from(detections.pageBoxes.row(chosen.detection))] : chosen.object !== null ? [objects[chosen.object].page_box] : []),
    point: (x, y) => chooseAt(x * RESIZED_W / pageW, y * RESIZED_H / pageH),
    keys: (dx, dy) => step(dx + dy),
    draw: (pen) => {
      const shown = detections.scores.map((_, i) => i).filter((i) => detections.scores[i] >= least || i === chosen.detection);
      if (withMasks && detections.masks) for (const i of shown) drawMask(pen, detections.masks.pasted[i], i === chosen.detection ? ON_IMAGE.chosen : classColor(detections.labels[i]), chosen.detection === null || chosen.detection === i ? 0.95 : 0.6);
      for (const i of [...shown].reverse()) {
        const color = i === chosen.detection ? ON_IMAGE.chosen : classColor(detections.labels[i]);
        pen.box(detections.pageBoxes.row(i), { color, width: i === chosen.detection ? 3 : 1.5, halo: true });
      }
      if (objects) objects.forEach((object, i) => { if (object.lost) pen.box(object.page_box, { color: i === chosen.object ? ON_IMAGE.chosen : ON_IMAGE.suppressor, dashed: true, width: 2, halo: true }); });
      // The chosen one is named first; a name that would cover another one is not drawn.
      for (const i of [...shown].sort((a, b) => (b === chosen.detection) - (a === chosen.detection))) {
        const b = detections.pageBoxes.row(i);
        pen.tag(`${className(detections.labels[i])} ${fixed(detections.scores[i])}`, b[0], b[1], i === chosen.detection ? ON_IMAGE.chosen : classColor(detections.labels[i]));
      }
    },
  });
  onChoice(() => figure.redraw());
  const score = el("output", {}, fixed(least));
  const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: least, "aria-label": "Lowest score shown" });
  input.addEventListener("input", () => { least = Number(input.value); score.textContent = fixed(least); figure.redraw(); });
  return el("div", {},
    el("div", { class: "controls" }, el("label", {}, "lowest score shown", input, score),
      detections.masks ? checkbox("masks", true, (on) => { withMasks = on; figure.redraw(); }) : null),
    figure.host,
    objects ? legend(["chosen", ON_IMAGE.chosen], ["missed object", ON_IMAGE.suppressor, true]) : null,
    el("p", { class: "caption" }, `${plural(detections.count, "detection")}${objects ? `, ${plural(objects.length, "object")} in the annotations, ${objects.filter((o) => o.lost).length} missed` : ""}. Boxes and masks are in the pixels of ${D.image.original[0] === pageH ? "the original image" : "a reduced copy of the original image"}.`));
}
