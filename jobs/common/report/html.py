"""The page that a report is: escaping, tables, figures, and one style sheet for light, dark, narrow screens and print.

What these functions return is HTML, with every value in it escaped; a job builds sections of its own from them.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.common.formatting import shown


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report under a heading. `html` is put in as it is: build it with the functions of this module."""

    title: str
    html: str


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """Rows of values; all columns but the first are numbers, set to the right."""
    head = "".join(f"<th scope=col>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><th scope=row>{escape(shown(row[0]))}</th>{''.join(f'<td>{escape(shown(v))}</td>' for v in row[1:])}</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, object]) -> str:
    """Names and values, in columns where there is room."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(shown(v))}</dd></div>" for k, v in values.items())
    return f'<dl class="facts">{rows}</dl>'


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """The few numbers that matter: (name, value, note)."""
    items = (
        f"<div><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></div>"
        for name, value, note in values
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def figure(content: str, caption: str, *, above: bool = False) -> str:
    """A chart or an image (HTML), and what it shows (plain text): a sentence below it, or a title above."""
    title = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure class="titled">{title}{content}</figure>' if above else f"<figure>{content}{title}</figure>"


def figures(items: Sequence[str]) -> str:
    """Side by side where there is room."""
    return f'<div class="figures">{"".join(items)}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document. title: plain text. lead: HTML below it."""
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    parts = "".join(
        f'<section id="s{i}"><h2>{escape(section.title)}</h2>{section.html}</section>' for i, section in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1>{lead}<nav>{links}</nav></header>{parts}</main></body></html>\n"
    )


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and nothing runs, whatever names the data has put into the page."""

_STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--panel:#fff;--ink:#1b1f24;--soft:#5a6472;--line:#d5dae1;--accent:#0b62c4;
--good:#1a7f4b;--bad:#b3261e;--series-0:#0b62c4;--series-1:#d9730d;--series-2:#1a7f4b;--series-3:#a02bb3;
--series-4:#b3261e;--series-5:#0b8a94;--series-6:#7a5c00;--series-7:#5a6472}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--panel:#1c2026;--ink:#e6e9ee;--soft:#9aa5b4;--line:#3a424d;
--accent:#6fb1ff;--good:#5fcf95;--bad:#ff8a80;--series-0:#6fb1ff;--series-1:#ffab5e;--series-2:#5fcf95;--series-3:#dd8bee;
--series-4:#ff8a80;--series-5:#56d0da;--series-6:#e2c15c;--series-7:#9aa5b4}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 14px}
h3{font-size:.95rem;margin:22px 0 8px}
p{margin:0 0 10px}
.note,figcaption,small,caption,.lead{color:var(--soft)}
.note,figcaption,caption{font-size:.85rem}
.status{display:inline-block;padding:0 9px;margin-right:8px;border:1px solid;border-radius:99px;font-size:.8rem;
font-weight:600;color:var(--good)}
.status.other{color:var(--bad)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:16px 0 0;font-size:.9rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
section{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:20px;margin-top:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:18px}
.tiles div{border:1px solid var(--line);border-radius:8px;padding:10px 14px;min-width:0}
.tiles span,.tiles small{display:block;font-size:.8rem;color:var(--soft)}
.tiles strong{display:block;font-size:1.4rem;line-height:1.3;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin-bottom:6px}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:6px}
th,td{padding:4px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:600}
th:first-child{text-align:left;font-weight:500;padding-left:0}
table:not(.confusion) th:first-child{white-space:normal;overflow-wrap:break-word}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:0 28px;margin:0;font-size:.87rem}
.facts div{display:flex;justify-content:space-between;gap:14px;border-bottom:1px solid var(--line);padding:3px 0;min-width:0}
.facts+.note{margin-top:12px}
.facts dt{color:var(--soft);flex:none;max-width:72%;overflow-wrap:anywhere}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere;min-width:0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:18px}
figure{margin:0;min-width:0}
figure svg{display:block;width:100%;height:auto;max-width:620px;font-family:inherit}
figcaption{margin-top:4px}
.broad svg{max-width:none}
.titled figcaption{margin:0 0 4px;color:var(--ink);font-weight:600}
.figures>*{min-width:0}
.confusion td,.confusion thead th{text-align:center;padding:4px 7px;min-width:38px;border:1px solid var(--panel)}
.confusion tbody th,.confusion th:first-child{border:0}
.confusion td.hit{background:color-mix(in srgb,var(--series-0) calc(var(--v)*55%),transparent)}
.confusion td.miss{background:color-mix(in srgb,var(--series-4) calc(20% + var(--v)*60%),transparent)}
.confusion td.none{color:var(--soft)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:14px}
.pictures img{width:112px;height:112px;object-fit:contain;image-rendering:pixelated;background:var(--paper);
border:1px solid var(--line);border-radius:4px;display:block}
.pictures img.large{image-rendering:auto}
.pictures figcaption{overflow-wrap:anywhere;line-height:1.35}
.pictures b{color:var(--ink);font-weight:600}
.events{margin:14px 0 0;padding-left:20px;font-size:.87rem;overflow-wrap:anywhere}
code{font:.87rem ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
@media (max-width:560px){main{padding:18px 10px 40px}section{padding:14px 12px}h1{font-size:1.35rem}
th:first-child{white-space:normal}th,td{padding:4px 6px}.confusion td,.confusion thead th{padding:4px 3px;min-width:28px}
.tiles{grid-template-columns:repeat(2,1fr)}.facts{grid-template-columns:1fr}
.pictures{grid-template-columns:repeat(auto-fill,minmax(88px,1fr));gap:10px}.pictures img{width:88px;height:88px}}
@media print{body{background:#fff;font-size:11px}main{max-width:none;padding:0}nav{display:none}
section{border:0;border-top:1px solid var(--line);border-radius:0;padding:12px 0}
.figures,.facts{grid-template-columns:1fr 1fr}table{font-size:9px}th,td{padding:2px 4px}
figure,tr,.tiles div{break-inside:avoid}h2{break-after:avoid}.wide{overflow:visible}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
