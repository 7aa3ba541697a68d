"""Colours, layout and behaviour of the ladder's report page: text that `tools.ladder.page` puts into it.

The colours of the series are told apart with any colour vision, and each series has a shape of its own. Shades ``s0``
to ``s8`` are one hue from faint to strong on either paper, and every shaded cell holds its number as text.
"""

from __future__ import annotations

_LIGHT = """--paper:#fbfbfa;--ink:#1c2126;--soft:#56616b;--rule:#dfe3e7;--panel:#ffffff;--track:#eceff2;--pick:#1d5fbf;
--mixed:#0b66b5;--uniform:#b85c00;--fixed:#3b444c;--pipeline:#00785a;--front:#c9dcf2;--good:#0b66b5;--bad:#a3261b;
--bad-paper:#fdeeec;--take:#eaf2fc;--take-rule:#a9c8ec;
--s0:#eef4fb;--s1:#dce9f7;--s2:#c4daf1;--s3:#a3c7e8;--s4:#79aedb;--s5:#4f92cb;--s6:#2f76b5;--s7:#17599a;--s8:#0a3a70;
--low-ink:#1c2126;--high-ink:#ffffff"""
_DARK = """--paper:#14181c;--ink:#e7ebee;--soft:#9fabb6;--rule:#313940;--panel:#1b2025;--track:#272e35;--pick:#7db4ff;
--mixed:#62b0ff;--uniform:#f0a04b;--fixed:#c3ccd4;--pipeline:#4fd0a6;--front:#2b4562;--good:#62b0ff;--bad:#ff9c90;
--bad-paper:#3a1f1c;--take:#17283b;--take-rule:#2f5379;
--s0:#1c242c;--s1:#1e2d3c;--s2:#20384f;--s3:#234766;--s4:#275a83;--s5:#2f6d9e;--s6:#4a92c8;--s7:#7ab6e3;--s8:#b5dbf7;
--low-ink:#e7ebee;--high-ink:#10151a"""

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0 auto;max-width:1240px;padding:28px 28px 56px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}}
h1{{font-size:26px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere;text-wrap:balance}}
h2{{font-size:19px;margin:44px 0 4px}}
h3{{font-size:14px;margin:0 0 8px;overflow-wrap:anywhere}}
p{{margin:0 0 14px;max-width:76ch;overflow-wrap:anywhere}}
.soft{{color:var(--soft)}}
.num{{font-variant-numeric:tabular-nums}}
button{{font:inherit;color:inherit}}
:focus-visible{{outline:2px solid var(--pick);outline-offset:2px}}
.take{{margin:20px 0 0;padding:18px 22px;border:1px solid var(--take-rule);border-radius:12px;background:var(--take)}}
.take h2{{margin:0 0 10px;font-size:21px;overflow-wrap:anywhere}}
.take p:last-child{{margin:0}}
.take.none{{background:var(--bad-paper);border-color:var(--bad)}}
.figures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px 22px;margin:0 0 14px}}
.figures div{{min-width:0}}
.figures dt{{font-size:13px;color:var(--soft)}}
.figures dd{{margin:0;font-size:21px;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums}}
.figures small{{display:block;font-size:13px;font-weight:400;color:var(--soft)}}

