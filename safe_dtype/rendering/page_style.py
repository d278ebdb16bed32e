"""How every page looks that is written whole: light and dark, on a wide screen and on a phone, and on paper."""

from __future__ import annotations

_LIGHT = (
    "--paper:#fff;--ink:#1c2126;--soft:#56616b;--line:#cdd5dc;--wash:#f3f6f8;"
    "--first:#b3552d;--second:#1f6f8b;--third:#5b8c5a;--good:#23693f;--fair:#7a5600;--bad:#a5231b"
)
_DARK = (
    "--paper:#14181c;--ink:#e4e9ed;--soft:#a3aeb8;--line:#3b454e;--wash:#1d2328;"
    "--first:#e8946a;--second:#63b8d6;--third:#8fc48e;--good:#83d09f;--fair:#e3bd62;--bad:#f59188"
)

STYLE = f"""
:root{{{_LIGHT};color-scheme:light dark}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:64rem;padding:1.2rem 1.2rem 3rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .6rem}}
h2{{font-size:1.15rem;margin:2.2rem 0 .4rem;padding-top:.8rem;border-top:1px solid var(--line)}}
h3{{font-size:1rem;margin:1.4rem 0 .3rem}}
p{{margin:.4rem 0 .8rem;max-width:46rem}}
.lead{{font-size:1.08rem}}
.soft,figcaption,footer{{color:var(--soft);font-size:.9rem}}
code{{font:.92em/1.4 ui-monospace,monospace;background:var(--wash);padding:.05em .3em;border-radius:.2em}}
pre{{background:var(--wash);padding:.6rem .8rem;border-radius:.3rem;overflow-x:auto}}
pre code{{padding:0;background:none}}
footer{{margin-top:3rem;border-top:1px solid var(--line);padding-top:.6rem}}
.tag{{font-weight:600}}
.tag.good{{color:var(--good)}}.tag.fair{{color:var(--fair)}}.tag.bad{{color:var(--bad)}}.tag.none{{color:var(--soft)}}
table{{border-collapse:collapse;width:100%;margin:.6rem 0 1rem;font-size:.9rem}}
th,td{{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);
overflow-wrap:normal}}
th:last-child,td:last-child{{padding-right:0;overflow-wrap:anywhere}}
td.wide{{min-width:15rem}}
summary{{cursor:pointer}}
th{{color:var(--soft);font-weight:600}}
td.number,th.number{{text-align:right;font-variant-numeric:tabular-nums}}
td.number{{white-space:nowrap}}
figure{{margin:1rem 0}}
figcaption{{margin-top:.5rem;max-width:46rem}}
.keys{{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem;margin:.2rem 0 .6rem}}
.key::before{{content:"";display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:.15em;
background:var(--of)}}
.chart{{display:grid;grid-template-columns:fit-content(17rem) minmax(9rem,1fr) max-content;column-gap:.7rem;
font-size:.85rem;line-height:1.2}}
.chart .name{{grid-column:1;text-align:right;padding:.15rem 0;overflow-wrap:anywhere}}
.chart .track{{grid-column:2;position:relative;min-height:1.3rem}}
.chart .figure{{grid-column:3;padding:.15rem 0;font-variant-numeric:tabular-nums;white-space:nowrap}}
.chart .top,.chart .axis{{grid-column:2;position:relative}}
.chart .axis{{height:1.3rem;color:var(--soft)}}
.chart .grid{{grid-column:2;position:relative;pointer-events:none;z-index:1}}
.chart .axis span{{position:absolute;transform:translateX(-50%);white-space:nowrap}}
.chart sup{{font-size:.75em;line-height:0}}
.bar{{position:absolute;border-radius:0 2px 2px 0;background:var(--of);min-width:2px}}
.rejected .bar,.bar.rejected{{opacity:.4}}
.tick{{position:absolute;top:0;bottom:0;width:1px;background:var(--line);opacity:.55}}
.mark{{position:absolute;top:0;bottom:0;border-left:2px dashed var(--bad)}}
.word{{position:absolute;white-space:nowrap;color:var(--bad);padding:0 .35rem}}
.k0{{--of:var(--first)}}.k1{{--of:var(--second)}}.k2{{--of:var(--third)}}
.chosen{{font-weight:700}}
.plot{{display:grid;grid-template-columns:max-content 1fr;column-gap:.5rem;font-size:.85rem}}
.plot .scale{{position:relative;height:15rem;min-width:3.2rem;color:var(--soft)}}
.plot .scale span{{position:absolute;right:0;transform:translateY(-50%)}}
.plot .area{{position:relative;height:15rem}}
.plot svg{{position:absolute;inset:0;width:100%;height:100%;overflow:visible}}
.plot svg *{{vector-effect:non-scaling-stroke;fill:none}}
.plot .feet{{grid-column:2;position:relative;height:1.4rem;color:var(--soft)}}
.plot .feet span{{position:absolute;white-space:nowrap;transform:translateX(-50%)}}
.plot .feet span:first-child{{transform:none}}.plot .feet span:last-child{{transform:translateX(-100%)}}
.curve{{stroke:var(--of);stroke-width:1.3}}
.lines{{stroke:var(--line);stroke-width:1}}
.limit{{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}}
@media (max-width:66rem){{td.wide{{min-width:8rem}}th,td{{padding-right:.6rem}}}}
@media (max-width:54rem){{
body{{padding:.8rem .9rem 2rem}}
thead{{display:none}}
tr{{display:block;padding:.4rem 0;border-bottom:1px solid var(--line)}}
td,td.number{{display:grid;grid-template-columns:7.5rem minmax(0,1fr);gap:.6rem;border:0;padding:.1rem 0;text-align:left;
white-space:normal;overflow-wrap:anywhere}}
td::before{{content:attr(data-title);color:var(--soft)}}
td:empty{{display:none}}
td.wide{{min-width:0}}
tr:has(td:nth-child(2):last-child){{display:flex;justify-content:space-between;gap:1rem}}
tr:has(td:nth-child(2):last-child) td{{display:block}}
tr:has(td:nth-child(2):last-child) td::before{{content:none}}
.chart .top{{grid-column:1/-1;height:auto!important;padding-bottom:.3rem}}
.word{{display:block;position:static;white-space:normal;padding:0}}
.chart .axis span:nth-child(even){{display:none}}
.chart{{column-gap:.45rem;font-size:.78rem;grid-template-columns:fit-content(6.5rem) minmax(6rem,1fr) fit-content(6.5rem)}}
.chart .figure{{white-space:normal}}
.plot .scale,.plot .area{{height:11rem}}
}}
@media print{{body{{max-width:none}}h2{{break-after:avoid}}figure{{break-inside:avoid}}}}
"""
