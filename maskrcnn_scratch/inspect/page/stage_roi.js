// Which level each RoI is pooled from, and RoIAlign of the chosen one.

function roiLevelsStage() {
  if (!proposals.levels) return notAvailable("RoI levels");
  if (!proposals.scores.length) return el("p", { class: "note" }, "There are no proposals.");
  const pool = proposals.pool;
  const [W, H, left, bottom] = [620, 420, 52, 44];
  const sides = [];
  for (let i = 0; i < proposals.scores.length; i += 1) {
    const b = proposals.boxes.row(i);
    sides.push([Math.max(1, b[2] - b[0]), Math.max(1, b[3] - b[1])]);
  }
  const top = Math.max((pool?.canonical_scale ?? 32) * 1.4, ...sides.flat()) * 1.15;
  const low = Math.max(1, Math.min(...sides.flat()) / 1.2);
  const x = (v) => left + Math.log(v / low) / Math.log(top / low) * (W - left - 12);
  const y = (v) => H - bottom - Math.log(v / low) / Math.log(top / low) * (H - bottom - 12);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Sizes of the proposals and their levels" });
  for (let v = 2 ** Math.ceil(Math.log2(low)); v <= top; v *= 2) {
    plot.append(svg("line", { class: "axis", x1: x(v), x2: x(v), y1: 12, y2: H - bottom }), svg("line", { class: "axis", x1: left, x2: W - 12, y1: y(v), y2: y(v) }),
      svg("text", { x: x(v), y: H - bottom + 18, "text-anchor": "middle" }, String(v)), svg("text", { x: left - 10, y: y(v) + 4, "text-anchor": "end" }, String(v)));
  }
  plot.append(svg("text", { x: (W + left) / 2, y: H - 4, "text-anchor": "middle" }, "width in pixels"),
    svg("text", { x: 12, y: (H - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(H - bottom) / 2})` }, "height in pixels"));
  if (pool && pool.scales.length > 1) {
    // Borders of Eq. 1: sqrt(width * height) = canonical_scale * 2^(level - canonical_level).
    const finest = -Math.log2(pool.scales[0]);
    for (let k = 1; k < pool.names.length; k += 1) {
      const side = pool.canonical_scale * 2 ** (finest + k - pool.canonical_level);
      const [w1, w2] = [Math.max(low, side * side / top), Math.min(top, side * side / low)];
      if (w1 >= w2) continue;
      plot.append(svg("line", { class: "border", x1: x(w1), y1: y(side * side / w1), x2: x(w2), y2: y(side * side / w2) }));
      plot.append(svg("text", { x: x(w1) + 24, y: y(side * side / w1) + 12 }, `√(w·h) = ${fixed(side, 0)}`));
    }
  }
  const points = sides.map(([w, h], i) => svg("circle", { class: "point", cx: x(w), cy: y(h), r: 4, fill: levelColor(proposals.levels.values[i]), onclick: () => choose({ proposal: i }) }));
  plot.append(...points);
  let last = null;
  onChoice(({ proposal }) => {
    if (last !== null) { points[last].classList.remove("chosen"); points[last].setAttribute("r", 4); }
    last = proposal;
    if (proposal !== null) {
      points[proposal].classList.add("chosen");
      points[proposal].setAttribute("r", 8);
      plot.append(points[proposal]);
    }
  });
  const names = pool ? pool.names : [...new Set(proposals.levels.values)].sort().map(String);
  const counts = names.map((_, k) => proposals.levels.values.filter((v) => v === k).length);
  const most = Math.max(1, ...counts);
  return el("div", { class: "row" },
    el("div", { class: "c8" }, plot),
    el("div", { class: "c4 panel" }, el("h3", {}, "Proposals of each level"),
      el("div", { class: "bars" }, names.flatMap((name, k) => [el("span", {}, `level ${name}`), el("div", { class: "bar", style: `width:${100 * counts[k] / most}%;background:${levelColor(k)};opacity:1` }), el("span", {}, count(counts[k]))])),
      pool ? el("p", { class: "caption" }, `level = ⌊${pool.canonical_level} + log₂(√(w·h) / ${pool.canonical_scale})⌋, kept within the levels that there are.`) : null));
}

function roiAlignStage() {
  const body = el("div", {});
  let which = 0;
  const pick = segments(["Box head", "Mask head"], 0, (i) => { which = i; update(); }, "Head");
  const image = picture(D.image.source, () => update());
  function update() {
    const mask = which === 1;
    const index = mask ? chosen.detection : chosen.proposal;
    if (mask && !detections.masks) return body.replaceChildren(el("p", { class: "note" }, "This model has no mask branch."));
    if (index === null) return body.replaceChildren(el("p", { class: "note" }, mask ? "Choose a detection: masks are pooled from its box." : "Choose a detection or a proposal."));
    const pool = mask ? detections.masks.pool : proposals.pool;
    if (!pool) return body.replaceChildren(notAvailable("RoIAlign's bins and samples"));
    const b = Array.from(mask ? detections.boxes.row(index) : proposals.boxes.row(index));
    const level = mask ? detections.origins[index].mask_level : proposals.levels.values[index];
    const scale = pool.scales[level];
    const grids = [gridAxis(b[0], b[2], scale, pool.output_size[1], pool), gridAxis(b[1], b[3], scale, pool.output_size[0], pool)];
    // The crop around the box, with a margin.
    const margin = 0.18 * Math.max(b[2] - b[0], b[3] - b[1]) + 1 / scale;
    const [x0, y0] = [Math.max(0, b[0] - margin), Math.max(0, b[1] - margin)];
    const [x1, y1] = [Math.min(RESIZED_W, b[2] + margin), Math.min(RESIZED_H, b[3] + margin)];
    const ratio = [image.naturalWidth / RESIZED_W, image.naturalHeight / RESIZED_H];
    const figure = new Figure({
      size: [y1 - y0, x1 - x0], label: "Bins and sampling points of RoIAlign", tall: 460,
      draw: (pen) => {
        if (!image.naturalWidth) return;
        pen.c.imageSmoothingEnabled = false;
        pen.c.drawImage(image, x0 * ratio[0], y0 * ratio[1], (x1 - x0) * ratio[0], (y1 - y0) * ratio[1], 0, 0, (x1 - x0) * pen.scale, (y1 - y0) * pen.scale);
        const step = 1 / scale; // feature pixels
        for (let g = Math.ceil(x0 / step) * step; g <= x1; g += step) pen.line(g - x0, 0, g - x0, y1 - y0, { color: "#000", alpha: 0.22 });
        for (let g = Math.ceil(y0 / step) * step; g <= y1; g += step) pen.line(0, g - y0, x1 - x0, g - y0, { color: "#000", alpha: 0.22 });
        pen.box([b[0] - x0, b[1] - y0, b[2] - x0, b[3] - y0], { color: ON_IMAGE.chosen, width: 2.5, halo: true });
        const [gx, gy] = grids;
        for (const e of gx.edges) pen.line(e - x0, gy.edges[0] - y0, e - x0, gy.edges.at(-1) - y0, { color: "#fff", width: 1, alpha: 0.9 });
        for (const e of gy.edges) pen.line(gx.edges[0] - x0, e - y0, gx.edges.at(-1) - x0, e - y0, { color: "#fff", width: 1, alpha: 0.9 });
        const radius = gx.samples.length > 20 ? 1.6 : 2.4;
        for (const sy of gy.samples) for (const sx of gx.samples) pen.dot(sx - x0, sy - y0, { radius, color: ON_IMAGE.suppressor, halo: false });
      },
    });
    const pooled = mask ? detections.masks.pooledArray : proposals.pooled;
    const [h, w] = pool.output_size;
    const colors = pooled ? pooled.row(index) : null;
    const small = colors ? raster(h, w, (i) => [colors[3 * i], colors[3 * i + 1], colors[3 * i + 2], 255]) : null;
    if (small) small.className = "big";
    const shift = pool.aligned ? "aligned: the samples are centred on the box." : "not aligned: the samples lie half a feature pixel to the lower right of the box.";
    body.replaceChildren(el("div", { class: "row" },
      el("div", { class: "c8" }, figure.host, legend(["RoI", ON_IMAGE.chosen], [`${h} × ${w} bins`, "var(--faint)"], ["sampling points", ON_IMAGE.suppressor])),
      el("div", { class: "c4" }, small ?? notAvailable("Pooled features"),
        el("p", { class: "caption" }, `Pooled to ${h} × ${w} from level ${pool.names[level]}, in the colours of that level's principal components.`),
        el("p", { class: "caption" }, `${pool.sampling_ratio > 0 ? `${pool.sampling_ratio} × ${pool.sampling_ratio} samples in each bin` : "One sample for each feature pixel of a bin, rounded up"}; ${shift}`))));
  }
  onChoice(update);
  return el("div", {}, el("div", { class: "controls" }, pick.host), body);
}

// Edges of the bins and positions of the samples along one side, in image pixels.
function gridAxis(low, high, scale, bins, pool) {
  const start = low * scale - (pool.aligned ? 0.5 : 0);
  const length = pool.aligned ? (high - low) * scale : Math.max(1, (high - low) * scale);
  const step = length / bins;
  const perBin = pool.sampling_ratio > 0 ? pool.sampling_ratio : Math.max(1, Math.ceil(step));
  const edges = Array.from({ length: bins + 1 }, (_, i) => (start + i * step + 0.5) / scale);
  const samples = [];
  for (let i = 0; i < bins; i += 1) for (let k = 0; k < perBin; k += 1) samples.push((start + i * step + (k + 0.5) * step / perBin + 0.5) / scale);
  return { edges, samples };
}
