"""The part of a run's report on the readings of lines."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from torch import nn

from mdlstm_tk._util.text import printable
from mdlstm_tk.data.task import SPLITS, Batch, Split, Task
from mdlstm_tk.kinds.panels import Panel, draw_input, visible
from mdlstm_tk.text.reading import describe_lines, evaluate_lines

WORST_LINES, MOST_ROWS = 20, 15
TEMPLATE = """
{% macro marked(edits, side, tag) -%}
{%- for edit in edits if edit[side] -%}
{%- if edit.is_error %}<{{ tag }}>{{ edit[side] | replace(" ", "␣") }}</{{ tag }}>
{%- else %}{{ edit[side] }}{% endif -%}
{%- endfor -%}
{%- endmacro %}
{% macro character(text) %}{% if text %}{{ text | replace(" ", "␣") }}{% else %}<i>nothing</i>{% endif %}
{% endmacro %}
<section id="texts">
<h2>Texts</h2>
<p>{{ edits }} edits turn the texts that were read of the {{ split }} data into the true ones.</p>
{% if intervals.character_error %}
<table>
<caption>Intervals of 95 %, by bootstrap over {{ groups }} pages or single lines.</caption>
<tr><th scope="col">error</th><th scope="col">from</th><th scope="col">to</th></tr>
{% for name, ends in intervals.items() if ends %}
<tr><th scope="row">{{ name | replace("_", " ") }}</th>
{% for end in ends %}<td>{{ "%.1f %%" % (100 * end) }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if confusions %}
<table>
<caption>Most frequent confusions.</caption>
<tr><th scope="col">truth</th><th scope="col">read as</th><th scope="col">times</th></tr>
{% for truth, read, count in confusions[:most] %}
<tr><th scope="row">{{ character(truth) }}</th><td>{{ character(read) }}</td><td>{{ count }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if pages %}
<table>
<caption>Pages with the most errors.</caption>
<tr><th scope="col">page</th><th scope="col">lines</th><th scope="col">character error</th></tr>
{% for page, error, count in pages[:most] %}
<tr><th scope="row">{{ page }}</th><td>{{ count }}</td><td>{{ "%.1f %%" % (100 * error) }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h3>Confidences</h3>
<p>Of characters that are read with a confidence of 90 %, nine in ten should be right. The expected
calibration error, the mean distance between the two, is {{ "%.3f" % calibration_error }}.</p>
<table>
<tr><th scope="col">mean confidence</th><th scope="col">right</th><th scope="col">characters</th></tr>
{% for confidence, right, count in reliability %}
<tr><td>{{ "%.1f %%" % (100 * confidence) }}</td><td>{{ "%.1f %%" % (100 * right) }}</td>
<td>{{ count }}</td></tr>
{% endfor %}
</table>
{% if worst %}
<h3>Lines with the largest errors</h3>
<p>The reading stands above the truth: <del>wrong</del> characters are struck out, and the <ins>right</ins>
ones underlined.</p>
{% for line, panel in worst %}
<figure>
<img src="{{ panel.url }}" alt="{{ panel.name }}">
<figcaption>
<bdi dir="{{ direction }}">{{ marked(line.edits, "read", "del") }}</bdi><br>
<bdi dir="{{ direction }}">{{ marked(line.edits, "truth", "ins") }}</bdi><br>
<small><bdi>{{ line.name }}</bdi> · {{ "%.1f %%" % (100 * line.character_error) }}</small>
</figcaption>
</figure>
{% endfor %}
{% endif %}
</section>
"""


def text_sections(network: nn.Module, task: Task) -> str:
    """HTML about how a network reads the data that influenced it least; "" if none are held out."""
    split = next((each for each in reversed(SPLITS) if each != "train" and task.count(each)), None)
    if split is None:
        return ""
    lines = evaluate_lines(network, task, split)
    ranking = sorted(range(len(lines)), key=lambda k: lines[k].character_error, reverse=True)
    wrong = [k for k in ranking if lines[k].character_error > 0][:WORST_LINES]
    # Names and texts are the user's: they are escaped, and control characters in them spelt out.
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_visible)
    return environment.from_string(TEMPLATE).render(
        **describe_lines(lines),
        split=split,
        most=MOST_ROWS,
        direction=task.spec.decoding.get("text_direction") or "ltr",
        worst=[(lines[k], _panel(task, split, k, lines[k].truth)) for k in wrong],
    )


def _visible(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)


def _panel(task: Task, split: Split, index: int, truth: str) -> Panel:
    batch = sample(task, split, index)
    return Panel(truth, draw_input(visible(batch.x, batch)))


def sample(task: Task, split: Split, index: int) -> Batch:
    """A sample of a split as a batch of one, in the order of `Task.evaluation_batches`."""
    step, place = divmod(index, task.evaluation_batch)
    return task.batch(0, step, task.evaluation_batch, split, slice(place, place + 1))
