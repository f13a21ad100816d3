"""The style of a survey's page: one sheet, colours as variables, light by default and dark where the reader asks."""

STYLE = """
:root{--page:#f6f4ef;--card:#fff;--ink:#1e2430;--soft:#667085;--line:#e5e1d8;--main:#2b7a8c;--fill:#2b7a8c38;
--warm:#c8553d;--fine:#2d7d52;--rail:#efece5}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--card:#1d2129;--ink:#ebe8e1;--soft:#9aa3b2;--line:#303641;
--main:#5fb7c9;--fill:#5fb7c94d;--warm:#f08a6e;--fine:#6cc592;--rail:#2a303a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 18px 48px}
h1{font-size:clamp(1.5rem,4vw,2.2rem);line-height:1.2;margin:.1em 0 .2em;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 .6em}h3{font-size:1rem;margin:0 0 .6em}
.kind{margin:0;color:var(--main);font-weight:600;letter-spacing:.04em}
.path,.note,.none,footer{color:var(--soft);font-size:.88rem}.path{margin:0;overflow-wrap:anywhere}
.note,.none{margin:.3em 0}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.verdict{border:1px solid var(--line);border-left:5px solid var(--fine);background:var(--card);border-radius:10px;
padding:10px 14px;margin:18px 0}.verdict p{margin:0;font-weight:600}.verdict.fine b{color:var(--fine)}
.verdict.bad{border-left-color:var(--warm)}.verdict.bad>p b{color:var(--warm)}
.verdict ul{margin:.5em 0 0;padding-left:1.2em;font-size:.92rem;overflow-wrap:anywhere}
.grid{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));margin:16px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px;min-width:0}
.all{grid-column:1/-1}
.flow{columns:3 320px;column-gap:16px;margin-bottom:16px}.flow .card{break-inside:avoid;margin-bottom:16px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:500}tr>:first-child{text-align:left;padding-left:0}
tbody tr:last-child>*{border-bottom:0}
td.wide{width:34%;min-width:90px}td.hot{color:var(--warm);font-weight:700}
td.text,th.text{text-align:left;white-space:normal;min-width:16em}td.text code{color:var(--soft)}
.narrow{width:auto}.narrow th,.narrow td{padding-right:28px}
.codes td:nth-child(3),.codes td:nth-child(2),.codes th:nth-child(3),.codes th:nth-child(2){text-align:left}
.codes td:first-child{font-size:1.2rem;color:var(--warm)}
.rail{display:block;height:10px;border-radius:5px;background:var(--rail);overflow:hidden}
.rail i{display:block;height:100%;min-width:2px;border-radius:5px;background:var(--main)}
.splits{margin-top:26px}.splits>input{position:absolute;opacity:0;pointer-events:none}
.tabs{display:flex;gap:6px;overflow-x:auto;padding:4px 2px}
.tabs label{padding:7px 16px;border-radius:999px;border:1px solid var(--line);background:var(--card);cursor:pointer;
font-weight:600;white-space:nowrap}
.panel,.print{display:none}.panel>.card{margin-bottom:16px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin:16px 0}
.figures div{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:12px 16px}
.figures b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.figures span{color:var(--soft);font-size:.9rem}
svg{display:block;width:100%;height:auto}
.bar{fill:var(--main)}.hit{fill:transparent}g:hover .bar{fill:var(--warm)}
line.grid{stroke:var(--line);stroke-width:1}.median{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 3}
.tick{fill:var(--soft);font-size:11px}
.ranked{list-style:none;margin:0;padding:0}
.ranked li{display:grid;grid-template-columns:1fr auto;column-gap:10px;padding:4px 0;font-size:.93rem}
.ranked .name{overflow-wrap:anywhere}.ranked .end{color:var(--soft);font-variant-numeric:tabular-nums}
.ranked .rail{grid-column:1/-1;height:7px}
.tiles{list-style:none;display:grid;grid-template-columns:repeat(auto-fill,minmax(52px,1fr));gap:8px;
margin:0 0 12px;padding:0}
.tile{position:relative;height:66px;border:1px solid var(--line);border-radius:10px;overflow:hidden;text-align:center}
.tile i{position:absolute;inset:auto 0 0;background:var(--fill)}
.tile b,.tile small{position:relative;display:block}
.tile b{font-size:1.35rem;line-height:1.3;margin-top:6px;font-weight:600}
.tile small{font-size:.7rem;color:var(--soft)}
.tile.odd{border:2px solid var(--warm)}.tile.odd b{color:var(--warm)}
details{margin:.3em 0}summary{cursor:pointer;font-weight:600;padding:4px 0}
footer{margin-top:30px;border-top:1px solid var(--line);padding-top:12px}
@media print{.panel,.print{display:block}.tabs{display:none}.card{break-inside:avoid}body{background:#fff}}
"""
