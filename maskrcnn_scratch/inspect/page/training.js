// The image as a training sample: samples, targets, and the share of each in the losses.

const LOSS_NAMES = {
  loss_objectness: "RPN: objectness", loss_rpn_box_reg: "RPN: box deltas", loss_classifier: "Box head: class",
  loss_box_reg: "Box head: box deltas", loss_mask: "Mask head",
};

function trainingSection() {
  const T = D.training;
  const names = Object.keys(LOSS_NAMES).filter((name) => name in T.losses);
  const anchors = { index: unpack(T.anchors), boxes: unpack(T.anchor_boxes), labels: unpack(T.anchor_labels), objects: unpack(T.anchor_objects) };
  const rois = { boxes: unpack(T.boxes), labels: unpack(T.labels), objects: unpack(T.objects), scores: unpack(T.own_scores) };
  const shares = Object.fromEntries(Object.entries(T.shares).map(([name, packed]) => [name, unpack(packed)]));
  let name = names[0];
  const info = el("div", { class: "scroll" });
  const masks = el("div", {});
  const ofAnchors = () => name === "loss_objectness" || name === "loss_rpn_box_reg";
  const samples = () => (ofAnchors() ? anchors : rois);
  const order = () => {
    const all = Array.from({ length: samples().labels.length }, (_, i) => i);
    const share = shares[name];
    return share ? all.sort((a, b) => share.values[b] - share.values[a]) : all;
  };
  const figure = imageFigure({
    label: "The samples of the loss; the thicker, the larger the share",
    draw: (pen) => {
      drawObjects(pen);
      const share = shares[name];
      const most = share ? share.values.reduce((a, b) => Math.max(a, b), 1e-12) : 1;
      for (const i of order().reverse()) {
        const part = share ? share.values[i] / most : 0;
        const positive = samples().labels.values[i] > 0;
        pen.box(samples().boxes.row(i), { color: positive ? ON_IMAGE.anchor : ON_IMAGE.other, width: 1 + 2.5 * part, alpha: positive ? 0.5 + 0.5 * part : 0.12 + 0.88 * part, halo: part > 0.3 });
      }
    },
  });
  function update() {
    const share = shares[name];
    const total = T.losses[name];
    masks.hidden = name !== "loss_mask";
    figureRow.hidden = name === "loss_mask";
    const positives = samples().labels.values.filter((v) => v > 0).length;
    const rows = order().slice(0, 40).map((i) => ({
      cells: ofAnchors()
        ? [`anchor ${count(anchors.index.values[i])}`, anchors.labels.values[i] ? `object ${anchors.objects.values[i]}` : "background", fixed(objectness.get(anchors.index.values[i]))]
        : [`sample ${i}`, rois.labels.values[i] ? `${className(rois.labels.values[i])}, object ${rois.objects.values[i]}` : "background", fixed(rois.scores.values[i])],
      share: share ? share.values[i] : null,
    }));
    rows.forEach((row) => row.cells.push(row.share === null ? "?" : total > 0 ? `${fixed(100 * row.share / total, 1)} %` : "0 %"));
    info.replaceChildren(
      el("p", { class: "note" }, `${count(samples().labels.length)} samples, ${count(positives)} of them objects.`),
      share ? el("p", {}) : notAvailable("Share of each sample"),
      table([ofAnchors() ? "Anchor" : "Proposal", "Target", ofAnchors() ? "Objectness" : "Score of it", "Share"], rows));
    figure.redraw();
  }
  const figureRow = el("div", { class: "row" },
    el("div", { class: "c7" }, figure.host, legend(["positive sample", ON_IMAGE.anchor], ["negative sample", ON_IMAGE.other], ["object", ON_IMAGE.truth, true])),
    el("div", { class: "c5 panel" }, el("h3", {}, "Samples with the largest shares"), info));
  masks.append(...maskTargets(T));
  const total = Object.values(T.losses).reduce((a, b) => a + b, 0);
  const bars = el("div", { class: "bars", style: "max-width:560px;margin-bottom:22px" }, names.flatMap((key) => [
    el("span", {}, LOSS_NAMES[key]), el("div", { class: "bar", style: `width:${Math.max(0.3, 100 * T.losses[key] / (total || 1))}%` }), el("span", {}, fixed(T.losses[key], 4))]));
  const pick = segments(names.map((key) => LOSS_NAMES[key]), 0, (i) => { name = names[i]; update(); }, "Loss");
  onChoice(() => figure.redraw());
  update();
  return el("section", { class: "stage", id: "training" },
    el("h2", {}, el("span", { class: "number" }, String(D.steps.length + 1)), "The same image as a training sample"),
    el("p", { class: "look" }, "A few hard samples should make up most of each loss; an easy sample with a large share points to a wrong annotation."),
    el("div", { class: "facts" }, el("span", {}, "Faster R-CNN, Eq. 1; Fast R-CNN, Eq. 1; Mask R-CNN, section 3"), el("span", {}, `sum of the losses `, el("b", {}, fixed(total, 4)))),
    el("div", { class: "body" }, bars, el("div", { class: "controls" }, pick.host), figureRow, masks));
}

function maskTargets(T) {
  if (!T.masks) return [el("p", { class: "note" }, "No sampled proposal has a mask target.")];
  const [targets, predicted, samples, share] = [T.masks.targets, T.masks.predicted, T.masks.samples, T.masks.shares].map(unpack);
  const labels = unpack(T.labels);
  const side = targets.shape[1];
  return [
    el("p", { class: "note", style: "margin-bottom:14px" }, `${count(T.masks.count)} sampled proposals have a mask target of ${side} × ${side}; each pair is the target and the prediction.`),
    el("div", { class: "masks" }, Array.from({ length: targets.length }, (_, i) => {
      const part = share && T.losses.loss_mask > 0 ? `${fixed(100 * share.values[i] / T.losses.loss_mask, 1)} % of the loss` : "";
      const pair = el("div", { style: "display:flex;gap:4px" }, heatPicture(targets.row(i), side, side), heatPicture(predicted.row(i), side, side));
      return el("figure", { style: "width:188px" }, pair, `${className(labels.values[samples.values[i]])} ${part ? "· " + part : ""}`);
    })),
  ];
}
