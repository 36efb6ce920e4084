// Puts the page together.

const BODIES = {
  transform: transformStage, features: featuresStage, anchors: anchorsStage, objectness: objectnessStage,
  proposals: proposalsStage, roi_levels: roiLevelsStage, roi_align: roiAlignStage, box_head: boxHeadStage,
  class_nms: classNmsStage, mask_head: maskHeadStage, result: resultStage,
};

function stageSection(step, number) {
  const sources = step.sources.map(({ name, file, line }) => el("span", {}, el("b", {}, name), " ", el("code", {}, file ? `${file}:${line}` : "source not available")));
  const output = step.tensors.reduce((total, tensor) => total + tensor.bytes, 0);
  const facts = [
    el("span", {}, step.paper), ...sources,
    step.seconds === null ? null : el("span", {}, seconds(step.seconds)),
    step.peak !== null ? el("span", {}, `${bytes(step.peak)} at its peak`) : output ? el("span", {}, `${bytes(output)} of output`) : null,
  ];
  return el("section", { class: "stage", id: step.id },
    el("h2", {}, el("span", { class: "number" }, String(number)), step.title),
    el("p", { class: "look" }, step.look),
    el("div", { class: "facts" }, facts),
    step.tensors.length ? el("details", { class: "tensors" }, el("summary", {}, "Shapes and dtypes"),
      table(["Tensor", "Shape", "Dtype", "Memory"], step.tensors.map((t) => ({ cells: [el("code", {}, t.name), el("code", {}, `[${t.shape.join(", ")}]`), el("code", {}, t.dtype), bytes(t.bytes)] })))) : null,
    el("div", { class: "body" }, BODIES[step.id]()));
}

function buildPage() {
  if (detections.masks) detections.masks.pooledArray = unpack(detections.masks.pooled);
  const lost = objects ? objects.filter((object) => object.lost).length : 0;
  const facts = [
    ["image", D.name], ["model", D.model], D.weights ? ["weights", D.weights] : null, ["device", D.device],
    ["run", `${seconds(D.total)} with torch ${D.torch}`],
  ].filter(Boolean);
  const found = `${plural(detections.count, "detection")}${objects ? `, ${plural(lost, "missed object")}` : ""}.`;
  const header = el("header", { class: "top" },
    D.index ? el("p", { style: "margin:0 0 12px" }, el("a", { href: D.index }, "← All images")) : null,
    el("h1", {}, "Inside Mask R-CNN"),
    el("p", {}, `${found} The stages follow the data from image to masks. Choose a detection in any picture or list: its proposal, anchor and location light up in every stage.`),
    el("div", { class: "facts" }, facts.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value)))));
  const extra = [];
  if (D.training) extra.push(trainingSection());
  if (D.compare) extra.push(compareSection());
  const main = el("main", {}, D.steps.map((step, i) => stageSection(step, i + 1)), extra);
  document.getElementById("page").append(header, el("div", { class: "layout" }, buildRail(), main));
  const first = objects ? objects.findIndex((object) => object.lost) : -1;
  choose(first >= 0 ? { object: first } : detections.count ? { detection: 0 } : proposals.scores.length ? { proposal: 0 } : {});
}

buildPage();
