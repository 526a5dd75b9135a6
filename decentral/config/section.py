"""What all sections of the configuration have in common. Knows none of them."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Values that cannot be changed; an unknown key and a value of another type are errors."""

    # strict: neither "3" nor true is a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
