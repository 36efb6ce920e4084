// The rail on the left: the image, what can be chosen, and the origin of what is chosen.

function buildRail() {
  const figure = imageFigure({
    label: "The image with its detections. Click one.",
    tall: 190,
    draw: (pen) => {
      for (let i = detections.count - 1; i >= 0; i -= 1) {
        if (i !== chosen.detection) pen.box(detections.boxes.row(i), { color: classColor(detections.labels[i]), width: 1.5, halo: true, alpha: 0.85 });
      }
      if (objects) objects.forEach((object) => object.lost && pen.box(object.box, { color: ON_IMAGE.suppressor, dashed: true, width: 1.8, halo: true }));
      if (chosen.object !== null) pen.box(objects[chosen.object].box, { color: ON_IMAGE.chosen, width: 2.5, halo: true, dashed: true });
      if (chosen.detection !== null) pen.box(detections.boxes.row(chosen.detection), { color: ON_IMAGE.chosen, width: 3, halo: true });
    },
    point: (x, y) => chooseAt(x, y),
    keys: (dx, dy) => step(dx + dy),
  });
  const origin = el("ol", { class: "origin" });
  const lists = [el("h3", {}, "Detections", el("span", {}, count(detections.count)))];
  const buttons = [];
  if (detections.count === 0) lists.push(el("p", { class: "note" }, "The model found nothing in this image."));
  lists.push(el("ul", { class: "choices", id: "detections" }, detections.scores.map((score, index) => {
    const label = detections.labels[index];
    const button = el("button", { type: "button", "data-detection": index, onclick: () => choose({ detection: index }) },
      el("span", { class: "dot", style: `background:${classColor(label)}` }), className(label), el("span", { class: "score" }, fixed(score)));
    buttons.push([button, () => chosen.object === null && chosen.detection === index]);
    return el("li", {}, button);
  })));
  if (objects) {
    const lost = objects.filter((object) => object.lost).length;
    lists.push(el("h3", {}, "Objects of the annotations", el("span", {}, `${count(objects.length)}, ${lost} missed`)));
    if (!objects.length) lists.push(el("p", { class: "note" }, "The annotations have no object in this image."));
    const order = objects.map((_, i) => i).sort((a, b) => objects[b].lost - objects[a].lost || a - b);
    lists.push(el("ul", { class: "choices", id: "objects" }, order.map((index) => {
      const object = objects[index];
      const button = el("button", { type: "button", "data-object": index, onclick: () => choose({ object: index }) },
        el("span", { class: "dot round", style: `border-color:${object.lost ? "var(--lost)" : "var(--good)"}` }),
        className(object.label), el("span", { class: "score" }, object.lost ? "missed" : "found"),
        object.lost ? el("span", { class: "why" }, object.fate) : null);
      buttons.push([button, () => chosen.object === index]);
      return el("li", {}, button);
    })));
  }
  onChoice(() => {
    figure.redraw();
    for (const [button, pressed] of buttons) button.setAttribute("aria-pressed", pressed());
    origin.replaceChildren(...originItems());
  });
  return el("aside", { class: "rail", "aria-label": "Detections" }, figure.host, lists, el("h3", {}, "Where it comes from"), origin);
}

function chooseAt(x, y) {
  // The smallest box under the pointer, of missed objects first.
  const hits = [];
  for (let i = 0; i < detections.count; i += 1) {
    const b = detections.boxes.row(i);
    if (inside(b, x, y)) hits.push([area(b), { detection: i }]);
  }
  if (objects) objects.forEach((object, i) => { if (object.lost && inside(object.box, x, y)) hits.push([area(object.box) * 0.8, { object: i }]); });
  hits.sort((a, b) => a[0] - b[0]);
  if (hits.length) choose(hits[0][1]);
}

function step(by) {
  if (!detections.count) return;
  const next = ((chosen.detection ?? 0) + by + detections.count) % detections.count;
  choose({ detection: next });
}

function originItem(id, title, text, lit, end = false) {
  return el("li", { class: end ? "end" : lit ? "lit" : null, "data-origin": id },
    el("a", { href: `#${id}` }, title), el("span", { class: "soft" }, text));
}

function placeText(anchor) {
  const place = anchorPlace(anchor);
  if (!place) return NOT_AVAILABLE;
  return `level ${D.levels[place.level].name}, row ${place.row}, column ${place.column}, shape ${place.shape}`;
}

function originItems() {
  const items = [];
  const object = chosen.object === null ? null : objects[chosen.object];
  if (object) items.push(originItem(object.step, object.lost ? "Missed" : "Found", object.text, true, object.lost));
  if (chosen.detection !== null) {
    const label = detections.labels[chosen.detection];
    items.push(originItem("result", `Detection ${chosen.detection}`, `${className(label)}, score ${fixed(detections.scores[chosen.detection], 3)}`, true));
  }
  if (chosen.proposal !== null) {
    if (chosen.classCandidate !== null && chosen.classCandidate >= 0) {
      const label = box.groups.values[chosen.classCandidate];
      const row = chosen.proposal * D.classes.length + label;
      items.push(originItem("class_nms", `Class row ${count(row)}`, `class ${className(label)} of proposal ${chosen.proposal}`, true));
    }
    const level = proposals.levels ? D.proposals.pool?.names[proposals.levels.values[chosen.proposal]] ?? proposals.levels.values[chosen.proposal] : null;
    items.push(originItem("roi_levels", "RoI level", level === null ? NOT_AVAILABLE : `pooled from level ${level}`, true));
    items.push(originItem("proposals", `Proposal ${chosen.proposal}`, `rank ${chosen.proposal + 1} of ${count(proposals.scores.length)}, objectness ${fixed(proposals.scores.values[chosen.proposal], 3)}`, true));
  }
  if (chosen.candidate !== null && chosen.proposal === null) {
    items.push(originItem("proposals", `Candidate ${chosen.candidate}`, candidateText(rpn, chosen.candidate, "proposal"), true));
  }
  if (chosen.anchor !== null) items.push(originItem("anchors", `Anchor ${count(chosen.anchor)}`, placeText(chosen.anchor), true));
  if (!items.length) items.push(el("li", {}, el("span", { class: "soft" }, "Choose a detection, a box in a picture, or an object.")));
  return items;
}

// What became of a candidate of an NMS, in a sentence.
function candidateText(selection, index, noun) {
  const score = selection.filtered(index) ? "filtered out before NMS" : `score ${fixed(selection.scores.values[index], 3)}`;
  const kept = selection.kept.values[index];
  if (selection.filtered(index)) return score;
  if (kept >= 0) return `${score}; kept as ${noun} ${kept}`;
  if (!selection.rank) return `${score}; dropped, by which box is ${NOT_AVAILABLE}`;
  if (selection.rank.values[index] >= 0) return `${score}; beyond the cap of ${count(selection.limit)}, at rank ${count(selection.rank.values[index] + 1)}`;
  const by = selection.suppressor.values[index];
  return by < 0 ? `${score}; dropped` : `${score}; suppressed by candidate ${by}, IoU ${fixed(selection.iou.values[index])} > ${selection.threshold}`;
}
