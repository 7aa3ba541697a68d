"""The page around a picture of a graph, and its colours: text with the marks that `tools.inspect.picture` fills in."""

from __future__ import annotations

_LIGHT = """--paper:#fbfbfa;--ink:#1c2126;--soft:#5d6873;--line:#a9b4be;--panel:#ffffff;--rule:#dfe3e7;--frame:#f0f3f6;
--edge:#97a3ae;--pick:#c2410c;--math:#eef1f4;--linear:#dbe9fb;--attention:#ece2fb;--norm:#dcf2e4;--layout:#f6f0dc;
--storage:#e3e6ea;--control:#fbe0e8;--input:#ffffff;--output:#ffffff;--stroke:#8b98a5"""
_DARK = """--paper:#14181c;--ink:#e7ebee;--soft:#9aa6b1;--line:#5a6672;--panel:#1c2126;--rule:#313940;--frame:#191e23;
--edge:#66727e;--pick:#fb923c;--math:#2a3138;--linear:#1f3a5c;--attention:#3c2d58;--norm:#1f4231;--layout:#443c1e;
--storage:#363e46;--control:#53273a;--input:#14181c;--output:#14181c;--stroke:#6d7a87"""

COLOURS = f"""
:root,svg{{{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root:not([data-theme=light]),:root:not([data-theme=light]) svg{{{_DARK}}}}}
:root[data-theme=dark],:root[data-theme=dark] svg{{{_DARK}}}
.paper{{fill:var(--paper)}}
.drawing text{{font:500 13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;text-anchor:middle;fill:var(--ink)}}
.drawing .note{{font-size:11px;font-weight:400;fill:var(--soft)}}
.node rect{{stroke:var(--stroke);stroke-width:1;fill:var(--math)}}
.linear rect{{fill:var(--linear)}}.attention rect{{fill:var(--attention)}}.norm rect{{fill:var(--norm)}}
.layout rect{{fill:var(--layout)}}.storage rect{{fill:var(--storage)}}.control rect{{fill:var(--control)}}
.input rect,.output rect{{fill:var(--input);stroke-width:1.6}}.output rect{{stroke-dasharray:5 3}}
.edge{{fill:none;stroke:var(--edge);stroke-width:1.4}}
.frame{{fill:var(--frame);stroke:var(--line)}}.under{{fill:var(--frame);stroke:var(--line);opacity:.7}}
.badge rect{{fill:var(--ink)}}.badge text,.drawing .badge text{{fill:var(--paper);font-weight:700;font-size:15px}}
"""
"""Style of the drawing, light and dark."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{title}}</title>
<style>{{colours}}
*{box-sizing:border-box}
html,body{margin:0;height:100%}
body{display:grid;grid-template:auto minmax(0,1fr)/minmax(0,1fr) auto;background:var(--paper);color:var(--ink);
font:14px/1.45 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
header{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center;padding:8px 14px;
background:var(--panel);border-bottom:1px solid var(--rule)}
h1{font-size:15px;margin:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;max-width:40vw}
.tools{display:flex;gap:6px;align-items:center;margin-left:auto;flex-wrap:wrap}
input,button{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:7px;padding:4px 10px;
height:32px}
input{width:19em;min-width:8em}
button{cursor:pointer;min-width:34px}
button:hover{border-color:var(--ink)}
:focus-visible{outline:2px solid var(--pick);outline-offset:1px}
.hits{min-width:3.6em;color:var(--soft);font-variant-numeric:tabular-nums}
main{position:relative;overflow:hidden;touch-action:none;cursor:grab}
main.moving{cursor:grabbing}
main svg{position:absolute;inset:0;width:100%;height:100%;display:block}
.node,.badge{cursor:pointer;outline:none}
.node:hover rect,.node:focus-visible rect{stroke:var(--pick);stroke-width:2}
.node.hit rect{stroke:var(--pick);stroke-width:2.4}
.searching .node:not(.hit){opacity:.45}
.node.chosen rect{stroke:var(--pick);stroke-width:3}
.edge.near{stroke:var(--pick);stroke-width:2.2}
aside{width:340px;overflow:auto;padding:14px 16px;background:var(--panel);border-left:1px solid var(--rule)}
aside h2{font-size:15px;margin:0 0 8px;overflow-wrap:anywhere}
aside h3{font-size:12px;font-weight:600;color:var(--soft);margin:12px 0 2px}
aside p,aside li{margin:0;overflow-wrap:anywhere;font-size:13px}
aside ul{margin:0;padding:0;list-style:none}
aside li+li,aside p+p{margin-top:3px}
.legend{display:grid;grid-template-columns:1fr 1fr;gap:5px 12px;margin-top:4px}
.legend span{display:flex;gap:7px;align-items:center;font-size:13px}
.legend i{width:16px;height:13px;border-radius:4px;border:1px solid var(--stroke);flex:none}
@media (max-width:760px){
body{grid-template:auto minmax(0,1fr) auto/minmax(0,1fr)}
aside{width:auto;max-height:36vh;border-left:0;border-top:1px solid var(--rule)}
h1{max-width:100%;width:100%}
.tools{margin-left:0;width:100%}
input{flex:1}}
</style>
</head>
<body>
<header><h1>{{title}}</h1>
<div class="tools"><input id="find" type="search" placeholder="Find" aria-label="Find">
<span class="hits" id="hits" aria-live="polite"></span>
<button id="out" aria-label="Smaller">−</button><button id="in" aria-label="Larger">+</button>
<button id="fit">Fit</button><button id="theme">Theme</button></div></header>
<main id="stage" tabindex="0" aria-label="Graph; drag to move, turn the wheel or press + and - for size">
<svg xmlns="http://www.w3.org/2000/svg"><g id="view">{{drawing}}</g></svg></main>
<aside id="panel" aria-label="Details" aria-live="polite"></aside>
<script id="data" type="application/json">{{data}}</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const stage = document.getElementById("stage"), view = document.getElementById("view");
const panel = document.getElementById("panel"), find = document.getElementById("find");
const nodes = [...document.querySelectorAll(".node")], edges = [...document.querySelectorAll(".edge")];
const byItem = new Map(nodes.map(node => [+node.dataset.item, node]));
let scale = 1, left = 0, top_ = 0, chosen = -1, hits = [], current = -1;

function show() { view.setAttribute("transform", `translate(${left} ${top_}) scale(${scale})`); }
function fit() {
  const {width, height} = stage.getBoundingClientRect();
  const whole = Math.min(width / data.width, height / data.height);
  // A long graph is shown by its width, from the top: text that cannot be read helps nobody.
  scale = Math.min(1.1, Math.max(whole, Math.min(0.8, width / data.width)));
  left = (width - data.width * scale) / 2;
  top_ = Math.max(0, (height - data.height * scale) / 2);
  show();
}
function zoom(factor, x, y) {
  const next = Math.min(4, Math.max(0.03, scale * factor));
  left = x - (x - left) * next / scale; top_ = y - (y - top_) * next / scale; scale = next; show();
}
function middle() { const box = stage.getBoundingClientRect(); return [box.width / 2, box.height / 2]; }
function go(index) {
  const [x, y, w, h] = data.items[index].box, [cx, cy] = middle();
  scale = Math.max(scale, 0.7); left = cx - (x + w / 2) * scale; top_ = cy - (y + h / 2) * scale; show();
}

function line(tag, text, parent) {
  const made = document.createElement(tag); made.textContent = text; parent.append(made); return made;
}
function fields(details) {
  for (const [name, value] of Object.entries(details)) {
    line("h3", name[0].toUpperCase() + name.slice(1), panel);
    if (Array.isArray(value)) { const list = line("ul", "", panel); for (const one of value) line("li", one, list); }
    else line("p", value, panel);
  }
}
function overview() {
  panel.replaceChildren(); line("h2", data.title, panel);
  let last = "";
  for (const [name, text] of data.facts) { if (name !== last) line("h3", name, panel); line("p", text, panel); last = name; }
  line("h3", "Colours", panel);
  const legend = line("div", "", panel); legend.className = "legend";
  for (const kind of ["linear", "attention", "norm", "math", "layout", "storage", "control"]) {
    if (!data.items.some(item => item.kind === kind)) continue;
    const row = line("span", "", legend), patch = document.createElement("i");
    patch.style.background = `var(--${kind})`; row.append(patch, kind);
  }
}
function choose(index) {
  chosen = index;
  for (const node of nodes) node.classList.toggle("chosen", +node.dataset.item === index);
  for (const edge of edges) edge.classList.toggle("near", +edge.dataset.from === index || +edge.dataset.to === index);
  if (index < 0) { overview(); return; }
  panel.replaceChildren(); line("h2", data.items[index].label, panel); fields(data.items[index].details);
  panel.scrollTop = 0;
}
function chooseGroup(index) {
  choose(-1); panel.replaceChildren();
  line("h2", `Repeated ×${data.groups[index].count}`, panel); fields(data.groups[index].details);
}

function search() {
  const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
  hits = words.length ? data.items.map((item, index) => [index, JSON.stringify(item).toLowerCase()])
    .filter(([, text]) => words.every(word => text.includes(word))).map(([index]) => index) : [];
  stage.classList.toggle("searching", words.length > 0);
  const set = new Set(hits);
  for (const [index, node] of byItem) node.classList.toggle("hit", set.has(index));
  current = -1;
  document.getElementById("hits").textContent = words.length ? `${hits.length} found` : "";
}
function next(step) {
  if (!hits.length) return;
  current = (current + step + hits.length) % hits.length;
  document.getElementById("hits").textContent = `${current + 1} of ${hits.length}`;
  choose(hits[current]); go(hits[current]);
}
find.addEventListener("input", search);
find.addEventListener("keydown", event => {
  if (event.key === "Enter") { next(event.shiftKey ? -1 : 1); event.preventDefault(); }
  if (event.key === "Escape") { find.value = ""; search(); }
});

const fingers = new Map(); let moved = 0;
stage.addEventListener("pointerdown", event => { fingers.set(event.pointerId, [event.clientX, event.clientY]); moved = 0; });
window.addEventListener("pointermove", event => {
  const before = fingers.get(event.pointerId); if (!before) return;
  const dx = event.clientX - before[0], dy = event.clientY - before[1];
  moved += Math.abs(dx) + Math.abs(dy);
  if (fingers.size === 1) { left += dx; top_ += dy; if (moved > 4) stage.classList.add("moving"); show(); }
  else if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== event.pointerId)[1], box = stage.getBoundingClientRect();
    const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
    const is = Math.hypot(event.clientX - other[0], event.clientY - other[1]);
    if (was > 0) zoom(is / was, other[0] - box.left, other[1] - box.top);
  }
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
});
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, event => {
  fingers.delete(event.pointerId); stage.classList.remove("moving");
});
stage.addEventListener("wheel", event => {
  event.preventDefault();
  const box = stage.getBoundingClientRect(), lines = event.deltaMode === 1 ? 16 : 1;
  zoom(Math.exp(-event.deltaY * lines * 0.0016), event.clientX - box.left, event.clientY - box.top);
}, {passive: false});
stage.addEventListener("click", event => {
  if (moved > 6) return;
  const node = event.target.closest(".node"), badge = event.target.closest(".badge");
  if (node) choose(+node.dataset.item); else if (badge) chooseGroup(+badge.dataset.group); else choose(-1);
});
stage.addEventListener("keydown", event => {
  const step = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]}[event.key];
  if (step) { left += step[0]; top_ += step[1]; show(); event.preventDefault(); }
  if (event.key === "+" || event.key === "=") zoom(1.25, ...middle());
  if (event.key === "-") zoom(0.8, ...middle());
  if (event.key === "0") fit();
  if (event.key === "Escape") choose(-1);
  if (event.key === "Enter" || event.key === " ") {
    const node = event.target.closest(".node"), badge = event.target.closest(".badge");
    if (node) choose(+node.dataset.item); else if (badge) chooseGroup(+badge.dataset.group);
    if (node || badge) event.preventDefault();
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && event.target !== find) { find.focus(); event.preventDefault(); }
});
document.getElementById("in").addEventListener("click", () => zoom(1.25, ...middle()));
document.getElementById("out").addEventListener("click", () => zoom(0.8, ...middle()));
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme:dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
window.addEventListener("resize", show);
overview(); fit();
document.documentElement.dataset.ready = "yes";
</script>
</body>
</html>
"""
"""The page: ``{{title}}``, ``{{colours}}``, ``{{drawing}}`` and ``{{data}}`` are filled in."""
