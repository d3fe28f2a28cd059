"""Seeded faults in web/: each one replaces a text in a file. Plain data; tests/web/test_web_faults.py says who notices.

`modules` faults are noticed by the pure modules' tests under Node, `looks` faults by the panel over a made-up run,
`report` faults by the Report node in a real server.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class WebFault:
    name: str
    file: str
    text: str
    instead: str


MODULES = (
    WebFault(
        *("planned beside the real ones", "model.js"),
        *("filter((component) => !isLoaded(component))", "filter(() => true)"),
    ),
    WebFault(
        *("another file taken for the same component", "model.js"),
        *("return first.model === second.model || ", "return true || "),
    ),
    WebFault("events without end", "model.js", ".slice(-KEPT_EVENTS)", ""),
    WebFault("stored events twice", "model.js", "!known.has(keyOf(event))", "true"),
    WebFault(
        *("a message about an unknown component goes unnoticed", "model.js"),
        *("stale: components.some(isNew)", "stale: false"),
    ),
    WebFault("passes that do not follow are drawn as one", "model.js", "const isNext = ", "const isNext = true || "),
    WebFault(
        "the widgets of all nodes are sent", "prompt.js", "of read ? node.widgets ?? [] : []", "of node.widgets ?? []"
    ),
    WebFault("links of subgraphs lead outside", "prompt.js", "entry.id.replace(/[^:]*$/, '') + ", "'' + "),
    WebFault(
        *("options in the order in which they were set", "graph_options.js"),
        *("sorted(withoutUnset(options))", "withoutUnset(options)"),
    ),
    WebFault("a GB of 1024", "format.js", "GB = 1e9", "GB = 2 ** 30"),
    WebFault(
        *("less and more confused", "explain.js"),
        *("value > 0 ? '+' : '−'", "value < 0 ? '+' : '−'"),
    ),
    WebFault("what others hold is forgotten", "memory_bar.js", "Math.max(0, free - ", "Math.max(0, total - "),
    WebFault("reasons in English only", "words.js", "return isKnown ? ", "return false ? "),
    WebFault(
        "a sentence of two languages", "words.js", "sentence(say, value, null)", "sentence(say, value, value.code)"
    ),
)

LOOKS = (
    WebFault("texts too pale", "layerwise_offload.css", "var(--lwo-text) 68%", "var(--lwo-text) 25%"),
    WebFault(
        *("numbers cut off", "layerwise_offload.css"),
        *(".lwo-number { font-size: 17px;", ".lwo-number { overflow: hidden; font-size: 60px;"),
    ),
    WebFault("stalls not drawn", "timeline.js", ", ['stall', 'stall']]", "]"),
    WebFault("keys do not move the focus", "dom.js", "next.focus();", ""),
    WebFault("a layer in flight shown as offloaded", "placement_map.js", "F: 'in_flight'", "F: 'offloaded'"),
    WebFault("a toast for what the user cannot act on", "node_widgets.js", "message.to_do)", "message.warnings)"),
    WebFault("a toast for each", "node_widgets.js", "if (!pending.length) setTimeout(", "setTimeout("),
    WebFault(
        "a canvas without a name", "timeline.js", "setAttribute(canvas, 'aria-label',", "void (canvas, 'aria-label',"
    ),
    WebFault("the language ignored", "words.js", "['en', 'zh', 'ja']", "['en']"),
    WebFault(
        "something from elsewhere",
        "layerwise_offload.js",
        "async init() {",
        "async init() { new Image().src = 'http://192.0.2.1/x.png';",
    ),
)

REPORT = (
    WebFault("a long report makes its node grow", "layerwise_offload.css", "contain: size; ", ""),
    WebFault("the wheel is left to the graph", "node_text.js", ", 'data-capture-wheel': 'true'", ""),
    WebFault(
        *("another tab's report is forgotten", "layerwise_offload.js"),
        *("onNodeOutputsUpdated: (outputs) => nodes.restored(outputs),", ""),
    ),
)