.switch{{display:inline-flex;margin:6px 0 12px;border:1px solid var(--rule);border-radius:9px;overflow:hidden}}
.switch label{{padding:5px 13px;cursor:pointer;font-size:14px}}
.hidden{{position:absolute;width:1px;height:1px;opacity:0;margin:0;pointer-events:none}}
#by-size:checked~.switch label[for=by-size],#by-bits:checked~.switch label[for=by-bits]{{background:var(--ink);
color:var(--paper)}}
#by-size:focus-visible~.switch label[for=by-size],#by-bits:focus-visible~.switch label[for=by-bits]{{outline:2px solid
var(--pick);outline-offset:-3px}}
#by-size:checked~.bits,#by-bits:checked~.size{{display:none}}
.curve{{position:relative;margin:0}}
.frame{{position:relative;height:440px;margin:0 14px 0 54px}}
.frame svg{{position:absolute;inset:0;width:100%;height:100%;overflow:visible}}
.grid{{stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}}
.line{{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}}
.line.mixed{{stroke:var(--mixed)}}.line.uniform{{stroke:var(--uniform);stroke-dasharray:5 4}}
.line.front{{stroke:var(--front);stroke-width:9;stroke-linecap:round}}
.limit{{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4;vector-effect:non-scaling-stroke}}
.tick{{position:absolute;font-size:12px;color:var(--soft);white-space:nowrap;font-variant-numeric:tabular-nums}}
.tick.y{{right:100%;margin-right:8px;transform:translateY(-50%)}}
.tick.x{{top:100%;margin-top:6px;transform:translateX(-50%)}}
.tick.limited{{right:4px;transform:translateY(-110%)}}
.axis{{font-size:13px;color:var(--soft);margin:0;max-width:none}}
.axis.y{{margin:0 0 10px}}.axis.x{{margin:30px 14px 0 54px;text-align:right}}
.point{{position:absolute;width:26px;height:26px;margin:-13px 0 0 -13px;padding:0;border:0;background:none;cursor:help;
border-radius:50%;display:grid;place-items:center}}
.point i{{display:block;width:11px;height:11px;background:var(--fixed);box-shadow:0 0 0 2px var(--paper)}}
.point.fixed i{{transform:rotate(45deg);width:10px;height:10px}}
.point.mixed i{{border-radius:50%;background:var(--mixed)}}
.point.uniform i{{background:var(--paper);border:2.5px solid var(--uniform)}}
.point.pipeline i{{background:var(--pipeline);border-radius:0 60% 0 60%}}
.point.taken{{z-index:2}}
.point.taken::before{{content:"";position:absolute;inset:0;border:2.5px solid var(--ink);border-radius:50%}}
.point:hover,.point:focus-visible{{z-index:3}}
.point:hover i,.point:focus-visible i{{scale:1.25}}
.label{{position:absolute;font-size:12px;line-height:16px;white-space:nowrap;pointer-events:none;color:var(--ink);
text-shadow:0 0 3px var(--paper),0 0 3px var(--paper),1px 1px 2px var(--paper),-1px -1px 2px var(--paper)}}
.label.taken{{font-weight:700}}
.label.r{{transform:translate(14px,-50%)}}.label.l{{transform:translate(calc(-100% - 14px),-50%)}}
.label.t{{transform:translate(-50%,-29px)}}.label.b{{transform:translate(-50%,13px)}}
.label.taken.r{{transform:translate(18px,-50%)}}.label.taken.l{{transform:translate(calc(-100% - 18px),-50%)}}
.label.taken.t{{transform:translate(-50%,-33px)}}.label.taken.b{{transform:translate(-50%,17px)}}
.label.narrow{{display:none}}
.legend{{display:flex;flex-wrap:wrap;gap:4px 20px;margin:14px 0 0;padding:0;list-style:none;font-size:13px}}
.legend li{{display:flex;align-items:center;gap:8px}}
.legend .point{{position:relative;width:20px;height:20px;margin:0;cursor:default;flex:none}}
.legend svg{{width:30px;height:10px;flex:none}}

table{{border-collapse:collapse;width:100%}}
.numbers th,.numbers td,.worst th,.worst td{{padding:6px 10px;text-align:right;border-bottom:1px solid var(--rule);
font-variant-numeric:tabular-nums;white-space:nowrap}}
.numbers thead th,.worst thead th{{font-size:13px;font-weight:600;color:var(--soft);vertical-align:bottom}}
.numbers tbody th,.worst tbody th{{text-align:left;font-weight:600;white-space:normal;overflow-wrap:anywhere}}
.worst tbody th{{white-space:nowrap}}.worst thead th{{white-space:normal}}
.numbers th:first-child,.worst th:first-child{{text-align:left;padding-left:0}}
.numbers tr.taken{{background:var(--take)}}
.numbers tr.taken th:first-child{{box-shadow:-8px 0 0 var(--take),inset 3px 0 0 var(--good);padding-left:10px}}
.numbers tr.failed td{{text-align:left;color:var(--bad);white-space:normal}}
.badge{{display:inline-block;font-size:12px;font-weight:400;color:var(--soft);margin-left:8px}}
.failures{{margin:14px 0 0;padding:12px 18px;border-radius:10px;background:var(--bad-paper);list-style:none}}
.failures li+li{{margin-top:8px}}
.failures li{{overflow-wrap:anywhere}}
.failures b{{color:var(--bad)}}

.bars{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:26px 40px;margin-top:14px}}
.bars section{{min-width:0}}
.bars ul{{margin:0;padding:0;list-style:none}}
.bars li{{display:grid;grid-template-columns:minmax(0,9em) minmax(0,1fr) 6.2em;gap:10px;align-items:center;font-size:13px;
padding:2px 0}}
.bars li span:first-child{{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}}
.bars li.taken span:first-child{{font-weight:700}}
.bars .track{{height:13px;border-radius:3px;background:var(--track)}}
.bars .track i{{display:block;height:100%;min-width:2px;border-radius:3px;background:var(--fixed)}}
.bars .mixed i{{background:var(--mixed)}}.bars .uniform i{{background:var(--uniform)}}
.bars .pipeline i{{background:var(--pipeline)}}
.bars li span:last-child{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}

