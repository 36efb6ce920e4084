// Anchors at a location, and what the RPN says of them.

const matched = (() => {
  const packed = D.anchor_targets;
  if (!packed) return null;
  const [anchors, matchedObject, best, overlap] = [packed.anchors, packed.objects, packed.best, packed.iou].map(unpack);
  const byAnchor = new Map();
  anchors.values.forEach((anchor, i) => byAnchor.set(anchor, { object: matchedObject.values[i], best: best.values[i], iou: overlap.values[i] }));
  return { byAnchor, sampled: new Set(unpack(packed.sampled).values) };
})();

function anchorTarget(anchor) {
  if (!matched) return null;
  const found = matched.byAnchor.get(anchor);
  if (!found) return { kind: "negative", object: -1 };
  return { kind: found.object >= 0 ? "positive" : "ignored", object: found.best, iou: found.iou };
}

function anchorsStage() {
  if (!D.regular || D.levels.some(({ anchors }) => !anchors)) return notAvailable("Anchors at a location");
  let spot = [RESIZED_W / 2, RESIZED_H / 2];
  let only = -1; // one level, or -1 for all
  let positives = false;
  const info = el("div", { class: "scroll" });
  const move = (x, y) => { spot = [Math.max(0, Math.min(RESIZED_W, x)), Math.max(0, Math.min(RESIZED_H, y))]; update(); };
  const shown = () => D.levels.map((_, i) => i).filter((i) => only < 0 || i === only);
  // The location of each level whose anchors' centre is nearest to the spot.
  const locations = () => shown().map((level) => {
    const { anchors, height, width } = D.levels[level];
    const nearest = (value, step, origin, size) => (step ? Math.max(0, Math.min(size - 1, Math.round((value - origin) / step))) : 0);
    const centre = [(anchors.base[0][0] + anchors.base[0][2]) / 2, (anchors.base[0][1] + anchors.base[0][3]) / 2];
    return { level, column: nearest(spot[0], anchors.step[1], centre[0], width), row: nearest(spot[1], anchors.step[0], centre[1], height) };
  });
  const indexOf = ({ level, row, column }, shape) => {
    const { anchors, width } = D.levels[level];
    return anchors.first + (row * width + column) * anchors.count + shape;
  };
  const figure = imageFigure({
    label: "Anchors at the location that you click", zoom: () => (chosen.anchor === null ? [] : [boxOfAnchor(chosen.anchor)]), point: move, keys: (dx, dy) => move(spot[0] + dx * 4, spot[1] + dy * 4),
    draw: (pen) => {
      drawObjects(pen);
      if (positives && matched) {
        for (const [anchor, { object }] of matched.byAnchor) {
          const b = object < 0 ? null : boxOfAnchor(anchor);
          if (b) pen.dot((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, { radius: 2.2, color: levelColor(anchorPlace(anchor).level), alpha: 0.9 });
        }
      }
      for (const place of locations()) {
        const { anchors } = D.levels[place.level];
        for (let shape = 0; shape < anchors.count; shape += 1) {
          pen.box(anchorBox(place.level, place.row, place.column, shape), { color: levelColor(place.level), width: 1.8, halo: true });
        }
      }
      pen.dot(...spot, { color: "#fff" });
      const b = chosen.anchor === null ? null : boxOfAnchor(chosen.anchor);
      if (b) {
        pen.box(b, { color: ON_IMAGE.chosen, width: 3, halo: true });
        pen.tag(`anchor ${count(chosen.anchor)}`, b[0], Math.max(b[1], 0));
      }
    },
  });
  function update() {
    const rows = [];
    for (const place of locations()) {
      for (let shape = 0; shape < D.levels[place.level].anchors.count; shape += 1) {
        const anchor = indexOf(place, shape);
        const b = anchorBox(place.level, place.row, place.column, shape);
        const target = anchorTarget(anchor);
        const best = objects?.length ? Math.max(...objects.map((object) => iou(b, object.box))) : null;
        rows.push({
          chosen: anchor === chosen.anchor,
          cells: [
            el("span", { style: `color:${levelColor(place.level)};font-weight:600` }, D.levels[place.level].name),
            `${fixed(b[2] - b[0], 0)} × ${fixed(b[3] - b[1], 0)}`, fixed(objectness.get(anchor)),
            ...(best === null ? [] : [fixed(best), target.kind + (target.kind === "positive" ? `, object ${target.object}` : "")]),
          ],
        });
      }
    }
    info.replaceChildren(table(["Level", "Width × height", "Objectness", ...(objects?.length ? ["Best IoU", "In training"] : [])], rows));
    figure.redraw();
  }
  onChoice(({ anchor }) => {
    const b = anchor === null ? null : boxOfAnchor(anchor);
    if (b) spot = [Math.max(0, Math.min(RESIZED_W, (b[0] + b[2]) / 2)), Math.max(0, Math.min(RESIZED_H, (b[1] + b[3]) / 2))];
    update();
  });
  const targets = D.anchor_targets;
  const pick = segments(["All levels", ...D.levels.map(({ name }) => name)], 0, (index) => { only = index - 1; update(); }, "Level");
  return el("div", {},
    el("div", { class: "controls" }, pick.host, matched ? checkbox("show the centres of positive anchors", false, (on) => { positives = on; figure.redraw(); }) : null),
    el("div", { class: "row" },
      el("div", { class: "c7" }, figure.host,
        legend(...D.levels.map(({ name }, i) => [`level ${name}`, levelColor(i)]), ["chosen", ON_IMAGE.chosen], ...(objects ? [["object", ON_IMAGE.truth, true]] : []))),
      el("div", { class: "c5 panel" }, el("h3", {}, "Anchors at this location"), info,
        targets ? el("p", { class: "caption" }, `In the whole image: ${count(targets.positive)} positive, ${count(targets.ignored)} ignored, ${count(targets.negative)} negative. ` +
          `Positive from IoU ${targets.thresholds[1] ?? "?"} or as the best anchor of an object, negative below ${targets.thresholds[0] ?? "?"}.`) : null)));
}

function objectnessMaps() {
  return D.levels.map(({ anchors, height, width }) => {
    if (!anchors) return null;
    const best = new Float32Array(height * width);
    for (let i = 0; i < best.length; i += 1) {
      for (let shape = 0; shape < anchors.count; shape += 1) best[i] = Math.max(best[i], objectness.get(anchors.first + i * anchors.count + shape));
    }
    return { best, picture: raster(height, width, (i) => [...heat(best[i]), 255]), most: best.reduce((a, b) => Math.max(a, b), 0) };
  });
}

function objectnessStage() {
  const maps = objectnessMaps();
  if (!D.regular || maps.includes(null)) return notAvailable("Objectness by location");
  let level = 0;
  let shown = Math.min(12, rpn ? rpn.order.length : 0);
  let anchorsToo = true;
  const [paddedH, paddedW] = D.image.padded;
  const frame = [0, 0, paddedW, paddedH];
  const caption = el("p", { class: "caption" });
  const main = imageFigure({
    label: "Objectness of a level over the image",
    draw: (pen) => {
      pen.image(maps[level].picture, frame, { alpha: 0.72 });
      drawObjects(pen);
      const place = chosen.anchor === null ? null : anchorPlace(chosen.anchor);
      if (place && place.level === level) {
        const [dy, dx] = D.levels[level].stride;
        pen.box([place.column * dx, place.row * dy, (place.column + 1) * dx, (place.row + 1) * dy], { color: ON_IMAGE.chosen, width: 2.5, halo: true });
      }
    },
  });
  const small = D.levels.map(({ name }, index) => {
    const figure = imageFigure({ label: `Objectness of level ${name}`, draw: (pen) => pen.image(maps[index].picture, frame) });
    return el("button", { type: "button", class: "plain", style: "padding:6px;text-align:left;flex:1 1 90px;max-width:160px", onclick: () => set(index) },
      figure.host, el("span", { style: "display:block;margin-top:4px" }, `Level ${name} `, el("span", { style: "color:var(--faint)" }, `max ${fixed(maps[index].most)}`)));
  });
  const set = (index) => {
    level = index;
    small.forEach((button, i) => { button.style.boxShadow = i === index ? "0 0 0 2px var(--accent)" : "none"; button.setAttribute("aria-pressed", i === index); });
    const { name, height, width } = D.levels[level];
    caption.textContent = `Level ${name}, ${height} × ${width}: the highest objectness of the anchors of each location, from 0 (dark) to 1 (light).`;
    main.redraw();
  };
  const arrows = imageFigure({
    label: "Deltas of the best candidates, as arrows from anchor to proposal",
    zoom: () => {
      if (!rpn || chosen.anchor === null) return [];
      const boxes = [boxOfAnchor(chosen.anchor)];
      if (chosen.candidate !== null) boxes.push(Array.from(rpn.boxes.row(chosen.candidate)));
      return boxes;
    },
    draw: (pen) => {
      if (!rpn) return;
      for (const i of rpn.order.slice(0, shown)) {
        const from = boxOfAnchor(rpn.parents.values[i]);
        const to = rpn.boxes.row(i);
        if (anchorsToo) pen.box(from, { color: ON_IMAGE.anchor, width: 1, dashed: true, alpha: 0.7 });
        pen.box(to, { color: ON_IMAGE.other, width: 1.2, alpha: 0.9 });
        pen.arrow(from, to, { color: "#fff", width: 1.5, halo: true });
      }
      if (chosen.candidate !== null && chosen.anchor !== null) {
        const from = boxOfAnchor(chosen.anchor);
        const to = rpn.boxes.row(chosen.candidate);
        pen.box(from, { color: ON_IMAGE.anchor, width: 2, dashed: true, halo: true });
        pen.box(to, { color: ON_IMAGE.chosen, width: 2.5, halo: true });
        pen.arrow(from, to, { width: 2.5, halo: true });
      }
    },
  });
  onChoice(({ anchor }) => {
    const place = anchor === null ? null : anchorPlace(anchor);
    set(place ? place.level : level);
    arrows.redraw();
  });
  set(0);
  return el("div", {},
    el("div", { style: "display:flex;flex-wrap:wrap;gap:12px;margin-bottom:20px" }, small),
    el("div", { class: "row" },
      el("div", { class: "c6" }, main.host, caption),
      el("div", { class: "c6" }, arrows.host,
        rpn ? el("div", {}, el("p", { class: "caption" }, `Each level keeps at most ${count(D.top_k)} anchors: ${count(rpn.order.length)} candidates in all. The deltas lead from each anchor to its box.`),
          el("div", { class: "controls", style: "margin:10px 0 0" }, slider("best candidates", Math.min(300, rpn.order.length), shown, (n) => { shown = n; arrows.redraw(); }),
            checkbox("anchors", true, (on) => { anchorsToo = on; arrows.redraw(); }))) : notAvailable("Top-k"))));
}
