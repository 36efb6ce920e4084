// The index of several reports: thumbnails, sortable by what was missed.

const D = JSON.parse(document.getElementById("content").textContent);

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onchange") element.addEventListener("change", value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

const fates = [...new Set(D.entries.flatMap((entry) => Object.keys(entry.fates)))].sort();
const orders = [
  ...(D.annotated ? [["most missed first", (e) => -(e.missed ?? -1)], ...fates.map((fate) => [`missed: ${fate}`, (e) => -(e.fates[fate] ?? 0)])] : []),
  ["most detections first", (e) => -e.detections], ["fewest detections first", (e) => e.detections], ["name", (e) => e.name],
];
const grid = el("div", { class: "grid" });

function show(order) {
  const key = orders[order][1];
  const sorted = [...D.entries].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.name < b.name ? -1 : 1));
  grid.replaceChildren(...sorted.map((entry) => el("a", { class: "card", href: entry.address },
    el("span", { class: "thumb" }, el("img", { src: entry.thumbnail, alt: "" })),
    el("b", {}, entry.name),
    el("span", {}, `${entry.detections} detection${entry.detections === 1 ? "" : "s"}${entry.objects === null ? "" : `, ${entry.missed} of ${entry.objects} missed`}`),
    el("span", { class: "lost" }, Object.entries(entry.fates).map(([fate, n]) => `${n} ${fate}`).join(", ")))));
}

const total = (name) => D.entries.reduce((sum, entry) => sum + (entry[name] ?? 0), 0);
document.getElementById("page").append(
  el("header", { class: "top" }, el("h1", {}, "Inside Mask R-CNN"),
    el("p", {}, `${D.entries.length} images, ${total("detections")} detections${D.annotated ? `, ${total("missed")} of ${total("objects")} objects missed` : ""}. Choose an image to see every stage.`),
    el("div", { class: "controls", style: "margin:18px 0 0" }, el("label", {}, "sorted by", el("select", { id: "order", onchange: (event) => show(Number(event.target.value)) },
      orders.map(([name], index) => el("option", { value: index }, name)))))),
  grid);
show(0);