.map{{table-layout:fixed;border-collapse:separate;border-spacing:2px;max-width:900px}}
.map th{{font-size:12px;font-weight:600;color:var(--soft);padding:0 4px;text-align:center;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}}
.map tbody th{{text-align:right;font-weight:400;font-variant-numeric:tabular-nums}}
.map col.names{{width:78px}}
.map td{{padding:0;height:24px;border-radius:4px;text-align:center;font-size:12px;line-height:24px;
font-variant-numeric:tabular-nums;overflow:hidden;white-space:nowrap}}
.map td[data-tip]{{cursor:help}}
.map td:focus-visible{{outline-offset:0}}
.map td:empty{{background:none}}
.s0,.s1,.s2,.s3,.s4,.s5{{color:var(--low-ink)}}.s6,.s7,.s8{{color:var(--high-ink)}}
.s0{{background:var(--s0)}}.s1{{background:var(--s1)}}.s2{{background:var(--s2)}}.s3{{background:var(--s3)}}
.s4{{background:var(--s4)}}.s5{{background:var(--s5)}}.s6{{background:var(--s6)}}.s7{{background:var(--s7)}}
.s8{{background:var(--s8)}}
.scale{{display:flex;align-items:center;gap:10px;font-size:12px;color:var(--soft);margin:10px 0 0}}
.scale span{{display:flex}}
.scale i{{width:22px;height:12px}}
.scale{{flex-wrap:wrap;white-space:nowrap}}

.tabs{{display:flex;flex-wrap:wrap;gap:6px;margin:8px 0 16px}}
.tabs[hidden]{{display:none}}
.tabs button{{border:1px solid var(--rule);border-radius:8px;background:var(--panel);padding:5px 12px;cursor:pointer;
max-width:100%;overflow-wrap:anywhere;text-align:left}}
.tabs button[aria-selected=true]{{background:var(--ink);border-color:var(--ink);color:var(--paper)}}
.pane{{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:28px 44px;align-items:start;margin-bottom:26px}}
.pane[hidden]{{display:none}}
.pane>h3{{grid-column:1/-1;margin:0}}
.tabbed .pane>h3{{display:none}}
.pane>div{{min-width:0}}
.note{{font-size:13px;margin:12px 0 0}}

.samples{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(270px,100%),1fr));gap:14px;margin-top:12px}}
.samples article{{min-width:0;border:1px solid var(--rule);border-radius:10px;background:var(--panel);padding:12px 14px}}
.samples article.taken{{border-color:var(--take-rule);background:var(--take)}}
pre{{margin:0;font:12.5px/1.45 ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;white-space:pre-wrap;
overflow-wrap:anywhere;tab-size:4}}
.samples p{{font-size:12px;color:var(--soft);margin:8px 0 0}}
pre .same{{color:var(--soft)}}
.prompt{{border-left:3px solid var(--rule);padding:2px 0 2px 12px;max-width:76ch}}
dl.how{{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:6px 22px;margin:12px 0 0}}
.how dt{{color:var(--soft)}}
.how dd{{margin:0;overflow-wrap:anywhere;max-width:80ch}}

#tip{{position:fixed;z-index:9;max-width:min(400px,calc(100vw - 20px));padding:9px 12px;border-radius:9px;font-size:13px;
background:var(--panel);color:var(--ink);border:1px solid var(--rule);box-shadow:0 6px 28px rgb(0 0 0/.25);
white-space:pre-line;overflow-wrap:anywhere;pointer-events:none;font-variant-numeric:tabular-nums}}
#tip[hidden]{{display:none}}

