"""The `keep:` of the stages that compress: one rule out of several."""

from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]


class OneRule(BaseModel, frozen=True, extra="forbid"):
    """Settings of which exactly one is given."""

    example: ClassVar[str]
    """As a recipe would write it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = self._given()
        if len(given) != 1:
            *names, last = (f"`{name}`" for name in type(self).model_fields)
            raise ValueError(
                f"give exactly one of {', '.join(names)} and {last}, such as `keep: {{{self.example}}}`; "
                f"given: {' and '.join(given) or 'none'}"
            )
        return self

    def _given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)

    @property
    def measure(self) -> str:
        """The rule's name."""
        return next(iter(self._given()))

    @property
    def share(self) -> float:
        """What the rule asks for."""
        return self._given()[self.measure]

    def __str__(self) -> str:
        return f"`keep: {{{self.measure}: {'true' if self.share is True else f'{self.share:g}'}}}`"
