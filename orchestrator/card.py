"""The card that goes with an exported model."""

import re

from analysis import units
from analysis.frontier import FrontierPoint
from orchestrator.config import SweepConfig


def model_card(point: FrontierPoint, config: SweepConfig) -> str:
    """Returns Markdown: the model, its results, its recipe, and how to load it.

    Names and values stand there as they are, whatever they would mean as Markdown or HTML.
    """
    measured = point.measurement
    name = config.backbone.model
    trusted = f", factories=[{name!r}]" if ":" in name else ""
    recipe = "\n".join(
        f"| {plain(field)} | {plain(value)} |" for field, value in sorted(point.recipe.items())
    )
    return f"""# {plain(name)} on {plain(config.task.source)}

A point of the compute-optimal frontier of the prunetune sweep `{config.name}`: trial
{point.number}, rung {point.rung}.

| measured | value |
|---|---|
| validation error | {units.percent(measured.val_error)} |
| error to expect on new images | {units.percent(point.expected_error)} |
| validation error with another seed | {units.percent(point.confirming_error)} |
| test error | {units.percent(measured.test_error)} |
| training compute | {units.flops(measured.train_flops)} |
| inference compute, an image | {units.flops(measured.inference_flops)} |
| parameters | {units.count(measured.params)} |
| of them updated | {units.count(measured.updated_params)} |

The validation error, and what is expected of it as the lowest of many, was used to select this
point; the test error was not.

```python
from trainables.export import load_exported

model = load_exported("path/of/this/folder"{trusted})
model.predict(images)  # uint8 RGB images [B, H, W, 3], square -> class probabilities [B, classes]
model.module           # the torch module: takes model.inputs(images), gives logits
```

## Recipe

| field | value |
|---|---|
{recipe}
"""


def plain(value: object) -> str:
    """Returns the text of `value` as Markdown that shows it and nothing else, on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Underscores within words mean nothing, and names of fields are full of them.
    return re.sub(r"[\\`*\[\]|#~$@]|://|(?<![^\W_])_|_(?![^\W_])", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Escapes one mark; a scheme's `://`, of which a reader would make a link, by its colon."""
    return "&#58;//" if found[0] == "://" else f"\\{found[0]}"