@media (max-width:1120px){{
.numbers{{font-size:13px}}.numbers th,.numbers td{{padding:6px 5px}}.numbers thead th{{font-size:12px;white-space:normal}}
.numbers .badge{{display:block;margin:0}}
.pane{{grid-template-columns:minmax(0,1fr)}}
}}
@media (max-width:800px){{
.numbers{{font-size:14px}}.numbers .badge{{display:inline-block;margin-left:8px}}
.numbers thead{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
.numbers,.numbers tbody{{display:block}}
.numbers tr{{display:grid;grid-template-columns:repeat(auto-fill,minmax(92px,1fr));gap:6px 14px;padding:12px 0;
border-bottom:1px solid var(--rule)}}
.numbers tbody th,.numbers td{{display:block;border:0;padding:0;text-align:left}}
.numbers tbody th{{grid-column:1/-1}}
.numbers td::before{{content:attr(data-name);display:block;font-size:12px;color:var(--soft)}}
.numbers td:empty{{display:none}}
.numbers tr.failed td{{grid-column:1/-1}}.numbers tr.failed td::before{{display:none}}
.numbers tr.taken{{margin:0 -12px;padding:12px;border-radius:10px}}
.numbers tr.taken th:first-child{{box-shadow:none;padding:0}}
}}
@media (max-width:640px){{
body{{padding:18px 16px 40px;font-size:14px}}
h1{{font-size:21px}}h2{{font-size:17px;margin-top:34px}}
.take{{padding:14px 16px}}.take h2{{font-size:18px}}
.figures{{grid-template-columns:1fr 1fr;gap:10px 16px}}.figures dd{{font-size:18px}}
.frame{{height:340px;margin:0 8px 0 44px}}.axis.x{{margin-left:44px}}
.label.wide{{display:none}}.label.narrow{{display:block}}
.tick{{font-size:11px}}.tick.x.odd{{display:none}}
.map col.names{{width:34px}}.scale i{{width:14px}}
.map th{{font-size:11px;padding:0 1px}}.map td{{font-size:11px}}
.worst .extra{{display:none}}
.worst th,.worst td{{padding:6px}}
.bars li{{grid-template-columns:minmax(0,7em) minmax(0,1fr) 5.6em}}
dl.how{{grid-template-columns:minmax(0,1fr);gap:0}}.how dd{{margin-bottom:10px}}
}}
@media print{{.switch,.tabs{{display:none!important}}.pane[hidden]{{display:grid}}.tabbed .pane>h3{{display:block}}}}
"""

SCRIPT = """
"use strict";
const tip=document.getElementById("tip");
let owner=null;
function place(){
 const box=owner.getBoundingClientRect(),own=tip.getBoundingClientRect();
 const left=Math.min(Math.max(10,box.left+box.width/2-own.width/2),document.documentElement.clientWidth-own.width-10);
 const below=box.bottom+8,above=box.top-own.height-8;
 tip.style.left=left+"px";
 tip.style.top=Math.max(8,below+own.height>innerHeight-8&&above>8?above:below)+"px";
}
function show(event){
 owner=event.target.closest&&event.target.closest("[data-tip]");
 tip.hidden=!owner;
 if(owner){tip.textContent=owner.dataset.tip;place()}
}
for(const name of ["mouseover","focusin","click"])document.addEventListener(name,show);
document.addEventListener("focusout",()=>{tip.hidden=true});
document.addEventListener("scroll",()=>{
 if(tip.hidden)return;
 if(owner===document.activeElement)place();else tip.hidden=true;
});
document.addEventListener("keydown",event=>{if(event.key==="Escape")tip.hidden=true});

for(const map of document.querySelectorAll(".map")){
 const cells=[...map.querySelectorAll("td[data-tip]")];
 cells.forEach((cell,index)=>{cell.tabIndex=index?-1:0});
 map.addEventListener("keydown",event=>{
  const cell=event.target.closest("td");
  const step={ArrowLeft:[-1,0],ArrowRight:[1,0],ArrowUp:[0,-1],ArrowDown:[0,1]}[event.key];
  if(!cell||!step)return;
  event.preventDefault();
  const row=cell.parentElement,rows=[...row.parentElement.rows],column=[...row.cells].indexOf(cell);
  const next=rows[rows.indexOf(row)+step[1]];
  const found=next&&next.cells[Math.min(column+step[0],next.cells.length-1)];
  if(found&&found.dataset.tip){cell.tabIndex=-1;found.tabIndex=0;found.focus()}
 });
}

for(const group of document.querySelectorAll(".stores")){
 const tabs=[...group.querySelectorAll("[role=tab]")],panes=[...group.querySelectorAll(".pane")];
 if(!tabs.length)continue;
 const choose=(index,focus)=>{
  tabs.forEach((tab,number)=>{
   tab.setAttribute("aria-selected",number===index);tab.tabIndex=number===index?0:-1;panes[number].hidden=number!==index});
  if(focus)tabs[index].focus();
 };
 panes.forEach((pane,number)=>{pane.setAttribute("role","tabpanel");pane.setAttribute("aria-labelledby",tabs[number].id)});
 tabs.forEach((tab,number)=>{
  tab.addEventListener("click",()=>choose(number,false));
  tab.addEventListener("keydown",event=>{
   const step={ArrowLeft:-1,ArrowRight:1}[event.key];
   if(step)choose((number+step+tabs.length)%tabs.length,true)})});
 group.querySelector(".tabs").hidden=false;
 group.classList.add("tabbed");
 choose(Math.max(0,tabs.findIndex(tab=>tab.dataset.first)),false);
}
document.documentElement.dataset.ready="yes";
"""
