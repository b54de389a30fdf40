"""The texts of a bundle, from the templates beside this module."""

import json
from collections.abc import Sequence
from pathlib import Path


def rendered(template: str, **values: object) -> str:
    """A template with `values` put in as they are; `quoted` makes a string of a text, `sizes` words of a shape."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": _quoted, "sizes": _sizes, "figure": "{:.4g}".format}
    return environment.get_template(template).render(**values)


def _quoted(text: str) -> str:
    # Protobuf's text format knows JSON's escapes of quotation marks, backslashes and line breaks.
    return json.dumps(text, ensure_ascii=False)


def _sizes(shape: Sequence[int | None]) -> str:
    return " × ".join("any" if size is None else str(size) for size in shape)
